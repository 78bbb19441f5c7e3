//! Discovery: which resources the server has, for controllers that work on all of them.

use serde::Deserialize;

use crate::client::Client;
use crate::error::Error;
use crate::request::{Method, Request};
use crate::resource::Resource;

/// A resource and what can be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    pub resource: Resource,
    pub verbs: Vec<String>,
}

impl ApiResource {
    /// True when the resource offers all of these verbs.
    pub fn supports(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|have| have == verb))
    }
}

/// What discovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// Every resource once, in its group's preferred version where that has it; no subresources.
    pub resources: Vec<ApiResource>,
    /// Group-versions whose list could not be read, for example because their server is away.
    pub failed: Vec<String>,
}

#[derive(Deserialize)]
struct ResourceList {
    #[serde(default, deserialize_with = "crate::meta::null_default")]
    resources: Vec<WireResource>,
}

#[derive(Deserialize)]
struct WireResource {
    name: String,
    kind: String,
    #[serde(default)]
    namespaced: bool,
    #[serde(default, deserialize_with = "crate::meta::null_default")]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct GroupList {
    #[serde(default, deserialize_with = "crate::meta::null_default")]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: String,
    versions: Vec<GroupVersion>,
    preferred_version: GroupVersion,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
}

impl Client {
    /// Reads the server's resources. Fails only when the list of groups itself cannot be read.
    pub async fn discover(&self) -> Result<Discovered, Error> {
        let groups: GroupList = self.call(&Request::raw(Method::Get, "/apis")).await?;
        let mut found = Discovered::default();
        self.read_version(&mut found, "", "v1").await;
        for group in &groups.groups {
            let preferred = group.preferred_version.version.as_str();
            self.read_version(&mut found, &group.name, preferred).await;
            for other in group.versions.iter().map(|v| v.version.as_str()).filter(|version| *version != preferred) {
                self.read_version(&mut found, &group.name, other).await;
            }
        }
        Ok(found)
    }

    async fn read_version(&self, found: &mut Discovered, group: &str, version: &str) {
        let base = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        match self.call::<ResourceList>(&Request::raw(Method::Get, &base)).await {
            Ok(list) => found.add(group, version, list.resources),
            Err(error) => {
                tracing::debug!(path = base, error = &error as &dyn std::error::Error, "discovery of a group failed");
                found.failed.push(base);
            }
        }
    }
}

impl Discovered {
    fn add(&mut self, group: &str, version: &str, resources: Vec<WireResource>) {
        for wire in resources.into_iter().filter(|r| !r.name.contains('/')) {
            if self.resources.iter().any(|known| known.resource.group == group && known.resource.plural == wire.name) {
                continue;
            }
            let resource = Resource {
                group: group.to_string().into(),
                version: version.to_string().into(),
                plural: wire.name.into(),
                kind: wire.kind.into(),
                namespaced: wire.namespaced,
            };
            self.resources.push(ApiResource { resource, verbs: wire.verbs });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_is_found_once_without_subresources() {
        let wire = |name: &str| WireResource {
            name: name.into(),
            kind: "K".into(),
            namespaced: true,
            verbs: vec!["list".into(), "delete".into()],
        };
        let mut found = Discovered::default();
        found.add("g", "v1", vec![wire("as"), wire("as/status")]);
        found.add("g", "v1beta1", vec![wire("as"), wire("bs")]);
        let names: Vec<_> = found.resources.iter().map(|r| format!("{}/{}", r.resource.version, r.resource.plural)).collect();
        assert_eq!(names, ["v1/as", "v1beta1/bs"]);
        assert!(found.resources[0].supports(&["list", "delete"]) && !found.resources[0].supports(&["watch"]));
    }
}
