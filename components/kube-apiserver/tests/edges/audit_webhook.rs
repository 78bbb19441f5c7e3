//! Audit events that are posted: again when a server fails, in lists, and without the objects that make them too large.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use hyper::{Method, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::*;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A server that takes lists of events, after it has refused some.
async fn receiver(file: &std::path::Path, refuses: usize) -> Arc<Mutex<Vec<Value>>> {
    let Listener { port, ca, tcp, tls } = listen("localhost", None).await;
    let ca_file = file.with_extension("crt");
    std::fs::write(&ca_file, ca).unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: w\nclusters: [{{name: w, cluster: {{server: 'https://127.0.0.1:{port}/events', \
         certificate-authority: {}}}}}]\ncontexts: [{{name: w, context: {{cluster: w, user: ''}}}}]\n",
        ca_file.display()
    );
    std::fs::write(file, text).unwrap();
    let (lists, calls) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let log = Arc::clone(&lists);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = tcp.accept().await {
            let (tls, log, calls) = (tls.clone(), Arc::clone(&log), Arc::clone(&calls));
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(tcp).await else { return };
                let service = service_fn(move |request: Request<Incoming>| {
                    let (log, calls) = (Arc::clone(&log), Arc::clone(&calls));
                    async move {
                        let body = request.into_body().collect().await?.to_bytes();
                        let mut answer = Response::new(http_body_util::Full::new(Bytes::new()));
                        if calls.fetch_add(1, Ordering::SeqCst) < refuses {
                            *answer.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
                        } else {
                            log.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                        }
                        Ok::<_, hyper::Error>(answer)
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    lists
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_posted_in_lists_again_after_a_failure_and_cut_when_they_are_large() {
    let dir = tempfile::tempdir().unwrap();
    let (hook, policy) = (dir.path().join("hook"), dir.path().join("policy.yaml"));
    let lists = receiver(&hook, 2).await;
    std::fs::write(
        &policy,
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
         - level: RequestResponse\n  resources: [{group: '', resources: [configmaps]}]\n  namespaces: [default]\n",
    )
    .unwrap();
    let flags = vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-webhook-config-file={}", hook.display()),
        "--audit-webhook-initial-backoff=100ms".into(),
        "--audit-webhook-batch-max-wait=300ms".into(),
        "--audit-webhook-batch-throttle-qps=100".into(),
        "--audit-webhook-truncate-enabled".into(),
        "--audit-webhook-truncate-max-event-size=4000".into(),
        "--audit-webhook-truncate-max-batch-size=100000".into(),
    ];
    let cluster = start(&dir, flags).await;
    let client = client(&cluster, "admin").await;
    done(&client, Method::POST, MAPS, json!({"metadata": {"name": "small"}, "data": {"a": "b"}})).await;
    done(&client, Method::POST, MAPS, json!({"metadata": {"name": "large"}, "data": {"a": "x".repeat(5000)}})).await;

    let event = async |name: &str| {
        until("the event", async || {
            let lists = lists.lock().unwrap();
            let mut all = lists.iter().flat_map(|l| l["items"].as_array().unwrap());
            all.find(|e| e["objectRef"]["name"] == name && e["verb"] == "create").cloned()
        })
        .await
    };
    let small = event("small").await;
    assert_eq!((&small["stage"], &small["level"]), (&json!("ResponseComplete"), &json!("RequestResponse")));
    assert_eq!(small["requestObject"]["data"]["a"], "b");
    assert_eq!(small["responseObject"]["metadata"]["name"], "small");
    assert!(small["annotations"].get("audit.k8s.io/truncated").is_none());
    let large = event("large").await;
    assert!(large.get("requestObject").is_none() && large.get("responseObject").is_none());
    assert_eq!(large["annotations"]["audit.k8s.io/truncated"], "true");
    for list in lists.lock().unwrap().iter() {
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
    }
    let metrics = get(&client, "/metrics", &[]).await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(!metrics.contains("apiserver_audit_error_total{plugin=\"webhook\"}"), "nothing was lost: {metrics}");
}
