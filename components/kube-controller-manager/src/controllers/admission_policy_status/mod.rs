//! Tells in the status of a ValidatingAdmissionPolicy (`status.typeChecking`) where its expressions do not fit the kinds it is about.
//!
//! A policy is checked once in each generation, against the types that the API server's OpenAPI documents describe at that time; nothing that
//! is found here changes what the policy does.

mod check;
mod types;

use std::collections::HashMap;

use cel::Type;
use k8s_client::{
    Action, Change, Client, Error, Informer, Method, Named, Object, ObjectKey, ObjectMeta, Patch, Request, Resource, WorkQueue,
    null_default, resources::VALIDATING_ADMISSION_POLICIES, run_workers,
};
use serde::Deserialize;
use serde_json::{Value, json};

use self::{check::Wanted, types::Types};
use crate::context::Context;

const ACCOUNT: &str = "validatingadmissionpolicy-status-controller";
/// The name under which the fields of the status are managed.
const MANAGER: &str = "validatingadmissionpolicy-status-controller";

/// A policy as far as its types are checked.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    param_kind: Option<ParamKind>,
    match_constraints: Constraints,
    #[serde(deserialize_with = "null_default")]
    variables: Vec<Variable>,
    #[serde(deserialize_with = "null_default")]
    validations: Vec<Validation>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ParamKind {
    api_version: String,
    kind: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Constraints {
    #[serde(deserialize_with = "null_default")]
    resource_rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    #[serde(deserialize_with = "null_default")]
    api_groups: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    api_versions: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    resources: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Validation {
    expression: String,
    message_expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: i64,
}

impl Object for Policy {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Policy {
    const RESOURCE: Resource = VALIDATING_ADMISSION_POLICIES;
}

/// What the API server says of group-versions, read as far as one policy needs it and dropped afterwards.
struct Served<'a> {
    client: &'a Client,
    /// By group-version: the kinds by resource, and the OpenAPI document.
    known: HashMap<(String, String), Option<(HashMap<String, String>, Value)>>,
}

impl Served<'_> {
    async fn read(&mut self, group: &str, version: &str) -> Result<(), Error> {
        let key = (group.to_owned(), version.to_owned());
        if self.known.contains_key(&key) {
            return Ok(());
        }
        let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let asked = async {
            let list: Value = self.client.call(&Request::raw(Method::Get, &format!("/{path}"))).await?;
            let document: Value = self.client.call(&Request::raw(Method::Get, &format!("/openapi/v3/{path}"))).await?;
            Ok::<_, Error>((list, document))
        };
        let found = match asked.await {
            Ok((list, document)) => {
                let entries = list["resources"].as_array().into_iter().flatten();
                let kinds = entries.filter_map(|r| Some((r["name"].as_str()?.to_owned(), r["kind"].as_str()?.to_owned()))).collect();
                Some((kinds, document))
            }
            // Of what is not served nothing can be said.
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        self.known.insert(key, found);
        Ok(())
    }

    fn at(&self, group: &str, version: &str) -> Option<&(HashMap<String, String>, Value)> {
        self.known.get(&(group.to_owned(), version.to_owned()))?.as_ref()
    }

    fn of_resource(&self, w: &Wanted) -> Option<(String, Type)> {
        let (kinds, document) = self.at(&w.group, &w.version)?;
        let kind = kinds.get(&w.resource)?;
        Some((kind.clone(), Types::new(document).of_kind(&w.group, &w.version, kind)?))
    }
}

/// Checks a policy against what the API server serves now.
async fn warnings(client: &Client, policy: &Policy) -> Result<Vec<(String, String)>, Error> {
    let mut served = Served { client, known: HashMap::new() };
    let wanted = check::wanted(policy);
    for w in wanted.iter().flatten() {
        served.read(&w.group, &w.version).await?;
    }
    let params = match &policy.spec.param_kind {
        None => None,
        Some(p) => {
            let (group, version) = p.api_version.split_once('/').unwrap_or(("", &p.api_version));
            served.read(group, version).await?;
            let document = served.at(group, version).map(|(_, document)| document);
            // Of a kind that is not served nothing is known, which is no fault of the expressions.
            Some(document.and_then(|d| Types::new(d).of_kind(group, version, &p.kind)).unwrap_or(Type::Dyn))
        }
    };
    let kinds = check::kinds(&wanted, |w| served.of_resource(w));
    Ok(check::warnings(policy, &kinds, params.as_ref()))
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client(ACCOUNT);
    let policies: Informer<Policy> = context.informers.narrow("", "");
    let queue = WorkQueue::new("validatingadmissionpolicy-status");
    let sink = queue.clone();
    policies.add_handler(move |change: Change<'_, Policy>| sink.add(change.object().metadata.key()));
    policies.wait_synced().await;
    run_workers(queue, 1, context.stop.clone(), move |key: ObjectKey| {
        let (client, policies) = (client.clone(), policies.clone());
        async move {
            let Some(policy) = policies.get_key(&key) else { return Ok(Action::Done) };
            let generation = policy.metadata.generation;
            if generation <= policy.status.observed_generation {
                return Ok(Action::Done);
            }
            let found = warnings(&client, &policy).await?;
            let list: Vec<Value> = found.into_iter().map(|(field, warning)| json!({"fieldRef": field, "warning": warning})).collect();
            let checked = if list.is_empty() { json!({}) } else { json!({ "expressionWarnings": list }) };
            let body = json!({"apiVersion": Policy::RESOURCE.api_version(), "kind": Policy::RESOURCE.kind, "metadata": {"name": key.name},
                "status": {"observedGeneration": generation, "typeChecking": checked}});
            let request = Request::patch(&Policy::RESOURCE, "", &key.name, &Patch::apply(&body, MANAGER, true)).subresource("status");
            match client.execute(&request).await {
                // The policy went meanwhile.
                Err(e) if e.is_not_found() => Ok(Action::Done),
                other => other.map(|()| Action::Done),
            }
        }
    })
    .await;
}
