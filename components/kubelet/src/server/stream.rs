//! exec, attach and port-forward: the runtime gives a URL of its own streaming server, and the caller's upgraded connection is tied to one
//! there byte for byte, whatever protocol (SPDY or WebSocket) it speaks.

use super::{Body, Query, full, text};
use crate::cri::v1;
use crate::kubelet::Shared;
use crate::pod::observe::{Observer, RunState};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Namespace, name and perhaps UID of a pod.
type PodRef<'a> = (&'a str, &'a str, Option<&'a str>);

fn error(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    text(status, message)
}

/// The running container of that name.
async fn container_id(shared: &Shared, pod: PodRef<'_>, container: &str) -> Result<String, Response<Body>> {
    let (namespace, name, uid) = pod;
    let found =
        shared.pod(namespace, name, uid).ok_or_else(|| error(StatusCode::NOT_FOUND, format!("pod does not exist: {namespace}/{name}")))?;
    let runtime = Observer::default()
        .observe(&shared.cri, &found.metadata.uid)
        .await
        .map_err(|e| error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    match runtime.newest(container) {
        Some(c) if c.state == RunState::Running => Ok(c.id.clone()),
        Some(_) => Err(error(StatusCode::INTERNAL_SERVER_ERROR, format!("container not running (\"{container}\")"))),
        None => Err(error(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"))),
    }
}

/// Which of the streams are wanted.
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// The streams asked for; the error is what the client is told.
fn streams(query: &Query) -> Result<Streams, &'static str> {
    let (stdin, stdout) = (query.flag("input") || query.flag("stdin"), query.flag("output") || query.flag("stdout"));
    let tty = query.flag("tty");
    // A terminal has one output.
    let stderr = (query.flag("error") || query.flag("stderr")) && !tty;
    if !stdin && !stdout && !stderr {
        return Err("you must specify at least 1 of stdin, stdout, stderr");
    }
    Ok(Streams { stdin, stdout, stderr, tty })
}

pub async fn exec(shared: &Arc<Shared>, pod: PodRef<'_>, container: &str, query: &Query, request: Request<Incoming>) -> Response<Body> {
    let url = async {
        let wanted = streams(query).map_err(|message| error(StatusCode::BAD_REQUEST, message))?;
        let cmd = query.all("command");
        if cmd.is_empty() {
            return Err(error(StatusCode::BAD_REQUEST, "no command"));
        }
        let id = container_id(shared, pod, container).await?;
        let ask =
            v1::ExecRequest { container_id: id, cmd, tty: wanted.tty, stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr };
        shared.cri.exec(ask).await.map_err(|e| error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
    };
    match url.await {
        Ok(url) => tunnel(&url, request).await,
        Err(response) => response,
    }
}

pub async fn attach(shared: &Arc<Shared>, pod: PodRef<'_>, container: &str, query: &Query, request: Request<Incoming>) -> Response<Body> {
    let url = async {
        let wanted = streams(query).map_err(|message| error(StatusCode::BAD_REQUEST, message))?;
        let id = container_id(shared, pod, container).await?;
        let ask =
            v1::AttachRequest { container_id: id, stdin: wanted.stdin, tty: wanted.tty, stdout: wanted.stdout, stderr: wanted.stderr };
        shared.cri.attach(ask).await.map_err(|e| error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
    };
    match url.await {
        Ok(url) => tunnel(&url, request).await,
        Err(response) => response,
    }
}

pub async fn port_forward(shared: &Arc<Shared>, pod: PodRef<'_>, query: &Query, request: Request<Incoming>) -> Response<Body> {
    let url = async {
        let (namespace, name, uid) = pod;
        let found = shared
            .pod(namespace, name, uid)
            .ok_or_else(|| error(StatusCode::NOT_FOUND, format!("pod does not exist: {namespace}/{name}")))?;
        let internal = |e: crate::cri::CriError| error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
        let runtime = Observer::default().observe(&shared.cri, &found.metadata.uid).await.map_err(internal)?;
        let sandbox =
            runtime.sandbox().filter(|s| s.ready).ok_or_else(|| error(StatusCode::INTERNAL_SERVER_ERROR, "the pod is not running"))?;
        let mut port = Vec::new();
        for text in query.all("port").iter().chain(&query.all("ports")).flat_map(|t| t.split(',')).filter(|t| !t.is_empty()) {
            port.push(
                text.parse::<u16>()
                    .map(i32::from)
                    .map_err(|_| error(StatusCode::BAD_REQUEST, format!("port {text:?} is not a port number")))?,
            );
        }
        shared.cri.port_forward(v1::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port }).await.map_err(internal)
    };
    match url.await {
        Ok(url) => tunnel(&url, request).await,
        Err(response) => response,
    }
}

/// `/run`: one command, its output as the answer.
pub async fn run(shared: &Arc<Shared>, pod: PodRef<'_>, container: &str, query: &Query) -> Response<Body> {
    let id = match container_id(shared, pod, container).await {
        Ok(id) => id,
        Err(response) => return response,
    };
    let command: Vec<String> = query.get("cmd").unwrap_or_default().split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect();
    if command.is_empty() {
        return error(StatusCode::BAD_REQUEST, "no command");
    }
    match shared.cri.exec_sync(&id, command, Duration::from_secs(60)).await {
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend_from_slice(&answer.stderr);
            Response::new(full(output))
        }
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// Host with port, and path, of a plain HTTP URL.
fn split_url(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let slash = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    (!authority.is_empty()).then_some((authority, if path.is_empty() { "/" } else { path }))
}

/// Passes the request on to the runtime's streaming server and joins the two connections once both have switched protocols.
async fn tunnel(url: &str, mut request: Request<Incoming>) -> Response<Body> {
    match try_tunnel(url, &mut request).await {
        Ok(response) => response,
        Err(message) => error(StatusCode::BAD_GATEWAY, format!("stream to the container runtime: {message}")),
    }
}

async fn try_tunnel(url: &str, request: &mut Request<Incoming>) -> Result<Response<Body>, String> {
    let (authority, path) = split_url(url).ok_or_else(|| format!("unexpected streaming URL {url:?}"))?;
    // The runtime listens on an address of its own choice; its own machine is reached by loopback.
    let address = match authority.rsplit_once(':') {
        Some(("0.0.0.0" | "[::]" | "", port)) => format!("127.0.0.1:{port}"),
        _ => authority.to_owned(),
    };
    let stream = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(&address))
        .await
        .map_err(|_| format!("connect to {address}: timed out"))?
        .map_err(|e| format!("connect to {address}: {e}"))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = %error, "streaming connection");
        }
    });
    let mut builder = Request::builder().method(request.method().clone()).uri(path);
    if let Some(headers) = builder.headers_mut() {
        for (name, value) in request.headers() {
            // Credentials were for the kubelet; the runtime's URL carries its own.
            if name != header::HOST && name != header::AUTHORIZATION {
                headers.append(name.clone(), value.clone());
            }
        }
        headers.insert(header::HOST, header::HeaderValue::from_str(authority).map_err(|e| e.to_string())?);
    }
    let forwarded = builder.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let mut answer = sender.send_request(forwarded).await.map_err(|e| e.to_string())?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = Limited::new(answer.into_body(), 64 * 1024).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let mut response = Response::new(full(body));
        *response.status_mut() = status;
        return Ok(response);
    }
    let caller = hyper::upgrade::on(&mut *request);
    let runtime = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let (caller, runtime) = match tokio::try_join!(caller, runtime) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(error = %error, "switch protocols");
                return;
            }
        };
        join(TokioIo::new(caller), TokioIo::new(runtime)).await;
    });
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in answer.headers() {
        response.headers_mut().append(name.clone(), value.clone());
    }
    Ok(response)
}

