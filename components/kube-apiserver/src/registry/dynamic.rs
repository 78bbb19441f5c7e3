//! The resources that definitions add, immutable: a change makes a new one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::Resource;
use crate::custom::Definition;

#[derive(Debug, Default)]
pub struct Dynamic {
    definitions: BTreeMap<String, Arc<Definition>>,
    resources: Vec<Arc<Resource>>,
    by_name: HashMap<(String, String, String), Arc<Resource>>,
    groups: Vec<(String, Vec<String>)>,
}

/// Orders versions as discovery prefers them: stable ones, then beta, then alpha, newer before older, then other names.
pub fn priority(version: &str) -> (u8, i64, i64) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let (major, stage) = rest.find(|c: char| !c.is_ascii_digit()).map_or((rest, ""), |i| rest.split_at(i));
    let Ok(major) = major.parse::<i64>() else { return (0, 0, 0) };
    let minor = |s: &str| s.parse::<i64>().ok().filter(|n| *n > 0);
    match (stage, stage.strip_prefix("beta").and_then(minor), stage.strip_prefix("alpha").and_then(minor)) {
        ("", ..) => (3, major, 0),
        (_, Some(n), _) => (2, major, n),
        (_, _, Some(n)) => (1, major, n),
        _ => (0, 0, 0),
    }
}

impl Dynamic {
    fn of(definitions: BTreeMap<String, Arc<Definition>>) -> Self {
        let resources: Vec<Arc<Resource>> = definitions.values().flat_map(Definition::resources).collect();
        let by_name = resources.iter().map(|r| ((r.group.clone(), r.version.clone(), r.plural.clone()), Arc::clone(r))).collect();
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for r in &resources {
            let versions = groups.entry(r.group.clone()).or_default();
            if !versions.contains(&r.version) {
                versions.push(r.version.clone());
            }
        }
        for versions in groups.values_mut() {
            versions.sort_by(|a, b| priority(b).cmp(&priority(a)).then_with(|| a.cmp(b)));
        }
        Self { definitions, resources, by_name, groups: groups.into_iter().collect() }
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        if self.by_name.is_empty() {
            return None;
        }
        self.by_name.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    pub fn all(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    pub fn groups(&self) -> &[(String, Vec<String>)] {
        &self.groups
    }

    pub fn definitions(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.definitions.values()
    }

    /// The definition whose objects are stored below a prefix.
    pub fn stored_at(&self, prefix: &str) -> Option<&Arc<Definition>> {
        let (group, plural) = prefix.split_once('/')?;
        self.definitions.get(&format!("{plural}.{group}"))
    }

    /// With a definition; none when nothing differs.
    pub fn with(&self, definition: Definition) -> Option<Self> {
        if self.definitions.get(&definition.name).is_some_and(|d| d.same(&definition)) {
            return None;
        }
        let mut definitions = self.definitions.clone();
        definitions.insert(definition.name.clone(), Arc::new(definition));
        Some(Self::of(definitions))
    }

    pub fn without(&self, name: &str) -> Option<(Self, String)> {
        let mut definitions = self.definitions.clone();
        let gone = definitions.remove(name)?;
        Some((Self::of(definitions), gone.prefix()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_discovery_prefers_them() {
        let mut v = ["v1beta1", "foo10", "v10", "v2", "v11beta2", "v12alpha1", "v1", "foo1", "v3beta1"];
        v.sort_by(|a, b| priority(b).cmp(&priority(a)).then_with(|| a.cmp(b)));
        assert_eq!(v, ["v10", "v2", "v1", "v11beta2", "v3beta1", "v1beta1", "v12alpha1", "foo1", "foo10"]);
    }
}
