//! The files of configMap, secret, downwardAPI and projected volumes.

use super::VolumeError;
use super::atomic_writer::{FileContent, Payload};
use crate::api::{Api, Data};
use crate::model::pod::{DownwardApiVolumeSource, ObjectVolumeSource, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection};
use crate::runtime::env::{Allocatable, field_value, resource_value};
use std::sync::Arc;

/// What the content of a volume may depend on besides API objects.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
    pub allocatable: Allocatable,
}

/// Upstream's default mode of projected files.
const DEFAULT_MODE: u32 = 0o644;

fn mode_of(item: Option<i32>, default: Option<i32>) -> u32 {
    item.or(default).and_then(|m| u32::try_from(m).ok()).unwrap_or(DEFAULT_MODE) & 0o7777
}

/// Which of the two kinds of object a source names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    ConfigMap,
    Secret,
}

impl ObjectKind {
    fn name(self) -> &'static str {
        match self {
            ObjectKind::ConfigMap => "configmap",
            ObjectKind::Secret => "secret",
        }
    }
}

/// Files of one ConfigMap or Secret. `None` for the data means that the object does not exist.
pub fn object_payload(
    source: &ObjectVolumeSource,
    name: &str,
    kind: ObjectKind,
    data: Option<Arc<Data>>,
    default_mode: Option<i32>,
) -> Result<Payload, VolumeError> {
    let optional = source.optional == Some(true);
    let Some(data) = data else {
        return if optional { Ok(Payload::new()) } else { Err(VolumeError::Content(format!("{} \"{name}\" not found", kind.name()))) };
    };
    let file = |bytes: &Vec<u8>, mode| FileContent { data: bytes.clone(), mode, uid: None };
    if source.items.is_empty() {
        return Ok(data.iter().map(|(key, bytes)| (key.clone(), file(bytes, mode_of(None, default_mode)))).collect());
    }
    let mut payload = Payload::new();
    for item in &source.items {
        match data.get(&item.key) {
            Some(bytes) => {
                payload.insert(item.path.clone(), file(bytes, mode_of(item.mode, default_mode)));
            }
            None if optional => {}
            None => return Err(VolumeError::Content(format!("{} \"{name}\" references non-existent key: {}", kind.name(), item.key))),
        }
    }
    Ok(payload)
}

/// Files of the downward API.
pub fn downward_payload(source: &DownwardApiVolumeSource, facts: &Facts<'_>, default_mode: Option<i32>) -> Result<Payload, VolumeError> {
    let mut payload = Payload::new();
    for item in &source.items {
        let value = if let Some(field) = &item.field_ref {
            field_value(facts.pod, field, facts.pod_ips, facts.host_ips)
        } else if let Some(resource) = &item.resource_field_ref {
            facts
                .pod
                .all_containers()
                .find(|c| c.name == resource.container_name)
                .ok_or_else(|| format!("container {} not found", resource.container_name))
                .and_then(|c| resource_value(c, resource, facts.allocatable))
        } else {
            Err(format!("downward API item {} names no field", item.path))
        }
        .map_err(VolumeError::Content)?;
        payload.insert(item.path.clone(), FileContent { data: value.into_bytes(), mode: mode_of(item.mode, default_mode), uid: None });
    }
    Ok(payload)
}

/// Fetches the object of a source.
async fn fetch(api: &Api, namespace: &str, name: &str, kind: ObjectKind) -> Result<Option<Arc<Data>>, VolumeError> {
    let result = match kind {
        ObjectKind::ConfigMap => api.config_map(namespace, name).await,
        ObjectKind::Secret => api.secret(namespace, name).await,
    };
    result.map_err(|e| VolumeError::Content(e.to_string()))
}

/// Files of a configMap or secret volume.
pub async fn object_volume(api: &Api, pod: &Pod, source: &ObjectVolumeSource, kind: ObjectKind) -> Result<Payload, VolumeError> {
    let name = if kind == ObjectKind::Secret { &source.secret_name } else { &source.name };
    let data = fetch(api, &pod.metadata.namespace, name, kind).await?;
    object_payload(source, name, kind, data, source.default_mode)
}

