//! Autoscalers: as many replicas of a target as its load asks for, looked at every 15 seconds.
//!
//! The numbers are worked out in `replicas` (what the metrics ask for) and `behavior` (how fast it may change); here they are fetched,
//! written to the target's `scale` and said in the autoscaler's status.

mod behavior;
mod metrics;
mod replicas;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_client::{
    Action, Change, Client, Condition, Error, EventType, Informer, ListOptions, Method, ObjectKey, Quantity, Request, Resource, Time,
    WorkQueue,
    resources::{DEPLOYMENTS, HORIZONTAL_POD_AUTOSCALERS, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS, STATEFUL_SETS},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::behavior::{History, decide};
use self::replicas::{Calculation, Proposal, Target, Tolerance};
use crate::api::{AutoscalerStatus, HorizontalPodAutoscaler, MetricSpec, MetricTarget, NamedMetric, Pod, Scale, TargetReference};
use crate::context::Context;
use crate::reconcile::{Reconcile, put_status, work};

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    histories: Arc<Mutex<HashMap<ObjectKey, History>>>,
    /// Where kinds that are not built in live; as many as were ever scaled.
    kinds: Arc<Mutex<HashMap<(String, String), Resource>>>,
}

/// Why a metric or a target is of no use: the condition's reason, and the words.
struct Trouble {
    reason: &'static str,
    message: String,
}

impl Trouble {
    fn new(reason: &'static str, message: impl std::fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }
}

/// What one metric asks for.
struct Measured {
    replicas: i32,
    name: String,
    status: Value,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("horizontal-pod-autoscaler"),
        autoscalers: context.informers.autoscalers(),
        histories: Arc::default(),
        kinds: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("horizontalpodautoscaler");
    let sink = queue.clone();
    controller.autoscalers.add_handler(move |change: Change<'_, HorizontalPodAutoscaler>| {
        // Its own status is no reason to look again before the time.
        if !matches!(change, Change::Updated { old, new } if old.spec == new.spec) {
            sink.add(change.object().metadata.key());
        }
    });
    controller.autoscalers.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(autoscaler) = self.autoscalers.get_key(&key) else {
            self.histories.lock().remove(&key);
            return Ok(Action::Done);
        };
        let mut status = autoscaler.status.clone();
        status.observed_generation = Some(autoscaler.metadata.generation);
        if let Err(trouble) = self.look(&autoscaler, &key, &mut status).await {
            self.warn(&autoscaler, trouble.reason, &trouble.message);
        }
        if status != autoscaler.status {
            put_status(&self.client, autoscaler.as_ref(), &status).await?;
        }
        Ok(Action::After(self.context.options.horizontal_pod_autoscaler_sync_period))
    }
}

