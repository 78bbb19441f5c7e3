//! What plugins look up in the caches may have been written a moment ago, here or through another server. Before something is refused
//! because of what is missing, the caches are brought up to date; the default service account of a new namespace, which a controller makes,
//! is waited for as long as upstream does.

use std::time::Duration;

use k8s_schema::Doc;

use super::{Attributes, Operation, service_account};
use crate::http::ApiError;

/// For the controller that makes default service accounts.
const ACCOUNT: Duration = Duration::from_millis(1500);

/// Waits for what creating `doc` needs, when it is not there. That it never came is for the plugins to say.
pub async fn wait(a: &Attributes<'_>, doc: &Doc) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.res.namespaced || a.res.prefix.is_empty() || !a.subresource.is_empty() {
        return Ok(());
    }
    let namespace = &a.ctx.info.namespace;
    let account = a.is("", "pods").then(|| service_account::name_of(doc)).flatten();
    let has_namespace = || holds(a, "namespaces", namespace);
    let has_account = || account.is_none_or(|name| holds(a, "serviceaccounts", &format!("{namespace}/{name}")));
    if has_namespace() && has_account() {
        return Ok(());
    }
    a.ctx.server.objects.reflector.barrier().await?;
    if !has_namespace() || account != Some(service_account::DEFAULT) {
        return Ok(());
    }
    let Some(accounts) = a.ctx.server.objects.reflector.cache("serviceaccounts") else { return Ok(()) };
    let mut changes = accounts.subscribe();
    let arrived = async {
        // The sender lives as long as the server.
        while !has_account() && changes.changed().await.is_ok() {}
    };
    // At the end of the time the plugin refuses the pod.
    let _ = tokio::time::timeout(ACCOUNT, arrived).await;
    Ok(())
}

fn holds(a: &Attributes<'_>, prefix: &str, key: &str) -> bool {
    a.ctx.server.objects.reflector.cache(prefix).is_some_and(|cache| cache.get(key).is_some())
}
