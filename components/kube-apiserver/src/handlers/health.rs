//! healthz, livez, readyz and metrics.

use std::{sync::atomic::Ordering, time::Duration};

use super::Ctx;
use crate::http::{Answer, ApiError, Body, body};

/// Checks by name, in upstream's order; those of start-up work are done when the server serves at all.
const CHECKS: &[&str] = &[
    "ping",
    "log",
    "loopback-serving-certificate",
    "etcd",
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/priority-and-fairness-config-consumer",
    "poststarthook/priority-and-fairness-filter",
    "poststarthook/storage-object-count-tracker-hook",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/peer-endpoint-reconciler-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/start-kube-apiserver-identity-lease-controller",
    "poststarthook/start-kube-apiserver-identity-lease-garbage-collector",
    "poststarthook/storage-readiness",
    "poststarthook/start-legacy-token-tracking-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "poststarthook/aggregator-reload-proxy-client-cert",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-wait-for-first-sync",
    "poststarthook/apiservice-discovery-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
];

/// The checks of an endpoint.
fn checks(endpoint: &str) -> Vec<&'static str> {
    let mut list: Vec<&str> = CHECKS.to_vec();
    if endpoint == "readyz" {
        list.retain(|c| !matches!(*c, "loopback-serving-certificate" | "etcd"));
        list.insert(2, "informer-sync");
        list.push("shutdown");
    }
    list
}

async fn passes(ctx: &Ctx, check: &str) -> bool {
    match check {
        "etcd" => ctx.server.etcd.revision().await.is_ok(),
        "informer-sync" | "poststarthook/storage-readiness" | "poststarthook/generic-apiserver-start-informers" => {
            ctx.server.objects.reflector.observed() > 0
        }
        "shutdown" => !ctx.server.stop.is_cancelled(),
        c if c.starts_with("poststarthook/") => ctx.server.ready.load(Ordering::Acquire),
        _ => true,
    }
}

pub async fn health(ctx: &Ctx) -> Result<Answer, ApiError> {
    let path = ctx.info.path.trim_start_matches('/');
    let (endpoint, one) = path.split_once('/').map_or((path, None), |(e, c)| (e, Some(c)));
    let list = checks(endpoint);
    if let Some(check) = one {
        if !list.contains(&check) {
            return Ok(body::text(404, "404 page not found\n"));
        }
        return Ok(if passes(ctx, check).await {
            body::text(200, "ok")
        } else {
            body::text(500, format!("internal server error: {check} failed\n"))
        });
    }
    let noted = |check: &'static str, ok: bool| {
        ctx.server.metrics.health.note(check, endpoint, ok);
        ok
    };
    let excluded: Vec<&str> = ctx.query.all("exclude").collect();
    let mut out = String::new();
    let mut failed = false;
    for check in list {
        if excluded.contains(&check) {
            out.push_str(&format!("[+]{check} excluded: ok\n"));
        } else if noted(check, passes(ctx, check).await) {
            out.push_str(&format!("[+]{check} ok\n"));
        } else {
            failed = true;
            out.push_str(&format!("[-]{check} failed: reason withheld\n"));
        }
    }
    let unknown: Vec<String> = excluded.iter().filter(|e| !checks(endpoint).contains(*e)).map(|e| format!("{e:?}")).collect();
    if failed {
        out.push_str(&format!("{endpoint} check failed\n"));
        return Ok(body::text(500, out));
    }
    if ctx.query.get("verbose").is_none() {
        return Ok(body::text(200, "ok"));
    }
    if !unknown.is_empty() {
        out.push_str(&format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(",")));
    }
    out.push_str(&format!("{endpoint} check passed\n"));
    Ok(body::text(200, out))
}

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// etcd is asked for the size of its file for as long at most.
const SIZE: Duration = Duration::from_secs(2);

pub async fn metrics(ctx: &Ctx) -> Answer {
    let size = tokio::time::timeout(SIZE, ctx.server.etcd.size()).await.ok().and_then(Result::ok);
    body::answer(200, METRICS, Body::Full(ctx.server.metrics.render(&ctx.server, size).into()))
}

/// Only what service levels are measured by.
pub fn slis(ctx: &Ctx) -> Answer {
    let mut out = String::new();
    ctx.server.metrics.health.render(&mut out);
    body::answer(200, METRICS, Body::Full(out.into()))
}
