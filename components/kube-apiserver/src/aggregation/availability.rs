//! Whether APIServices are available: their own always are; of the others the service must be there, have endpoints and answer.
//!
//! Looked at whenever something changes that they depend on, and every half minute; what is seen is written to the condition, which is
//! what requests are judged by.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::header;
use k8s_schema::Doc;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{PREFIX, Remote, connect, discovery};
use crate::{
    authn::{MASTERS, User},
    handlers::write,
    http::ApiError,
    objects::Objects,
    server::Server,
    storage::{StoreError, Stored},
};

/// Between looks at servers that are well.
const PERIOD: Duration = Duration::from_secs(30);
/// Between looks at servers that are not, and after changes.
const PAUSE: Duration = Duration::from_secs(1);
/// For a server to answer.
const TIMEOUT: Duration = Duration::from_secs(6);

/// The condition Available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub available: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    pub fn local() -> Self {
        Self { available: true, reason: "Local", message: "Local APIServices are always available".into() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { available: false, reason, message }
    }

    pub fn to_value(&self) -> Value {
        let status = if self.available { "True" } else { "False" };
        json!({"type": "Available", "status": status, "lastTransitionTime": write::now(), "reason": self.reason, "message": self.message})
    }
}

/// What can be said without asking the server: its service and its endpoints.
fn judge(service: Option<&Doc>, slices: &[Doc], spec: &super::remote::Spec) -> Result<(), Condition> {
    let (ns, name, port) = (&spec.namespace, &spec.name, spec.port);
    let Some(service) = service else {
        return Err(Condition::no("ServiceNotFound", format!("service/{name} in {ns:?} is not present")));
    };
    if service.at("spec.type").str() != "ClusterIP" {
        return Ok(());
    }
    let ports = service.at("spec.ports");
    let Some(found) = ports.iter().find(|p| p.get("port").int() == i64::from(port)) else {
        return Err(Condition::no("ServicePortError", format!("service/{name} in {ns:?} is not listening on port {port}")));
    };
    if slices.is_empty() {
        return Err(Condition::no("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {ns:?}")));
    }
    let port_name = found.get("name").str();
    let ready = |d: &Doc| {
        let has_port = d.at("ports").iter().any(|p| p.get("name").str() == port_name && p.get("port").as_i64().is_some());
        has_port && d.at("endpoints").iter().any(|e| e.get("conditions").get("ready").as_bool() != Some(false))
    };
    if !slices.iter().any(ready) {
        let why = format!("endpointslices for service/{name} in {ns:?} have no addresses with port name {port_name:?}");
        return Err(Condition::no("MissingEndpoints", why));
    }
    Ok(())
}

fn slices(objects: &Objects, namespace: &str, service: &str) -> Vec<Doc> {
    let all = objects.list("endpointslices", &format!("{namespace}/"));
    all.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(service)).filter_map(|s| objects.doc(s)).collect()
}

/// Who asks extension servers how they are.
pub fn aggregator_user() -> User {
    User { name: "system:kube-aggregator".into(), groups: vec![MASTERS.into()], ..User::default() }
}

/// Asks for the server's own discovery document.
async fn answers(server: &Server, remote: &Remote) -> Result<(), Condition> {
    let failed = |why: String| Condition::no("FailedDiscoveryCheck", why);
    let to = connect::resolve(&server.objects, &remote.spec, server.aggregator.routing).map_err(&failed)?;
    let (path, url) = (remote.path(), format!("https://{to}{}", remote.path()));
    let accept = [(header::ACCEPT, "application/json")];
    match connect::fetch(remote, &to, &path, &accept, &aggregator_user(), (4 << 20, TIMEOUT)).await {
        Ok(f) if (200..300).contains(&f.status) => Ok(()),
        Ok(f) => Err(failed(format!("failing or missing response from {url}: bad status from {url}: {}", f.status))),
        Err(e) => Err(failed(format!("failing or missing response from {url}: Get {url:?}: {e}"))),
    }
}

