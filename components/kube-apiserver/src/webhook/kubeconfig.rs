//! Webhooks of the server's own configuration: where they are, and as whom they are called, stands in a file of kubeconfig form.

use std::{path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use serde_json::Value;

use super::{
    pool::Pool,
    target::{Target, of_url},
    tls::{Trust, tls_config},
};

/// An answer is at most this long.
const LIMIT: usize = 1 << 20;
/// A call that does not come through is made again after this.
const AGAIN: Duration = Duration::from_millis(500);
const TRIES: usize = 3;

#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct FileError {
    pub path: String,
    pub why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    cluster: Option<Cluster>,
    user: Option<User>,
    context: Option<Context>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    #[serde(default)]
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

/// A webhook that the server was started with.
pub struct Configured {
    url: String,
    target: Target,
    pool: Pool,
    token: Option<String>,
}

impl std::fmt::Debug for Configured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configured").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The bytes of something that stands in the file or in one that it names.
fn bytes(data: Option<&String>, file: Option<&String>, base: &Path) -> Result<Option<Vec<u8>>, String> {
    match (data.filter(|d| !d.is_empty()), file.filter(|f| !f.is_empty())) {
        (Some(d), _) => STANDARD.decode(d.trim()).map(Some).map_err(|e| format!("its data is no base64: {e}")),
        (None, Some(f)) => std::fs::read(base.join(f)).map(Some).map_err(|e| format!("{f} cannot be read: {e}")),
        (None, None) => Ok(None),
    }
}

impl Configured {
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string());
        text.and_then(|t| Self::parse(&t, path.parent().unwrap_or(Path::new("."))))
            .map_err(|why| FileError { path: path.display().to_string(), why })
    }

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let file: File = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
        let find = |list: &[Named], name: &str| list.iter().position(|n| n.name == name);
        let context = match file.contexts.as_slice() {
            [one] if file.current_context.is_empty() => one.context.as_ref(),
            all => find(all, &file.current_context).and_then(|i| all[i].context.as_ref()),
        };
        let context = context.ok_or_else(|| format!("there is no context {:?}", file.current_context))?;
        let cluster = find(&file.clusters, &context.cluster).and_then(|i| file.clusters[i].cluster.as_ref());
        let cluster = cluster.ok_or_else(|| format!("there is no cluster {:?}", context.cluster))?;
        let none = User::default();
        let user = find(&file.users, &context.user).and_then(|i| file.users[i].user.as_ref()).unwrap_or(&none);
        let ca = bytes(cluster.certificate_authority_data.as_ref(), cluster.certificate_authority.as_ref(), base)?.unwrap_or_default();
        let cert = bytes(user.client_certificate_data.as_ref(), user.client_certificate.as_ref(), base)?;
        let key = bytes(user.client_key_data.as_ref(), user.client_key.as_ref(), base)?;
        let own = match (cert, key) {
            (Some(c), Some(k)) => {
                let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&c).collect();
                let certs = certs.map_err(|e| format!("the client certificate cannot be read: {e}"))?;
                Some((certs, PrivateKeyDer::from_pem_slice(&k).map_err(|e| format!("the client key cannot be read: {e}"))?))
            }
            (None, None) => None,
            _ => return Err("a client certificate and its key belong together".into()),
        };
        let token = match (&user.token, &user.token_file) {
            (Some(t), _) => Some(t.clone()),
            (None, Some(f)) => {
                Some(std::fs::read_to_string(base.join(f)).map_err(|e| format!("{f} cannot be read: {e}"))?.trim().to_owned())
            }
            (None, None) => None,
        };
        let mut target = of_url(&cluster.server).map_err(|e| format!("server {:?}: {e}", cluster.server))?;
        if let Some(name) = &cluster.tls_server_name {
            target.name.clone_from(name);
        }
        let trust = if cluster.insecure_skip_tls_verify { Trust::Anybody } else { Trust::Bundle(&ca) };
        Ok(Self { url: cluster.server.clone(), target, pool: Pool::new(tls_config(trust, own)?), token })
    }

    /// Posts a body once. The outer error is one that may pass; the inner one is the other side's word.
    async fn exchange(&self, body: &Bytes) -> Result<Result<Bytes, String>, String> {
        let request = || {
            let mut r = Request::builder()
                .method(Method::POST)
                .uri(self.target.path.as_str())
                .header(header::HOST, self.target.authority.as_str())
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json, */*")
                .header(header::USER_AGENT, "kube-apiserver");
            if let Some(t) = &self.token {
                r = r.header(header::AUTHORIZATION, format!("Bearer {t}"));
            }
            r.body(Full::new(body.clone())).map_err(|e| e.to_string())
        };
        let (mut sender, mut kept) = match self.pool.reuse(&self.target) {
            Some(s) => (s, true),
            None => (self.pool.connect(&self.target).await?, false),
        };
        let response = loop {
            match sender.send_request(request()?).await {
                Ok(r) => break r,
                // The other side may have closed it meanwhile.
                Err(_) if kept => (sender, kept) = (self.pool.connect(&self.target).await?, false),
                Err(e) => return Err(e.to_string()),
            }
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), LIMIT).collect().await.map_err(|e| e.to_string())?.to_bytes();
        self.pool.put_back(&self.target, sender);
        if status.is_server_error() || status == 429 {
            return Err(format!("status {status}"));
        }
        if !status.is_success() {
            return Ok(Err(format!("status {status}")));
        }
        Ok(Ok(body))
    }

    /// Posts a body once, whatever the answer says beyond success. The outer error is one that may pass.
    pub async fn deliver(&self, body: &Bytes) -> Result<Result<(), String>, String> {
        let told = |e| format!("{}: {e}", self.url);
        self.exchange(body).await.map(|r| r.map(drop).map_err(told)).map_err(told)
    }

    async fn once(&self, body: &Bytes) -> Result<Result<Value, String>, String> {
        let answer = self.exchange(body).await?;
        Ok(answer.and_then(|b| serde_json::from_slice(&b).map_err(|e| format!("the answer is no JSON: {e}"))))
    }

    /// Posts a document and gives the answer. What does not come through is tried again, all within `timeout`.
    pub async fn post(&self, body: &Value, timeout: Duration) -> Result<Value, String> {
        self.post_every(body, timeout, AGAIN).await
    }

    /// As [`post`](Self::post), with the time between tries.
    pub async fn post_every(&self, body: &Value, timeout: Duration, again: Duration) -> Result<Value, String> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(|e| e.to_string())?);
        let work = async {
            let mut tries = 0;
            loop {
                match self.once(&body).await {
                    Ok(answer) => return answer,
                    Err(e) if tries + 1 >= TRIES => return Err(e),
                    Err(_) => tries += 1,
                }
                tokio::time::sleep(again).await;
            }
        };
        let answer = tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err("no answer in time".into()));
        answer.map_err(|e| format!("{}: {e}", self.url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_lacks_is_named() {
        let base = Path::new(".");
        let file = |server: &str, user: &str| {
            format!(
                "clusters: [{{name: c, cluster: {{server: '{server}', insecure-skip-tls-verify: true}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
                 contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
            )
        };
        let good = Configured::parse(&file("https://hooks.example.com/authn", "token: t"), base).unwrap();
        assert_eq!((good.target.path.as_str(), good.token.as_deref()), ("/authn", Some("t")));
        for (text, named) in [
            (file("http://hooks.example.com", ""), "https"),
            (file("https://hooks.example.com", "client-certificate-data: eA=="), "belong together"),
            (file("https://hooks.example.com", "client-key-data: '%'"), "base64"),
            (file("https://hooks.example.com", "tokenFile: no-such-file"), "no-such-file"),
            ("clusters: []\ncontexts: []\ncurrent-context: y\n".to_owned(), "no context \"y\""),
        ] {
            let e = Configured::parse(&text, base).unwrap_err();
            assert!(e.contains(named), "{e}");
        }
    }
}
