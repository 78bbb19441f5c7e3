//! Makes the claims of devices that pods ask for by templates, and frees what pods used that are over.

mod plan;

use k8s_client::{
    Action, Change, Client, DeleteOptions, Error, EventType, Informer, ObjectKey, Patch, Request, WorkQueue,
    resources::{PODS, RESOURCE_CLAIMS},
};
use serde_json::{Value, json};

use self::plan::{FINALIZER, Need};
use crate::api::{Pod, ResourceClaim, ResourceClaimTemplate};
use crate::context::Context;
use crate::ownership::ignore_missing;
use crate::reconcile::{Reconcile, follow, work};

const ACCOUNT: &str = "resource-claim-controller";
/// Under which the names of claims in the status of pods are managed.
const MANAGER: &str = "ResourceClaimController";
/// After a template was not there.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(30);

/// Looks after pods.
#[derive(Clone)]
struct Pods {
    context: Context,
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
}

/// Looks after claims.
#[derive(Clone)]
struct Claims {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client(ACCOUNT);
    let pods = context.informers.pods().informer;
    let claims = context.informers.resource_claims();
    let templates: Informer<ResourceClaimTemplate> = context.informers.narrow("", "");
    let (of_pods, of_claims) = (WorkQueue::new("resource-claim-pods"), WorkQueue::new("resource-claims"));
    follow(&of_claims, &claims);
    let (sink, known, users) = (of_pods.clone(), claims.clone(), of_claims.clone());
    pods.add_handler(move |change: Change<'_, Pod>| {
        let pod = change.object();
        if pod.spec.resource_claims.is_empty() {
            return;
        }
        sink.add(pod.metadata.key());
        if matches!(change, Change::Deleted(_)) || plan::is_over(pod) {
            // What was reserved for it is free.
            let uses = |c: &ResourceClaim| {
                c.status.reserved_for.iter().any(|r| r.uid == pod.metadata.uid)
                    || c.metadata.controller().is_some_and(|o| o.uid == pod.metadata.uid)
            };
            known.list_namespace(&pod.metadata.namespace).iter().filter(|c| uses(c)).for_each(|c| users.add(c.metadata.key()));
        }
    });
    let sink = of_pods.clone();
    claims.add_handler(move |change: Change<'_, ResourceClaim>| {
        let claim = change.object();
        if let Some(owner) = claim.metadata.controller().filter(|o| o.kind == "Pod") {
            sink.add(ObjectKey::new(claim.metadata.namespace.clone(), owner.name.clone()));
        }
    });
    pods.wait_synced().await;
    claims.wait_synced().await;
    templates.wait_synced().await;
    let freeing = Claims { client: client.clone(), pods: pods.clone(), claims: claims.clone() };
    let making = Pods { context: context.clone(), client, pods, claims, templates };
    tokio::join!(work(&context, of_pods, 5, making), work(&context, of_claims, 5, freeing));
}

impl Reconcile for Pods {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(pod) = self.pods.get_key(&key) else { return Ok(Action::Done) };
        if plan::is_over(&pod) || pod.metadata.is_deleting() {
            return Ok(Action::Done);
        }
        let claims = self.claims.list_namespace(&key.namespace);
        let (mut statuses, mut changed, mut missing) = (Vec::new(), false, false);
        for (name, need) in plan::needs(&pod, &claims) {
            let known = match need {
                Need::Nothing => {
                    pod.status.resource_claim_statuses.iter().find(|s| s.name == name).and_then(|s| s.resource_claim_name.clone())
                }
                Need::Known(claim) => {
                    changed = true;
                    Some(claim)
                }
                Need::Made(template) => match self.make(&pod, &name, &template).await? {
                    Some(claim) => {
                        changed = true;
                        Some(claim)
                    }
                    None => {
                        missing = true;
                        None
                    }
                },
            };
            if let Some(claim) = known {
                statuses.push(json!({"name": name, "resourceClaimName": claim}));
            }
        }
        if changed {
            let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid},
                "status": {"resourceClaimStatuses": statuses}});
            let patch = Request::patch(&PODS, &key.namespace, &key.name, &Patch::apply(&body, MANAGER, true)).subresource("status");
            ignore_missing(&self.client, &patch).await?;
        }
        Ok(if missing { Action::After(AGAIN) } else { Action::Done })
    }
}

impl Pods {
    /// Makes a claim of a template and gives its name; none: it cannot be made now.
    async fn make(&self, pod: &Pod, name: &str, template: &str) -> Result<Option<String>, Error> {
        let namespace = &pod.metadata.namespace;
        let fail = |problem: String| {
            let message = format!("PodResourceClaim {name}: {problem}");
            self.context.event(&PODS, &pod.metadata, EventType::Warning, "FailedResourceClaimCreation", message);
        };
        let Some(found) = self.templates.get(namespace, template) else {
            fail(format!("resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"));
            return Ok(None);
        };
        let claim = plan::claim(&pod.metadata, name, &found.spec);
        match self.client.call::<Value>(&Request::create(&RESOURCE_CLAIMS, namespace, &claim)).await {
            Ok(made) => Ok(made["metadata"]["name"].as_str().map(str::to_owned)),
            Err(e) if e.is_namespace_terminating() => Ok(None),
            Err(e) => {
                fail(e.to_string());
                Err(e)
            }
        }
    }
}

impl Reconcile for Claims {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(claim) = self.claims.get_key(&key) else { return Ok(Action::Done) };
        let release = plan::release(&claim, &|name| self.pods.get(&key.namespace, name));
        let (uid, place) = (&claim.metadata.uid, (key.namespace.as_str(), key.name.as_str()));
        let gone = |r: Result<_, Error>| match r {
            Err(e) if e.is_not_found() || e.is_conflict() => Ok(()),
            other => other.map(drop),
        };
        if release.keep.is_some() || release.deallocate {
            let change = |object: &mut Value| {
                if let (Some(keep), Some(all)) = (&release.keep, object["status"]["reservedFor"].as_array_mut()) {
                    all.retain(|c| keep.iter().any(|k| c["uid"] == k.as_str()));
                }
                let Some(status) = object["status"].as_object_mut() else { return };
                if status.get("reservedFor").is_some_and(|r| r.as_array().is_some_and(Vec::is_empty)) {
                    status.shift_remove("reservedFor");
                }
                if release.deallocate {
                    status.shift_remove("allocation");
                    // Devices report of what is allocated.
                    status.shift_remove("devices");
                }
            };
            gone(self.client.update(&RESOURCE_CLAIMS, place, uid, "status", change).await)?;
        }
        if release.drop_finalizer {
            let change = |object: &mut Value| {
                if let Some(all) = object["metadata"]["finalizers"].as_array_mut() {
                    all.retain(|f| f != FINALIZER);
                }
            };
            gone(self.client.update(&RESOURCE_CLAIMS, place, uid, "", change).await)?;
        }
        if release.delete {
            ignore_missing(&self.client, &Request::delete(&RESOURCE_CLAIMS, &key.namespace, &key.name, &DeleteOptions::uid(uid))).await?;
        }
        Ok(Action::Done)
    }
}
