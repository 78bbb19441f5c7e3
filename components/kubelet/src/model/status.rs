//! Pod status as the kubelet writes it.

use super::{object, pod::ResourceRequirements, time::Time};
use serde::{Deserialize, Serialize};

object! {
    PodStatus {
        observed_generation: i64,
        phase: String,
        conditions: Vec<PodCondition>,
        message: String,
        reason: String,
        #[serde(rename = "hostIP")]
        host_ip: String,
        #[serde(rename = "hostIPs")]
        host_ips: Vec<Ip>,
        #[serde(rename = "podIP")]
        pod_ip: String,
        #[serde(rename = "podIPs")]
        pod_ips: Vec<Ip>,
        start_time: Option<Time>,
        init_container_statuses: Vec<ContainerStatus>,
        container_statuses: Vec<ContainerStatus>,
        qos_class: String,
    }
    Ip { ip: String, }
    PodCondition {
        r#type: String,
        observed_generation: i64,
        status: String,
        last_probe_time: Option<Time>,
        last_transition_time: Option<Time>,
        reason: String,
        message: String,
    }
    ContainerState {
        waiting: Option<StateWaiting>,
        running: Option<StateRunning>,
        terminated: Option<StateTerminated>,
    }
    StateWaiting { reason: String, message: String, }
    StateRunning { started_at: Option<Time>, }
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateTerminated {
    pub exit_code: i32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    pub container_id: String,
}

/// The status of one container; these fields are always written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub state: ContainerState,
    pub last_state: ContainerState,
    pub ready: bool,
    pub restart_count: i32,
    pub image: String,
    #[serde(rename = "imageID")]
    pub image_id: String,
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

impl PodStatus {
    /// Succeeded or Failed: the pod will not run again.
    pub fn is_terminal(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }

    /// The condition of a type.
    pub fn condition(&self, kind: &str) -> Option<&PodCondition> {
        self.conditions.iter().find(|c| c.r#type == kind)
    }
}
