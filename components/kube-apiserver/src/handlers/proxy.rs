//! What is answered by someone else: logs, exec, attach and port-forward by the kubelet, proxied requests by nodes, pods and services.
//!
//! An upgraded connection (SPDY or WebSocket) is tunneled as bytes once the other side agreed to the upgrade.

use std::sync::Arc;

use http::{Extensions, HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_schema::Doc;

use super::{Ctx, load, write};
use crate::{
    admission::{self, Attributes, Operation},
    http::{Answer, ApiError, Body, Group, request_info::Query},
    kubelet::{Stream, Target},
    registry::Resource,
    validation::{ErrorList, FieldError},
};

/// The options object of a connection, which is what its webhooks see: the query as the fields of the subresource's kind.
fn connect_options(ctx: &Ctx, res: &Resource) -> Option<Doc> {
    let kind = res.subresource(&ctx.info.subresource).map(|s| s.kind.as_str())?;
    let mut doc = Doc::of_kind(&ctx.server.objects.schema, "", "v1", kind)?;
    let q = &ctx.query;
    for flag in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|f| q.get(f).is_some()) {
        // Not every kind has every field.
        let _ = doc.set(flag, q.flag(flag));
    }
    if let Some(container) = q.get("container").filter(|c| !c.is_empty()) {
        let _ = doc.set("container", container);
    }
    let command: Vec<&str> = q.all("command").collect();
    if !command.is_empty() {
        let _ = doc.set("command", command);
    }
    let ports: Vec<i64> = q.all("ports").flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
    if !ports.is_empty() {
        let _ = doc.set("ports", ports);
    }
    if ctx.info.subresource == "proxy" {
        let _ = doc.set("path", ctx.info.rest.join("/"));
    }
    Some(doc)
}

