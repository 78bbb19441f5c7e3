//! `PodTolerationRestriction`: pods get the tolerations that their namespace (or the cluster) gives to all, and may have no others than
//! those it allows.

use k8s_schema::{Doc, Ref};
use serde::Deserialize;
use serde_json::json;
use serde_yaml::Value;

use super::{Attributes, Operation};
use crate::{
    config_file::{ConfigFile, DecodeError, decode_value},
    http::{ApiError, Group},
    kinds,
};

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// A toleration of the API; what is not there is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Toleration {
    key: String,
    operator: String,
    value: String,
    effect: String,
    toleration_seconds: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    default: Vec<Toleration>,
    #[serde(default)]
    whitelist: Vec<Toleration>,
}

impl ConfigFile for File {
    const KIND: &str = "Configuration";
    const VERSIONS: &[&str] = &["podtolerationrestriction.admission.k8s.io/v1alpha1"];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

/// What holds for namespaces that say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    default: Vec<Toleration>,
    allowed: Vec<Toleration>,
}

impl Config {
    pub fn parse(v: Value) -> Result<Self, DecodeError> {
        let f: File = decode_value(v)?;
        Ok(Self { default: f.default, allowed: f.whitelist })
    }
}

impl Toleration {
    fn of(t: Ref<'_>) -> Self {
        let text = |f: &str| t.get(f).str().to_owned();
        Self {
            key: text("key"),
            operator: text("operator"),
            value: text("value"),
            effect: text("effect"),
            toleration_seconds: t.get("tolerationSeconds").as_i64(),
        }
    }

    fn to_value(&self) -> serde_json::Value {
        let mut v = json!({});
        for (k, text) in [("key", &self.key), ("operator", &self.operator), ("value", &self.value), ("effect", &self.effect)] {
            if !text.is_empty() {
                v[k] = text.as_str().into();
            }
        }
        if let Some(s) = self.toleration_seconds {
            v["tolerationSeconds"] = s.into();
        }
        v
    }

    /// Whether it tolerates all that the other does.
    fn covers(&self, other: &Self) -> bool {
        if self == other {
            return true;
        }
        let any_key = self.key.is_empty() && self.operator == "Exists";
        if self.key != other.key && !any_key {
            return false;
        }
        if self.effect != other.effect && !self.effect.is_empty() {
            return false;
        }
        if self.effect == "NoExecute"
            && let Some(most) = self.toleration_seconds
            && other.toleration_seconds.is_none_or(|s| s > most)
        {
            return false;
        }
        match self.operator.as_str() {
            "Equal" | "" => matches!(other.operator.as_str(), "Equal" | "") && self.value == other.value,
            "Exists" => true,
            _ => false,
        }
    }
}

/// All of both, but what another of them covers. Of two that are alike the first stays.
fn merged(first: &[Toleration], second: &[Toleration]) -> Vec<Toleration> {
    let all: Vec<&Toleration> = first.iter().chain(second).collect();
    let mut out: Vec<Toleration> = Vec::new();
    for (i, t) in all.iter().enumerate() {
        let covered = out.iter().any(|o| o.covers(t)) || all[i + 1..].iter().any(|later| later != t && later.covers(t));
        if !covered {
            out.push((*t).clone());
        }
    }
    out
}

/// The first toleration that none of those allowed covers.
fn not_allowed<'a>(tolerations: &'a [Toleration], allowed: &[Toleration]) -> Option<&'a Toleration> {
    tolerations.iter().find(|t| !allowed.iter().any(|a| a.covers(t)))
}

/// What a namespace says in an annotation; none: nothing. An empty text is an empty list.
fn said(namespace: &Doc, annotation: &str) -> Result<Option<Vec<Toleration>>, ApiError> {
    match namespace.meta().annotation(annotation) {
        None => Ok(None),
        Some("") => Ok(Some(Vec::new())),
        // A list of `null` is no list: the cluster's holds.
        Some(text) => serde_json::from_str::<Option<Vec<Toleration>>>(text)
            .map_err(|e| ApiError::new(500, "", format!("the annotation {annotation} of the namespace is no list of tolerations: {e}"))),
    }
}

fn applies(a: &Attributes<'_>) -> bool {
    matches!(a.operation, Operation::Create | Operation::Update) && a.is("", "pods")
}

fn namespace(a: &Attributes<'_>) -> Result<Doc, ApiError> {
    let name = &a.ctx.info.namespace;
    a.ctx.server.objects.get("namespaces", name).ok_or_else(|| ApiError::not_found(Group("", "namespaces"), name))
}

fn of_pod(pod: &Doc) -> Vec<Toleration> {
    pod.at("spec.tolerations").iter().map(Toleration::of).collect()
}

