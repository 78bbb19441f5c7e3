//! Bootstrap tokens, `<id>.<secret>`: Secrets of kube-system with which a machine joins.

use jiff::Timestamp;

use super::{Rejected, User};
use crate::objects::Objects;

fn well_formed(s: &str, len: usize) -> bool {
    s.len() == len && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

pub(super) fn authenticate(objects: &Objects, token: &str) -> Result<User, Rejected> {
    let reject = |why: &str| Rejected(format!("bootstrap token: {why}"));
    let (id, secret) = token.split_once('.').ok_or_else(|| reject("not of the form id.secret"))?;
    if !well_formed(id, 6) || !well_formed(secret, 16) {
        return Err(reject("not of the form id.secret"));
    }
    let doc = objects.get("secrets", &format!("kube-system/bootstrap-token-{id}")).ok_or_else(|| reject("unknown id"))?;
    let data = |k: &str| -> String { String::from_utf8_lossy(doc.at("data").get(k).bytes()).into_owned() };
    if doc.at("metadata.deletionTimestamp").exists() {
        return Err(reject("deleted"));
    }
    if doc.at("type").str() != "bootstrap.kubernetes.io/token" || data("token-id") != id {
        return Err(reject("the Secret is not a bootstrap token"));
    }
    let stored = data("token-secret");
    if aws_lc_rs::constant_time::verify_slices_are_equal(stored.as_bytes(), secret.as_bytes()).is_err() {
        return Err(reject("wrong secret"));
    }
    let expiration = data("expiration");
    if !expiration.is_empty() && expiration.parse::<Timestamp>().map_or(true, |t| t <= Timestamp::now()) {
        return Err(reject("expired"));
    }
    if data("usage-bootstrap-authentication") != "true" {
        return Err(reject("not for authentication"));
    }
    let mut groups = vec!["system:bootstrappers".to_owned()];
    for g in data("auth-extra-groups").split(',').filter(|g| !g.is_empty()) {
        let rest = g.strip_prefix("system:bootstrappers:").unwrap_or("");
        if rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':' || b == b'-') {
            return Err(reject("bad extra group"));
        }
        groups.push(g.to_owned());
    }
    Ok(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}