impl Controller {
    fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: &str) {
        self.context.event(&HORIZONTAL_POD_AUTOSCALERS, &autoscaler.metadata, EventType::Warning, reason, message);
    }

    async fn look(&self, autoscaler: &HorizontalPodAutoscaler, key: &ObjectKey, status: &mut AutoscalerStatus) -> Result<(), Trouble> {
        let now = Time::now();
        let target = &autoscaler.spec.scale_target_ref;
        let found = async {
            let resource = self.resource(target).await?;
            let request = Request::get(&resource, &key.namespace, &target.name).subresource("scale");
            let scale: Scale = self.client.call(&request).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((resource, scale))
        };
        let (resource, scale) = found.await.map_err(|message| {
            let said = format!("the HPA controller was unable to get the target's current scale: {message}");
            set(status, "AbleToScale", (false, "FailedGetScale", &said), now);
            Trouble::new("FailedGetScale", message)
        })?;
        set(status, "AbleToScale", (true, "SucceededGetScale", "the HPA controller was able to get the target's current scale"), now);
        let current = scale.spec.replicas;
        status.current_replicas = current;
        let (least, most) = (autoscaler.spec.min_replicas.unwrap_or(1), autoscaler.spec.max_replicas);
        let (desired, why) = if current == 0 && least != 0 {
            set(
                status,
                "ScalingActive",
                (false, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero"),
                now,
            );
            (0, String::new())
        } else if current > most {
            (most, "Current number of replicas above Spec.MaxReplicas".into())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".into())
        } else {
            let (asked, name) = match self.measure_all(autoscaler, &scale, status, now).await {
                Ok(asked) => asked,
                Err(trouble) => {
                    status.desired_replicas = current;
                    self.warn(autoscaler, trouble.reason, &trouble.message);
                    return Err(Trouble::new("FailedComputeMetricsReplicas", trouble.message));
                }
            };
            let decision = {
                let mut histories = self.histories.lock();
                let stabilization = self.context.options.horizontal_pod_autoscaler_downscale_stabilization;
                decide(autoscaler, histories.entry(key.clone()).or_default(), current, asked, stabilization, now)
            };
            set(status, "AbleToScale", decision.able, now);
            set(status, "ScalingLimited", decision.limited, now);
            let why = if decision.replicas > current { format!("{name} above target") } else { "All metrics below target".into() };
            (decision.replicas, why)
        };
        status.desired_replicas = desired;
        if desired == current {
            return Ok(());
        }
        let body = |object: &mut Value| object["spec"]["replicas"] = json!(desired);
        let request = Request::get(&resource, &key.namespace, &target.name).subresource("scale");
        let put = async {
            let mut object = self.client.get_full(&request).await?;
            body(object.value_mut());
            self.client.execute(&Request::replace(&resource, &object).subresource("scale")).await
        };
        if let Err(error) = put.await {
            status.desired_replicas = current;
            let said = format!("the HPA controller was unable to update the target scale: {error}");
            set(status, "AbleToScale", (false, "FailedUpdateScale", &said), now);
            return Err(Trouble::new("FailedRescale", format!("New size: {desired}; reason: {why}; error: {error}")));
        }
        let said = format!("the HPA controller was able to update the target scale to {desired}");
        set(status, "AbleToScale", (true, "SucceededRescale", &said), now);
        status.last_scale_time = Some(now);
        let message = format!("New size: {desired}; reason: {why}");
        self.context.event(&HORIZONTAL_POD_AUTOSCALERS, &autoscaler.metadata, EventType::Normal, "SuccessfulRescale", message);
        let mut histories = self.histories.lock();
        let history = histories.entry(key.clone()).or_default();
        if desired > current {
            history.ups.push((now, desired - current));
        } else {
            history.downs.push((now, current - desired));
        }
        Ok(())
    }

    /// The resource of the target's kind.
    async fn resource(&self, target: &TargetReference) -> Result<Resource, String> {
        let built_in = [DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS, REPLICATION_CONTROLLERS];
        if let Some(known) = built_in.into_iter().find(|r| r.kind == target.kind && r.api_version() == target.api_version) {
            return Ok(known);
        }
        let key = (target.api_version.clone(), target.kind.clone());
        if let Some(known) = self.kinds.lock().get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = target.api_version.split_once('/').unwrap_or(("", &target.api_version));
        let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let found: Value = self.client.call(&Request::raw(Method::Get, &path)).await.map_err(|error| error.to_string())?;
        let of_kind = |r: &&Value| r["kind"] == target.kind.as_str() && r["name"].as_str().is_some_and(|name| !name.contains('/'));
        let entry = found["resources"].as_array().into_iter().flatten().find(of_kind);
        let Some(name) = entry.and_then(|entry| entry["name"].as_str()) else {
            return Err(format!("no matches for kind {:?} in version {:?}", target.kind, target.api_version));
        };
        let resource = Resource {
            group: group.to_string().into(),
            version: version.to_string().into(),
            plural: name.to_string().into(),
            kind: target.kind.clone().into(),
            namespaced: true,
        };
        self.kinds.lock().insert(key, resource.clone());
        Ok(resource)
    }

    /// The highest number that any metric asks for, and that metric. While some of them cannot be read, nothing is scaled down.
    async fn measure_all(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        status: &mut AutoscalerStatus,
        now: Time,
    ) -> Result<(i32, String), Trouble> {
        let namespace = autoscaler.metadata.namespace.as_str();
        if scale.status.selector.is_empty() {
            set(status, "ScalingActive", (false, "InvalidSelector", "the HPA target's scale is missing a selector"), now);
            return Err(Trouble::new("SelectorRequired", "selector is required"));
        }
        let options = ListOptions { label_selector: scale.status.selector.clone(), ..ListOptions::default() };
        let pods = match self.client.list::<Pod>(&PODS, namespace, &options).await {
            Ok(list) => list.items.into_iter().map(Arc::new).collect::<Vec<_>>(),
            Err(error) => {
                let said = format!("couldn't convert selector into a corresponding internal selector object: {error}");
                set(status, "ScalingActive", (false, "InvalidSelector", &said), now);
                return Err(Trouble::new("InvalidSelector", said));
            }
        };
        let options = &self.context.options;
        let rules = autoscaler.spec.behavior.as_ref();
        let tolerance = |rules: Option<&crate::api::ScalingRules>| {
            let own = rules.and_then(|rules| rules.tolerance).map(|own| own.milli_value() as f64 / 1000.0);
            own.unwrap_or(options.horizontal_pod_autoscaler_tolerance)
        };
        let calculation = Calculation {
            current: scale.spec.replicas,
            pods: &pods,
            tolerance: Tolerance {
                down: tolerance(rules.and_then(|rules| rules.scale_down.as_ref())),
                up: tolerance(rules.and_then(|rules| rules.scale_up.as_ref())),
            },
            now,
            cpu_initialization: options.horizontal_pod_autoscaler_cpu_initialization_period,
            readiness_delay: options.horizontal_pod_autoscaler_initial_readiness_delay,
        };
        let mut best: Option<(i32, String)> = None;
        let mut first: Option<Trouble> = None;
        let mut invalid = 0;
        let mut measured = Vec::new();
        for metric in &autoscaler.spec.metrics {
            match self.measure(namespace, scale, metric, &calculation).await {
                Ok(one) => {
                    if best.as_ref().is_none_or(|(replicas, _)| one.replicas > *replicas) {
                        best = Some((one.replicas, one.name));
                    }
                    measured.push(one.status);
                }
                Err(trouble) => {
                    invalid += 1;
                    first.get_or_insert(trouble);
                }
            }
        }
        status.current_metrics = Some(measured);
        match (best, first) {
            (Some((replicas, _)), Some(trouble)) if replicas < scale.spec.replicas => Err(trouble),
            (None, Some(trouble)) => Err(trouble),
            (None, None) => Err(Trouble::new("InvalidMetricSourceType", "the autoscaler has no metrics")),
            (Some(best), _) => {
                let said = format!("the HPA was able to successfully calculate a replica count from {}", best.1);
                set(status, "ScalingActive", (true, "ValidMetricFound", &said), now);
                return Ok(best);
            }
        }
        .map_err(|trouble| {
            let message = format!("the HPA was unable to compute the replica count: {}", trouble.message);
            set(status, "ScalingActive", (false, trouble.reason, &message), now);
            let total = autoscaler.spec.metrics.len();
            Trouble::new(trouble.reason, format!("invalid metrics ({invalid} invalid out of {total}), first error is: {}", trouble.message))
        })
    }

    async fn measure(
        &self,
        namespace: &str,
        scale: &Scale,
        metric: &MetricSpec,
        calculation: &Calculation<'_>,
    ) -> Result<Measured, Trouble> {
        let selector = scale.status.selector.as_str();
        if let Some((source, field, reason)) = metric
            .resource
            .as_ref()
            .map(|source| (source, "resource", "FailedGetResourceMetric"))
            .or(metric.container_resource.as_ref().map(|source| (source, "containerResource", "FailedGetContainerResourceMetric")))
        {
            let fail = |message: String| Trouble::new(reason, format!("failed to get {} utilization: {message}", source.name));
            let samples = metrics::of_resource(&self.client, namespace, selector, &source.name, &source.container)
                .await
                .map_err(|error| fail(format!("unable to get metrics for resource {}: {error}", source.name)))?;
            let (target, words) = match (source.target.average_value, source.target.average_utilization) {
                (Some(average), _) => (Target::Average(average.milli_value()), "resource"),
                (None, Some(percent)) => (Target::Utilization(percent), "resource utilization (percentage of request)"),
                (None, None) => return Err(fail("the metric has no target".into())),
            };
            let Proposal { replicas, utilization, measured } =
                calculation.of_pods(samples, &source.name, &source.container, target).map_err(fail)?;
            let mut current = json!({"averageValue": Quantity::milli(measured).to_string()});
            if let Some(percent) = utilization {
                current["averageUtilization"] = json!(percent);
            }
            let mut status = json!({"name": source.name, "current": current});
            if !source.container.is_empty() {
                status["container"] = json!(source.container);
            }
            return Ok(Measured {
                replicas,
                name: format!("{} {words}", source.name),
                status: json!({"type": metric.kind, field: status}),
            });
        }
        if let Some(source) = &metric.pods {
            let fail = |message: String| Trouble::new("FailedGetPodsMetric", format!("failed to get pods metric value: {message}"));
            let average = source.target.average_value.ok_or_else(|| fail("the metric has no averageValue".into()))?;
            let samples = metrics::of_pods(&self.client, namespace, selector, source).await.map_err(|error| fail(error.to_string()))?;
            let proposal = calculation.of_pods(samples, "", "", Target::Average(average.milli_value())).map_err(fail)?;
            let name = format!("pods metric {}", source.metric.name);
            return Ok(named("pods", source, &proposal, true, name));
        }
        let (source, field, reason) = match (&metric.object, &metric.external) {
            (Some(source), _) => (source, "object", "FailedGetObjectMetric"),
            (None, Some(source)) => (source, "external", "FailedGetExternalMetric"),
            (None, None) => return Err(Trouble::new("InvalidMetricSourceType", format!("unknown metric source type {:?}", metric.kind))),
        };
        let fail = |message: String| Trouble::new(reason, format!("failed to get {field} metric value: {message}"));
        let found = match &source.described_object {
            Some(object) => {
                let resource = self.resource(object).await.map_err(fail)?;
                let resource = if resource.plural == "namespaces" { "namespaces".to_string() } else { resource.to_string() };
                metrics::of_object(&self.client, namespace, &resource, &object.name, source).await
            }
            None => metrics::of_outside(&self.client, namespace, source).await,
        };
        let measured = found
            .map_err(|error| fail(error.to_string()))?
            .ok_or_else(|| fail(format!("no metrics returned for {}", source.metric.name)))?;
        let MetricTarget { value, average_value, .. } = &source.target;
        let (proposal, shared) = match (value, average_value) {
            (Some(value), _) => (calculation.of_value(measured, value.milli_value()), false),
            (None, Some(average)) => (calculation.of_share(measured, average.milli_value(), scale.status.replicas), true),
            (None, None) => return Err(fail("the metric has no target".into())),
        };
        Ok(named(field, source, &proposal, shared, format!("{field} metric {}", source.metric.name)))
    }
}

