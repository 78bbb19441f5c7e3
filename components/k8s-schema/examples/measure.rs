//! Prints what decoding, encoding and working on a pod of about 2 KiB costs, beside `serde_json::Value`.
//!
//! `cargo run --release -p k8s-schema --example measure`

use bytes::Bytes;
use k8s_schema::{Doc, Schema, apply, patch, value};
use std::hint::black_box;

fn pod() -> String {
    let container = |name: &str| {
        value!({"name": name, "image": "registry.example.com/team/app:v1.2.3", "args": ["--listen=:8080", "--verbose"],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "env": [{"name": "A", "value": "1"}, {"name": "POD", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
            "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "volumeMounts": [{"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent"})
    };
    value!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "web-5d9c7b8f6d-x2x9z", "generateName": "web-5d9c7b8f6d-", "namespace": "default", "uid": "2b0c3d1e-7d1f-4a53-9d52-0f6e3a5a6a11",
            "resourceVersion": "123456", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"app": "web", "pod-template-hash": "5d9c7b8f6d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9c7b8f6d", "uid": "c3a7", "controller": true, "blockOwnerDeletion": true}]},
        "spec": {"volumes": [{"name": "kube-api-access", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}], "defaultMode": 420}}],
            "containers": [container("app"), container("sidecar")],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "serviceAccountName": "default",
            "serviceAccount": "default", "nodeName": "worker-1", "securityContext": {}, "schedulerName": "default-scheduler",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority"},
        "status": {"phase": "Running", "hostIP": "10.5.0.21", "podIP": "10.244.1.7", "startTime": "2026-01-02T03:04:05Z", "qosClass": "Burstable",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-02T03:04:09Z"}]}})
    .to_string()
}

/// Nanoseconds this thread has had a CPU, from the scheduler's statistics: right on a busy machine too.
fn cpu_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// Nanoseconds of one call, the best of several rounds.
fn time<T>(mut f: impl FnMut() -> T) -> f64 {
    (0..7)
        .map(|_| {
            // The statistics are brought up to date when the thread is switched or at a tick.
            let rounds = 1_000;
            std::thread::yield_now();
            let start = cpu_time();
            for _ in 0..rounds {
                black_box(f());
            }
            std::thread::yield_now();
            (cpu_time() - start) / f64::from(rounds)
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "Pod").unwrap_or(k8s_schema::TypeId::ANY);
    let text = Bytes::from(pod());
    let decode = || Doc::from_json(&schema, ty, text.clone()).map(|d| d.doc);
    let Ok(doc) = decode() else { return };
    let proto = Bytes::from(doc.to_protobuf());
    let mut out = Vec::with_capacity(16_384);
    println!("pod: {} bytes of JSON, {} of protobuf; document: {} bytes of its own", text.len(), proto.len(), doc.memory() - text.len());
    println!("{:<34}{:>9.0} ns", "JSON → Doc", time(decode));
    println!("{:<34}{:>9.0} ns", "protobuf → Doc", time(|| Doc::from_protobuf(&schema, proto.clone())));
    println!("{:<34}{:>9.0} ns", "Doc → JSON", time(|| (out.clear(), doc.write_json(&mut out))));
    println!("{:<34}{:>9.0} ns", "Doc → protobuf", time(|| (out.clear(), doc.write_protobuf_message(&mut out))));
    println!("{:<34}{:>9.0} ns", "Doc clone", time(|| doc.clone()));
    println!("{:<34}{:>9.0} ns", "Doc == Doc", time(|| doc == doc.clone()));
    println!("{:<34}{:>9.0} ns", "read spec.nodeName", time(|| doc.at("spec.nodeName").str().len()));
    println!(
        "{:<34}{:>9.0} ns",
        "set spec.nodeName (with clone)",
        time(|| {
            let mut d = doc.clone();
            d.set("spec.nodeName", "n2").is_ok()
        })
    );
    println!("{:<34}{:>9.0} ns", "JSON → serde_json::Value", time(|| serde_json::from_slice::<serde_json::Value>(&text)));
    let value = doc.to_value();
    println!("{:<34}{:>9.0} ns", "serde_json::Value → JSON", time(|| serde_json::to_writer(&mut out, &value).map(|()| out.clear())));
    println!("{:<34}{:>9.0} ns", "merge patch", time(|| patch::merge_patch(&doc, br#"{"metadata":{"labels":{"x":"y"}}}"#, true)));
    let none = apply::Set::default();
    let operation = apply::Operation { manager: "m", subresource: "", now: 1_800_000_000, ignored: &none, typed_by: None };
    let mut live = doc.clone();
    let empty = Doc::new(&schema, ty);
    apply::update(&empty, &mut live, &operation);
    let Ok(mut changed) = patch::merge_patch(&live, br#"{"metadata":{"labels":{"x":"y"}}}"#, true) else { return };
    println!("{:<34}{:>9.0} ns", "managedFields of an update", time(|| apply::update(&live, &mut changed.doc, &operation)));
    let config = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-5d9c7b8f6d-x2x9z", "labels": {"y": "z"}}});
    println!("{:<34}{:>9.0} ns", "server-side apply of a label", time(|| apply::apply(&live, &config, &operation, true)));
}
