//! Tells the API server the status of pods, and deletes from it those that have ended and are to be deleted.
//!
//! Statuses are kept here by pod; one task sends what is new. With the server away nothing waits: the newest status is sent when it is back.

use crate::api::Api;
use crate::model::pod::Pod;
use crate::model::status::{PodCondition, PodStatus};
use k8s_client::resources::PODS;
use k8s_client::{DeleteOptions, Patch, Request};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

#[derive(Debug, Clone)]
struct Entry {
    namespace: String,
    name: String,
    is_static: bool,
    status: PodStatus,
    version: u64,
    /// Version and UID (a mirror pod may be made anew) that were sent.
    sent: Option<(u64, String)>,
    /// When something was last sent.
    sent_at: Option<Instant>,
    /// Nothing of the pod runs or will run.
    terminated: bool,
    /// The pod is to be deleted once it has terminated.
    deleting: bool,
    deleted: bool,
    retry_at: Instant,
}

/// Statuses of the pods of this node.
#[derive(Default)]
pub struct Statuses {
    entries: Mutex<HashMap<String, Entry>>,
    dirty: Notify,
}

const RETRY: Duration = Duration::from_secs(5);
/// What was sent must have come back by the watch after this long; what differs then was changed by somebody else.
const COME_BACK: Duration = Duration::from_secs(5);

impl Statuses {
    /// The status the API server has of a pod, from which a new worker starts.
    pub fn initial(&self, api: &Api, pod: &Pod) -> PodStatus {
        if !pod.is_static() {
            return pod.status.clone();
        }
        let mirror = api.pods.get().and_then(|pods| pods.get(&pod.metadata.namespace, &pod.metadata.name));
        // A mirror of another version of the manifest says nothing about this one.
        mirror
            .filter(|m| m.metadata.annotations.get(crate::model::pod::CONFIG_MIRROR) == Some(&pod.metadata.uid))
            .map(|m| m.status.clone())
            .unwrap_or_default()
    }

    /// Sets a pod's status.
    pub fn set(&self, pod: &Pod, status: PodStatus) {
        let mut entries = self.entries.lock();
        let entry = entries.entry(pod.metadata.uid.clone()).or_insert_with(|| Entry {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            is_static: pod.is_static(),
            status: PodStatus::default(),
            version: 0,
            sent: None,
            sent_at: None,
            terminated: false,
            deleting: false,
            deleted: false,
            retry_at: Instant::now(),
        });
        if entry.version == 0 || entry.status != status {
            entry.status = status;
            entry.version += 1;
            drop(entries);
            self.dirty.notify_one();
        }
    }

    /// Notes that nothing of the pod runs any more; it is deleted when that was asked for.
    pub fn terminated(&self, pod: &Pod) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&pod.metadata.uid) {
            entry.terminated = true;
            entry.deleting |= pod.metadata.deletion_timestamp.is_some();
            drop(entries);
            self.dirty.notify_one();
        }
    }

    /// Forgets a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
    }

    /// The status of a pod as the kubelet sees it.
    pub fn get(&self, uid: &str) -> Option<PodStatus> {
        self.entries.lock().get(uid).map(|e| e.status.clone())
    }

    /// Something about pods changed at the server: a mirror pod may have appeared.
    pub fn poke(&self) {
        self.dirty.notify_one();
    }

    /// Sends statuses for ever.
    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(10));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.dirty.notified() => {}
                _ = ticks.tick() => {}
            }
            if api.client().is_err() {
                continue;
            }
            let due: Vec<(String, Entry)> = {
                let now = Instant::now();
                self.entries.lock().iter().filter(|(_, e)| e.retry_at <= now).map(|(u, e)| (u.clone(), e.clone())).collect()
            };
            for (uid, entry) in due {
                self.send(&api, &uid, entry).await;
            }
        }
    }

    async fn send(&self, api: &Api, uid: &str, entry: Entry) {
        let known = api.pods.get().and_then(|pods| pods.get(&entry.namespace, &entry.name));
        let target = if entry.is_static {
            match &known {
                Some(mirror) if mirror.is_mirror() => mirror.metadata.uid.clone(),
                _ => return,
            }
        } else {
            uid.to_owned()
        };
        let Ok(client) = api.client() else { return };
        let server = known.as_ref().filter(|k| k.metadata.uid == target).map(|k| &k.status);
        // The node lifecycle controller takes Ready from the pods of a node that was silent; only the kubelet gives it back.
        let changed_by_others =
            entry.sent_at.is_some_and(|at| at.elapsed() > COME_BACK) && server.is_some_and(|server| differs(&entry.status, server));
        let is_sent = entry.sent.as_ref().is_some_and(|(version, to)| *version == entry.version && *to == target);
        if (!is_sent || changed_by_others) && entry.version > 0 {
            let body = patch_body(&target, &entry.status, server);
            let request = Request::patch(&PODS, &entry.namespace, &entry.name, &Patch::strategic(&body)).subresource("status");
            match client.execute(&request).await {
                Ok(()) => self.update(uid, |e| {
                    e.sent = Some((entry.version, target.clone()));
                    e.sent_at = Some(Instant::now());
                }),
                // Gone, or another pod of that name: nobody to tell.
                Err(error) if error.is_not_found() || error.is_conflict() => {
                    self.update(uid, |e| e.sent = Some((entry.version, target.clone())));
                }
                Err(error) => {
                    tracing::warn!(pod = %format_args!("{}/{}", entry.namespace, entry.name), error = %error, "update pod status");
                    self.update(uid, |e| e.retry_at = Instant::now() + RETRY);
                    return;
                }
            }
        }
        if entry.terminated && entry.deleting && !entry.deleted && !entry.is_static {
            let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(uid) };
            match client.execute(&Request::delete(&PODS, &entry.namespace, &entry.name, &options)).await {
                Ok(()) => self.update(uid, |e| e.deleted = true),
                Err(error) if error.is_not_found() || error.is_conflict() => self.update(uid, |e| e.deleted = true),
                Err(error) => {
                    tracing::warn!(pod = %format_args!("{}/{}", entry.namespace, entry.name), error = %error, "delete an ended pod");
                    self.update(uid, |e| e.retry_at = Instant::now() + RETRY);
                }
            }
        }
    }

    fn update(&self, uid: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.lock().get_mut(uid) {
            change(entry);
        }
    }
}

