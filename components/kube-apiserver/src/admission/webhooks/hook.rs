//! The webhooks of all configurations of a kind, in the order in which they are asked.

use std::{sync::Arc, time::Duration};

use k8s_schema::Ref;
use parking_lot::Mutex;

use super::conditions;
use crate::{
    admission::matching::{Rule, Selectors},
    objects::Objects,
    webhook::ClientConfig,
};

/// One webhook of a configuration.
#[derive(Debug)]
pub struct Hook {
    /// Tells webhooks of one name in several configurations apart.
    pub id: String,
    pub name: String,
    pub client: ClientConfig,
    pub rules: Vec<Rule>,
    /// `failurePolicy: Fail`: who cannot be asked refuses.
    pub fail: bool,
    /// `matchPolicy: Equivalent`: a request in another version of the same resource is converted and matches.
    pub equivalent: bool,
    /// It does nothing that a dry run must not do.
    pub harmless: bool,
    /// `reinvocationPolicy: IfNeeded`.
    pub again: bool,
    pub timeout: Duration,
    pub selectors: Selectors,
    /// The version of the review that is spoken.
    pub review: &'static str,
    pub conditions: Vec<conditions::Named>,
}

impl Hook {
    fn of(configuration: &str, index: usize, w: Ref<'_>) -> Self {
        let name = w.get("name").str().to_owned();
        let known = |v: &str| ["v1", "v1beta1"].into_iter().find(|k| *k == v);
        let seconds = w.get("timeoutSeconds").as_i64().unwrap_or(10).clamp(1, 30);
        Self {
            id: format!("{configuration}/{name}/{index}"),
            name,
            client: ClientConfig::of(w.get("clientConfig")),
            rules: w.get("rules").iter().map(Rule::of).collect(),
            fail: w.get("failurePolicy").str() != "Ignore",
            equivalent: w.get("matchPolicy").str() != "Exact",
            harmless: matches!(w.get("sideEffects").str(), "None" | "NoneOnDryRun"),
            again: w.get("reinvocationPolicy").str() == "IfNeeded",
            timeout: Duration::from_secs(seconds.unsigned_abs()),
            selectors: Selectors::of(w),
            review: w.get("admissionReviewVersions").strings().find_map(known).unwrap_or("v1"),
            conditions: conditions::of(w.get("matchConditions")),
        }
    }
}

pub type Hooks = Arc<Vec<Hook>>;

/// The webhooks below a storage prefix, read again when one of the configurations changed.
#[derive(Debug)]
pub struct Configured {
    prefix: &'static str,
    read: Mutex<(i64, Hooks)>,
}

impl Configured {
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, read: Mutex::default() }
    }

    /// By the names of their configurations, which is the order of the cache.
    pub fn hooks(&self, objects: &Objects) -> Hooks {
        let Some(cache) = objects.reflector.cache(self.prefix) else { return Hooks::default() };
        let (map, changed) = cache.snapshot();
        let mut read = self.read.lock();
        if read.0 != changed {
            let configurations = map.range("", None).filter_map(|(_, s)| objects.doc(s));
            let hooks = configurations.flat_map(|d| {
                let of = |(i, w)| Hook::of(d.meta().name(), i, w);
                d.at("webhooks").iter().enumerate().map(of).collect::<Vec<_>>()
            });
            *read = (changed, Arc::new(hooks.collect()));
        }
        Arc::clone(&read.1)
    }
}
