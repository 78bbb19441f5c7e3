//! Node.

use k8s_schema::Doc;
use serde_json::json;

use super::{Action, PLAIN, Strategy};
use crate::validation::{ErrorList, FieldError, child, index, names};

pub const NODE: Strategy = Strategy {
    unmanaged_status: true,
    prepare_create: |d| {
        // Configuration by API objects is gone; what a client still sends is dropped.
        d.remove("spec.configSource");
    },
    prepare_update,
    validate_create: validate,
    validate_update,
    warnings: |d, _| match d.at("spec.externalID").str() {
        "" => Vec::new(),
        _ => vec!["spec.externalID: this field is deprecated, and is unused by Kubernetes".into()],
    },
    ..PLAIN
};

fn prepare_update(action: Action, new: &mut Doc, old: &Doc) {
    if action == Action::Main {
        super::restore(new, old, "status");
    }
}

pub fn taints(d: &Doc, path: &str, e: &mut ErrorList) {
    let mut seen: Vec<(String, String)> = Vec::new();
    for (i, t) in d.at(path).iter().enumerate() {
        let p = index(path, i);
        let (k, v, effect) = (t.get("key").str(), t.get("value").str(), t.get("effect").str());
        e.all_invalid(&child(&p, "key"), k, names::qualified_name(k));
        e.all_invalid(&child(&p, "value"), v, names::label_value(v));
        match effect {
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            "" => e.push(FieldError::required(child(&p, "effect"), "")),
            other => e.push(FieldError::not_supported(child(&p, "effect"), other, &["NoSchedule", "PreferNoSchedule", "NoExecute"])),
        }
        let id = (k.to_owned(), effect.to_owned());
        if seen.contains(&id) {
            let shown = json!({"Key": k, "Value": v, "Effect": effect, "TimeAdded": null});
            e.push(FieldError::duplicate_of(p.as_str(), shown, "taints must be unique by key and effect pair"));
        }
        seen.push(id);
    }
}

fn validate(d: &Doc, e: &mut ErrorList) {
    // Upstream looks for taints in the metadata, where they once were.
    let mut wrong = ErrorList::new();
    taints(d, "spec.taints", &mut wrong);
    wrong.iter().for_each(|t| e.push(t.moved("spec.taints", "metadata.taints")));
    let avoid = d.at("metadata.annotations").get("scheduler.alpha.kubernetes.io/preferAvoidPods").str();
    if !avoid.is_empty()
        && let Err(why) = k8s_schema::json::syntax::check(avoid.as_bytes())
    {
        e.push(FieldError::invalid("metadata.annotations.AvoidPods", "scheduler.alpha.kubernetes.io/preferAvoidPods", why));
    }
    let cidrs: Vec<&str> = d.at("spec.podCIDRs").iter().map(|c| c.str()).collect();
    for (i, c) in cidrs.iter().enumerate() {
        if c.parse::<ipnet::IpNet>().is_err() {
            e.push(FieldError::invalid(index("spec.podCIDRs", i), *c, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
        } else if c.parse::<ipnet::IpNet>().is_ok_and(|n| n.addr() != n.network()) {
            e.push(FieldError::invalid(index("spec.podCIDRs", i), *c, "must not have bits set beyond the prefix length"));
        }
    }
    let v6: Vec<bool> = cidrs.iter().filter_map(|c| c.parse::<ipnet::IpNet>().ok()).map(|n| n.addr().is_ipv6()).collect();
    if v6.len() > 2 || (v6.len() == 2 && v6[0] == v6[1]) {
        let why = "may specify no more than one CIDR for each IP family";
        e.push(FieldError::invalid("spec.podCIDRs", d.at("spec.podCIDRs").to_value(), why));
    }
    for list in ["status.capacity", "status.allocatable"] {
        for (k, q) in d.at(list).entries() {
            if q.quantity().is_some_and(|q| q.sign() < 0) {
                e.push(FieldError::invalid(child(list, k), q.str(), "must be greater than or equal to 0"));
            }
            if k.contains('/') && q.quantity().is_some_and(|q| !q.is_integer()) {
                e.push(FieldError::invalid(child(list, k), q.str(), "must be an integer"));
            }
        }
    }
}

fn validate_update(action: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    validate(new, e);
    let o: Vec<&str> = old.at("spec.podCIDRs").iter().map(|c| c.str()).collect();
    let n: Vec<&str> = new.at("spec.podCIDRs").iter().map(|c| c.str()).collect();
    if !o.is_empty() && o != n {
        e.push(FieldError::forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid"));
    }
    let (op, np) = (old.at("spec.providerID").str(), new.at("spec.providerID").str());
    if !op.is_empty() && op != np {
        e.push(FieldError::forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid"));
    }
    if action == Action::Main {
        let spec = |d: &Doc| {
            let mut v = d.at("spec").to_value();
            if let Some(m) = v.as_object_mut() {
                for f in ["unschedulable", "taints", "providerID", "podCIDR", "podCIDRs", "configSource", "externalID"] {
                    m.remove(f);
                }
            }
            v.as_object().is_some_and(|m| !m.is_empty()).then_some(v)
        };
        if spec(new) != spec(old) {
            e.push(FieldError::forbidden("spec", "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)"));
        }
    }
}
