//! ConfigMap and Secret.

use k8s_schema::Doc;

use super::{Action, PLAIN, Strategy, immutable};
use crate::validation::{ErrorList, FieldError, key, names};

const MAX_DATA: usize = 1 << 20;

pub const CONFIG_MAP: Strategy = Strategy { validate_create: config_map, validate_update: config_map_update, ..PLAIN };
pub const SECRET: Strategy = Strategy { validate_create: secret, validate_update: secret_update, ..PLAIN };

fn config_map(d: &Doc, e: &mut ErrorList) {
    let mut total = 0;
    for (k, v) in d.at("data").entries() {
        e.all_invalid(&key("data", k), k, names::config_key(k));
        if d.at("binaryData").get(k).exists() {
            e.push(FieldError::invalid(key("data", k), k, "duplicate of key present in binaryData"));
        }
        total += v.str().len();
    }
    for (k, v) in d.at("binaryData").entries() {
        e.all_invalid(&key("binaryData", k), k, names::config_key(k));
        total += v.bytes().len();
    }
    if total > MAX_DATA {
        e.push(FieldError::too_long("[]", "", MAX_DATA));
    }
}

fn kept(new: &Doc, old: &Doc, fields: &[&str], e: &mut ErrorList) {
    if !old.at("immutable").bool() {
        return;
    }
    if !new.at("immutable").bool() {
        e.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for f in fields {
        if !new.at(f).semantic_eq(old.at(f)) {
            e.push(FieldError::forbidden(*f, "field is immutable when `immutable` is set"));
        }
    }
}

fn config_map_update(_: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    kept(new, old, &["data", "binaryData"], e);
    config_map(new, e);
}

fn secret(d: &Doc, e: &mut ErrorList) {
    let mut total = 0;
    for (k, v) in d.at("data").entries() {
        e.all_invalid(&key("data", k), k, names::config_key(k));
        total += v.bytes().len();
    }
    if total > MAX_DATA {
        e.push(FieldError::too_long("data", "", MAX_DATA));
    }
    let has = |k: &str| d.at("data").get(k).exists();
    let required = |k: &str, e: &mut ErrorList| {
        if !has(k) {
            e.push(FieldError::required(key("data", k), ""));
        }
    };
    match d.at("type").str() {
        "kubernetes.io/service-account-token"
            if d.at("metadata.annotations").get("kubernetes.io/service-account.name").str().is_empty() =>
        {
            e.push(FieldError::required(key("metadata.annotations", "kubernetes.io/service-account.name"), ""));
        }
        "kubernetes.io/dockercfg" => json_data(d, ".dockercfg", e),
        "kubernetes.io/dockerconfigjson" => json_data(d, ".dockerconfigjson", e),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            e.push(FieldError::required("data[%s]", "username"));
            e.push(FieldError::required("data[%s]", "password"));
        }
        "kubernetes.io/ssh-auth" if d.at("data").get("ssh-privatekey").bytes().is_empty() => {
            e.push(FieldError::required("data[%s]", "ssh-privatekey"));
        }
        "kubernetes.io/tls" => {
            required("tls.crt", e);
            required("tls.key", e);
        }
        _ => {}
    }
}

fn json_data(d: &Doc, k: &str, e: &mut ErrorList) {
    let data = d.at("data").get(k);
    if !data.exists() {
        e.push(FieldError::required(key("data", k), ""));
    } else if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(data.bytes()).is_err() {
        e.push(FieldError::invalid(key("data", k), "<secret contents redacted>", "invalid character"));
    }
}

fn secret_update(_: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    immutable(new, old, "type", e);
    kept(new, old, &["data"], e);
    secret(new, e);
}
