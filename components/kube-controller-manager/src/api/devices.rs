//! Devices: what drivers have, claims of them, and the templates of claims.

use k8s_client::{
    Named, Object, ObjectMeta, Resource, null_default,
    resources::{RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS, RESOURCE_SLICES},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Taint, Toleration};

object!(ResourceClaim, RESOURCE_CLAIMS, { #[serde(deserialize_with = "null_default")] status: ResourceClaimStatus });
part!(ResourceClaimStatus, {
    allocation: Option<Allocation>,
    #[serde(deserialize_with = "null_default")] reserved_for: Vec<Consumer>,
});
part!(Allocation, { #[serde(deserialize_with = "null_default")] devices: AllocatedDevices });
part!(AllocatedDevices, { #[serde(deserialize_with = "null_default")] results: Vec<AllocatedDevice> });
part!(AllocatedDevice, {
    driver: String,
    pool: String,
    device: String,
    #[serde(deserialize_with = "null_default")] tolerations: Vec<Toleration>,
});
part!(Consumer, { #[serde(deserialize_with = "null_default")] api_group: String, resource: String, name: String, uid: String });

object!(ResourceClaimTemplate, RESOURCE_CLAIM_TEMPLATES, {
    /// `metadata` and `spec` of claims.
    spec: Value,
});

object!(ResourceSlice, RESOURCE_SLICES, { spec: SliceSpec });
part!(SliceSpec, { driver: String, pool: Pool, #[serde(deserialize_with = "null_default")] devices: Vec<Device> });
part!(Pool, { name: String, generation: i64 });
part!(Device, { name: String, #[serde(deserialize_with = "null_default")] taints: Vec<Taint> });

impl Consumer {
    /// Whether this is a pod of the core group; of other consumers nothing is known.
    pub fn is_pod(&self) -> bool {
        self.resource == "pods" && self.api_group.is_empty()
    }
}
