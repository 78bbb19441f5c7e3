//! What happened on the machine that people should hear of. Events are kept in memory as resources of kind `events`,
//! counted for metrics, and told to Kubernetes as Events on this machine's Node as soon as its API answers. Bounded: the
//! oldest go first. Nothing waits for an event.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use k8s_client::resources::EVENTS;
use k8s_client::{Client, Error, Patch, Request};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::kubernetes;
use crate::machine::Machine;
use crate::resources::Store;

/// The resources' kind.
pub const KIND: &str = "events";
/// Events that are remembered.
const REMEMBERED: usize = 256;
/// Events that wait for the API server.
const WAITING: usize = 64;
/// The same event again within this time is counted, not repeated.
const SAME: i64 = 3600;
/// How long until the API server is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It is good to know.
    Normal,
    /// Someone should look.
    Warning,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// One event, and how often it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    severity: Severity,
    reason: &'static str,
    message: String,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

#[derive(Debug, Default)]
struct Inner {
    recent: BTreeMap<u64, Event>,
    totals: BTreeMap<&'static str, u64>,
    next: u64,
    outbox: VecDeque<u64>,
}

/// The machine's events. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Events {
    inner: Arc<Mutex<Inner>>,
    waiting: Arc<Notify>,
}

impl Events {
    /// Notes that something happened.
    pub fn record(&self, store: &Store, severity: Severity, reason: &'static str, message: &str) {
        match severity {
            Severity::Normal => tracing::info!(reason, message, "event"),
            Severity::Warning => tracing::warn!(reason, message, "event"),
        }
        let mut inner = self.lock();
        let (id, removed) = inner.note(severity, reason, message, Timestamp::now());
        if let Some(event) = inner.recent.get(&id) {
            store.set(KIND, &name(id), spec(event));
        }
        for old in removed {
            store.remove(KIND, &name(old));
        }
        drop(inner);
        self.waiting.notify_one();
    }

    /// How often each reason was given since machined started.
    pub fn totals(&self) -> BTreeMap<&'static str, u64> {
        self.lock().totals.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    /// The event's number, and the numbers of those that had to go.
    fn note(&mut self, severity: Severity, reason: &'static str, message: &str, now: Timestamp) -> (u64, Vec<u64>) {
        *self.totals.entry(reason).or_default() += 1;
        let message = shortened(message);
        let same = |event: &Event| event.reason == reason && event.message == message && now.as_second() - event.last.as_second() < SAME;
        let known = self.recent.iter().rev().find(|(_, event)| same(event)).map(|(id, _)| *id);
        let id = match known {
            Some(id) => {
                if let Some(event) = self.recent.get_mut(&id) {
                    event.count = event.count.saturating_add(1);
                    event.last = now;
                }
                id
            }
            None => {
                let id = self.next;
                self.next += 1;
                self.recent.insert(id, Event { severity, reason, message, count: 1, first: now, last: now });
                id
            }
        };
        if !self.outbox.contains(&id) {
            self.outbox.push_back(id);
        }
        let mut removed = Vec::new();
        while self.recent.len() > REMEMBERED {
            removed.extend(self.recent.pop_first().map(|(id, _)| id));
        }
        self.outbox.retain(|id| !removed.contains(id));
        while self.outbox.len() > WAITING {
            self.outbox.pop_front();
        }
        (id, removed)
    }
}

/// A name that sorts by age.
fn name(id: u64) -> String {
    format!("{id:06}")
}

/// As upstream's API server takes them.
fn shortened(message: &str) -> String {
    const MAX: usize = 1024;
    match message.char_indices().nth(MAX - 4) {
        Some((end, _)) if message.len() > MAX => format!("{}...", &message[..end]),
        _ => message.to_owned(),
    }
}

fn spec(event: &Event) -> Value {
    json!({
        "severity": event.severity.name(), "reason": event.reason, "message": event.message, "count": event.count,
        "first": event.first.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "last": event.last.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}

/// The event as Kubernetes knows it, on the machine's Node. As upstream's kubelet, the Node's name stands for its uid.
fn kubernetes_event(node: &str, name: &str, event: &Event) -> Value {
    let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "reason": event.reason, "message": event.message, "type": event.severity.name(),
        "source": {"component": "machined", "host": node},
        "reportingComponent": "machined", "reportingInstance": node,
        "firstTimestamp": time(event.first), "lastTimestamp": time(event.last), "count": event.count,
    })
}

