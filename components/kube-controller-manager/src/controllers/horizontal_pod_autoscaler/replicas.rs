//! How many pods the measured load asks for. Pure: pods, samples and targets in, a number out. All amounts are thousandths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_client::{Condition, Time};

use crate::api::{Container, Pod};

/// What one pod uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub value: i64,
    pub at: Time,
    pub window: Duration,
}

/// Samples by pod name.
pub type Samples = BTreeMap<String, Sample>;

/// How far the ratio may be from 1 in each direction without anything being done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub down: f64,
    pub up: f64,
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What all calculations share.
#[derive(Clone, Copy)]
pub struct Calculation<'a> {
    pub current: i32,
    pub pods: &'a [Arc<Pod>],
    pub tolerance: Tolerance,
    pub now: Time,
    /// CPU samples of a pod that young may be left out.
    pub cpu_initialization: Duration,
    /// A change of readiness this soon after the start is the first one.
    pub readiness_delay: Duration,
}

/// What is wanted of each pod.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Percent of what the pods request.
    Utilization(i32),
    /// An average per pod.
    Average(i64),
}

/// A number of replicas, and what it was calculated from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    pub replicas: i32,
    /// Percent of the requests, where that is the target.
    pub utilization: Option<i32>,
    /// Average per pod, or the whole, as the target says.
    pub measured: i64,
}

#[derive(Default)]
struct Groups<'a> {
    ready: i32,
    unready: BTreeSet<&'a str>,
    missing: BTreeSet<&'a str>,
    ignored: BTreeSet<&'a str>,
}

impl Calculation<'_> {
    /// Replicas for a resource or another metric of the pods. `resource` is empty for a metric that is none.
    pub fn of_pods(&self, mut samples: Samples, resource: &str, container: &str, target: Target) -> Result<Proposal, String> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".into());
        }
        let groups = self.group(&samples, resource);
        samples.retain(|name, _| !groups.ignored.contains(name.as_str()) && !groups.unready.contains(name.as_str()));
        if samples.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".into());
        }
        let requests = match target {
            Target::Utilization(_) => requests(self.pods, resource, container)?,
            Target::Average(_) => BTreeMap::new(),
        };
        let (ratio, utilization, measured) = ratio(&samples, &requests, target)?;
        let answer = |replicas| Proposal { replicas, utilization, measured };
        let grows_with_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !grows_with_unready && groups.missing.is_empty() {
            return Ok(answer(if self.tolerance.holds(ratio) { self.current } else { ceil(ratio * f64::from(groups.ready)) }));
        }
        // Those that were not measured are taken for whatever changes least.
        let mut fill = |names: &BTreeSet<&str>, value: &dyn Fn(&str) -> i64| {
            for name in names {
                samples.insert((*name).to_string(), Sample { value: value(name), at: self.now, window: Duration::ZERO });
            }
        };
        if ratio < 1.0 {
            fill(&groups.missing, &|name| match target {
                Target::Utilization(percent) => requests.get(name).copied().unwrap_or(0).saturating_mul(i64::from(percent.max(100))) / 100,
                Target::Average(average) => average,
            });
        } else if ratio > 1.0 {
            fill(&groups.missing, &|_| 0);
        }
        if grows_with_unready {
            fill(&groups.unready, &|_| 0);
        }
        let (again, ..) = self::ratio(&samples, &requests, target)?;
        if self.tolerance.holds(again) || (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0) {
            return Ok(answer(self.current));
        }
        let replicas = ceil(again * samples.len() as f64);
        let wrong_way = (again < 1.0 && replicas > self.current) || (again > 1.0 && replicas < self.current);
        Ok(answer(if wrong_way { self.current } else { replicas }))
    }

    /// Replicas for one value of something else that all pods share.
    pub fn of_value(&self, measured: i64, target: i64) -> Proposal {
        let ratio = divide(measured, target);
        let replicas = if self.current == 0 {
            ceil(ratio)
        } else if self.tolerance.holds(ratio) {
            self.current
        } else {
            let ready = self.pods.iter().filter(|pod| pod.status.phase == "Running" && pod.is_ready()).count();
            ceil(ratio * ready as f64)
        };
        Proposal { replicas, utilization: None, measured }
    }

    /// Replicas for one value of something else of which each of the `status_replicas` takes its part.
    pub fn of_share(&self, measured: i64, target: i64, status_replicas: i32) -> Proposal {
        let ratio = divide(measured, target.saturating_mul(i64::from(status_replicas)));
        let replicas = if self.tolerance.holds(ratio) { status_replicas } else { ceil(divide(measured, target)) };
        let share = if status_replicas > 0 { ceil_i64(measured as f64 / f64::from(status_replicas)) } else { measured };
        Proposal { replicas, utilization: None, measured: share }
    }

    fn group<'a>(&'a self, samples: &Samples, resource: &str) -> Groups<'a> {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = pod.metadata.name.as_str();
            if pod.metadata.is_deleting() || pod.status.phase == "Failed" {
                groups.ignored.insert(name);
            } else if pod.status.phase == "Pending" {
                groups.unready.insert(name);
            } else if let Some(sample) = samples.get(name) {
                if resource == "cpu" && self.is_starting(pod, sample) {
                    groups.unready.insert(name);
                } else {
                    groups.ready += 1;
                }
            } else {
                groups.missing.insert(name);
            }
        }
        groups
    }

    /// Whether the pod's CPU sample says more of its start than of its load.
    fn is_starting(&self, pod: &Pod, sample: &Sample) -> bool {
        let (Some(ready), Some(start)) = (Condition::find(&pod.status.conditions, "Ready"), pod.status.start_time) else { return true };
        let since = ready.last_transition_time.unwrap_or(start);
        if start.plus(self.cpu_initialization) > self.now {
            ready.status == "False" || sample.at < since.plus(sample.window)
        } else {
            ready.status == "False" && start.plus(self.readiness_delay) > since
        }
    }
}

