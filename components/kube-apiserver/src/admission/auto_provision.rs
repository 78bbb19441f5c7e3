//! `NamespaceAutoProvision`: a namespace that is not there is made by the first object that is created in it.

use serde_json::json;

use super::{Attributes, Operation};
use crate::{
    bootstrap,
    http::{ApiError, Group},
    validation::names,
};

pub const NAME: &str = "NamespaceAutoProvision";

/// Makes the namespace of what is created; the caches may learn of it a moment later.
pub async fn provide(a: &Attributes<'_>) -> Result<(), ApiError> {
    let name = &a.ctx.info.namespace;
    // Reviews are questions, not objects of a namespace.
    let stored = a.res.namespaced && !a.res.prefix.is_empty() && a.subresource.is_empty();
    if a.operation != Operation::Create || a.dry_run || !stored || name.is_empty() {
        return Ok(());
    }
    let server = &a.ctx.server;
    if server.objects.reflector.cache("namespaces").is_some_and(|n| n.get(name).is_some()) {
        return Ok(());
    }
    let refused = |why: String| ApiError::forbidden(Group(&a.res.group, &a.res.plural), &a.ctx.info.name, why);
    if let [why, ..] = names::dns1123_label(name).as_slice() {
        return Err(refused(format!("Namespace {name:?} is invalid: metadata.name: Invalid value: {name:?}: {why}")));
    }
    let namespaces = server.registry.stored("", "namespaces").cloned().ok_or_else(ApiError::no_resource)?;
    let object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
    bootstrap::create(server, &namespaces, object).await.map_err(|e| refused(e.to_string()))?;
    tracing::info!(namespace = name, "made a namespace for what is created in it");
    Ok(())
}
