//! `ImagePolicyWebhook`: a webhook says whether the images of a pod may run (`imagepolicy.k8s.io/v1alpha1` `ImageReview`). Its answers are
//! remembered for a while; what happens when it gives none stands in the configuration.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use k8s_schema::Doc;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Attributes, Operation};
use crate::{
    http::{ApiError, Group},
    webhook::{Configured, FileError},
};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers remembered, at most.
const MAX: usize = 1024;
/// Annotations of pods that the webhook is told have this in their names.
const FOR_THE_HOOK: &str = ".image-policy.k8s.io/";
/// What annotations of the audit begin with.
const AUDIT: &str = "imagepolicywebhook.image-policy.k8s.io/";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("decode the configuration of an image policy: {0}")]
    Shape(serde_yaml::Error),
    #[error("imagePolicy.kubeConfigFile is required: it says where the webhook is")]
    NoFile,
    #[error("imagePolicy.{field}: {value} is not between {least} and {most}, nor -1 for none")]
    Range { field: &'static str, value: i64, least: i64, most: i64 },
    #[error("imagePolicy.kubeConfigFile cannot be used")]
    Hook(#[from] FileError),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    image_policy: Settings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Settings {
    kube_config_file: PathBuf,
    /// Seconds.
    #[serde(rename = "allowTTL")]
    allow_ttl: i64,
    /// Seconds.
    #[serde(rename = "denyTTL")]
    deny_ttl: i64,
    /// Milliseconds.
    retry_backoff: i64,
    default_allow: bool,
}

/// What a review came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Verdict {
    allowed: bool,
    reason: String,
    audit: Vec<(String, String)>,
}

/// The webhook, and what it said.
#[derive(Debug)]
pub struct ImagePolicy {
    hook: Configured,
    allow_ttl: Duration,
    deny_ttl: Duration,
    backoff: Duration,
    default_allow: bool,
    known: Mutex<HashMap<[u8; 32], (Instant, Verdict)>>,
}

/// A number of the configuration: 0 is `usual`, -1 is none.
fn within(field: &'static str, value: i64, least: i64, most: i64, usual: i64) -> Result<u64, ConfigError> {
    match value {
        -1 => Ok(0),
        0 => Ok(usual.unsigned_abs()),
        v if (least..=most).contains(&v) => Ok(v.unsigned_abs()),
        value => Err(ConfigError::Range { field, value, least, most }),
    }
}

fn verdict(status: &serde_json::Value) -> Verdict {
    let audit = status["auditAnnotations"].as_object().into_iter().flatten();
    Verdict {
        allowed: status["allowed"] == true,
        reason: status["reason"].as_str().unwrap_or("").to_owned(),
        audit: audit.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
    }
}

/// What the webhook is asked: the images, the annotations that are for it, and where the pod is to be.
fn spec(pod: &Doc, namespace: &str, ephemeral: bool) -> serde_json::Value {
    let lists: &[&str] = if ephemeral { &["ephemeralContainers"] } else { &["containers", "initContainers"] };
    let containers = lists.iter().flat_map(|l| pod.at("spec").get(l).iter());
    let containers: Vec<serde_json::Value> = containers.map(|c| json!({"image": c.get("image").str()})).collect();
    let annotations = pod.meta().annotations().entries().filter(|(k, _)| k.contains(FOR_THE_HOOK));
    let annotations: serde_json::Map<String, serde_json::Value> = annotations.map(|(k, v)| (k.to_owned(), v.str().into())).collect();
    let mut spec = json!({"containers": containers, "namespace": namespace});
    if !annotations.is_empty() {
        spec["annotations"] = annotations.into();
    }
    spec
}