pub fn admit(a: &Attributes<'_>, pod: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if !applies(a) {
        return Ok(());
    }
    let config = &a.ctx.server.admission.tolerations;
    let mut more = Vec::new();
    if a.operation == Operation::Create {
        more = said(&namespace(a)?, DEFAULTS)?.unwrap_or_else(|| config.default.clone());
    }
    if kinds::pod::qos(pod) != "BestEffort" {
        more.push(Toleration {
            key: MEMORY_PRESSURE.into(),
            operator: "Exists".into(),
            effect: "NoSchedule".into(),
            ..Toleration::default()
        });
    }
    if more.is_empty() {
        return Ok(());
    }
    let own = of_pod(pod);
    let all = merged(&more, &own);
    if all == own {
        return Ok(());
    }
    pod.set("spec.tolerations", serde_json::Value::Array(all.iter().map(Toleration::to_value).collect())).map_err(ApiError::internal)
}

pub fn validate(a: &Attributes<'_>, new: Option<&Doc>, _: Option<&Doc>) -> Result<(), ApiError> {
    let Some(pod) = new.filter(|_| applies(a)) else { return Ok(()) };
    let tolerations = of_pod(pod);
    if tolerations.is_empty() {
        return Ok(());
    }
    let own = said(&namespace(a)?, ALLOWED)?;
    let (allowed, whose) = match &own {
        Some(list) => (list, "namespace"),
        None => (&a.ctx.server.admission.tolerations.allowed, "cluster"),
    };
    if allowed.is_empty() || not_allowed(&tolerations, allowed).is_none() {
        return Ok(());
    }
    let why = format!("pod tolerations (possibly merged with namespace default tolerations) conflict with its {whose} whitelist");
    Err(ApiError::new(500, "", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<Toleration> {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn a_toleration_covers_what_tolerates_less() {
        for (wide, narrow, covers) in [
            ("{operator: Exists}", "{key: a, operator: Equal, value: b, effect: NoSchedule}", true),
            ("{key: a, operator: Exists}", "{key: a, value: b}", true),
            ("{key: a, value: b}", "{key: a, operator: Exists}", false),
            ("{key: a, value: b}", "{key: a, operator: Equal, value: b}", true),
            ("{key: a, value: b}", "{key: a, value: c}", false),
            ("{key: a, operator: Exists}", "{key: b, operator: Exists}", false),
            ("{key: a, operator: Exists, effect: NoSchedule}", "{key: a, operator: Exists}", false),
            (
                "{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 10}",
                "{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 9}",
                true,
            ),
            (
                "{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 10}",
                "{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 11}",
                false,
            ),
            (
                "{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 10}",
                "{key: a, operator: Exists, effect: NoExecute}",
                false,
            ),
            ("{key: a, operator: Gt, value: '1'}", "{key: a, operator: Gt, value: '1'}", true),
            ("{key: a, operator: Gt, value: '1'}", "{key: a, operator: Gt, value: '2'}", false),
        ] {
            let of = |t: &str| serde_yaml::from_str::<Toleration>(t).unwrap();
            assert_eq!(of(wide).covers(&of(narrow)), covers, "{wide} {narrow}");
        }
    }

    #[test]
    fn merging_keeps_the_widest_and_of_equals_the_first() {
        let narrow = "[{key: a, value: b}, {key: c, operator: Exists}]";
        assert_eq!(
            merged(&list(narrow), &list("[{key: a, operator: Exists}]")),
            list("[{key: c, operator: Exists}, {key: a, operator: Exists}]")
        );
        assert_eq!(merged(&list(narrow), &list(narrow)), list(narrow));
        assert_eq!(merged(&list("[{operator: Exists}]"), &list(narrow)), list("[{operator: Exists}]"));
    }

    #[test]
    fn one_that_nothing_covers_is_found() {
        let allowed = list("[{key: a, operator: Exists}]");
        assert_eq!(not_allowed(&list("[{key: a, value: b}]"), &allowed), None);
        assert_eq!(not_allowed(&list("[{key: a, value: b}, {key: d}]"), &allowed).unwrap().key, "d");
    }

    #[test]
    fn a_namespace_may_say_nothing_or_that_there_are_none() {
        let schema = k8s_schema::Schema::builtin();
        let with = |v: serde_json::Value| {
            let mut d = Doc::of_kind(&schema, "", "v1", "Namespace").unwrap();
            d.set("metadata.annotations", v).unwrap();
            said(&d, DEFAULTS)
        };
        assert_eq!(with(json!({})).unwrap(), None);
        assert_eq!(with(json!({DEFAULTS: ""})).unwrap(), Some(vec![]));
        assert_eq!(with(json!({DEFAULTS: "[{\"key\": \"a\"}]"})).unwrap(), Some(list("[{key: a}]")));
        assert!(with(json!({DEFAULTS: "{"})).unwrap_err().to_string().contains(DEFAULTS));
    }

    #[test]
    fn the_configuration_is_read_strictly() {
        let parse = |more: &str| {
            let head = "apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1\nkind: Configuration\n";
            Config::parse(serde_yaml::from_str(&format!("{head}{more}")).unwrap())
        };
        let c = parse("default: [{key: a}]\nwhitelist: [{key: b, operator: Exists}]").unwrap();
        assert_eq!((c.default, c.allowed), (list("[{key: a}]"), list("[{key: b, operator: Exists}]")));
        assert!(parse("defaults: []").unwrap_err().to_string().contains("defaults"));
    }
}
