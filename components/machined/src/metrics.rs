//! Metrics of the host for Prometheus, on loopback only: how the reconcilers stand, volumes, certificates, snapshots, events.
//! Everything is taken from what is known at the moment of the question.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::etcd;
use crate::machine::Machine;
use crate::resources::Resource;

/// Where metrics are served.
pub const ADDRESS: &str = "127.0.0.1:50001";
const CONNECTIONS: usize = 8;
const CONNECTION_LIFE: Duration = Duration::from_secs(30);

/// Serves metrics until it is dropped. Without the port there are no metrics, and nothing else is missing.
pub async fn serve(machine: Arc<Machine>) {
    let listener = match TcpListener::bind(ADDRESS).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, address = ADDRESS, "serve metrics");
            return;
        }
    };
    let limit = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let machine = machine.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let answer = answer(&machine, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(CONNECTION_LIFE);
            let connection = server.serve_connection(TokioIo::new(socket), service);
            // How it ended is the scraper's concern.
            let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
        });
    }
}

fn answer(machine: &Machine, request: &Request<Incoming>) -> Response<String> {
    let mut response = Response::new(String::new());
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let snapshots = etcd::kept(&machine.paths.snapshots()).unwrap_or_default();
    let known = Known {
        status: machine.store.get("status", None),
        volumes: machine.store.get("volumes", None),
        certificates: machine.store.get("certificates", None),
        snapshots: snapshots.iter().map(|(_, info)| info.taken_unix).collect(),
        events: machine.events.totals(),
    };
    match text(&known) {
        Ok(text) => *response.body_mut() = text,
        Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    let kind = http::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// What metrics are made of.
#[derive(Debug, Default)]
struct Known {
    status: Vec<Resource>,
    volumes: Vec<Resource>,
    certificates: Vec<Resource>,
    snapshots: Vec<i64>,
    events: BTreeMap<&'static str, u64>,
}

type Labels = Vec<(&'static str, String)>;

fn text(known: &Known) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("strake");
    let gauge = |registry: &mut Registry, name: &str, help: &str| {
        let family = Family::<Labels, Gauge>::default();
        registry.register(name, help, family.clone());
        family
    };
    let number = |resource: &Resource, field: &str| resource.spec[field].as_u64().and_then(|value| i64::try_from(value).ok()).unwrap_or(0);

    let ready = gauge(&mut registry, "reconciler_ready", "Whether a reconciler is ready");
    let failed = gauge(&mut registry, "reconciler_failed", "Whether a reconciler failed the last time");
    for resource in &known.status {
        let labels = vec![("reconciler", resource.id.clone())];
        let state = resource.spec["state"].as_str().unwrap_or_default();
        ready.get_or_create(&labels).set(i64::from(state == "ready"));
        failed.get_or_create(&labels).set(i64::from(state == "failed"));
    }
    let size = gauge(&mut registry, "volume_size_bytes", "Size of a volume");
    let used = gauge(&mut registry, "volume_used_bytes", "Bytes of a volume that are in use");
    for resource in &known.volumes {
        let labels = vec![("volume", resource.id.clone())];
        size.get_or_create(&labels).set(number(resource, "size"));
        used.get_or_create(&labels).set(number(resource, "used"));
    }
    let expiry = gauge(&mut registry, "certificate_expiry_timestamp_seconds", "When a certificate expires");
    for resource in &known.certificates {
        let expires = resource.spec.get("expires").and_then(Value::as_str).and_then(|text| text.parse::<jiff::Timestamp>().ok());
        if let Some(expires) = expires {
            expiry.get_or_create(&vec![("certificate", resource.id.clone())]).set(expires.as_second());
        }
    }
    let kept = Gauge::<i64>::default();
    kept.set(i64::try_from(known.snapshots.len()).unwrap_or(i64::MAX));
    registry.register("etcd_snapshots", "Kept etcd snapshots", kept);
    if let Some(newest) = known.snapshots.iter().max() {
        let taken = Gauge::<i64>::default();
        taken.set(*newest);
        registry.register("etcd_snapshot_newest_timestamp_seconds", "When the newest kept etcd snapshot was taken", taken);
    }
    let failures = Counter::<u64>::default();
    failures.inc_by(known.events.get(etcd::SNAPSHOT_FAILED).copied().unwrap_or(0));
    registry.register("etcd_snapshot_failures", "etcd snapshots that failed since machined started", failures);
    let events = Family::<Labels, Counter>::default();
    registry.register("events", "Events since machined started", events.clone());
    for (reason, count) in &known.events {
        events.get_or_create(&vec![("reason", (*reason).to_owned())]).inc_by(*count);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_known_becomes_metrics() {
        let resource = |id: &str, spec: Value| Resource { kind: String::new(), id: id.into(), version: 1, spec: Arc::new(spec) };
        let known = Known {
            status: vec![resource("etcd-snapshots", json!({"state": "failed"})), resource("time", json!({"state": "ready"}))],
            volumes: vec![resource("DATA", json!({"size": 100, "used": 7}))],
            certificates: vec![resource("machine", json!({"expires": "1970-01-02T00:00:00Z"}))],
            snapshots: vec![5, 9],
            events: BTreeMap::from([(etcd::SNAPSHOT_FAILED, 3)]),
        };
        let text = text(&known).unwrap();
        for line in [
            "strake_reconciler_failed{reconciler=\"etcd-snapshots\"} 1",
            "strake_reconciler_ready{reconciler=\"time\"} 1",
            "strake_volume_used_bytes{volume=\"DATA\"} 7",
            "strake_certificate_expiry_timestamp_seconds{certificate=\"machine\"} 86400",
            "strake_etcd_snapshots 2",
            "strake_etcd_snapshot_newest_timestamp_seconds 9",
            "strake_etcd_snapshot_failures_total 3",
            "strake_events_total{reason=\"EtcdSnapshotFailed\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
