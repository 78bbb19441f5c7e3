//! Resource quotas.

use std::collections::BTreeMap;

use k8s_client::{Named, Object, ObjectMeta, Quantity, Resource, null_default, resources::RESOURCE_QUOTAS};
use serde::Deserialize;
use serde_json::Value;

/// Amounts by resource name.
pub type ResourceList = BTreeMap<String, Quantity>;

object!(ResourceQuota, RESOURCE_QUOTAS, { spec: QuotaSpec, status: QuotaStatus });
part!(QuotaSpec, {
    /// As it was written, so that the status repeats it.
    #[serde(deserialize_with = "null_default")] hard: BTreeMap<String, Value>,
    #[serde(deserialize_with = "null_default")] scopes: Vec<String>,
    scope_selector: Option<ScopeSelector>,
});
part!(ScopeSelector, { #[serde(deserialize_with = "null_default")] match_expressions: Vec<ScopeRequirement> });
part!(ScopeRequirement, { scope_name: String, operator: String, #[serde(deserialize_with = "null_default")] values: Vec<String> });
part!(QuotaStatus, {
    hard: Option<BTreeMap<String, Value>>,
    used: Option<ResourceList>,
});
