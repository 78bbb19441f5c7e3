//! Replays recorded requests against this server on a real etcd and compares the answers with upstream's.
//!
//! The recordings are in `testdata/corpus.json.gz`; `testdata/corpus-floor` holds how many steps agreed when it was last raised. The count
//! may only grow: fewer is a failure. `CORPUS=name,name` replays only those scenarios (`all`: all of them) and prints every
//! difference.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use regex::Regex;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Values that the server picks, by field name, and what stands for them.
const VOLATILE: &[(&str, &str)] = &[
    ("uid", "<uid>"),
    ("resourceVersion", "<rv>"),
    ("creationTimestamp", "<time>"),
    ("deletionTimestamp", "<time>"),
    ("time", "<time>"),
    ("lastTransitionTime", "<time>"),
    ("lastUpdateTime", "<time>"),
    ("lastHeartbeatTime", "<time>"),
    ("lastProbeTime", "<time>"),
    ("selfLink", ""),
    ("continue", "<continue>"),
    ("token", "<token>"),
    ("expirationTimestamp", "<time>"),
    ("storageVersionHash", "<hash>"),
    ("serverAddress", "<address>"),
];

struct Client {
    port: u16,
    tls: TlsConnector,
}

struct Response {
    code: u16,
    content_type: String,
    warning: Option<String>,
    body: Vec<u8>,
}

impl Client {
    fn new(dir: &Path, port: u16) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join("ca.crt")).unwrap()).unwrap();
        let certs = vec![CertificateDer::from_pem_file(dir.join("admin.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(dir.join("admin.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certs, key)
            .unwrap();
        Self { port, tls: TlsConnector::from(Arc::new(config)) }
    }

    async fn call(&self, method: &str, path: &str, headers: &[(String, String)], body: Option<Bytes>) -> Result<Response, String> {
        let work = async {
            let tcp = TcpStream::connect(("127.0.0.1", self.port)).await.map_err(|e| e.to_string())?;
            let tls = self.tls.connect(ServerName::try_from("localhost").unwrap(), tcp).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
            let driver = tokio::spawn(connection);
            let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
            for (k, v) in headers {
                request = request.header(k, v);
            }
            let request = request.body(Full::new(body.unwrap_or_default())).map_err(|e| e.to_string())?;
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let get = |h: &str| {
                let all: Vec<&str> = response.headers().get_all(h).iter().filter_map(|v| v.to_str().ok()).collect();
                all.last().map(|v| (*v).to_owned())
            };
            let (content_type, warning) = (get("content-type").unwrap_or_default(), get("warning"));
            let content_type = content_type.split(';').next().unwrap_or("").to_owned();
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes().to_vec();
            driver.abort();
            Ok(Response { code, content_type, warning, body })
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), work).await.map_err(|_| "timeout".to_owned())?
    }
}

type Env = BTreeMap<String, Value>;

fn text(v: &Value) -> String {
    v.as_str().map_or_else(|| if v.is_null() { "None".into() } else { v.to_string() }, str::to_owned)
}

