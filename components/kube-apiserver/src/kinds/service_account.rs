//! ServiceAccount.

use k8s_schema::Doc;

use super::{PLAIN, Strategy};

pub const SERVICE_ACCOUNT: Strategy = Strategy { returns_deleted: true, prepare_create: drop_empty, ..PLAIN };

/// References to nothing are dropped.
fn drop_empty(d: &mut Doc) {
    d.retain("secrets", |s| !s.get("name").str().is_empty());
}
