//! Autoscalers and the scale of what they act on.

use k8s_client::{
    Condition, LabelSelector, Named, Object, ObjectMeta, Quantity, Resource, Time, null_default,
    resources::{HORIZONTAL_POD_AUTOSCALERS, SERVICE_CIDRS},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

object!(HorizontalPodAutoscaler, HORIZONTAL_POD_AUTOSCALERS, { spec: AutoscalerSpec, status: AutoscalerStatus });
part!(AutoscalerSpec, {
    scale_target_ref: TargetReference,
    min_replicas: Option<i32>,
    max_replicas: i32,
    #[serde(deserialize_with = "null_default")] metrics: Vec<MetricSpec>,
    behavior: Option<ScalingBehavior>,
});
part!(TargetReference, { api_version: String, kind: String, name: String });
part!(MetricSpec, {
    #[serde(rename = "type")] kind: String,
    resource: Option<ResourceMetric>,
    container_resource: Option<ResourceMetric>,
    pods: Option<NamedMetric>,
    object: Option<NamedMetric>,
    external: Option<NamedMetric>,
});
part!(ResourceMetric, { name: String, #[serde(deserialize_with = "null_default")] container: String, target: MetricTarget });
part!(NamedMetric, { metric: MetricIdentifier, target: MetricTarget, described_object: Option<TargetReference> });
part!(MetricIdentifier, { name: String, selector: Option<LabelSelector> });
part!(MetricTarget, {
    #[serde(rename = "type")] kind: String,
    value: Option<Quantity>,
    average_value: Option<Quantity>,
    average_utilization: Option<i32>,
});
part!(ScalingBehavior, { scale_up: Option<ScalingRules>, scale_down: Option<ScalingRules> });
part!(ScalingRules, {
    stabilization_window_seconds: Option<u64>,
    select_policy: Option<String>,
    #[serde(deserialize_with = "null_default")] policies: Vec<ScalingPolicy>,
    tolerance: Option<Quantity>,
});
part!(ScalingPolicy, { #[serde(rename = "type")] kind: String, value: i32, period_seconds: u64 });
written!(AutoscalerStatus, {
    #[serde(skip_serializing_if = "Option::is_none")] observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")] last_scale_time: Option<Time>,
    #[serde(deserialize_with = "null_default")] current_replicas: i32,
    #[serde(deserialize_with = "null_default")] desired_replicas: i32,
    #[serde(deserialize_with = "null_default")] current_metrics: Option<Vec<Value>>,
    #[serde(deserialize_with = "null_default")] conditions: Vec<Condition>,
});

part!(Scale, { metadata: ObjectMeta, #[serde(deserialize_with = "null_default")] spec: ScaleSpec, #[serde(deserialize_with = "null_default")] status: ScaleStatus });
part!(ScaleSpec, { #[serde(deserialize_with = "null_default")] replicas: i32 });
part!(ScaleStatus, {
    #[serde(deserialize_with = "null_default")] replicas: i32,
    #[serde(deserialize_with = "null_default")] selector: String,
});

object!(ServiceCidr, SERVICE_CIDRS, { spec: ServiceCidrSpec, status: ServiceCidrStatus });
part!(ServiceCidrSpec, { #[serde(deserialize_with = "null_default")] cidrs: Vec<String> });
written!(ServiceCidrStatus, { #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] conditions: Vec<Condition> });
