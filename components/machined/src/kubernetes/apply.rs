//! Brings the default manifests into the cluster by server-side apply, as the field manager `strake`: what is missing is created, fields of a newer manifest
//! are set, and those that it no longer has are removed. Fields of other managers, people's for example, are left alone, and so is an object made from this
//! very manifest.

use std::time::Duration;

use k8s_client::resources::NODES;
use k8s_client::{Client, Error, Patch, Request};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::manifests::{self, Manifest};
use super::{ADMIN_KUBECONFIG, NodeFacts};
use crate::reconcilers::{Context, Outcome, ReconcileError, Reconciler};

/// Which version of its manifest an object was made from.
const ANNOTATION: &str = "strake.dev/manifest";
/// The label that names a control-plane node; a kubelet may not set it on itself.
const ROLE_LABEL: &str = "node-role.kubernetes.io/control-plane";
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The name under which machined owns fields.
const MANAGER: &str = "strake";

/// What to do about a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It was made from this very manifest.
    Keep,
    /// It is missing, or was made from another version.
    Apply(Value),
}

/// Compares a manifest with what the cluster has under its name.
pub fn plan(manifest: &Manifest, found: Option<&Value>) -> Plan {
    let mut wanted = manifest.object.clone();
    // serde_json keeps the order of the code that built it, so that equal manifests have equal text.
    let digest: String = Sha256::digest(wanted.to_string()).iter().take(16).map(|b| format!("{b:02x}")).collect();
    wanted["metadata"]["annotations"] = json!({ANNOTATION: digest});
    match found {
        Some(found) if found["metadata"]["annotations"][ANNOTATION] == digest.as_str() && owned(found) => Plan::Keep,
        _ => Plan::Apply(wanted),
    }
}

/// Whether we are among those who applied an object; before that, removed fields could not be noticed.
fn owned(found: &Value) -> bool {
    let managers = found["metadata"]["managedFields"].as_array();
    managers.into_iter().flatten().any(|entry| entry["manager"] == MANAGER && entry["operation"] == "Apply")
}

/// The request that applies an object. Conflicts are decided for the manifest: what it names is the system's.
fn request(manifest: &Manifest, object: &Value) -> Request {
    Request::patch(&manifest.resource, manifest.namespace, &manifest.name, &Patch::apply(object, MANAGER, true)).with_timeout(TIMEOUT)
}

/// Keeps the default manifests in the cluster.
#[derive(Default)]
pub struct Manifests {
    client: Option<Client>,
}

#[tonic::async_trait]
impl Reconciler for Manifests {
    fn name(&self) -> &'static str {
        "manifests"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["kubernetes", "services"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        if let Some(idle) = cx.idle_here()? {
            return Ok(idle);
        }
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let client = super::client(&cx.machine.paths, ADMIN_KUBECONFIG)?;
                self.client.insert(client).clone()
            }
        };
        // While the API server starts there is nothing to report, and nothing to do.
        if let Err(error) = client.execute(&Request::raw(k8s_client::Method::Get, "/readyz").with_timeout(TIMEOUT)).await {
            return Ok(Outcome::waiting(format!("the API server is not ready: {}", crate::api::chain(&error))));
        }
        let mut failures = Vec::new();
        let mut changed = 0;
        for manifest in manifests::render(cx.config()) {
            match bring(&client, &manifest).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(resource = %manifest.resource, name = manifest.name, "default manifest applied");
                    changed += 1;
                }
                Err(error) => failures.push(format!("{} {}: {}", manifest.resource, manifest.name, crate::api::chain(&error))),
            }
        }
        if !failures.is_empty() {
            return Err(failures.join("; ").into());
        }
        let facts = super::facts(cx)?;
        if !label_node(&client, &facts).await? {
            return Ok(Outcome::waiting("the node has not registered yet"));
        }
        Ok(Outcome::ready(format!("{changed} applied in this round"), Duration::from_secs(300)))
    }
}

/// Does what the plan says; whether anything changed.
async fn bring(client: &Client, manifest: &Manifest) -> Result<bool, Error> {
    let get = Request::get(&manifest.resource, manifest.namespace, &manifest.name).with_timeout(TIMEOUT);
    let found = match client.call::<Value>(&get).await {
        Ok(found) => Some(found),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    match plan(manifest, found.as_ref()) {
        Plan::Keep => Ok(false),
        Plan::Apply(object) => client.call::<Value>(&request(manifest, &object)).await.map(|_| true),
    }
}

/// Gives this control plane's node its role; `false` while there is no such node.
async fn label_node(client: &Client, facts: &NodeFacts) -> Result<bool, Error> {
    let node: Value = match client.call(&Request::get(&NODES, "", &facts.hostname).with_timeout(TIMEOUT)).await {
        Ok(node) => node,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    };
    if node["metadata"]["labels"].get(ROLE_LABEL).is_none() {
        let patch = Patch::merge(&json!({"metadata": {"labels": {ROLE_LABEL: ""}}}));
        client.call::<Value>(&Request::patch(&NODES, "", &facts.hostname, &patch).with_timeout(TIMEOUT)).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;

    #[test]
    fn what_is_missing_or_of_another_version_is_applied_and_the_rest_is_left_alone() {
        let config = testing::control_plane_config();
        let manifest = &manifests::render(&config)[0];
        let Plan::Apply(mut applied) = plan(manifest, None) else { panic!("must be applied") };
        assert!(matches!(plan(manifest, Some(&applied)), Plan::Apply(_)), "made by something else than an apply of ours");
        applied["metadata"]["managedFields"] =
            json!([{"manager": "kubectl", "operation": "Update"}, {"manager": "strake", "operation": "Apply"}]);
        assert_eq!(plan(manifest, Some(&applied)), Plan::Keep);
        let mut edited = applied.clone();
        edited["metadata"]["labels"]["mine"] = json!("yes");
        assert_eq!(plan(manifest, Some(&edited)), Plan::Keep);
        let mut newer = manifest.clone();
        newer.object["data"]["description"] = json!("");
        assert!(matches!(plan(&newer, Some(&applied)), Plan::Apply(_)));
    }

    #[test]
    fn manifests_are_applied_on_the_servers_side() {
        let config = testing::control_plane_config();
        let manifest = &manifests::render(&config)[0];
        let request = request(manifest, &manifest.object);
        assert_eq!((request.method, request.content_type), (k8s_client::Method::Patch, Some("application/apply-patch+yaml")));
        assert!(request.path_and_query().ends_with("?fieldManager=strake&force=true"), "{}", request.path_and_query());
        for manifest in manifests::render(&config) {
            let metadata = &manifest.object["metadata"];
            // An apply names its object and says nothing of a version.
            assert!(metadata["name"].is_string() && manifest.object["apiVersion"].is_string() && metadata["resourceVersion"].is_null());
        }
    }
}
