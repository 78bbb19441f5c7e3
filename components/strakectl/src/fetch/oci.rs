//! Pulling one file from an OCI registry (the OCI distribution specification): a manifest, by way of an index if there is one, and the one blob in it
//! that is an upgrade file. What comes is compared with the digest that names it.

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderName, WWW_AUTHENTICATE};
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::http::{self, Http};
use super::{FetchError, MOST};

/// The media type of an upgrade file's layer.
pub const MEDIA_TYPE: &str = "application/vnd.strake.upgrade.v1.tar";
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The most bytes of a manifest and of a token.
const SMALL: u64 = 4 << 20;

/// A name in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, with its port if there is one.
    pub registry: String,
    /// What stands before the tag.
    pub repository: String,
    /// A tag or a digest.
    pub version: String,
}

impl Reference {
    /// `registry.example/name:tag` or `registry.example/name@sha256:…`; without either it is `latest`. The first part must look like a host:
    /// no registry is meant when none is named.
    pub fn parse(text: &str) -> Option<Reference> {
        let (registry, rest) = text.split_once('/')?;
        let host = registry.split_once(':').map_or(registry, |(host, _)| host);
        let looks_like_a_host = host == "localhost" || registry.contains(['.', ':']);
        let begins_well = registry.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
        if !looks_like_a_host || !begins_well || !registry.chars().all(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(c)) {
            return None;
        }
        let (repository, version) = match rest.split_once('@') {
            // A tag beside a digest says nothing more.
            Some((name, digest)) => (name.split_once(':').map_or(name, |(name, _)| name), is_digest(digest).then_some(digest)?),
            None => rest.split_once(':').unwrap_or((rest, "latest")),
        };
        let name_part =
            |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c));
        let tag = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        let well = repository.split('/').all(name_part) && (1..=135).contains(&version.len()) && version.chars().all(tag);
        well.then(|| Reference { registry: registry.to_owned(), repository: repository.to_owned(), version: version.to_owned() })
    }

    /// As registries on this computer do without TLS, as is the custom.
    fn base(&self) -> String {
        let host = self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, _)| host);
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        format!("{}://{}/v2/{}", if here { "http" } else { "https" }, self.registry, self.repository)
    }

    fn problem(&self, problem: impl Into<String>) -> FetchError {
        FetchError::Registry { reference: self.to_string(), problem: problem.into() }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let between = if is_digest(&self.version) { '@' } else { ':' };
        write!(f, "{}/{}{between}{}", self.registry, self.repository, self.version)
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Value,
}

/// Fetches the upgrade file that a reference means. `docker` is the directory with names and passwords, if there is one.
pub async fn pull(
    http: &mut Http,
    reference: &Reference,
    docker: Option<&Path>,
    target: &mut impl Write,
    bar: &ProgressBar,
) -> Result<(), FetchError> {
    let mut session = Session { http, reference, docker, authorization: None };
    let mut manifest = session.manifest(&reference.version).await?;
    if manifest["manifests"].is_array() {
        let all: Vec<Descriptor> = session.parse(&manifest["manifests"])?;
        let fits = |one: &&Descriptor| one.platform["architecture"] == "amd64" || one.platform.is_null();
        let one = all.iter().find(fits).ok_or_else(|| reference.problem("the index has nothing for amd64"))?;
        manifest = session.manifest(&one.digest).await?;
    }
    let layers: Vec<Descriptor> = session.parse(&manifest["layers"])?;
    let layer = upgrade_layer(&layers).ok_or_else(|| {
        reference.problem(format!("it has {} layers, and none of them alone or with the media type {MEDIA_TYPE}", layers.len()))
    })?;
    if layer.size > MOST || !is_digest(&layer.digest) {
        return Err(reference.problem(format!("its layer {} has {} bytes; at most {MOST} are taken", layer.digest, layer.size)));
    }
    let url = format!("{}/blobs/{}", reference.base(), layer.digest);
    let response = session.get(&url, &[]).await?;
    let (_, found) = http::save(&url, response, layer.size, target, bar).await?;
    session.same(&layer.digest, &found)
}

