//! Pods get the number of their priority class.

use k8s_schema::Doc;

use super::{Attributes, Operation};
use crate::http::{ApiError, Group};

pub fn admit(a: &Attributes<'_>, pod: &mut Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    if !a.is("", "pods") {
        return Ok(());
    }
    let internal = |e: k8s_schema::EditError| ApiError::internal(e);
    if a.operation == Operation::Update {
        // A client that does not know the field must not take it away.
        if let Some(old) = old {
            for f in ["spec.priority", "spec.preemptionPolicy"] {
                if !pod.at(f).exists()
                    && old.at(f).exists()
                    && pod.at("spec.priorityClassName").str() == old.at("spec.priorityClassName").str()
                {
                    pod.copy_from(f, old.at(f)).map_err(internal)?;
                }
            }
        }
        return Ok(());
    }
    let objects = &a.ctx.server.objects;
    let class = pod.at("spec.priorityClassName").str().to_owned();
    let (mut value, mut policy) = (0, "PreemptLowerPriority".to_owned());
    if class.is_empty() {
        let default = objects
            .list("priorityclasses", "")
            .iter()
            .filter_map(|s| objects.doc(s))
            .filter(|d| d.at("globalDefault").bool())
            .min_by_key(|d| d.at("value").int());
        if let Some(d) = default {
            pod.set("spec.priorityClassName", d.at("metadata.name").str()).map_err(internal)?;
            value = d.at("value").int();
            policy = d.at("preemptionPolicy").str().to_owned();
        }
    } else {
        let forbidden = |why: String| Err(ApiError::forbidden(Group("", "pods"), pod.at("metadata.name").str(), why));
        match objects.get("priorityclasses", &class) {
            Some(d) => {
                value = d.at("value").int();
                policy = d.at("preemptionPolicy").str().to_owned();
            }
            None => return forbidden(format!("no PriorityClass with name {class} was found")),
        }
    }
    if let Some(own) = pod.at("spec.priority").as_i64().filter(|p| *p != value) {
        let why = format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(ApiError::forbidden(Group("", "pods"), pod.at("metadata.name").str(), why));
    }
    pod.set("spec.priority", value).map_err(internal)?;
    let own = pod.at("spec.preemptionPolicy").str().to_owned();
    if policy.is_empty() {
        policy = "PreemptLowerPriority".into();
    }
    if !own.is_empty() && own != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(ApiError::forbidden(Group("", "pods"), pod.at("metadata.name").str(), why));
    }
    pod.set("spec.preemptionPolicy", policy).map_err(internal)
}

/// The system's own classes stay.
pub fn delete(a: &Attributes<'_>, _: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let Some(old) = old.filter(|_| a.operation == Operation::Delete && a.is("scheduling.k8s.io", "priorityclasses")) else { return Ok(()) };
    let name = old.meta().name();
    if matches!(name, "system-cluster-critical" | "system-node-critical") {
        let why = "this is a system priority class and cannot be deleted";
        return Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), name, why));
    }
    Ok(())
}
