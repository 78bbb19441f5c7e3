//! The file of `--encryption-provider-config`: which resources are sealed with which keys (`EncryptionConfiguration`,
//! apiserver.config.k8s.io/v1). Unknown fields, keys that do not fit and entries that would never be reached are errors.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    Chain, Transformer,
    cipher::{AES_KEYS, BOX_KEYS, Cipher, Refused},
};
use crate::config_file::{ConfigFile, DecodeError, decode};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{path}: {why}")]
    Invalid { path: String, why: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<Entry>,
}

impl ConfigFile for File {
    const KIND: &str = "EncryptionConfiguration";
    const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1"];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    aescbc: Option<Keys>,
    aesgcm: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<Nothing>,
    kms: Option<serde_yaml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

fn invalid(path: impl Into<String>, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { path: path.into(), why: why.into() }
}

/// Of `plural.group`, `plural`, `*.group`, `*.` and `*.*`: the group (or `*`) and the plural (or `*`).
fn split(resource: &str) -> (&str, &str) {
    resource.split_once('.').map_or(("", resource), |(plural, group)| (group, plural))
}

/// What a chain is for: group and plural, either of which may be `*`.
pub type Which = (String, String);

/// Reads a configuration: chains by the resources they are for.
pub fn parse(text: &str) -> Result<HashMap<Which, Chain>, ConfigError> {
    let file: File = decode(text)?;
    if file.resources.is_empty() {
        return Err(invalid("resources", "at least one entry is required"));
    }
    let mut all: HashMap<Which, Chain> = HashMap::new();
    let has = |all: &HashMap<Which, Chain>, group: &str, plural: &str| all.contains_key(&(group.to_owned(), plural.to_owned()));
    for (i, entry) in file.resources.iter().enumerate() {
        let at = format!("resources[{i}]");
        check_resources(&at, &entry.resources)?;
        if entry.providers.is_empty() {
            return Err(invalid(format!("{at}.providers"), "at least one provider is required"));
        }
        for resource in &entry.resources {
            let (group, plural) = split(resource);
            // What came before and covers this decides for it.
            if has(&all, "*", "*") || (plural != "*" && has(&all, group, "*")) {
                continue;
            }
            let mut chain = all.remove(&(group.to_owned(), plural.to_owned())).unwrap_or_default();
            for (n, provider) in entry.providers.iter().enumerate() {
                transformers(&format!("{at}.providers[{n}]"), provider, &mut chain)?;
            }
            all.insert((group.to_owned(), plural.to_owned()), chain);
        }
    }
    Ok(all)
}

fn check_resources(at: &str, resources: &[String]) -> Result<(), ConfigError> {
    let path = format!("{at}.resources");
    if resources.is_empty() {
        return Err(invalid(path, "at least one resource is required"));
    }
    let everything = resources.iter().any(|r| r == "*.*");
    for (i, r) in resources.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (group, plural) = split(r);
        if r.is_empty() || plural.is_empty() {
            return Err(invalid(path, "a resource is required: plural, plural.group, *.group, *. or *.*"));
        }
        if r.chars().any(char::is_uppercase) {
            return Err(invalid(path, format!("{r:?}: resource names are of lower case")));
        }
        let wild = r.contains('*');
        if wild && plural != "*" || plural == "*" && group.contains('*') && group != "*" || r == "*" {
            return Err(invalid(path, format!("{r:?}: a wildcard is *.group, *. for the core group, or *.*")));
        }
        if plural != "*" && r.ends_with('.') {
            return Err(invalid(path, format!("{r:?}: a resource of the core group is named without a dot")));
        }
        if matches!(r.as_str(), "serviceipallocations" | "servicenodeportallocations" | "apiserveripinfo") || group == "extensions" {
            return Err(invalid(path, format!("{r:?} cannot be encrypted")));
        }
        if group == "events.k8s.io" {
            return Err(invalid(path, format!("{r:?}: events are encrypted as \"events\"")));
        }
        if resources[..i].contains(r) {
            return Err(invalid(path, format!("{r:?} is named twice")));
        }
        let masked = r != "*.*" && everything || plural != "*" && resources.contains(&format!("*.{group}"));
        if masked {
            return Err(invalid(path, format!("{r:?} is covered by a wildcard of the same list")));
        }
    }
    Ok(())
}