/// The layer with the media type, or the only one.
fn upgrade_layer(layers: &[Descriptor]) -> Option<&Descriptor> {
    match layers.iter().find(|layer| layer.media_type == MEDIA_TYPE) {
        None if layers.len() == 1 => layers.first(),
        found => found,
    }
}

/// Questions to one registry about one name.
struct Session<'a> {
    http: &'a mut Http,
    reference: &'a Reference,
    docker: Option<&'a Path>,
    authorization: Option<String>,
}

impl Session<'_> {
    fn parse<T: serde::de::DeserializeOwned>(&self, value: &Value) -> Result<T, FetchError> {
        serde_json::from_value(value.clone()).map_err(|error| self.reference.problem(format!("its manifest cannot be read: {error}")))
    }

    fn same(&self, wanted: &str, found: &[u8]) -> Result<(), FetchError> {
        let found = hex(found);
        if wanted.strip_prefix("sha256:").is_some_and(|wanted| wanted.eq_ignore_ascii_case(&found)) {
            return Ok(());
        }
        Err(FetchError::Digest { reference: self.reference.to_string(), wanted: wanted.to_owned(), found })
    }

    async fn manifest(&mut self, version: &str) -> Result<Value, FetchError> {
        let url = format!("{}/manifests/{version}", self.reference.base());
        let response = self.get(&url, &[(ACCEPT, MANIFESTS.to_owned())]).await?;
        let text = http::read(&url, response, SMALL).await?;
        if version.contains(':') {
            self.same(version, &Sha256::digest(&text))?;
        }
        serde_json::from_slice(&text).map_err(|error| self.reference.problem(format!("its manifest cannot be read: {error}")))
    }

    /// Asks; where the registry wants to know who asks, it is told, once.
    async fn get(&mut self, url: &str, headers: &[(HeaderName, String)]) -> Result<hyper::Response<Incoming>, FetchError> {
        let all = self.with_authorization(headers);
        let response = self.http.ask(url, &all).await?;
        if response.status() != StatusCode::UNAUTHORIZED || self.authorization.is_some() {
            return if response.status().is_success() { Ok(response) } else { Err(http::refused(url, response).await.into()) };
        }
        let wanted = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let credentials = self.docker.and_then(|docker| credentials(docker, &self.reference.registry));
        self.authorization = Some(match Challenge::parse(&wanted) {
            Some(Challenge::Basic) => {
                let problem = "it wants a name and a password, and the computer's Docker configuration (config.json) has none for it";
                format!("Basic {}", credentials.ok_or_else(|| self.reference.problem(problem))?)
            }
            Some(Challenge::Bearer(parameters)) => format!("Bearer {}", self.token(&parameters, credentials).await?),
            None => return Err(self.reference.problem(format!("it asks for credentials of an unknown kind: {wanted:?}"))),
        });
        let all = self.with_authorization(headers);
        Ok(self.http.get(url, &all).await?)
    }

    fn with_authorization(&self, headers: &[(HeaderName, String)]) -> Vec<(HeaderName, String)> {
        let own = self.authorization.iter().map(|value| (AUTHORIZATION, value.clone()));
        headers.iter().cloned().chain(own).collect()
    }

    async fn token(&mut self, parameters: &HashMap<String, String>, credentials: Option<String>) -> Result<String, FetchError> {
        let problem = |what: &str| self.reference.problem(format!("it asks for a token, and {what}"));
        let realm = parameters.get("realm").ok_or_else(|| problem("does not say of whom"))?;
        // A name and a password go nowhere without TLS, but for this computer itself.
        if credentials.is_some() && !realm.starts_with("https://") && !self.reference.base().starts_with("http://") {
            return Err(problem("wants it fetched without TLS"));
        }
        let query = ["service", "scope"].into_iter().filter_map(|name| Some(format!("{name}={}", escape(parameters.get(name)?))));
        let query = query.collect::<Vec<_>>().join("&");
        let url = format!("{realm}{}{query}", if realm.contains('?') { '&' } else { '?' });
        let headers: Vec<_> = credentials.map(|credentials| (AUTHORIZATION, format!("Basic {credentials}"))).into_iter().collect();
        let response = self.http.get(&url, &headers).await?;
        let text = http::read(&url, response, SMALL).await?;
        let answer: Value = serde_json::from_slice(&text).unwrap_or_default();
        let token = ["token", "access_token"].into_iter().find_map(|name| answer[name].as_str());
        Ok(token.ok_or_else(|| problem("gave none"))?.to_owned())
    }
}