/// What each pod requests of the resource, in all containers or in one.
fn requests(pods: &[Arc<Pod>], resource: &str, container: &str) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let whole = pod.spec.resources.as_ref().and_then(|r| r.requests.get(resource)).filter(|_| container.is_empty());
        let sum = match whole {
            Some(whole) => whole.milli_value(),
            None => {
                let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
                let wanted = |c: &&Container| container.is_empty() || c.name == container;
                let mut sum = 0_i64;
                for c in pod.spec.containers.iter().chain(sidecars).filter(wanted) {
                    let Some(request) = c.resources.requests.get(resource) else {
                        return Err(format!("missing request for {resource} in container {} of Pod {}", c.name, pod.metadata.name));
                    };
                    sum = sum.saturating_add(request.milli_value());
                }
                sum
            }
        };
        all.insert(pod.metadata.name.clone(), sum);
    }
    Ok(all)
}

/// Measured against wanted; percent of the requests; average per pod.
fn ratio(samples: &Samples, requests: &BTreeMap<String, i64>, target: Target) -> Result<(f64, Option<i32>, i64), String> {
    let total = |values: &mut dyn Iterator<Item = i64>| values.fold(0_i64, i64::saturating_add);
    let count = i64::try_from(samples.len()).unwrap_or(i64::MAX).max(1);
    match target {
        Target::Average(wanted) => {
            let average = total(&mut samples.values().map(|sample| sample.value)) / count;
            Ok((divide(average, wanted), None, average))
        }
        Target::Utilization(wanted) => {
            let known: Vec<(i64, i64)> = samples.iter().filter_map(|(name, sample)| Some((sample.value, *requests.get(name)?))).collect();
            let (used, requested) = (total(&mut known.iter().map(|k| k.0)), total(&mut known.iter().map(|k| k.1)));
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let percent = i32::try_from(i128::from(used) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
            Ok((f64::from(percent) / f64::from(wanted), Some(percent), used / i64::try_from(known.len()).unwrap_or(i64::MAX).max(1)))
        }
    }
}

fn divide(a: i64, b: i64) -> f64 {
    if b == 0 { if a == 0 { 1.0 } else { f64::MAX } } else { a as f64 / b as f64 }
}

/// Casts saturate, so that no sample leads beyond what a number of replicas can be.
fn ceil(value: f64) -> i32 {
    value.ceil() as i32
}

fn ceil_i64(value: f64) -> i64 {
    value.ceil() as i64
}
