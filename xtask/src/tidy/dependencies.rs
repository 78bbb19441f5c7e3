//! Dependencies point down only: binaries → I/O crates → pure crates; binaries never import each other; `host` and `k8s-client` know no
//! product types (docs/architecture.md, first invariant).

use serde_json::Value;

/// Where a crate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    /// Types and functions without effects.
    Pure,
    /// Effects and clients without product types.
    Io,
    /// A Kubernetes component as a library, imported by the multi-call binary alone.
    Component,
    /// An executable.
    Binary,
    /// Builds and tests; never in the image.
    Tool,
}

const LAYERS: &[(&str, Layer)] = &[
    ("node-ipc", Layer::Pure),
    ("verity", Layer::Pure),
    ("slots", Layer::Pure),
    ("tpm", Layer::Pure),
    ("machine-config", Layer::Pure),
    ("machine-api", Layer::Pure),
    ("pki", Layer::Pure),
    ("k8s-schema", Layer::Pure),
    ("k8s-descriptions", Layer::Pure),
    ("cel", Layer::Pure),
    ("host", Layer::Io),
    ("nftables", Layer::Io),
    ("k8s-client", Layer::Io),
    ("component-base", Layer::Io),
    ("kube-apiserver", Layer::Component),
    ("kube-scheduler", Layer::Component),
    ("kube-controller-manager", Layer::Component),
    ("cloud-controller-manager", Layer::Component),
    ("kubelet", Layer::Component),
    ("cluster-dns", Layer::Component),
    ("init", Layer::Binary),
    ("logd", Layer::Binary),
    ("machined", Layer::Binary),
    ("kube", Layer::Binary),
    ("kube-proxy", Layer::Binary),
    ("pause", Layer::Binary),
    ("strakectl", Layer::Binary),
    ("k8s-schema-generate", Layer::Tool),
    ("image", Layer::Tool),
    ("qemu-tests", Layer::Tool),
    ("xtask", Layer::Tool),
    ("bench", Layer::Tool),
];

/// Product types: what `host` and `k8s-client` must not know.
const PRODUCT: &[&str] = &["node-ipc", "slots", "machine-config", "machine-api"];
/// Crates that do I/O by themselves: a pure crate names none of them.
const EFFECTS: &[&str] = &["tokio", "hyper", "hyper-util", "nix", "rustix", "rtnetlink", "etcd-client", "containerd-client"];

/// Complaints about the workspace's dependencies, from `cargo metadata`.
pub fn check(metadata: &Value) -> Vec<String> {
    let members: Vec<&str> = strings(&metadata["workspace_members"]);
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut complaints = Vec::new();
    for package in packages.iter().filter(|package| package["id"].as_str().is_some_and(|id| members.contains(&id))) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(layer) = layer_of(name) else {
            complaints.push(format!("crate {name} has no layer; add it to xtask/src/tidy/dependencies.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let wanted = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            complaints.extend(judge(name, layer, wanted, for_tests).map(|reason| format!("{name} depends on {wanted}: {reason}")));
        }
    }
    complaints
}

fn judge(name: &str, layer: Layer, wanted: &str, for_tests: bool) -> Option<&'static str> {
    let Some(below) = layer_of(wanted) else {
        let effect = layer == Layer::Pure && !for_tests && EFFECTS.contains(&wanted);
        return effect.then_some("a pure crate has no effects");
    };
    match (layer, below) {
        // What is built and what runs share their formats.
        (Layer::Tool, Layer::Tool | Layer::Pure) => None,
        (_, Layer::Tool) | (Layer::Tool, _) => Some("building and testing is apart from the product"),
        _ if for_tests => None,
        (_, Layer::Binary) => Some("binaries are never imported"),
        (Layer::Pure, Layer::Pure) => None,
        (Layer::Pure, _) => Some("a pure crate depends on pure crates only"),
        (Layer::Io, Layer::Pure | Layer::Io) if PRODUCT.contains(&wanted) => Some("host and k8s-client know no product types"),
        (Layer::Io, Layer::Component) => Some("dependencies point down"),
        (Layer::Component, Layer::Component) => Some("components know each other through the API only"),
        (Layer::Binary, Layer::Component) if name != "kube" => Some("components are started through kube"),
        _ => None,
    }
}

fn layer_of(name: &str) -> Option<Layer> {
    LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dependencies_that_point_up_are_named() {
        for (name, wanted, kind, allowed) in [
            ("machined", "host", "normal", true),
            ("machined", "kubelet", "normal", false),
            ("kube", "kubelet", "normal", true),
            ("kubelet", "kube-proxy", "normal", false),
            ("kubelet", "kube-apiserver", "normal", false),
            ("kubelet", "kube-apiserver", "dev", true),
            ("host", "machine-config", "normal", false),
            ("k8s-client", "k8s-schema", "normal", true),
            ("pki", "host", "normal", false),
            ("pki", "tokio", "normal", false),
            ("pki", "tokio", "dev", true),
            ("k8s-schema", "serde", "normal", true),
            ("xtask", "qemu-tests", "normal", true),
            ("xtask", "machined", "normal", false),
            ("image", "verity", "normal", true),
            ("image", "host", "normal", false),
            ("init", "image", "dev", false),
            ("machined", "strakectl", "normal", false),
            ("machined", "strakectl", "dev", true),
        ] {
            let kind = if kind == "normal" { Value::Null } else { json!(kind) };
            let metadata = json!({
                "workspace_members": ["the-id"],
                "packages": [{"id": "the-id", "name": name, "dependencies": [{"name": wanted, "kind": kind}]}],
            });
            assert_eq!(check(&metadata).is_empty(), allowed, "{name} -> {wanted}");
        }
    }

    #[test]
    fn a_crate_without_a_layer_is_named() {
        let metadata = json!({"workspace_members": ["x"], "packages": [{"id": "x", "name": "new", "dependencies": []}]});
        assert_eq!(check(&metadata), ["crate new has no layer; add it to xtask/src/tidy/dependencies.rs"]);
    }
}
