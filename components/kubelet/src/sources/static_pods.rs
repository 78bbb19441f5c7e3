//! Static pods: one manifest per file in a directory, YAML or JSON, looked at every second.

use crate::model::pod::{CONFIG_HASH, CONFIG_SEEN, CONFIG_SOURCE, Pod, Toleration};
use crate::pod::hash::static_pod_uid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// A pod from a file, with the manifest its mirror is made from.
#[derive(Debug, Clone)]
pub struct StaticPod {
    pub pod: Arc<Pod>,
    pub manifest: Arc<Value>,
}

/// All static pods; `None` until the directory was read once.
pub type StaticPods = Option<Arc<Vec<StaticPod>>>;

/// Why a manifest was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("read")]
    Read(#[source] std::io::Error),
    #[error("parse: {0}")]
    Parse(String),
    #[error("{0}")]
    Invalid(String),
}

/// Files larger than this are not manifests.
const MAX_SIZE: u64 = 10 << 20;
const PERIOD: Duration = Duration::from_secs(1);

/// Turns a manifest into the pod this node runs.
pub fn pod_from_manifest(text: &str, file: &str, node: &str, seen: &str) -> Result<StaticPod, ManifestError> {
    let mut manifest: Value = serde_yaml::from_str(text).map_err(|e| ManifestError::Parse(e.to_string()))?;
    let invalid = |message: String| ManifestError::Invalid(message);
    if manifest.get("apiVersion").and_then(Value::as_str) != Some("v1") || manifest.get("kind").and_then(Value::as_str) != Some("Pod") {
        return Err(invalid("expected apiVersion v1, kind Pod".into()));
    }
    let uid = static_pod_uid(&manifest, node, file);
    let mut pod: Pod = serde_json::from_value(manifest.clone()).map_err(|e| ManifestError::Parse(e.to_string()))?;
    if pod.metadata.name.is_empty() {
        return Err(invalid("metadata.name is missing".into()));
    }
    if pod.spec.containers.is_empty() {
        return Err(invalid("spec.containers is empty".into()));
    }
    let mut names = std::collections::HashSet::new();
    for container in pod.all_containers() {
        let valid = !container.name.is_empty()
            && container.name.len() <= 63
            && container.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !valid || !names.insert(container.name.clone()) {
            return Err(invalid(format!("container name {:?} is not a DNS label or is used twice", container.name)));
        }
        if container.image.is_empty() {
            return Err(invalid(format!("container {} has no image", container.name)));
        }
    }
    for volume in &pod.spec.volumes {
        let needs_api = volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some();
        if needs_api || !volume.other.is_empty() {
            return Err(invalid(format!("volume {}: a static pod may not refer to API objects", volume.name)));
        }
    }
    if !pod.spec.service_account_name.is_empty() {
        return Err(invalid("a static pod may not have a service account".into()));
    }
    pod.metadata.name = format!("{}-{node}", pod.metadata.name);
    if pod.metadata.namespace.is_empty() {
        pod.metadata.namespace = "default".into();
    }
    pod.metadata.uid.clone_from(&uid);
    pod.metadata.annotations.insert(CONFIG_SOURCE.into(), "file".into());
    pod.metadata.annotations.insert(CONFIG_HASH.into(), uid);
    pod.metadata.annotations.insert(CONFIG_SEEN.into(), seen.to_owned());
    pod.spec.node_name = node.to_owned();
    // Static pods stay whatever happens to the node.
    let toleration = Toleration { operator: "Exists".into(), effect: "NoExecute".into(), ..Default::default() };
    pod.spec.tolerations.push(toleration.clone());
    let annotations = serde_json::to_value(&pod.metadata.annotations).unwrap_or_default();
    let toleration = serde_json::json!({"operator": "Exists", "effect": "NoExecute"});
    if let Some(metadata) = manifest.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "resourceVersion", "creationTimestamp", "ownerReferences", "generateName", "selfLink", "managedFields"] {
            metadata.remove(field);
        }
        metadata.insert("name".into(), pod.metadata.name.clone().into());
        metadata.insert("namespace".into(), pod.metadata.namespace.clone().into());
        metadata.insert("annotations".into(), annotations);
    }
    if let Some(spec) = manifest.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("nodeName".into(), node.into());
        match spec.entry("tolerations").or_insert_with(|| Value::Array(Vec::new())) {
            Value::Array(list) => list.push(toleration),
            other => *other = Value::Array(vec![toleration]),
        }
    }
    if let Some(object) = manifest.as_object_mut() {
        object.remove("status");
    }
    Ok(StaticPod { pod: Arc::new(pod), manifest: Arc::new(manifest) })
}

#[derive(Debug, Clone, PartialEq)]
struct Signature {
    modified: Option<SystemTime>,
    size: u64,
    inode: u64,
}

/// The directory and what was read from it.
struct Directory {
    path: PathBuf,
    node: String,
    files: BTreeMap<PathBuf, (Signature, Option<StaticPod>)>,
    read: bool,
}