/// What a registry wants of those who ask (RFC 9110, 11.6.1).
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(HashMap<String, String>),
}

impl Challenge {
    fn parse(text: &str) -> Option<Challenge> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut parameters, mut rest) = (HashMap::new(), rest);
        while let Some((name, behind)) = rest.split_once('=') {
            let (value, after) = match behind.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => behind.split_once(',').unwrap_or((behind, "")),
            };
            parameters.insert(name.trim().to_ascii_lowercase(), value.to_owned());
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Challenge::Bearer(parameters))
    }
}

/// What cannot stand in a query as it is.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:,".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Where Docker and others keep names and passwords on this computer.
pub fn docker() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    dir.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")))
}

/// Name and password for a registry, as they are kept in that directory.
fn credentials(docker: &Path, registry: &str) -> Option<String> {
    let config: Value = serde_json::from_slice(&std::fs::read(docker.join("config.json")).ok()?).ok()?;
    let auth = config["auths"][registry]["auth"].as_str()?;
    // What is no name and password is not sent.
    String::from_utf8(STANDARD.decode(auth).ok()?).ok()?.contains(':').then(|| auth.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_name_their_registry() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        for (text, expected) in [
            ("registry.example/strake:0.2.0", Some(("registry.example", "strake", "0.2.0"))),
            ("registry.example:5000/a/b-c", Some(("registry.example:5000", "a/b-c", "latest"))),
            ("localhost/strake:1", Some(("localhost", "strake", "1"))),
            (&format!("r.example/s@{digest}"), Some(("r.example", "s", digest.as_str()))),
            (&format!("r.example/s:1@{digest}"), Some(("r.example", "s", digest.as_str()))),
            ("strake.upgrade", None),
            ("./strake.upgrade", None),
            ("../strake.upgrade", None),
            ("dir/strake.upgrade", None),
            ("r.example/s@sha256:12", None),
            ("r.example/", None),
            ("r.example/S:1", None),
            ("r.example/s:a/b", None),
        ] {
            let found = Reference::parse(text);
            let parts = found.as_ref().map(|r| (r.registry.as_str(), r.repository.as_str(), r.version.as_str()));
            assert_eq!(parts, expected, "{text}");
        }
        let base = |text: &str| Reference::parse(text).unwrap().base();
        assert_eq!(base("r.example/s"), "https://r.example/v2/s");
        assert_eq!(base("127.0.0.1:5000/s"), "http://127.0.0.1:5000/v2/s");
        assert_eq!(base("127.example:5000/s"), "https://127.example:5000/v2/s");
        assert_eq!(base("[::1]:5000/s"), "http://[::1]:5000/v2/s");
    }

    #[test]
    fn challenges_are_taken_apart() {
        let bearer = Challenge::parse(r#"Bearer realm="https://auth.example/token",service="r",scope="repository:s:pull,push""#).unwrap();
        let Challenge::Bearer(parameters) = bearer else { panic!("{bearer:?}") };
        assert_eq!(parameters["realm"], "https://auth.example/token");
        assert_eq!((parameters["service"].as_str(), parameters["scope"].as_str()), ("r", "repository:s:pull,push"));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Digest realm=\"x\""), None);
        assert_eq!(escape("a b&c=d"), "a%20b%26c%3Dd");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,60}", challenge in "[Bb]earer [a-z=\", ]{0,60}") {
            let _ = Reference::parse(&text);
            let _ = Challenge::parse(&text);
            let _ = Challenge::parse(&challenge);
        }
    }
}
