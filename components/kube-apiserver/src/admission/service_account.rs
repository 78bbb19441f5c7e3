//! Pods run as a service account of their namespace and get its token.

use k8s_schema::Doc;
use rand::RngExt;
use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::http::{ApiError, Group};

/// The account of pods that name none.
pub const DEFAULT: &str = "default";
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The account that a pod will run as; a mirror pod has none.
pub fn name_of(pod: &Doc) -> Option<&str> {
    if is_mirror(pod) {
        return None;
    }
    Some(pod.at("spec.serviceAccountName").str()).map(|name| if name.is_empty() { DEFAULT } else { name })
}

/// A mirror pod shows what a kubelet runs by itself; it can have no account.
fn is_mirror(pod: &Doc) -> bool {
    pod.at("metadata.annotations").get("kubernetes.io/config.mirror").exists()
}

pub fn admit(a: &Attributes<'_>, pod: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("", "pods") {
        return Ok(());
    }
    let internal = |e: k8s_schema::EditError| ApiError::internal(e);
    let name = a.ctx.info.name.as_str();
    let forbidden = |why: String| Err(ApiError::forbidden(Group("", "pods"), pod_name(pod, name), why));
    if is_mirror(pod) {
        if !pod.at("spec.serviceAccountName").str().is_empty() {
            return forbidden("a mirror pod may not reference service accounts".into());
        }
        let secrets = pod
            .at("spec.volumes")
            .iter()
            .any(|v| v.get("secret").exists() || v.get("projected").get("sources").iter().any(|s| s.get("serviceAccountToken").exists()));
        if secrets {
            return forbidden("a mirror pod may not reference secrets".into());
        }
        return Ok(());
    }
    if pod.at("spec.serviceAccountName").str().is_empty() {
        pod.set("spec.serviceAccountName", DEFAULT).map_err(internal)?;
    }
    let account_name = pod.at("spec.serviceAccountName").str().to_owned();
    pod.set("spec.serviceAccount", account_name.as_str()).map_err(internal)?;
    let ns = &a.ctx.info.namespace;
    let Some(account) = a.ctx.server.objects.get("serviceaccounts", &format!("{ns}/{account_name}")) else {
        return Err(ApiError::forbidden(
            Group("", "pods"),
            pod_name(pod, name),
            format!("error looking up service account {ns}/{account_name}: serviceaccount {account_name:?} not found"),
        ));
    };
    let wanted =
        pod.at("spec.automountServiceAccountToken").as_bool().or(account.at("automountServiceAccountToken").as_bool()).unwrap_or(true);
    if wanted {
        mount(pod).map_err(internal)?;
    }
    if pod.at("spec.imagePullSecrets").is_empty() && !account.at("imagePullSecrets").is_empty() {
        pod.copy_from("spec.imagePullSecrets", account.at("imagePullSecrets")).map_err(internal)?;
    }
    Ok(())
}

fn pod_name<'a>(pod: &'a Doc, fallback: &'a str) -> &'a str {
    match pod.at("metadata.name").str() {
        "" => fallback,
        n => n,
    }
}

fn mount(pod: &mut Doc) -> Result<(), k8s_schema::EditError> {
    let existing = pod.at("spec.volumes").iter().map(|v| v.get("name").str().to_owned()).find(|n| n.starts_with("kube-api-access-"));
    let name = existing.clone().unwrap_or_else(|| {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut rng = rand::rng();
        let tail: String = (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
        format!("kube-api-access-{tail}")
    });
    let mut needed = false;
    for list in ["spec.containers", "spec.initContainers"] {
        pod.for_each(list, |mut c| {
            if c.get("volumeMounts").iter().any(|m| m.get("mountPath").str() == MOUNT) {
                return Ok(());
            }
            needed = true;
            c.push("volumeMounts", json!({"name": name, "readOnly": true, "mountPath": MOUNT}))
        })?;
    }
    if needed && existing.is_none() {
        pod.push("spec.volumes", volume(&name))?;
    }
    Ok(())
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}
