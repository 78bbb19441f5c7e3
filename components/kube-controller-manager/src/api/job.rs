//! Jobs, their policies and their status.

use k8s_client::{Condition, LabelSelector, Named, Object, ObjectMeta, Resource, Time, null_default, resources::JOBS};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::reconcile::Selecting;

object!(Job, JOBS, { spec: JobSpec, status: JobStatus });
part!(JobSpec, {
    parallelism: Option<i32>,
    completions: Option<i32>,
    completion_mode: Option<String>,
    backoff_limit: Option<i32>,
    backoff_limit_per_index: Option<i32>,
    max_failed_indexes: Option<i32>,
    pod_failure_policy: Option<PodFailurePolicy>,
    success_policy: Option<SuccessPolicy>,
    pod_replacement_policy: Option<String>,
    managed_by: Option<String>,
    active_deadline_seconds: Option<i64>,
    ttl_seconds_after_finished: Option<i64>,
    suspend: Option<bool>,
    #[serde(deserialize_with = "null_default")] selector: LabelSelector,
    template: Value,
});
part!(PodFailurePolicy, { #[serde(deserialize_with = "null_default")] rules: Vec<PodFailureRule> });
part!(PodFailureRule, {
    action: String,
    on_exit_codes: Option<OnExitCodes>,
    #[serde(deserialize_with = "null_default")] on_pod_conditions: Vec<OnPodCondition>,
});
part!(OnExitCodes, {
    container_name: Option<String>,
    operator: String,
    #[serde(deserialize_with = "null_default")] values: Vec<i32>,
});
part!(OnPodCondition, { #[serde(rename = "type")] kind: String, #[serde(deserialize_with = "null_default")] status: String });
part!(SuccessPolicy, { #[serde(deserialize_with = "null_default")] rules: Vec<SuccessRule> });
part!(SuccessRule, { succeeded_indexes: Option<String>, succeeded_count: Option<i32> });
written!(JobStatus, {
    #[serde(deserialize_with = "null_default")] conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")] start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")] completion_time: Option<Time>,
    #[serde(deserialize_with = "null_default")] active: i32,
    #[serde(deserialize_with = "null_default")] succeeded: i32,
    #[serde(deserialize_with = "null_default")] failed: i32,
    #[serde(skip_serializing_if = "Option::is_none")] ready: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")] terminating: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_default")] completed_indexes: String,
    #[serde(skip_serializing_if = "Option::is_none")] failed_indexes: Option<String>,
    uncounted_terminated_pods: Option<Uncounted>,
});
written!(Uncounted, {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] succeeded: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] failed: Vec<String>,
});

/// Stays on a job's pod until the pod is counted.
pub const JOB_TRACKING: &str = "batch.kubernetes.io/job-tracking";

impl Selecting for Job {
    const FINALIZER: Option<&'static str> = Some(JOB_TRACKING);

    fn selector(&self) -> &LabelSelector {
        &self.spec.selector
    }
}

impl JobSpec {
    /// Whether a pod is replaced only once it has failed, and not already while it is ending: with a failure policy the end of each pod
    /// must be seen before it can be judged.
    pub fn replaces_only_failed(&self) -> bool {
        self.pod_failure_policy.is_some() || self.pod_replacement_policy.as_deref() == Some("Failed")
    }

    /// Whether another controller looks after this job.
    pub fn is_foreign(&self) -> bool {
        self.managed_by.as_deref().is_some_and(|manager| manager != "kubernetes.io/job-controller")
    }
}
