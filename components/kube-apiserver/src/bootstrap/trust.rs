//! The ConfigMap `kube-system/extension-apiserver-authentication`: whom extension servers may trust.
//!
//! Several API servers write it, each with what it was started with, so everyone adds to what is there and nobody takes anything away
//! but certificates whose time is over.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{authn::Names, http::ApiError, server::Server};

pub const NAMESPACE: &str = "kube-system";
pub const NAME: &str = "extension-apiserver-authentication";

/// What one server knows.
#[derive(Debug, Default)]
struct Own {
    client_ca: Option<String>,
    request_header: Option<(String, Names)>,
}

/// The certificates of a bundle, by their contents.
fn certificates(pem: &str) -> Vec<Vec<u8>> {
    let blocks = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).flatten();
    blocks.filter(|b| b.label == "CERTIFICATE").map(|b| b.contents).collect()
}

/// Both bundles' certificates once, without those that ended before `now` (Unix seconds).
fn bundles(there: &str, own: &str, now: i64) -> String {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for der in certificates(there).into_iter().chain(certificates(own)) {
        let ended = X509Certificate::from_der(&der).map_or(true, |(_, c)| c.validity().not_after.timestamp() < now);
        if !ended && !all.contains(&der) {
            all.push(der);
        }
    }
    let mut out = String::new();
    for der in all {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(der);
        for line in text.as_bytes().chunks(64) {
            // Base64 is ASCII.
            out.push_str(&String::from_utf8_lossy(line));
            out.push('\n');
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}

/// Both lists' strings once, as the JSON text that the ConfigMap holds.
fn lists(there: &str, own: &[String]) -> String {
    let mut all: Vec<String> = serde_json::from_str(there).unwrap_or_default();
    for s in own {
        if !all.contains(s) {
            all.push(s.clone());
        }
    }
    serde_json::to_string(&all).unwrap_or_default()
}

/// The data as it should be, given what is there.
fn merged(there: &Value, own: &Own, now: i64) -> Map<String, Value> {
    let mut data = there.as_object().cloned().unwrap_or_default();
    let text = |data: &Map<String, Value>, k: &str| data.get(k).and_then(Value::as_str).unwrap_or("").to_owned();
    if let Some(ca) = &own.client_ca {
        let v = bundles(&text(&data, "client-ca-file"), ca, now);
        data.insert("client-ca-file".into(), v.into());
    }
    if let Some((ca, names)) = &own.request_header {
        let key = |k: &str| format!("requestheader-{k}");
        let v = bundles(&text(&data, &key("client-ca-file")), ca, now);
        data.insert(key("client-ca-file"), v.into());
        for (k, list) in [
            ("allowed-names", &names.allowed),
            ("username-headers", &names.username),
            ("uid-headers", &names.uid),
            ("group-headers", &names.group),
            ("extra-headers-prefix", &names.extra_prefix),
        ] {
            if k == "uid-headers" && list.is_empty() {
                continue;
            }
            let v = lists(&text(&data, &key(k)), list);
            data.insert(key(k), v.into());
        }
    }
    data
}

/// Writes what is missing.
pub async fn publish(server: &Server) -> Result<(), ApiError> {
    let own = Own {
        client_ca: server.authn.x509.as_ref().map(|x| x.ca.pem().as_str().to_owned()),
        request_header: server.authn.request_header.as_ref().map(|r| (r.x509.ca.pem().as_str().to_owned(), r.names.clone())),
    };
    let there = server.objects.get("configmaps", &format!("{NAMESPACE}/{NAME}")).map(|d| d.at("data").to_value()).unwrap_or_default();
    let data = merged(&there, &own, jiff::Timestamp::now().as_second());
    let v = json!({"metadata": {"name": NAME, "namespace": NAMESPACE}, "data": data});
    super::ensure(server, &*super::resource(server, "", "configmaps")?, v, &["data"]).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn servers_add_to_what_others_wrote() {
        let now = jiff::Timestamp::now();
        let ca = |n: &str, days: u64| pki::Authority::generate(n, now, Duration::from_secs(days * 86_400)).unwrap().cert_pem;
        let (old, own, over) = (ca("old", 10), ca("own", 10), ca("over", 1));
        let names = Names { allowed: vec!["b".into()], username: vec!["X-Remote-User".into()], ..Names::default() };
        let own_facts = Own { client_ca: Some(own.clone()), request_header: Some((own.clone(), names)) };
        let there = json!({"client-ca-file": format!("{over}{old}"), "requestheader-allowed-names": "[\"a\"]", "other": "x"});
        let later = now.as_second() + 5 * 86_400;
        let data = merged(&there, &own_facts, later);
        assert_eq!(certificates(data["client-ca-file"].as_str().unwrap()), [certificates(&old), certificates(&own)].concat());
        assert_eq!(data["requestheader-allowed-names"], "[\"a\",\"b\"]");
        assert_eq!((&data["requestheader-group-headers"], &data["other"]), (&json!("[]"), &json!("x")));
        assert!(!data.contains_key("requestheader-uid-headers"));
        assert_eq!(merged(&Value::Object(data.clone()), &own_facts, later), data, "a second time changes nothing");
        assert_eq!(merged(&Value::Object(data.clone()), &Own::default(), later), data, "a server that knows nothing takes nothing away");
    }
}