/// Whether the server has something else in what is the kubelet's to say. Only what says how the pod is, not how that is worded.
fn differs(ours: &PodStatus, theirs: &PodStatus) -> bool {
    let condition = |list: &[PodCondition], kind: &str| list.iter().find(|c| c.r#type == kind).map(|c| c.status.clone());
    ours.phase != theirs.phase
        || ours.conditions.iter().any(|c| condition(&theirs.conditions, &c.r#type).as_ref() != Some(&c.status))
        || ours.container_statuses.iter().any(|c| {
            theirs
                .container_statuses
                .iter()
                .find(|t| t.name == c.name)
                .is_none_or(|t| t.ready != c.ready || t.restart_count != c.restart_count)
        })
}

/// A strategic merge patch that makes the server's status be this one, and leaves the conditions of others alone.
fn patch_body(uid: &str, status: &PodStatus, server: Option<&PodStatus>) -> Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    if let Some(conditions) = body.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            // Lists of conditions are merged field by field, so what is empty now must be said.
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
    }
    let server_default = PodStatus::default();
    let server = server.unwrap_or(&server_default);
    for (field, ours, theirs) in [("reason", &status.reason, &server.reason), ("message", &status.message, &server.message)] {
        if ours.is_empty() && !theirs.is_empty() {
            body[field] = Value::Null;
        }
    }
    // Lists of addresses are merged by address: one that changed has to be replaced as a whole.
    for (field, ours, theirs) in [("podIPs", &status.pod_ips, &server.pod_ips), ("hostIPs", &status.host_ips, &server.host_ips)] {
        if !theirs.is_empty()
            && ours != theirs
            && let Some(list) = body.get_mut(field).and_then(Value::as_array_mut)
        {
            list.insert(0, json!({"$patch": "replace"}));
        }
    }
    json!({"metadata": {"uid": uid}, "status": body})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::Ip;

    #[test]
    fn only_what_the_kubelet_says_is_compared() {
        let status = |phase: &str, ready: &str, extra: bool| {
            let condition = |kind: &str, status: &str| PodCondition { r#type: kind.into(), status: status.into(), ..Default::default() };
            let mut conditions = vec![condition("Ready", ready)];
            conditions.extend(extra.then(|| condition("example.com/gate", "True")));
            PodStatus { phase: phase.into(), conditions, ..Default::default() }
        };
        let ours = status("Running", "True", false);
        for (theirs, expected) in [
            (status("Running", "True", false), false),
            (status("Running", "True", true), false),
            (status("Running", "False", false), true),
            (status("Pending", "True", false), true),
            (PodStatus::default(), true),
        ] {
            assert_eq!(differs(&ours, &theirs), expected, "{theirs:?}");
        }
    }

    #[test]
    fn patches_say_what_became_empty_and_replace_addresses() {
        let condition = PodCondition { r#type: "Ready".into(), status: "True".into(), ..Default::default() };
        let status = PodStatus {
            phase: "Running".into(),
            conditions: vec![condition],
            pod_ips: vec![Ip { ip: "10.0.0.2".into() }],
            ..Default::default()
        };
        let server = PodStatus { reason: "Old".into(), pod_ips: vec![Ip { ip: "10.0.0.1".into() }], ..Default::default() };
        let body = patch_body("u", &status, Some(&server));
        assert_eq!(body["metadata"]["uid"], "u");
        assert_eq!(body["status"]["conditions"][0], json!({"type": "Ready", "status": "True", "reason": null, "message": null}));
        assert_eq!(body["status"]["podIPs"], json!([{"$patch": "replace"}, {"ip": "10.0.0.2"}]));
        assert!(body["status"]["reason"].is_null());
        let first = patch_body("u", &status, None);
        assert_eq!(first["status"]["podIPs"], json!([{"ip": "10.0.0.2"}]));
        assert!(first["status"].get("reason").is_none());
    }
}