impl Directory {
    /// Reads what changed; true when the set of pods changed.
    fn refresh(&mut self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let mut present = BTreeMap::new();
        match std::fs::read_dir(&self.path) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    let path = entry.path();
                    if entry.file_name().as_encoded_bytes().starts_with(b".") {
                        continue;
                    }
                    let Ok(metadata) = std::fs::metadata(&path) else { continue };
                    if metadata.is_file() {
                        let signature = Signature { modified: metadata.modified().ok(), size: metadata.len(), inode: metadata.ino() };
                        present.insert(path, signature);
                    }
                }
            }
            // Not there yet is the same as empty; anything else must not end pods.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), error = %error, "list static pod manifests");
                return false;
            }
        }
        let before = self.files.len();
        self.files.retain(|path, _| present.contains_key(path));
        let mut changed = self.files.len() != before || !self.read;
        self.read = true;
        for (path, signature) in present {
            let old = self.files.get(&path);
            if old.is_some_and(|(s, _)| *s == signature) {
                continue;
            }
            let old_pod = old.and_then(|(_, pod)| pod.clone());
            let pod = match self.load(&path, signature.size) {
                Ok(pod) => {
                    tracing::info!(file = %path.display(), pod = %pod.pod.full_name(), "static pod manifest");
                    // The same manifest written again is the same pod.
                    match old_pod {
                        Some(old) if old.pod.metadata.uid == pod.pod.metadata.uid => Some(old),
                        _ => {
                            changed = true;
                            Some(pod)
                        }
                    }
                }
                Err(error) => {
                    // A bad manifest never ends the pod of the good one before it.
                    let text = crate::pod::apply::error_chain(&error);
                    tracing::error!(file = %path.display(), error = %text, "static pod manifest refused");
                    old_pod
                }
            };
            self.files.insert(path, (signature, pod));
        }
        changed
    }

    fn load(&self, path: &Path, size: u64) -> Result<StaticPod, ManifestError> {
        if size > MAX_SIZE {
            return Err(ManifestError::Invalid(format!("{size} bytes are too many for a manifest")));
        }
        let text = std::fs::read_to_string(path).map_err(ManifestError::Read)?;
        let seen = jiff::Timestamp::now().to_string();
        pod_from_manifest(&text, &path.to_string_lossy(), &self.node, &seen)
    }

    fn pods(&self) -> Vec<StaticPod> {
        let mut names = std::collections::HashSet::new();
        // Two files with the same pod: the first in the order of names counts.
        self.files.values().filter_map(|(_, pod)| pod.clone()).filter(|p| names.insert(p.pod.full_name())).collect()
    }
}

/// Watches the directory for ever.
pub async fn run(path: PathBuf, node: String, sender: watch::Sender<StaticPods>) {
    let mut directory = Directory { path, node, files: BTreeMap::new(), read: false };
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if directory.refresh() {
            sender.send_replace(Some(Arc::new(directory.pods())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: etcd\n  namespace: kube-system\n  uid: mine\nspec:\n  hostNetwork: true\n  containers:\n  - name: etcd\n    image: stub:v1\n    command: [etcd, --x=1]\n";

    #[test]
    fn manifests_become_pods_of_this_node() {
        let made = pod_from_manifest(MANIFEST, "/m/etcd.yaml", "cp-1", "now").unwrap();
        let pod = &made.pod;
        assert_eq!((pod.full_name().as_str(), pod.spec.node_name.as_str()), ("kube-system/etcd-cp-1", "cp-1"));
        assert!(pod.is_static() && !pod.is_mirror());
        assert_eq!(pod.metadata.annotations[CONFIG_HASH], pod.metadata.uid);
        assert_eq!(made.manifest["metadata"]["name"], "etcd-cp-1");
        assert!(made.manifest["metadata"].get("uid").is_none());
        assert_eq!(made.manifest["spec"]["tolerations"][0]["effect"], "NoExecute");
        let again = pod_from_manifest(MANIFEST, "/m/etcd.yaml", "cp-1", "later").unwrap();
        assert_eq!(again.pod.metadata.uid, pod.metadata.uid, "a restart of the kubelet finds the same pod");
        let changed = pod_from_manifest(&MANIFEST.replace("--x=1", "--x=2"), "/m/etcd.yaml", "cp-1", "now").unwrap();
        assert_ne!(changed.pod.metadata.uid, pod.metadata.uid);
    }

    #[test]
    fn bad_manifests_are_refused() {
        for (from, to) in [
            ("kind: Pod", "kind: Deployment"),
            ("name: etcd\n  name", "x: y\n  name"),
            ("image: stub:v1", "x: y"),
            ("- name: etcd", "- name: Bad_Name"),
            ("hostNetwork: true", "volumes: [{name: v, secret: {secretName: s}}]"),
            ("hostNetwork: true", "serviceAccountName: a"),
            ("hostNetwork: true", "hostNetwork: {"),
        ] {
            let text = MANIFEST.replacen(from, to, 1);
            assert!(pod_from_manifest(&text, "f", "n", "now").is_err(), "{to}");
        }
    }

    #[test]
    fn a_bad_edit_keeps_the_last_good_pod() {
        let dir = tempfile::tempdir().unwrap();
        let mut directory = Directory { path: dir.path().into(), node: "n".into(), files: BTreeMap::new(), read: false };
        assert!(directory.refresh() && directory.pods().is_empty(), "an empty directory has been read");
        let file = dir.path().join("a.yaml");
        std::fs::write(&file, MANIFEST).unwrap();
        std::fs::write(dir.path().join(".hidden"), MANIFEST).unwrap();
        assert!(directory.refresh());
        let uid = directory.pods()[0].pod.metadata.uid.clone();
        std::fs::write(&file, "not: a pod, and longer than before to be noticed").unwrap();
        assert!(!directory.refresh());
        assert_eq!(directory.pods()[0].pod.metadata.uid, uid);
        std::fs::remove_file(&file).unwrap();
        assert!(directory.refresh() && directory.pods().is_empty());
    }
}
