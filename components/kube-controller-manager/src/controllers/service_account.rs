//! Keeps a service account `default` in every active namespace.

use k8s_client::{Action, Change, Error, ObjectKey, Request, WorkQueue, resources::SERVICE_ACCOUNTS, run_workers};
use serde_json::json;

use crate::api::{Namespace, ServiceAccount};
use crate::context::Context;

const NAME: &str = "default";

fn is_needed(namespace: Option<&Namespace>, exists: bool) -> bool {
    !exists && namespace.is_some_and(|namespace| !namespace.metadata.is_deleting() && namespace.status.phase != "Terminating")
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("service-account-controller");
    let namespaces = context.informers.namespaces();
    let accounts = context.informers.service_accounts();
    let queue = WorkQueue::new("serviceaccount");
    let sink = queue.clone();
    namespaces.add_handler(move |change: Change<'_, Namespace>| sink.add(change.object().metadata.key()));
    let sink = queue.clone();
    accounts.add_handler(move |change: Change<'_, ServiceAccount>| {
        if matches!(change, Change::Deleted(account) if account.metadata.name == NAME) {
            sink.add(ObjectKey::new("", change.object().metadata.namespace.clone()));
        }
    });
    namespaces.wait_synced().await;
    accounts.wait_synced().await;
    let process = move |key: ObjectKey| {
        let (client, namespaces, accounts) = (client.clone(), namespaces.clone(), accounts.clone());
        async move {
            if !is_needed(namespaces.get_key(&key).as_deref(), accounts.get(&key.name, NAME).is_some()) {
                return Ok(Action::Done);
            }
            let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": key.name}});
            match client.execute(&Request::create(&SERVICE_ACCOUNTS, &key.name, &body)).await {
                Err(error) if !error.is_already_exists() && !error.is_not_found() && !error.is_namespace_terminating() => {
                    Err::<_, Error>(error)
                }
                _ => Ok(Action::Done),
            }
        }
    };
    run_workers(queue, 1, context.stop.clone(), process).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_living_namespaces_get_an_account() {
        let mut namespace = Namespace::default();
        assert!(is_needed(Some(&namespace), false));
        assert!(!is_needed(Some(&namespace), true));
        assert!(!is_needed(None, false));
        namespace.status.phase = "Terminating".into();
        assert!(!is_needed(Some(&namespace), false));
    }
}
