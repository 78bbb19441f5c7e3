//! Where the addresses of Services come from and whose each is: ServiceCIDR and IPAddress.

use ipnet::IpNet;
use k8s_schema::Doc;

use super::{Action, PLAIN, SPEC_AND_STATUS_NO_GENERATION, Strategy};
use crate::validation::{ErrorList, FieldError, addresses, child, index, names};

pub const SERVICE_CIDR: Strategy = Strategy {
    validate_create: ranges,
    validate_update: |action, new, old, e| {
        if action == Action::Main {
            immutable(new, old, "spec.cidrs", e);
        }
    },
    ..SPEC_AND_STATUS_NO_GENERATION
};

pub const IP_ADDRESS: Strategy = Strategy {
    name: |name, _| addresses::canonical_ip(name).into_iter().collect(),
    validate_create: parent,
    validate_update: |_, new, old, e| immutable(new, old, "spec.parentRef", e),
    ..PLAIN
};

fn immutable(new: &Doc, old: &Doc, path: &str, e: &mut ErrorList) {
    if !new.at(path).semantic_eq(old.at(path)) {
        e.push(FieldError::invalid(path, new.at(path).to_value(), "field is immutable"));
    }
}

fn ranges(d: &Doc, e: &mut ErrorList) {
    const AT: &str = "spec.cidrs";
    let all: Vec<&str> = d.at(AT).strings().collect();
    let whole = |why: &str| FieldError::invalid(AT, d.at("spec").to_value(), why);
    match all.as_slice() {
        [] => return e.push(FieldError::required(AT, "at least one CIDR required")),
        [_] => {}
        [a, b] => {
            let is_v6 = |text: &str| text.parse::<IpNet>().ok().map(|net| net.addr().is_ipv6());
            if !matches!((is_v6(a), is_v6(b)), (Some(a), Some(b)) if a != b) {
                return e.push(whole("may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"));
            }
        }
        _ => return e.push(whole("may only hold up to 2 values")),
    }
    for (i, text) in all.into_iter().enumerate() {
        e.all_invalid(&index(AT, i), text, addresses::canonical_range(text));
    }
}

/// What an address belongs to.
fn parent(d: &Doc, e: &mut ErrorList) {
    let (at, parent) = ("spec.parentRef", d.at("spec.parentRef"));
    if !parent.exists() {
        return e.push(FieldError::required(at, ""));
    }
    let group = parent.get("group").str();
    if !group.is_empty() {
        e.all_invalid(&child(at, "group"), group, names::dns1123_subdomain(group));
    }
    for (field, required) in [("resource", true), ("name", true), ("namespace", false)] {
        let (at, text) = (child(at, field), parent.get(field).str());
        if !text.is_empty() {
            e.all_invalid(&at, text, names::path_segment(text, false));
        } else if required {
            e.push(FieldError::required(at, ""));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(kind: &str, spec: Value, validate: fn(&Doc, &mut ErrorList)) -> Vec<String> {
        let schema = k8s_schema::Schema::builtin();
        let mut d = Doc::of_kind(&schema, "networking.k8s.io", "v1", kind).unwrap();
        d.set("spec", spec).unwrap();
        let mut e = ErrorList::new();
        validate(&d, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_are_one_of_each_family() {
        let of = |cidrs: Value| errors("ServiceCIDR", json!({"cidrs": cidrs}), ranges);
        assert!(of(json!(["10.0.0.0/16"])).is_empty() && of(json!(["fd00::/112", "10.0.0.0/16"])).is_empty());
        assert_eq!(of(json!([])), ["spec.cidrs: Required value: at least one CIDR required"]);
        for two in [json!(["10.0.0.0/16", "10.1.0.0/16"]), json!(["10.0.0.0/16", "x"])] {
            assert!(of(two)[0].ends_with("may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"));
        }
        assert!(of(json!(["10.0.0.0/16", "fd00::/112", "10.1.0.0/16"]))[0].ends_with("may only hold up to 2 values"));
        assert_eq!(
            of(json!(["10.0.0.1/16"])),
            ["spec.cidrs[0]: Invalid value: \"10.0.0.1/16\": must not have bits set beyond the prefix length"]
        );
    }

    #[test]
    fn an_address_belongs_to_something() {
        let of = |of: Value| errors("IPAddress", json!({"parentRef": of}), parent);
        assert!(of(json!({"resource": "services", "namespace": "default", "name": "a"})).is_empty());
        assert_eq!(errors("IPAddress", json!({}), parent), ["spec.parentRef: Required value"]);
        assert_eq!(of(json!({"group": "", "name": "a"})), ["spec.parentRef.resource: Required value"]);
        assert_eq!(
            of(json!({"resource": "services", "name": "a/b"})),
            ["spec.parentRef.name: Invalid value: \"a/b\": may not contain '/'"]
        );
        assert_eq!((IP_ADDRESS.name)("10.0.0.01", false), ["must not have leading 0s"]);
    }
}
