//! Annotations that mean something to a pod.

use k8s_schema::{Doc, Ref};
use serde_json::{Value, json};

use crate::validation::{ErrorList, FieldError, key};

const PATH: &str = "metadata.annotations";
const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Followed by a container's name.
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

pub fn validate(d: &Doc, e: &mut ErrorList) {
    let annotations = d.at(PATH);
    let mirror = annotations.get(MIRROR);
    if mirror.exists() && d.at("spec.nodeName").str().is_empty() {
        e.push(FieldError::invalid(key(PATH, MIRROR), mirror.str(), "must set spec.nodeName if mirror pod annotation is set"));
    }
    let tolerations = annotations.get(TOLERATIONS).str();
    if !tolerations.is_empty()
        && let Err(why) = k8s_schema::json::syntax::check(tolerations.as_bytes())
    {
        e.push(FieldError::invalid(PATH, TOLERATIONS, why));
    }
    let cost = annotations.get(DELETION_COST);
    let plain = |s: &str| s == "0" || s.starts_with('-') || s.starts_with(|c: char| matches!(c, '1'..='9'));
    if cost.exists() && !(plain(cost.str()) && cost.str().parse::<i32>().is_ok()) {
        e.push(FieldError::invalid(key(PATH, DELETION_COST), cost.str(), "must be a 32bit integer"));
    }
    for (name, profile) in annotations.entries() {
        let Some(container) = name.strip_prefix(APP_ARMOR) else { continue };
        let profile = profile.str();
        if !containers(d).any(|(_, c)| c.get("name").str() == container) {
            e.push(FieldError::invalid(key(PATH, name), container, "container not found"));
        }
        if app_armor(profile).is_none() && !profile.is_empty() {
            e.push(FieldError::invalid(key(PATH, name), profile, format!("invalid AppArmor profile name: {profile:?}")));
        }
    }
}

fn containers(d: &Doc) -> impl Iterator<Item = (String, Ref<'_>)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |list| d.at("spec").get(list).iter().enumerate().map(move |(i, c)| (format!("spec.{list}[{i}]"), c)))
}

/// The profile that an annotation names, as the field says it.
fn app_armor(profile: &str) -> Option<Value> {
    match profile {
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        "unconfined" => Some(json!({"type": "Unconfined"})),
        other => {
            let local = other.strip_prefix("localhost/").filter(|l| !l.is_empty())?;
            Some(json!({"type": "Localhost", "localhostProfile": local}))
        }
    }
}

/// Profiles that only an annotation names come to stand in the field too, which is what kubelets look at.
pub fn adopt_app_armor(d: &mut Doc) {
    let pod = d.at("spec.securityContext.appArmorProfile").to_value();
    let adopted: Vec<(String, Value)> = containers(d)
        .filter(|(_, c)| !c.at("securityContext.appArmorProfile").exists())
        .filter_map(|(at, c)| {
            let name = d.at(PATH).get(&format!("{APP_ARMOR}{}", c.get("name").str())).str();
            app_armor(name).filter(|p| *p != pod).map(|p| (format!("{at}.securityContext.appArmorProfile"), p))
        })
        .collect();
    for (at, profile) in adopted {
        // A field of every container: this cannot fail.
        let _ = d.set(&at, profile);
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;

    use super::*;

    fn pod(annotations: Value) -> Doc {
        let schema = Schema::builtin();
        let v = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "c"}]}});
        Doc::from_value(&schema, schema.kind("", "v1", "Pod").unwrap(), &v).unwrap().doc
    }

    #[test]
    fn annotations_that_mean_something_are_checked() {
        for (annotations, want) in [
            (json!({"a": "b", DELETION_COST: "-5", format!("{APP_ARMOR}c"): "localhost/x"}), None),
            (json!({MIRROR: "x"}), Some("must set spec.nodeName if mirror pod annotation is set")),
            (json!({DELETION_COST: "+1"}), Some("must be a 32bit integer")),
            (json!({DELETION_COST: "01"}), Some("must be a 32bit integer")),
            (json!({DELETION_COST: "9999999999"}), Some("must be a 32bit integer")),
            (json!({TOLERATIONS: "x"}), Some("invalid character 'x' looking for beginning of value")),
            (json!({format!("{APP_ARMOR}zz"): "unconfined"}), Some("container not found")),
            (json!({format!("{APP_ARMOR}c"): "zzz"}), Some("invalid AppArmor profile name: \"zzz\"")),
        ] {
            let mut e = ErrorList::new();
            validate(&pod(annotations.clone()), &mut e);
            let got: Vec<String> = e.iter().map(FieldError::error_body).collect();
            assert_eq!(got.len(), usize::from(want.is_some()), "{annotations}: {got:?}");
            assert!(want.is_none_or(|w| got[0].ends_with(w)), "{annotations}: {got:?}");
        }
    }

    #[test]
    fn profiles_of_annotations_are_adopted() {
        let mut d = pod(json!({format!("{APP_ARMOR}c"): "localhost/x"}));
        adopt_app_armor(&mut d);
        assert_eq!(
            d.at("spec.containers[0].securityContext.appArmorProfile").to_value(),
            json!({"type": "Localhost", "localhostProfile": "x"})
        );
    }
}