/// Writes the condition unless it is there. A time alone is no change.
async fn write_condition(server: &Server, s: &Stored, d: &Doc, c: &Condition) -> Result<bool, ApiError> {
    let mut all: Vec<Value> = d.at("status.conditions").iter().map(|c| c.to_value()).collect();
    let mut new = c.to_value();
    match all.iter_mut().find(|x| x["type"] == "Available") {
        Some(old) => {
            let same = |f: &str| old[f] == new[f];
            if same("status") && same("reason") && same("message") {
                return Ok(false);
            }
            if same("status") {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = new;
        }
        None => all.push(new),
    }
    let mut doc = d.clone();
    doc.set("status.conditions", Value::from(all)).map_err(ApiError::internal)?;
    let res = server.registry.stored("apiregistration.k8s.io", "apiservices").cloned().ok_or_else(ApiError::no_resource)?;
    let value = write::to_storage(&server.objects.schema, &res, &doc)?;
    match server.etcd.update(&format!("{}{PREFIX}/{}", server.root, s.key), s.rev, value, 0).await {
        Ok(_) => Ok(true),
        // Somebody else wrote it, which brings it here again.
        Err(StoreError::Changed { .. }) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// When servers answered last, and what could be said of them then.
type Answered = HashMap<String, Instant>;

/// One look at all APIServices; whether all are as they should be.
async fn step(server: &Arc<Server>, answered: &mut Answered) -> Result<bool, ApiError> {
    let stored = server.objects.list(PREFIX, "");
    answered.retain(|n, _| stored.iter().any(|s| s.name() == n));
    let mut well = true;
    for s in &stored {
        let Some(d) = server.objects.doc(s) else { continue };
        if d.at("metadata.deletionTimestamp").exists() {
            continue;
        }
        let key = (d.at("spec.group").str().to_owned(), d.at("spec.version").str().to_owned());
        let remote = server.aggregator.services.load().remotes.get(&key).cloned();
        let condition = match (d.at("spec.service").exists(), remote) {
            (false, _) => Condition::local(),
            // The routes are a moment behind; that they are there is told.
            (true, None) => {
                well = false;
                continue;
            }
            (true, Some(remote)) => look(server, &remote, s.name(), answered).await,
        };
        well &= condition.available;
        write_condition(server, s, &d, &condition).await?;
    }
    Ok(well)
}

async fn look(server: &Arc<Server>, remote: &Arc<Remote>, name: &str, answered: &mut Answered) -> Condition {
    let spec = &remote.spec;
    let service = server.objects.get("services/specs", &format!("{}/{}", spec.namespace, spec.name));
    if let Err(c) = judge(service.as_ref(), &slices(&server.objects, &spec.namespace, &spec.name), spec) {
        answered.remove(name);
        return c;
    }
    let recently = answered.get(name).is_some_and(|t| t.elapsed() < PERIOD) && remote.available();
    if !recently {
        if let Err(c) = answers(server, remote).await {
            answered.remove(name);
            return c;
        }
        answered.insert(name.to_owned(), Instant::now());
        discovery::describe(server, remote).await;
    }
    Condition { available: true, reason: "Passed", message: "all checks passed".into() }
}

/// Runs until the server stops.
pub async fn run(server: Arc<Server>) {
    let caches = ["services/specs", "endpointslices"].map(|p| server.objects.reflector.cache(p));
    let [Some(services), Some(slices)] = caches else { return };
    let mut routes = server.aggregator.refreshed.subscribe();
    let (mut services, mut slices) = (services.subscribe(), slices.subscribe());
    let mut answered = Answered::default();
    loop {
        routes.mark_unchanged();
        services.mark_unchanged();
        slices.mark_unchanged();
        let well = match step(&server, &mut answered).await {
            Ok(well) => well,
            Err(e) => {
                tracing::warn!(error = %e, "the availability of APIServices cannot be written; trying again");
                false
            }
        };
        let any = !server.aggregator.services.load().remotes.is_empty();
        let period = if !any {
            Duration::from_secs(600)
        } else if well {
            PERIOD
        } else {
            PAUSE * 5
        };
        tokio::select! {
            _ = routes.changed() => {}
            _ = services.changed(), if any => {}
            _ = slices.changed(), if any => {}
            () = tokio::time::sleep(period) => {}
            () = server.stop.cancelled() => return,
        }
        if any {
            // Changes come in bursts.
            tokio::time::sleep(PAUSE / 2).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;

    use super::*;
    use crate::aggregation::remote::Spec;

    fn doc(group: &str, kind: &str, v: Value) -> Doc {
        let schema = Schema::builtin();
        Doc::from_value(&schema, schema.kind(group, "v1", kind).unwrap(), &v).unwrap().doc
    }

    #[test]
    fn the_first_thing_that_is_missing_is_named() {
        let spec = Spec { namespace: "n".into(), name: "s".into(), port: 443, ca_bundle: Vec::new(), insecure: false };
        let service =
            |kind: &str, port: i64| doc("", "Service", json!({"spec": {"type": kind, "ports": [{"name": "https", "port": port}]}}));
        let slice = |port: &str, ready: Value| {
            doc(
                "discovery.k8s.io",
                "EndpointSlice",
                json!({"ports": [{"name": port, "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]}),
            )
        };
        let reason = |s: Option<&Doc>, slices: &[Doc]| judge(s, slices, &spec).err().map(|c| c.reason);
        let good = service("ClusterIP", 443);
        assert_eq!(reason(None, &[]), Some("ServiceNotFound"));
        assert_eq!(reason(Some(&service("ClusterIP", 80)), &[]), Some("ServicePortError"));
        assert_eq!(reason(Some(&good), &[]), Some("EndpointsNotFound"));
        assert_eq!(reason(Some(&good), &[slice("other", json!(true))]), Some("MissingEndpoints"));
        assert_eq!(reason(Some(&good), &[slice("https", json!(false))]), Some("MissingEndpoints"));
        assert_eq!(reason(Some(&good), &[slice("https", json!(false)), slice("https", json!(true))]), None);
        assert_eq!(reason(Some(&service("ExternalName", 443)), &[]), None);
        let message = judge(Some(&good), &[slice("other", json!(true))], &spec).unwrap_err().message;
        assert_eq!(message, "endpointslices for service/s in \"n\" have no addresses with port name \"https\"");
    }
}
