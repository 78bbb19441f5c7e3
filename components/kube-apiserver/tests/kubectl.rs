//! The server on a real etcd over TLS, driven by real kubectl.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use cluster::Cluster;

struct Shell(Cluster);

impl Shell {
    /// Runs kubectl, with something on its standard input; gives what it printed, errors included.
    fn run(&self, args: &[&str], input: &str) -> (bool, String) {
        let mut child = self.0.kubectl(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    }

    fn ok(&self, args: &[&str], input: &str) -> String {
        let (ok, out) = self.run(args, input);
        assert!(ok, "kubectl {args:?}: {out}");
        out
    }

    fn fails(&self, args: &[&str], input: &str, with: &str) {
        let (ok, out) = self.run(args, input);
        assert!(!ok && out.contains(with), "kubectl {args:?}: {out}");
    }
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: example.org/web:1
        ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80}]
";

#[test]
fn kubectl_creates_applies_watches_explains_and_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let k = Shell(Cluster::start(dir.path()));

    // What a new cluster has.
    assert!(k.ok(&["get", "namespaces"], "").contains("kube-node-lease"));
    // Its rules are gathered by the controller manager.
    assert!(k.ok(&["get", "clusterrole", "admin", "-o", "jsonpath={.aggregationRule}"], "").contains("aggregate-to-admin"));
    assert!(k.ok(&["get", "service", "kubernetes"], "").contains("10.96.0.1"));
    assert!(k.ok(&["get", "priorityclasses"], "").contains("2000001000"));

    // create, get, label selectors, patches
    k.ok(&["create", "configmap", "a", "--from-literal=x=1"], "");
    k.ok(&["label", "configmap", "a", "tier=one"], "");
    assert!(k.ok(&["get", "configmaps", "-l", "tier=one", "-o", "name"], "").contains("configmap/a"));
    assert_eq!(k.ok(&["get", "configmaps", "-l", "tier=two", "-o", "name"], "").trim(), "");
    k.ok(&["patch", "configmap", "a", "--type=json", "-p", r#"[{"op":"replace","path":"/data/x","value":"2"}]"#], "");
    k.ok(&["patch", "configmap", "a", "--type=merge", "-p", r#"{"data":{"y":"3"}}"#], "");
    assert_eq!(k.ok(&["get", "configmap", "a", "-o", "jsonpath={.data.x}{.data.y}"], ""), "23");
    k.fails(&["create", "configmap", "a"], "", "already exists");
    k.fails(&["get", "configmap", "none"], "", "NotFound");
    k.fails(&["create", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {'a/b': x}\n", "a valid config key");

    // apply, both ways; a Service gets an address and a port
    assert!(k.ok(&["apply", "-f", "-"], DEPLOYMENT).contains("deployment.apps/web created"));
    assert!(k.ok(&["apply", "-f", "-"], DEPLOYMENT).contains("deployment.apps/web unchanged"));
    let changed = DEPLOYMENT.replace("web:1", "web:2");
    assert!(k.ok(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &changed).contains("serverside-applied"));
    assert_eq!(k.ok(&["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"], ""), "example.org/web:2");
    assert!(k.ok(&["get", "deployments"], "").contains("0/2"));
    let port: u16 = k.ok(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"], "").parse().unwrap();
    assert!((30000..=32767).contains(&port));
    let ip = k.ok(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"], "");
    assert!(k.ok(&["get", "ipaddresses"], "").contains(&ip));
    k.ok(&["scale", "deployment", "web", "--replicas=5"], "");
    assert_eq!(k.ok(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"], ""), "5");

    // explain comes from OpenAPI
    let image = k.ok(&["explain", "deployment.spec.template.spec.containers.image"], "");
    assert!(image.contains("<string>") && image.contains("Container image name"), "{image}");
    let pods = k.ok(&["explain", "pods", "--output=plaintext-openapiv2"], "");
    assert!(pods.contains("collection of containers"), "{pods}");

    // watch sees a change that happens after it began
    let mut watch = k.0.kubectl(&["get", "configmaps", "--watch-only", "-o", "name"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    std::thread::sleep(std::time::Duration::from_secs(2));
    k.ok(&["create", "configmap", "seen", "--from-literal=x=1"], "");
    let seen = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("seen")));
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(seen.is_some());

    // who may what
    assert!(k.ok(&["auth", "can-i", "delete", "configmaps"], "").starts_with("yes"));
    let (_, out) = k.run(&["auth", "can-i", "delete", "configmaps", "--as=bob"], "");
    assert!(out.starts_with("no"), "{out}");
    k.fails(&["get", "secrets", "--as=bob"], "", "Forbidden");
    k.ok(&["create", "serviceaccount", "robot"], "");
    k.ok(&["create", "role", "reader", "--verb=get,list", "--resource=configmaps"], "");
    k.ok(&["create", "rolebinding", "robot", "--role=reader", "--serviceaccount=default:robot"], "");
    let token = k.ok(&["create", "token", "robot"], "");
    let config = k.0.dir.join("none");
    std::fs::write(&config, "").unwrap();
    let out = std::process::Command::new("kubectl")
        .env("KUBECONFIG", &config)
        .args(["--server", &format!("https://127.0.0.1:{}", k.0.port), "--certificate-authority"])
        .arg(k.0.dir.join("ca.crt"))
        .args(["--token", token.trim(), "get", "configmaps", "-o", "name"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("configmap/a"), "{}", String::from_utf8_lossy(&out.stderr));

    // delete
    assert!(k.ok(&["delete", "configmap", "a"], "").contains("deleted"));
    k.ok(&["delete", "service", "web"], "");
    assert!(!k.ok(&["get", "ipaddresses"], "").contains(&ip), "the address was given back");
}

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec}
    - {name: Phase, type: string, jsonPath: .status.phase}
    selectableFields: [{jsonPath: .spec.cronSpec}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [cronSpec]
            properties:
              cronSpec: {type: string, description: When to run., pattern: '^[0-9 */]+$'}
              replicas: {type: integer, default: 1}
              ports:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items: {type: object, required: [name], properties: {name: {type: string}, port: {type: integer}}}
          status: {type: object, properties: {phase: {type: string}, replicas: {type: integer}}}
";

fn tab(name: &str, more: &str) -> String {
    format!("apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {{name: {name}}}\nspec:\n  cronSpec: '* * * * 5'\n{more}")
}

#[test]
fn kubectl_works_with_custom_resources_from_their_definition_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let k = Shell(Cluster::start(dir.path()));
    k.ok(&["apply", "-f", "-"], DEFINITION);
    k.ok(&["wait", "--for=condition=Established", "crd/crontabs.stable.example.com", "--timeout=30s"], "");
    assert!(k.ok(&["api-resources", "--api-group=stable.example.com"], "").contains("crontabs"));

    // apply as clients do, columns, defaults, selectors, explain
    assert!(k.ok(&["apply", "-f", "-"], &tab("a", "")).contains("crontab.stable.example.com/a created"));
    assert!(k.ok(&["apply", "-f", "-"], &tab("a", "")).contains("unchanged"));
    let table = k.ok(&["get", "ct"], "");
    assert!(table.contains("SPEC") && table.contains("* * * * 5"), "{table}");
    assert_eq!(k.ok(&["get", "ct", "a", "-o", "jsonpath={.spec.replicas}"], ""), "1");
    assert!(k.ok(&["get", "ct", "--field-selector", "spec.cronSpec=* * * * 5", "-o", "name"], "").contains("/a"));
    assert!(k.ok(&["explain", "crontab.spec.cronSpec"], "").contains("When to run."));
    k.fails(&["apply", "-f", "-"], &tab("bad", "  replicas: many\n"), "must be of type integer");
    k.fails(&["apply", "-f", "-"], &tab("bad", "  nope: 1\n"), "unknown field \"spec.nope\"");

    // status and scale
    k.ok(&["patch", "ct", "a", "--subresource=status", "--type=merge", "-p", r#"{"status":{"phase":"Ready"},"spec":{"replicas":9}}"#], "");
    assert_eq!(k.ok(&["get", "ct", "a", "-o", "jsonpath={.status.phase} {.spec.replicas} {.metadata.generation}"], ""), "Ready 1 1");
    k.ok(&["scale", "ct", "a", "--replicas=3"], "");
    assert_eq!(k.ok(&["get", "ct", "a", "-o", "jsonpath={.spec.replicas} {.metadata.generation}"], ""), "3 2");

    // server-side apply merges lists by their keys
    let ports = |n: &str| tab("b", &format!("  ports: [{{name: {n}, port: 1}}]\n"));
    k.ok(&["apply", "--server-side", "--field-manager=one", "-f", "-"], &ports("x"));
    k.ok(&["apply", "--server-side", "--field-manager=two", "-f", "-"], &ports("web"));
    assert_eq!(k.ok(&["get", "ct", "b", "-o", "jsonpath={.spec.ports[*].name}"], ""), "x web");

    // the definition takes its objects along
    k.ok(&["delete", "crd", "crontabs.stable.example.com", "--timeout=60s"], "");
    k.fails(&["get", "crontabs.stable.example.com"], "", "the server doesn't have a resource type");
    k.ok(&["apply", "-f", "-"], DEFINITION);
    k.ok(&["wait", "--for=condition=Established", "crd/crontabs.stable.example.com", "--timeout=30s"], "");
    assert!(k.ok(&["get", "ct"], "").contains("No resources found"));
}
