//! Volumes, claims and storage classes.

use k8s_client::{
    Named, Object, ObjectMeta, ObjectReference, Resource, null_default,
    resources::{
        CSI_DRIVERS, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES, VOLUME_ATTACHMENTS, VOLUME_ATTRIBUTES_CLASSES,
    },
};
use serde::Deserialize;
use serde_json::Value;

use super::ResourceList;

part!(Volume, { name: String, persistent_volume_claim: Option<ClaimSource>, ephemeral: Option<EphemeralSource> });
part!(ClaimSource, { claim_name: String });
part!(EphemeralSource, { volume_claim_template: Value });

object!(PersistentVolumeClaim, PERSISTENT_VOLUME_CLAIMS, { spec: ClaimSpec, status: ClaimStatus });
part!(ClaimSpec, {
    #[serde(deserialize_with = "null_default")] access_modes: Vec<String>,
    selector: Option<k8s_client::LabelSelector>,
    #[serde(deserialize_with = "null_default")] resources: super::ResourceRequirements,
    #[serde(deserialize_with = "null_default")] volume_name: String,
    storage_class_name: Option<String>,
    volume_mode: Option<String>,
    volume_attributes_class_name: Option<String>,
});
part!(ClaimStatus, {
    #[serde(deserialize_with = "null_default")] phase: String,
    #[serde(deserialize_with = "null_default")] access_modes: Vec<String>,
    #[serde(deserialize_with = "null_default")] capacity: ResourceList,
    #[serde(deserialize_with = "null_default")] current_volume_attributes_class_name: String,
    modify_volume_status: Option<ModifyVolumeStatus>,
});
part!(ModifyVolumeStatus, { #[serde(deserialize_with = "null_default")] target_volume_attributes_class_name: String });

object!(PersistentVolume, PERSISTENT_VOLUMES, { spec: VolumeSpec, status: VolumeStatus });
part!(VolumeSpec, {
    #[serde(deserialize_with = "null_default")] access_modes: Vec<String>,
    #[serde(deserialize_with = "null_default")] capacity: ResourceList,
    claim_ref: Option<ObjectReference>,
    #[serde(deserialize_with = "null_default")] persistent_volume_reclaim_policy: String,
    #[serde(deserialize_with = "null_default")] storage_class_name: String,
    volume_mode: Option<String>,
    volume_attributes_class_name: Option<String>,
    csi: Option<Value>,
});
part!(VolumeStatus, { #[serde(deserialize_with = "null_default")] phase: String });

object!(StorageClass, STORAGE_CLASSES, {
    #[serde(deserialize_with = "null_default")] provisioner: String,
    volume_binding_mode: Option<String>,
});

object!(VolumeAttributesClass, VOLUME_ATTRIBUTES_CLASSES, {});

object!(CsiDriver, CSI_DRIVERS, { spec: CsiDriverSpec });
part!(CsiDriverSpec, { attach_required: Option<bool> });

object!(VolumeAttachment, VOLUME_ATTACHMENTS, { spec: AttachmentSpec, status: AttachmentStatus });
part!(AttachmentSpec, { attacher: String, node_name: String, source: AttachmentSource });
part!(AttachmentSource, { #[serde(deserialize_with = "null_default")] persistent_volume_name: String });
part!(AttachmentStatus, { attached: bool, attach_error: Option<VolumeError>, detach_error: Option<VolumeError> });
part!(VolumeError, { #[serde(deserialize_with = "null_default")] message: String });

impl Volume {
    /// The claim this volume of a pod uses: the named one, or the one made for the pod.
    pub fn claim_name(&self, pod: &ObjectMeta) -> Option<String> {
        match (&self.persistent_volume_claim, &self.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", pod.name, self.name)),
            (None, None) => None,
        }
    }
}

impl PersistentVolumeClaim {
    /// Its storage class; an empty name asks for volumes of no class.
    pub fn class(&self) -> &str {
        let annotated = self.metadata.annotations.get("volume.beta.kubernetes.io/storage-class");
        annotated.or(self.spec.storage_class_name.as_ref()).map_or("", String::as_str)
    }

    /// Whether it names a class, the empty one included.
    pub fn has_class(&self) -> bool {
        self.spec.storage_class_name.is_some() || self.metadata.annotations.contains_key("volume.beta.kubernetes.io/storage-class")
    }
}

impl PersistentVolume {
    /// Its storage class, empty for none.
    pub fn class(&self) -> &str {
        self.metadata.annotations.get("volume.beta.kubernetes.io/storage-class").unwrap_or(&self.spec.storage_class_name)
    }
}