/// Tells Kubernetes about events until it is dropped. While the API server is away they wait.
pub async fn tell_kubernetes(machine: Arc<Machine>) {
    let mut client = None;
    loop {
        let next = {
            let inner = machine.events.lock();
            inner.outbox.front().copied().and_then(|id| inner.recent.get(&id).map(|event| (id, event.clone())))
        };
        let Some((id, event)) = next else {
            machine.events.waiting.notified().await;
            continue;
        };
        match tell(&machine, &mut client, &event).await {
            Ok(()) => {
                let mut inner = machine.events.lock();
                let unchanged = inner.recent.get(&id).is_none_or(|now| now.count == event.count);
                if unchanged && inner.outbox.front() == Some(&id) {
                    inner.outbox.pop_front();
                }
            }
            Err(error) => {
                tracing::debug!(error = %crate::api::chain(error.as_ref()), "an event waits for the API server");
                client = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn tell(machine: &Machine, client: &mut Option<Client>, event: &Event) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let loaded = machine.loaded().ok_or("the machine has no config")?;
    let client = match client {
        Some(client) => client,
        None => client.insert(kubernetes::client(&machine.paths, kubernetes::own_kubeconfig(&loaded.config))?),
    };
    let node = machine.hostname();
    let name = format!("{node}.{:x}", event.first.as_nanosecond());
    let body = kubernetes_event(&node, &name, event);
    if event.count > 1 {
        let patch = Patch::merge(&json!({"count": event.count, "lastTimestamp": body["lastTimestamp"]}));
        match client.call::<Value>(&Request::patch(&EVENTS, "default", &name, &patch).with_timeout(RETRY)).await {
            // Never told, or expired after an hour.
            Err(error) if error.is_not_found() => {}
            other => return Ok(other.map(drop)?),
        }
    }
    match client.call::<Value>(&Request::create(&EVENTS, "default", &body).with_timeout(RETRY)).await {
        Err(error) if !Error::is_already_exists(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn repeats_are_counted_and_the_oldest_go() {
        let mut inner = Inner::default();
        let (first, _) = inner.note(Severity::Warning, "A", "it broke", at(1000));
        let (again, _) = inner.note(Severity::Warning, "A", "it broke", at(1100));
        assert_eq!(first, again);
        assert_eq!((inner.recent[&first].count, inner.outbox.len()), (2, 1));
        // Much later, or otherwise broken, is another event.
        assert_ne!(inner.note(Severity::Warning, "A", "it broke", at(1100 + SAME)).0, first);
        assert_ne!(inner.note(Severity::Warning, "A", "broken otherwise", at(1200)).0, first);
        assert_eq!(inner.totals["A"], 4);
        let mut removed = Vec::new();
        for i in 0..REMEMBERED {
            removed.extend(inner.note(Severity::Normal, "B", &i.to_string(), at(2000)).1);
        }
        assert_eq!(removed, [0, 1, 2]);
        assert_eq!((inner.recent.len(), inner.outbox.len()), (REMEMBERED, WAITING));
    }

    #[test]
    fn events_are_resources() {
        let (events, store) = (Events::default(), Store::default());
        events.record(&store, Severity::Warning, "EtcdSnapshotFailed", "the disk is full");
        events.record(&store, Severity::Warning, "EtcdSnapshotFailed", "the disk is full");
        let shown = store.get(KIND, None);
        assert_eq!((shown.len(), shown[0].id.as_str()), (1, "000000"));
        assert_eq!((&shown[0].spec["count"], &shown[0].spec["message"]), (&json!(2), &json!("the disk is full")));
        assert_eq!(events.totals()["EtcdSnapshotFailed"], 2);
    }

    #[test]
    fn kubernetes_sees_them_on_the_node() {
        let event = Event { severity: Severity::Warning, reason: "R", message: "m".into(), count: 3, first: at(0), last: at(60) };
        let body = kubernetes_event("cp-1", "cp-1.0", &event);
        assert_eq!(body["involvedObject"]["uid"], "cp-1");
        assert_eq!((&body["type"], &body["count"]), (&json!("Warning"), &json!(3)));
        assert_eq!(body["lastTimestamp"], "1970-01-01T00:01:00Z");
    }

    #[test]
    fn messages_are_bounded_in_characters() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"é".repeat(2000));
        assert!(long.ends_with("...") && long.chars().count() < 1024);
    }
}