/// Appends what one provider can read, its first key first.
fn transformers(at: &str, p: &Provider, chain: &mut Chain) -> Result<(), ConfigError> {
    type Make = fn(&[u8]) -> Result<Cipher, Refused>;
    let kinds: [(&str, &Option<Keys>, &[usize], Make); 3] = [
        ("aescbc", &p.aescbc, AES_KEYS, Cipher::cbc),
        ("aesgcm", &p.aesgcm, AES_KEYS, Cipher::gcm),
        ("secretbox", &p.secretbox, BOX_KEYS, Cipher::secret_box),
    ];
    let named = kinds.iter().filter(|k| k.1.is_some()).count() + usize::from(p.identity.is_some()) + usize::from(p.kms.is_some());
    if named != 1 {
        return Err(invalid(at, "a provider is exactly one of aescbc, aesgcm, secretbox, identity"));
    }
    if p.kms.is_some() {
        return Err(invalid(
            format!("{at}.kms"),
            "keys of an external service (KMS) are not supported by this server, see its decision record 10; use aesgcm, secretbox or aescbc",
        ));
    }
    if p.identity.is_some() {
        chain.push(Transformer { prefix: Vec::new(), cipher: None });
    }
    for (kind, keys, lengths, make) in kinds {
        let Some(keys) = keys else { continue };
        let at = format!("{at}.{kind}.keys");
        if keys.keys.is_empty() {
            return Err(invalid(at, "at least one key is required"));
        }
        for (i, k) in keys.keys.iter().enumerate() {
            let at = format!("{at}[{i}]");
            if k.name.is_empty() {
                return Err(invalid(format!("{at}.name"), "a name is required"));
            }
            let secret = STANDARD.decode(&k.secret).map_err(|_| invalid(format!("{at}.secret"), "the secret is not base64"))?;
            if !lengths.contains(&secret.len()) {
                return Err(invalid(
                    format!("{at}.secret"),
                    format!("the secret is {} bytes long, and must be one of {lengths:?}", secret.len()),
                ));
            }
            let cipher = make(&secret).map_err(|e| invalid(format!("{at}.secret"), e.to_string()))?;
            chain.push(Transformer { prefix: format!("k8s:enc:{kind}:v1:{}:", k.name).into_bytes(), cipher: Some(cipher) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(entries: &str) -> String {
        format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{entries}")
    }

    const KEY: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

    fn entry(resources: &str, providers: &str) -> String {
        format!("- resources: {resources}\n  providers: {providers}\n")
    }

    #[test]
    fn the_first_entry_that_covers_a_resource_decides() {
        let gcm = format!("[{{aesgcm: {{keys: [{{name: a, secret: {KEY}}}]}}}}, {{identity: {{}}}}]");
        let all = parse(&file(&format!(
            "{}{}{}",
            entry("[secrets, pandas.awesome.example.com]", &gcm),
            entry("['*.']", "[{identity: {}}]"),
            entry("[configmaps, '*.apps']", &gcm)
        )))
        .unwrap();
        let mut which: Vec<_> = all.iter().map(|((g, p), c)| (g.as_str(), p.as_str(), c.len())).collect();
        which.sort_unstable();
        assert_eq!(which, [("", "*", 1), ("", "secrets", 2), ("apps", "*", 2), ("awesome.example.com", "pandas", 2)]);
        let chain = &all[&(String::new(), "secrets".to_owned())];
        assert_eq!(chain[0].prefix, b"k8s:enc:aesgcm:v1:a:");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let ok = "[{identity: {}}]";
        let key = |k: &str| format!("[{{aescbc: {{keys: [{{name: a, secret: {k}}}]}}}}]");
        for (text, named) in [
            (String::new(), "decode"),
            ("kind: EncryptionConfiguration\napiVersion: v1\n".to_owned(), "is not apiserver.config.k8s.io/v1"),
            (file(" []"), "at least one entry"),
            (file(&entry("[]", ok)), "resources[0].resources"),
            (file(&entry("[secrets]", "[]")), "resources[0].providers"),
            (file(&entry("[Secrets]", ok)), "lower case"),
            (file(&entry("['*']", ok)), "wildcard"),
            (file(&entry("['*.*.x']", ok)), "wildcard"),
            (file(&entry("['sec*']", ok)), "wildcard"),
            (file(&entry("['secrets.']", ok)), "without a dot"),
            (file(&entry("[secrets, '*.']", ok)), "covered"),
            (file(&entry("[secrets, secrets]", ok)), "twice"),
            (file(&entry("[events.events.k8s.io]", ok)), "as \"events\""),
            (file(&entry("[secrets]", "[{identity: {}, aescbc: {keys: []}}]")), "exactly one"),
            (file(&entry("[secrets]", "[{kms: {apiVersion: v2, name: k, endpoint: 'unix:///x'}}]")), "decision record 10"),
            (file(&entry("[secrets]", &key("bm90IGxvbmc="))), "8 bytes long"),
            (file(&entry("[secrets]", &key("'%'"))), "not base64"),
            (file(&entry("[secrets]", "[{rot13: {}}]")), "decode"),
        ] {
            let e = parse(&text).unwrap_err().to_string();
            assert!(e.contains(named), "{text}\n{e}");
        }
    }
}