pub async fn dispatch(ctx: &Arc<Ctx>, res: &Arc<Resource>, incoming: Incoming, extensions: Extensions) -> Result<Answer, ApiError> {
    let sub = ctx.info.subresource.as_str();
    if sub != "log"
        && let Some(mut options) = connect_options(ctx, res)
    {
        let a = Attributes { ctx, res, subresource: sub, operation: Operation::Connect, dry_run: false, delete: None };
        admission::posted(&a, &mut options).await?;
    }
    match (res.plural.as_str(), sub) {
        ("pods", "log") if ctx.info.verb == "get" => log(ctx, res, incoming, extensions).await,
        ("pods", "exec" | "attach") if matches!(ctx.info.verb.as_str(), "get" | "create") => {
            let (pod, container) = pod_and_container(ctx, res).await?;
            let target = kubelet(ctx, &pod)?;
            let path = format!("/{sub}/{}/{}/{container}", ctx.info.namespace, ctx.info.name);
            let q = stream_query(&ctx.query, sub == "exec");
            forward(ctx, target, &format!("{path}?{q}"), incoming, extensions).await
        }
        ("pods", "portforward") if matches!(ctx.info.verb.as_str(), "get" | "create") => {
            let pod = running_pod(ctx, res).await?;
            let target = kubelet(ctx, &pod)?;
            let ports: Vec<String> = ctx.query.all("ports").map(|p| format!("port={}", encode(p))).collect();
            let path = format!("/portForward/{}/{}?{}", ctx.info.namespace, ctx.info.name, ports.join("&"));
            forward(ctx, target, &path, incoming, extensions).await
        }
        ("nodes", "proxy") => {
            let (name, port) = split_name(&ctx.info.name);
            let node = ctx.server.objects.get("minions", name.1).ok_or_else(|| ApiError::not_found(Group("", "nodes"), name.1))?;
            let mut target = ctx.server.kubelet.of_node(&node).map_err(|e| ApiError::new(500, "", e))?;
            if let Some(p) = port.and_then(|p| p.parse::<u16>().ok())
                && p != target.port
            {
                target = Target { host: target.host, port: p, tls: name.0 == "https", kubelet: false };
            }
            forward(ctx, target, &rest(ctx), incoming, extensions).await
        }
        ("pods", "proxy") => {
            let (name, port) = split_name(&ctx.info.name);
            let pod = ctx.server.objects.get("pods", &format!("{}/{}", ctx.info.namespace, name.1));
            let pod = pod.ok_or_else(|| ApiError::not_found(Group("", "pods"), name.1))?;
            let ip = pod.at("status.podIP").str().to_owned();
            if ip.is_empty() {
                return Err(ApiError::bad_request("address not allowed"));
            }
            let first = pod.at("spec.containers").iter().flat_map(|c| c.get("ports").iter()).find_map(|p| p.get("containerPort").as_i64());
            let port = port.and_then(|p| p.parse().ok()).or(first.and_then(|p| u16::try_from(p).ok())).unwrap_or(80);
            let target = Target { host: ip, port, tls: name.0 == "https", kubelet: false };
            forward(ctx, target, &rest(ctx), incoming, extensions).await
        }
        ("services", "proxy") => {
            let (name, port) = split_name(&ctx.info.name);
            let target = service_endpoint(ctx, name.1, port, name.0 == "https")?;
            forward(ctx, target, &rest(ctx), incoming, extensions).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// `scheme:name:port`, of which scheme and port may be missing.
fn split_name(name: &str) -> ((&str, &str), Option<&str>) {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => ((scheme, name), Some(*port).filter(|p| !p.is_empty())),
        [name, port] => (("", name), Some(*port).filter(|p| !p.is_empty())),
        _ => (("", name), None),
    }
}

fn rest(ctx: &Ctx) -> String {
    let path = format!("/{}", ctx.info.rest.join("/"));
    let path = if ctx.info.path.ends_with('/') && path.len() > 1 { format!("{path}/") } else { path };
    match ctx.uri.query() {
        Some(q) => format!("{path}?{q}"),
        None => path,
    }
}

fn encode(s: &str) -> String {
    use std::fmt::Write;
    s.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

fn stream_query(q: &Query, exec: bool) -> String {
    let mut parts = Vec::new();
    for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if q.flag(from) {
            parts.push(format!("{to}=1"));
        }
    }
    if exec {
        parts.extend(q.all("command").map(|c| format!("command={}", encode(c))));
    }
    parts.join("&")
}

async fn running_pod(ctx: &Ctx, res: &Resource) -> Result<Doc, ApiError> {
    ctx.server.objects.reflector.barrier().await?;
    let pod = load(&ctx.server, res, &*write::current(ctx, res, &ctx.info.name, false).await?)?;
    if pod.at("spec.nodeName").str().is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", ctx.info.name)));
    }
    Ok(pod)
}

fn container_names(pod: &Doc, list: &str) -> Vec<String> {
    pod.at("spec").get(list).iter().map(|c| c.get("name").str().to_owned()).collect()
}

async fn pod_and_container(ctx: &Ctx, res: &Resource) -> Result<(Doc, String), ApiError> {
    ctx.server.objects.reflector.barrier().await?;
    let pod = load(&ctx.server, res, &*write::current(ctx, res, &ctx.info.name, false).await?)?;
    let name = ctx.info.name.as_str();
    let asked = ctx.query.get("container").unwrap_or("").to_owned();
    let (containers, init) = (container_names(&pod, "containers"), container_names(&pod, "initContainers"));
    let ephemeral = container_names(&pod, "ephemeralContainers");
    let container = if asked.is_empty() {
        let annotated = pod.at("metadata.annotations[kubectl.kubernetes.io/default-container]").str().to_owned();
        match containers.as_slice() {
            [one] => one.clone(),
            [] => return Err(ApiError::bad_request(format!("a container name must be specified for pod {name}"))),
            _ if ctx.info.subresource != "log" && containers.contains(&annotated) => annotated,
            _ => {
                let mut m = format!("a container name must be specified for pod {name}, choose one of: [{}]", containers.join(" "));
                if !init.is_empty() {
                    m.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                return Err(ApiError::bad_request(m));
            }
        }
    } else if [&containers, &init, &ephemeral].iter().any(|l| l.contains(&asked)) {
        asked
    } else {
        return Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")));
    };
    if pod.at("spec.nodeName").str().is_empty() && ctx.info.subresource != "log" {
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    Ok((pod, container))
}

fn kubelet(ctx: &Ctx, pod: &Doc) -> Result<Target, ApiError> {
    let name = pod.at("spec.nodeName").str();
    let node = ctx.server.objects.get("minions", name).ok_or_else(|| ApiError::not_found(Group("", "nodes"), name))?;
    ctx.server.kubelet.of_node(&node).map_err(|e| ApiError::new(500, "", e))
}

async fn log(ctx: &Arc<Ctx>, res: &Resource, incoming: Incoming, extensions: Extensions) -> Result<Answer, ApiError> {
    let q = &ctx.query;
    let mut errors = ErrorList::new();
    let int = |k: &str| q.get(k).filter(|v| !v.is_empty()).map(super::options::parse_int).transpose();
    let (tail, limit, since) = (int("tailLines")?, int("limitBytes")?, int("sinceSeconds")?);
    if let Some(n) = tail.filter(|n| *n < 0) {
        errors.push(FieldError::invalid("tailLines", n, "must be greater than or equal to 0"));
    }
    if let Some(n) = limit.filter(|n| *n < 1) {
        errors.push(FieldError::invalid("limitBytes", n, "must be greater than 0"));
    }
    if since.is_some() && q.get("sinceTime").is_some() {
        errors.push(FieldError::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    } else if let Some(n) = since.filter(|n| *n < 1) {
        errors.push(FieldError::invalid("sinceSeconds", n, "must be greater than 0"));
    }
    if let Some(t) = q.get("sinceTime").filter(|t| !t.is_empty() && t.parse::<jiff::Timestamp>().is_err()) {
        let layout = "2006-01-02T15:04:05Z07:00";
        return Err(ApiError::bad_request(format!("parsing time {t:?} as {layout:?}: cannot parse {t:?} as \"2006\"")));
    }
    if q.get("stream").is_some_and(|s| !s.is_empty()) {
        errors.push(FieldError::forbidden("stream", "may not be specified"));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(Group("", "PodLogOptions"), &ctx.info.name, &errors));
    }
    let (pod, container) = pod_and_container(ctx, res).await?;
    if pod.at("spec.nodeName").str().is_empty() {
        // Without a node there is nothing to read yet.
        let mut nothing = Answer::new(Body::Full(bytes::Bytes::new()));
        *nothing.status_mut() = StatusCode::NO_CONTENT;
        return Ok(nothing);
    }
    let target = kubelet(ctx, &pod)?;
    let mut parts = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if q.flag(flag) {
            parts.push(format!("{flag}=true"));
        }
    }
    for key in ["tailLines", "limitBytes", "sinceSeconds", "sinceTime"] {
        if let Some(v) = q.get(key).filter(|v| !v.is_empty()) {
            parts.push(format!("{key}={}", encode(v)));
        }
    }
    let path = format!("/containerLogs/{}/{}/{container}?{}", ctx.info.namespace, ctx.info.name, parts.join("&"));
    let mut a = forward(ctx, target, &path, incoming, extensions).await?;
    if a.status() == StatusCode::OK {
        a.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    Ok(a)
}

fn service_endpoint(ctx: &Ctx, name: &str, port: Option<&str>, tls: bool) -> Result<Target, ApiError> {
    let ns = &ctx.info.namespace;
    let svc = ctx
        .server
        .objects
        .get("services/specs", &format!("{ns}/{name}"))
        .ok_or_else(|| ApiError::not_found(Group("", "services"), name))?;
    if !crate::services::has_slices(&ctx.server.objects, ns, name) {
        return Err(ApiError::not_found(Group("", "services"), name));
    }
    let ports: Vec<_> = svc.at("spec.ports").iter().collect();
    let wanted = match port {
        None => ports.first(),
        Some(p) => ports.iter().find(|x| x.get("name").str() == p || x.get("port").int().to_string() == p),
    };
    let unavailable = || ApiError::unavailable(format!("no endpoints available for service {name:?}"));
    let port_name = match wanted {
        Some(p) => p.get("name").str().to_owned(),
        None => return Err(ApiError::unavailable(format!("no service port {:?} found for service {name:?}", port.unwrap_or("")))),
    };
    let (host, port) = crate::services::endpoint(&ctx.server.objects, ns, name, &port_name).ok_or_else(unavailable)?;
    Ok(Target { host, port, tls, kubelet: false })
}

/// Headers that are about one connection and not the request.
pub const HOP: &[&str] =
    &["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"];

pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let asked = connection.into_iter().any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    if asked { headers.get(header::UPGRADE).cloned() } else { None }
}

async fn forward(ctx: &Arc<Ctx>, target: Target, path: &str, incoming: Incoming, extensions: Extensions) -> Result<Answer, ApiError> {
    let failed = |e: String| ApiError::new(502, "", format!("error trying to reach service: {e}"));
    let stream: Stream = ctx
        .server
        .kubelet
        .connect(&target)
        .await
        .map_err(|e| if target.kubelet { ApiError::internal(format!("error dialing backend: {e}")) } else { failed(e) })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(e.to_string()))?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "proxied connection ended");
        }
    });
    let upgrade = upgrade_of(&ctx.headers);
    let mut headers = ctx.headers.clone();
    for h in HOP.iter().chain(&["authorization", "host", "impersonate-user", "impersonate-group", "impersonate-uid"]) {
        headers.remove(*h);
    }
    if let Some(u) = &upgrade {
        headers.insert(header::UPGRADE, u.clone());
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let host =
        if target.host.contains(':') { format!("[{}]:{}", target.host, target.port) } else { format!("{}:{}", target.host, target.port) };
    headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(|e| failed(e.to_string()))?);
    let method = if ctx.info.subresource == "log" { Method::GET } else { ctx.method.clone() };
    let mut request = Request::new(Body::Incoming(incoming));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| ApiError::bad_request(format!("the path {path:?} cannot be requested")))?;
    *request.headers_mut() = headers;
    let response = sender.send_request(request).await.map_err(|e| failed(e.to_string()))?;
    Ok(relay(ctx, response, extensions))
}

/// The other side's answer as ours. An upgraded connection becomes a tunnel.
pub fn relay(ctx: &Ctx, response: http::Response<Incoming>, extensions: Extensions) -> Answer {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = response.into_parts();
        for h in HOP {
            parts.headers.remove(*h);
        }
        // The connection to the other side lives as long as its answer is read.
        let mut a = Answer::new(Body::Incoming(body));
        *a.status_mut() = parts.status;
        *a.headers_mut() = parts.headers;
        return a;
    }
    let mut a = Answer::new(Body::Full(bytes::Bytes::new()));
    *a.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *a.headers_mut() = response.headers().clone();
    let mut request = Request::new(());
    *request.extensions_mut() = extensions;
    let (client, server) = (hyper::upgrade::on(request), hyper::upgrade::on(response));
    let stop = ctx.server.drain.over.clone();
    tokio::spawn(async move {
        let (client, server) = match tokio::try_join!(client, server) {
            Ok(p) => p,
            Err(e) => {
                tracing::debug!(error = %e, "an upgrade failed");
                return;
            }
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        tokio::select! {
            r = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, 16 << 10, 16 << 10) => {
                if let Err(e) = r {
                    tracing::debug!(error = %e, "a tunnel ended");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    a
}