fn named(field: &str, source: &NamedMetric, proposal: &Proposal, average: bool, name: String) -> Measured {
    let amount = Quantity::milli(proposal.measured).to_string();
    let mut metric = json!({"name": source.metric.name});
    if let Some(selector) = &source.metric.selector {
        metric["selector"] = json!(selector);
    }
    let mut status = json!({"metric": metric, "current": {if average { "averageValue" } else { "value" }: amount}});
    if let Some(object) = &source.described_object {
        status["describedObject"] = json!({"apiVersion": object.api_version, "kind": object.kind, "name": object.name});
    }
    let kind = match field {
        "pods" => "Pods",
        "object" => "Object",
        _ => "External",
    };
    Measured { replicas: proposal.replicas, name, status: json!({"type": kind, field: status}) }
}

/// Sets a condition; its time moves only when it turns over.
fn set(status: &mut AutoscalerStatus, kind: &str, (holds, reason, message): (bool, &str, &str), now: Time) {
    let wanted = if holds { "True" } else { "False" };
    let since =
        Condition::find(&status.conditions, kind).filter(|known| known.status == wanted).and_then(|known| known.last_transition_time);
    let new = Condition {
        kind: kind.into(),
        status: wanted.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Some(since.unwrap_or(now)),
        ..Condition::default()
    };
    match status.conditions.iter_mut().find(|known| known.kind == kind) {
        Some(known) => *known = new,
        None => status.conditions.push(new),
    }
}