fn substitute(v: &Value, env: &Env, variable: &Regex) -> Value {
    let replace =
        |s: &str| variable.replace_all(s, |c: &regex::Captures<'_>| env.get(&c[1]).map_or_else(|| c[0].to_owned(), text)).into_owned();
    match v {
        Value::String(s) => replace(s).into(),
        Value::Array(a) => a.iter().map(|x| substitute(x, env, variable)).collect(),
        Value::Object(m) => Value::Object(m.iter().map(|(k, x)| (replace(k), substitute(x, env, variable))).collect()),
        v => v.clone(),
    }
}

/// JSON as the recorder sent it, which shows where errors quote a body: a space after every comma and colon.
fn spaced(v: &Value) -> String {
    match v {
        Value::Array(a) => format!("[{}]", a.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        Value::Object(m) => {
            format!("{{{}}}", m.iter().map(|(k, x)| format!("{}: {}", json!(k), spaced(x))).collect::<Vec<_>>().join(", "))
        }
        v => v.to_string(),
    }
}

struct Normalizer {
    uid: Regex,
    credential: Regex,
    age: Regex,
    time: Regex,
    /// The server's own address.
    server: Regex,
}

impl Normalizer {
    fn new() -> Self {
        Self {
            uid: Regex::new(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b").unwrap(),
            // The hash of the client certificate, which is another one here.
            credential: Regex::new(r"X509SHA256=[0-9a-f]{64}").unwrap(),
            age: Regex::new(r"^\d+[sd]$").unwrap(),
            server: Regex::new(r"\b127\.0\.0\.1:\d{5}\b").unwrap(),
            time: Regex::new(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z").unwrap(),
        }
    }

    /// Placeholders for what the server picks; a value that the request itself gave stays.
    fn apply(&self, v: &Value, asked: &str, env: &[(String, String)]) -> Value {
        match v {
            Value::Object(m) => {
                let mut out = Map::new();
                for (k, x) in m {
                    let volatile = VOLATILE.iter().find(|(n, _)| n == k).filter(|_| x.as_str().is_some_and(|s| !s.is_empty()));
                    let picked = matches!(k.as_str(), "clusterIP" | "nodePort" | "healthCheckNodePort")
                        && !matches!(x, Value::Null)
                        && !matches!(text(x).as_str(), "" | "None" | "0")
                        && !asked.contains(&text(x));
                    let new = if let Some((_, p)) = volatile {
                        json!(p)
                    } else if picked {
                        json!(format!("<{k}>"))
                    } else if k == "clusterIPs" && x.is_array() {
                        x.as_array()
                            .unwrap()
                            .iter()
                            .map(|i| if i != "None" && !asked.contains(&text(i)) { json!("<clusterIP>") } else { i.clone() })
                            .collect()
                    } else {
                        self.apply(x, asked, env)
                    };
                    out.insert(k.clone(), if k == "managedFields" { ordered(new) } else { new });
                }
                Value::Object(out)
            }
            Value::Array(a) => a.iter().map(|x| self.apply(x, asked, env)).collect(),
            Value::String(s) => {
                let mut s = s.clone();
                for (name, value) in env {
                    s = s.replace(value, &format!("${{{name}}}"));
                }
                let s = self.uid.replace_all(&s, "<uid>").into_owned();
                let s = self.credential.replace_all(&s, "X509SHA256=<hash>").into_owned();
                let s = self.server.replace_all(&s, "<server>").into_owned();
                let s = if !s.is_empty() && self.age.is_match(&s) { "<age>".to_owned() } else { s };
                self.time.replace_all(&s, "<time>").into_owned().into()
            }
            v => v.clone(),
        }
    }
}

/// Managers come in the order of the seconds of their writes, which is another one on a slower machine.
fn ordered(managers: Value) -> Value {
    let Value::Array(mut list) = managers else { return managers };
    let text = |m: &Value, field: &str| m[field].as_str().unwrap_or("").to_owned();
    list.sort_by_key(|m| ["operation", "manager", "apiVersion", "subresource"].map(|field| text(m, field)));
    list.into()
}

fn differences(a: &Value, b: &Value, path: &str, out: &mut Vec<String>) {
    // Of a few scenarios everything is shown.
    let shown = if std::env::var("CORPUS").is_ok_and(|c| c != "all") { 6000 } else { 160 };
    let short = |v: &Value| v.to_string().chars().take(shown).collect::<String>();
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for (k, v) in x {
                match y.get(k) {
                    Some(w) => differences(v, w, &format!("{path}.{k}"), out),
                    None => out.push(format!("{path}.{k}: missing {}", short(v))),
                }
            }
            out.extend(y.iter().filter(|(k, _)| !x.contains_key(*k)).map(|(k, v)| format!("{path}.{k}: unexpected {}", short(v))));
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().for_each(|(i, (v, w))| differences(v, w, &format!("{path}[{i}]"), out));
        }
        (x, y) if x == y => {}
        (x, y) => out.push(format!("{path}: {} != {}", short(x), short(y))),
    }
}

fn random_namespace() -> String {
    format!("c-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

/// Replays a scenario. Gives how many steps agree, of how many, and the differences.
async fn replay(client: &Client, scenario: &Value) -> (usize, usize, Vec<String>) {
    let variable = Regex::new(r"\$\{(\w+)\}").unwrap();
    let normalizer = Normalizer::new();
    let ns = random_namespace();
    let mut env: Env = Env::from([("ns".to_owned(), json!(ns))]);
    let json_headers =
        vec![("accept".to_owned(), "application/json".to_owned()), ("content-type".to_owned(), "application/json".to_owned())];
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    client.call("POST", "/api/v1/namespaces", &json_headers, Some(namespace.to_string().into())).await.unwrap();
    client
        .call("POST", &format!("/api/v1/namespaces/{ns}/serviceaccounts"), &json_headers, Some(account.to_string().into()))
        .await
        .unwrap();
    let (mut good, mut total, mut report) = (0, 0, Vec::new());
    for step in scenario["steps"].as_array().unwrap() {
        let body = substitute(&step["body"], &env, &variable);
        let mut headers: BTreeMap<String, String> = BTreeMap::from([("Accept".to_owned(), "application/json".to_owned())]);
        let bytes = match &body {
            Value::Null => None,
            Value::String(s) => Some(Bytes::from(s.clone())),
            v => {
                headers.insert("Content-Type".into(), "application/json".into());
                Some(Bytes::from(spaced(v)))
            }
        };
        if let Value::Object(m) = substitute(&step["headers"], &env, &variable) {
            headers.extend(m.into_iter().map(|(k, v)| (k, text(&v))));
        }
        let headers: Vec<(String, String)> = headers.into_iter().collect();
        let path = text(&substitute(&step["path"], &env, &variable));
        let method = step["method"].as_str().unwrap();
        let mut actual = match client.call(method, &path, &headers, bytes).await {
            Err(e) => json!({"error": e}),
            Ok(r) => {
                let parsed: Value = serde_json::from_slice(&r.body).unwrap_or_else(|_| {
                    if r.body.len() < 4000 { json!(String::from_utf8_lossy(&r.body)) } else { json!(format!("<{} bytes>", r.body.len())) }
                });
                if let Value::Object(save) = &step["save"] {
                    for (name, at) in save {
                        let found = at.as_str().unwrap().split('.').fold(&parsed, |v, p| match v {
                            Value::Array(a) => p.parse::<usize>().ok().and_then(|i| a.get(i)).unwrap_or(&Value::Null),
                            v => &v[p],
                        });
                        env.insert(name.clone(), found.clone());
                    }
                }
                let asked = if body.is_null() { String::new() } else { body.to_string() };
                let known: Vec<(String, String)> =
                    env.iter().filter_map(|(k, v)| v.as_str().filter(|s| s.len() > 3).map(|s| (k.clone(), s.to_owned()))).collect();
                let mut a = json!({"code": r.code, "type": r.content_type, "body": normalizer.apply(&parsed, &asked, &known)});
                if let Some(w) = r.warning {
                    a["warning"] = normalizer.apply(&json!(w), &asked, &known);
                }
                a
            }
        };
        if step["volatile"] == true {
            continue;
        }
        total += 1;
        let mut d = Vec::new();
        let expected = normalizer.apply(&step["expect"], "", &[]);
        differences(&expected, &normalizer.apply(&actual.take(), "", &[]), "", &mut d);
        if d.is_empty() {
            good += 1;
        } else {
            let what = step["note"].as_str().map_or_else(|| format!("{method} {}", step["path"]), str::to_owned);
            report.push(format!("{}: {what}\n    {}", scenario["name"].as_str().unwrap_or(""), d[..d.len().min(6)].join("\n    ")));
        }
    }
    // The namespace is left behind when this fails, which disturbs no other scenario.
    let _ = client.call("DELETE", &format!("/api/v1/namespaces/{ns}"), &json_headers, None).await;
    (good, total, report)
}

#[test]
fn recorded_answers_agree_at_least_as_often_as_they_did() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(data.join("corpus.json.gz")).unwrap()).read_to_string(&mut text).unwrap();
    let mut scenarios: Vec<Value> = serde_json::from_str(&text).unwrap();
    let only = std::env::var("CORPUS").ok();
    if let Some(only) = only.as_ref().filter(|o| *o != "all") {
        scenarios.retain(|s| only.split(',').any(|n| s["name"] == n));
    }
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster::Cluster::start(dir.path());
    let client = Arc::new(Client::new(&cluster.dir, cluster.port));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (good, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let scenarios = Arc::new(scenarios);
    let next = Arc::new(AtomicUsize::new(0));
    let results = runtime.block_on(async {
        // Several at a time: most of a replay is waiting, and scenarios keep to namespaces of their own.
        let workers: Vec<_> = (0..6)
            .map(|_| {
                let (scenarios, next, client) = (Arc::clone(&scenarios), Arc::clone(&next), Arc::clone(&client));
                tokio::spawn(async move {
                    let mut out = Vec::new();
                    while let Some(s) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                        out.push(replay(&client, s).await);
                    }
                    out
                })
            })
            .collect();
        let mut all = Vec::new();
        for w in workers {
            all.extend(w.await.unwrap());
        }
        all
    });
    for (g, t, report) in &results {
        good.fetch_add(*g, Ordering::Relaxed);
        total.fetch_add(*t, Ordering::Relaxed);
        if only.is_some() {
            report.iter().for_each(|r| println!("{r}"));
        }
    }
    let (good, total) = (good.into_inner(), total.into_inner());
    println!("{good} of {total} steps agree");
    if only.is_none() {
        let floor: usize = fs::read_to_string(data.join("corpus-floor")).unwrap().trim().parse().unwrap();
        assert!(good >= floor, "{good} of {total} steps agree; it was {floor} before");
    }
}