/// Copies both ways until one side has no more to say, then lets both go: neither of the protocols uses half-closed connections, and a
/// caller may wait for the end of the connection to know that a container has ended.
async fn join(caller: impl AsyncRead + AsyncWrite, runtime: impl AsyncRead + AsyncWrite) {
    let (mut from_caller, mut to_caller) = tokio::io::split(caller);
    let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let result = tokio::select! {
        result = tokio::io::copy(&mut from_caller, &mut to_runtime) => result,
        result = tokio::io::copy(&mut from_runtime, &mut to_caller) => {
            let _ = to_caller.flush().await;
            result
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = %error, "stream ended");
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), async { tokio::join!(to_caller.shutdown(), to_runtime.shutdown()) }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_one_side_ends_both() {
        use tokio::io::AsyncReadExt;
        let (mut kubectl, caller) = tokio::io::duplex(64);
        let (mut containerd, runtime) = tokio::io::duplex(64);
        let tunnel = tokio::spawn(join(caller, runtime));
        containerd.write_all(b"last words").await.unwrap();
        drop(containerd);
        let mut text = String::new();
        kubectl.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last words");
        tunnel.await.unwrap();
    }

    #[test]
    fn urls_and_streams() {
        assert_eq!(split_url("http://127.0.0.1:4000/exec/tok"), Some(("127.0.0.1:4000", "/exec/tok")));
        assert_eq!(split_url("http://h:1"), Some(("h:1", "/")));
        assert_eq!((split_url("https://h/x"), split_url("http:///x")), (None, None));
        let s = streams(&Query::parse("input=1&output=1&error=1&tty=1")).unwrap_or_else(|_| panic!("valid"));
        assert!(s.stdin && s.stdout && !s.stderr && s.tty);
        assert!(streams(&Query::parse("tty=1")).is_err());
    }
}