/// Files of a projected volume.
pub async fn projected_volume(api: &Api, source: &ProjectedVolumeSource, facts: &Facts<'_>) -> Result<Payload, VolumeError> {
    let mut payload = Payload::new();
    let namespace = &facts.pod.metadata.namespace;
    for part in &source.sources {
        for (object, kind) in [(&part.config_map, ObjectKind::ConfigMap), (&part.secret, ObjectKind::Secret)] {
            if let Some(object) = object {
                let data = fetch(api, namespace, &object.name, kind).await?;
                payload.extend(object_payload(object, &object.name, kind, data, source.default_mode)?);
            }
        }
        if let Some(downward) = &part.downward_api {
            payload.extend(downward_payload(downward, facts, source.default_mode)?);
        }
        if let Some(token) = &part.service_account_token {
            let content = token_file(api, facts.pod, token, source.default_mode).await?;
            payload.insert(token.path.clone(), content);
        }
    }
    Ok(payload)
}

async fn token_file(
    api: &Api,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    default_mode: Option<i32>,
) -> Result<FileContent, VolumeError> {
    let token = api
        .service_account_token(pod, &source.audience, source.expiration_seconds.unwrap_or(3600))
        .await
        .map_err(|e| VolumeError::Content(format!("failed to fetch token: {e}")))?;
    let uid = common_user(pod);
    let fs_group = pod.spec.security_context.as_ref().and_then(|c| c.fs_group);
    let mode = if uid.is_some() || fs_group.is_some() { 0o600 } else { mode_of(None, default_mode) };
    Ok(FileContent { data: token.into_bytes(), mode, uid })
}

/// The user all containers run as, when they agree on one.
fn common_user(pod: &Pod) -> Option<u32> {
    let pod_user = pod.spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = pod.all_containers().map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn data() -> Option<Arc<Data>> {
        Some(Arc::new(Data::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())])))
    }

    #[test]
    fn keys_become_files() {
        let source = |v: serde_json::Value| serde_json::from_value::<ObjectVolumeSource>(v).unwrap();
        let all = object_payload(&source(json!({"name": "x"})), "x", ObjectKind::ConfigMap, data(), Some(0o400)).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(all["a"].mode, 0o400);
        let items = source(json!({"name": "x", "items": [{"key": "a", "path": "d/e", "mode": 256}]}));
        let some = object_payload(&items, "x", ObjectKind::ConfigMap, data(), None).unwrap();
        assert_eq!((some.len(), some["d/e"].mode), (1, 0o400));
        let missing = source(json!({"name": "x", "items": [{"key": "z", "path": "z"}]}));
        assert!(object_payload(&missing, "x", ObjectKind::Secret, data(), None).is_err());
        assert!(object_payload(&items, "x", ObjectKind::Secret, None, None).unwrap_err().to_string().contains("secret \"x\" not found"));
        let optional = source(json!({"name": "x", "optional": true, "items": [{"key": "z", "path": "z"}]}));
        assert!(object_payload(&optional, "x", ObjectKind::Secret, None, None).unwrap().is_empty());
        assert!(object_payload(&optional, "x", ObjectKind::Secret, data(), None).unwrap().is_empty());
    }

    #[test]
    fn a_token_belongs_to_the_user_all_containers_share() {
        let user = |spec: serde_json::Value| common_user(&serde_json::from_value(json!({"spec": spec})).unwrap());
        assert_eq!(user(json!({"containers": [{"name": "a"}]})), None);
        assert_eq!(user(json!({"securityContext": {"runAsUser": 7}, "containers": [{"name": "a"}, {"name": "b"}]})), Some(7));
        assert_eq!(
            user(
                json!({"securityContext": {"runAsUser": 7}, "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 8}}]})
            ),
            None
        );
    }
}
