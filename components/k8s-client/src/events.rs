//! Events: what people see under `kubectl describe`. Repeats are counted, floods are cut, and nothing ever waits for an event.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::meta::ObjectMeta;
use crate::request::{Patch, Request};
use crate::resource::{Resource, resources::EVENTS};
use crate::time::Time;

/// Events waiting to be sent; more are dropped.
const QUEUE: usize = 256;
/// Events remembered for counting repeats.
const REMEMBERED: usize = 1024;
/// Per object: this many at once, then one in five minutes, as upstream's spam filter.
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

/// core/v1 ObjectReference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    pub api_version: String,
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
}

impl ObjectReference {
    /// A reference to an object of a known resource.
    pub fn to(resource: &Resource, meta: &ObjectMeta) -> Self {
        Self {
            api_version: resource.api_version(),
            kind: resource.kind.to_string(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..Self::default()
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Occurrence {
    object: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

/// Sends events in the background; cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<(Occurrence, Timestamp)>,
}

impl EventRecorder {
    /// Starts the background task, which ends with `stop`. `component` and `host` are what `source` shows.
    pub fn spawn(client: Client, component: &str, host: &str, stop: CancellationToken) -> Self {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let (component, host) = (component.to_string(), host.to_string());
        tokio::spawn(async move {
            let mut correlator = Correlator::default();
            loop {
                let (occurrence, at) = tokio::select! {
                    received = receiver.recv() => match received {
                        Some(occurrence) => occurrence,
                        None => return,
                    },
                    () = stop.cancelled() => return,
                };
                send(&client, &mut correlator, occurrence, at, &component, &host).await;
            }
        });
        Self { sender }
    }

    /// Records an event. It is dropped when too many wait.
    pub fn event(&self, object: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > 1024 {
            let cut = (0..=1021).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(cut);
            message.push_str("...");
        }
        let occurrence = Occurrence {
            object: ObjectReference { resource_version: String::new(), ..object.clone() },
            kind,
            reason: reason.into(),
            message,
        };
        if self.sender.try_send((occurrence, Timestamp::now())).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    name: String,
    count: u32,
}

/// What to do with an occurrence.
#[derive(Debug, PartialEq)]
enum Verdict {
    Drop,
    Create,
    Count(Known),
}

#[derive(Default)]
struct Correlator {
    known: HashMap<Occurrence, Known>,
    order: VecDeque<Occurrence>,
    buckets: HashMap<ObjectReference, (f64, Timestamp)>,
}

impl Correlator {
    fn judge(&mut self, occurrence: &Occurrence, now: Timestamp) -> Verdict {
        if self.buckets.len() >= REMEMBERED && !self.buckets.contains_key(&occurrence.object) {
            // A full bucket says nothing: those go first.
            self.buckets.retain(|_, (tokens, at)| refill(*tokens, *at, now) < BURST - 1.0);
            if self.buckets.len() >= REMEMBERED {
                self.buckets.clear();
            }
        }
        let (tokens, at) = self.buckets.entry(occurrence.object.clone()).or_insert((BURST, now));
        *tokens = refill(*tokens, *at, now);
        *at = now;
        if *tokens < 1.0 {
            return Verdict::Drop;
        }
        *tokens -= 1.0;
        match self.known.get_mut(occurrence) {
            Some(known) => {
                known.count = known.count.saturating_add(1);
                Verdict::Count(known.clone())
            }
            None => Verdict::Create,
        }
    }

    fn remember(&mut self, occurrence: Occurrence, name: String) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        if self.known.insert(occurrence.clone(), Known { name, count: 1 }).is_none() {
            self.order.push_back(occurrence);
        }
    }
}

fn refill(tokens: f64, at: Timestamp, now: Timestamp) -> f64 {
    (tokens + now.duration_since(at).as_secs_f64().max(0.0) * REFILL_PER_SECOND).min(BURST)
}

async fn send(client: &Client, correlator: &mut Correlator, occurrence: Occurrence, at: Timestamp, component: &str, host: &str) {
    let namespace = if occurrence.object.namespace.is_empty() { "default" } else { occurrence.object.namespace.as_str() }.to_string();
    let outcome = match correlator.judge(&occurrence, at) {
        Verdict::Drop => return,
        Verdict::Count(known) => {
            let body = json!({"count": known.count, "lastTimestamp": Time(at)});
            let patched = client.execute(&Request::patch(&EVENTS, &namespace, &known.name, &Patch::merge(&body))).await;
            match patched {
                // Events expire after an hour; start over.
                Err(error) if error.is_not_found() => create(client, correlator, occurrence, at, &namespace, component, host).await,
                other => other,
            }
        }
        Verdict::Create => create(client, correlator, occurrence, at, &namespace, component, host).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(error = &error as &dyn std::error::Error, "an event could not be recorded");
    }
}

async fn create(
    client: &Client,
    correlator: &mut Correlator,
    occurrence: Occurrence,
    at: Timestamp,
    namespace: &str,
    component: &str,
    host: &str,
) -> Result<(), crate::error::Error> {
    let name = format!("{}.{:x}", occurrence.object.name, at.as_nanosecond());
    let body = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": occurrence.object,
        "type": format!("{:?}", occurrence.kind),
        "reason": occurrence.reason,
        "message": occurrence.message,
        "source": {"component": component, "host": host},
        "reportingComponent": component,
        "reportingInstance": host,
        "firstTimestamp": Time(at),
        "lastTimestamp": Time(at),
        "count": 1,
    });
    client.execute(&Request::create(&EVENTS, namespace, &body)).await?;
    correlator.remember(occurrence, name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_count_and_floods_are_cut() {
        let mut correlator = Correlator::default();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let occurrence = Occurrence {
            object: ObjectReference { name: "a".into(), ..Default::default() },
            kind: EventType::Normal,
            reason: "R".into(),
            message: "m".into(),
        };
        assert_eq!(correlator.judge(&occurrence, now), Verdict::Create);
        correlator.remember(occurrence.clone(), "a.1".into());
        assert_eq!(correlator.judge(&occurrence, now), Verdict::Count(Known { name: "a.1".into(), count: 2 }));
        for _ in 0..23 {
            correlator.judge(&occurrence, now);
        }
        assert_eq!(correlator.judge(&occurrence, now), Verdict::Drop);
        let later: Timestamp = "2026-01-01T00:05:01Z".parse().unwrap();
        assert!(matches!(correlator.judge(&occurrence, later), Verdict::Count(_)));
        for n in 0..3000 {
            let other = Occurrence { object: ObjectReference { name: format!("p{n}"), ..Default::default() }, ..occurrence.clone() };
            correlator.judge(&other, later);
            correlator.remember(other, "x".into());
        }
        assert!(correlator.known.len() <= REMEMBERED && correlator.buckets.len() <= REMEMBERED && correlator.order.len() <= REMEMBERED);
    }
}
