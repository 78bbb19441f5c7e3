//! The metrics that upstream promises to keep: each is there under its name, with its labels.

use hyper::Method;
use serde_json::json;

use super::*;

/// Those of upstream's list that are an API server's, with the labels of a series, in their order.
const PROMISED: &[(&str, &[&str])] = &[
    ("apiserver_admission_controller_admission_duration_seconds", &["name", "operation", "rejected", "type"]),
    ("apiserver_admission_step_admission_duration_seconds", &["operation", "rejected", "type"]),
    ("apiserver_admission_webhook_admission_duration_seconds", &[]),
    ("apiserver_authentication_config_controller_automatic_reloads_total", &[]),
    ("apiserver_authorization_config_controller_automatic_reloads_total", &[]),
    ("apiserver_flowcontrol_current_executing_requests", &["flow_schema", "priority_level"]),
    ("apiserver_flowcontrol_current_executing_seats", &["priority_level"]),
    ("apiserver_flowcontrol_current_inqueue_requests", &["flow_schema", "priority_level"]),
    ("apiserver_flowcontrol_dispatched_requests_total", &["flow_schema", "priority_level"]),
    ("apiserver_flowcontrol_nominal_limit_seats", &["priority_level"]),
    ("apiserver_flowcontrol_rejected_requests_total", &[]),
    ("apiserver_flowcontrol_request_wait_duration_seconds", &[]),
    ("apiserver_longrunning_requests", &["component", "group", "resource", "scope", "subresource", "verb", "version"]),
    ("apiserver_request_duration_seconds", &["component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"]),
    ("apiserver_request_total", &["code", "component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"]),
    ("apiserver_requested_deprecated_apis", &["group", "removed_release", "resource", "subresource", "version"]),
    ("apiserver_response_sizes", &["component", "group", "resource", "scope", "subresource", "verb", "version"]),
    ("apiserver_storage_objects", &["resource"]),
    ("apiserver_storage_size_bytes", &["storage_cluster_id"]),
    ("apiserver_validating_admission_policy_check_duration_seconds", &[]),
    ("apiserver_validating_admission_policy_check_total", &[]),
    ("disabled_metrics_total", &[]),
    ("hidden_metrics_total", &[]),
    ("kubernetes_healthcheck", &["name", "type"]),
    ("kubernetes_healthchecks_total", &["name", "status", "type"]),
    ("pod_security_errors_total", &[]),
    ("pod_security_evaluations_total", &[]),
    ("pod_security_exemptions_total", &[]),
    ("registered_metrics_total", &["deprecated_version", "stability_level"]),
];

/// The names of a line's labels.
fn labels(line: &str) -> Vec<&str> {
    let inner = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inner, _)| inner);
    let mut names: Vec<&str> = inner.split("\",").filter_map(|l| l.split_once('=').map(|(name, _)| name)).collect();
    names.retain(|n| *n != "le");
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn promised_metrics_are_there_with_their_labels() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, Vec::new()).await;
    let client = client(&cluster, "admin").await;
    let maps = "/api/v1/namespaces/default/configmaps";
    done(&client, Method::POST, maps, json!({"metadata": {"name": "a"}})).await;
    done(&client, Method::GET, "/api/v1/namespaces/default/endpoints", Value::Null).await;
    get(&client, "/readyz", &[]).await;
    let request = Request::builder().uri(format!("{maps}?watch=true")).body(Body::empty()).unwrap();
    let watch = client.send(request).await.unwrap();
    let text = String::from_utf8(get(&client, "/metrics", &[]).await.body.to_vec()).unwrap();
    for (name, wanted) in PROMISED {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} is not there");
        let series = text.lines().find(|l| {
            let rest = l.strip_prefix(name).map(|r| r.trim_start_matches("_bucket"));
            rest.is_some_and(|r| r.starts_with('{'))
        });
        if !wanted.is_empty() {
            assert_eq!(labels(series.unwrap_or_else(|| panic!("{name} has no series"))), *wanted, "{name}");
        }
    }
    let line = |start: &str| text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("no {start}")).to_owned();
    let watching = "apiserver_longrunning_requests{component=\"apiserver\",group=\"\",resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"WATCH\",version=\"v1\"}";
    assert!(line(watching).ends_with(" 1"), "{}", line(watching));
    drop(watch);
    until("the end of the watch", async || {
        let text = String::from_utf8(get(&client, "/metrics", &[]).await.body.to_vec()).unwrap();
        text.lines().any(|l| l == format!("{watching} 0")).then_some(())
    })
    .await;
    let created = "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"POST\",version=\"v1\"}";
    assert!(line(created).ends_with(" 1"), "{}", line(created));
    let slis = String::from_utf8(get(&client, "/metrics/slis", &[]).await.body.to_vec()).unwrap();
    assert!(slis.contains("kubernetes_healthcheck{name=\"ping\",type=\"readyz\"} 1"), "{slis}");
}