impl ImagePolicy {
    /// `beside`: where paths of the configuration begin.
    pub fn parse(v: serde_yaml::Value, beside: &Path) -> Result<Self, ConfigError> {
        let s = serde_yaml::from_value::<File>(v).map_err(ConfigError::Shape)?.image_policy;
        if s.kube_config_file.as_os_str().is_empty() {
            return Err(ConfigError::NoFile);
        }
        let seconds = |field, value, usual| within(field, value, 1, 30 * 60, usual).map(Duration::from_secs);
        Ok(Self {
            allow_ttl: seconds("allowTTL", s.allow_ttl, 300)?,
            deny_ttl: seconds("denyTTL", s.deny_ttl, 30)?,
            backoff: Duration::from_millis(within("retryBackoff", s.retry_backoff, 1, 300_000, 500)?),
            default_allow: s.default_allow,
            hook: Configured::load(&beside.join(s.kube_config_file))?,
            known: Mutex::default(),
        })
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Verdict> {
        let known = self.known.lock();
        known.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, v)| v.clone())
    }

    fn remember(&self, key: [u8; 32], v: &Verdict) {
        let ttl = if v.allowed { self.allow_ttl } else { self.deny_ttl };
        if ttl.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut known = self.known.lock();
        if known.len() >= MAX {
            known.retain(|_, (until, _)| now < *until);
        }
        if known.len() < MAX {
            known.insert(key, (now + ttl, v.clone()));
        }
    }

    /// The webhook's word, of now or of a moment ago.
    async fn ask(&self, spec: serde_json::Value) -> Result<Verdict, String> {
        let key: [u8; 32] = Sha256::digest(spec.to_string().as_bytes()).into();
        if let Some(v) = self.remembered(&key) {
            return Ok(v);
        }
        let review = json!({"apiVersion": "imagepolicy.k8s.io/v1alpha1", "kind": "ImageReview", "metadata": {}, "spec": spec, "status": {"allowed": false}});
        let answer = self.hook.post_every(&review, TIMEOUT, self.backoff).await?;
        let v = verdict(&answer["status"]);
        self.remember(key, &v);
        Ok(v)
    }
}

pub async fn validate(a: &Attributes<'_>, new: Option<&Doc>, _: Option<&Doc>) -> Result<(), ApiError> {
    let ephemeral = a.res.plural == "pods" && a.res.group.is_empty() && a.subresource == "ephemeralcontainers";
    let asked = matches!(a.operation, Operation::Create | Operation::Update) && (ephemeral || a.is("", "pods"));
    let (Some(policy), Some(pod), true) = (&a.ctx.server.admission.image_policy, new, asked) else { return Ok(()) };
    let refused = |why: String| Err(ApiError::forbidden(Group("", "pods"), a.shown_name(pod), why));
    let verdict = match policy.ask(spec(pod, &a.ctx.info.namespace, ephemeral)).await {
        Ok(v) => v,
        Err(why) => {
            tracing::warn!(why, allowed = policy.default_allow, "the image policy webhook gave no answer");
            if !policy.default_allow {
                return refused(why);
            }
            a.ctx.annotate(format!("{AUDIT}failed-open"), "true");
            return Ok(());
        }
    };
    for (k, v) in &verdict.audit {
        a.ctx.annotate(format!("{AUDIT}{k}"), v);
    }
    match (verdict.allowed, verdict.reason.as_str()) {
        (true, _) => Ok(()),
        (false, "") => refused("one or more images rejected by webhook backend".into()),
        (false, reason) => refused(format!("image policy webhook backend denied one or more images: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_a_usual_value_a_way_to_be_none_and_bounds() {
        assert_eq!(within("allowTTL", 0, 1, 1800, 300).unwrap(), 300);
        assert_eq!(within("allowTTL", -1, 1, 1800, 300).unwrap(), 0);
        assert_eq!(within("allowTTL", 1800, 1, 1800, 300).unwrap(), 1800);
        for bad in [-2, 1801] {
            assert!(within("allowTTL", bad, 1, 1800, 300).unwrap_err().to_string().contains("allowTTL"));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("imagePolicy: {}", "kubeConfigFile is required"),
            ("imagePolicy: {kubeConfigFile: f, denyTTL: 9000}", "denyTTL"),
            ("imagePolicy: {kubeConfigFile: f, denyTtl: 9}", "denyTtl"),
            ("{}", "imagePolicy"),
            ("imagePolicy: {kubeConfigFile: no-such-file}", "cannot be used"),
        ] {
            let e = ImagePolicy::parse(serde_yaml::from_str(text).unwrap(), Path::new("/nonexistent")).unwrap_err().to_string();
            assert!(e.contains(named), "{e}");
        }
    }

    #[test]
    fn the_webhook_learns_of_images_and_what_is_meant_for_it() {
        let schema = k8s_schema::Schema::builtin();
        let mut pod = Doc::of_kind(&schema, "", "v1", "Pod").unwrap();
        pod.set("metadata.annotations", json!({"x.image-policy.k8s.io/ticket": "1", "other": "2"})).unwrap();
        pod.set("spec.containers", json!([{"name": "a", "image": "i1"}])).unwrap();
        pod.set("spec.initContainers", json!([{"name": "b", "image": "i2"}])).unwrap();
        pod.set("spec.ephemeralContainers", json!([{"name": "c", "image": "i3"}])).unwrap();
        assert_eq!(
            spec(&pod, "ns", false),
            json!({"containers": [{"image": "i1"}, {"image": "i2"}], "namespace": "ns", "annotations": {"x.image-policy.k8s.io/ticket": "1"}})
        );
        assert_eq!(spec(&pod, "ns", true)["containers"], json!([{"image": "i3"}]));
    }
}
