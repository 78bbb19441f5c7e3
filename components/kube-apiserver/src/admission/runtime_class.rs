//! RuntimeClass: pods get the overhead and the scheduling of their runtime class.

use k8s_schema::Doc;

use super::{Attributes, Operation};
use crate::http::{ApiError, Group};

fn refused(pod: &Doc, why: String) -> ApiError {
    ApiError::forbidden(Group("", "pods"), pod.meta().name(), why)
}

pub fn admit(a: &Attributes<'_>, pod: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("", "pods") {
        return Ok(());
    }
    let unfounded = |pod: &Doc| refused(pod, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
    let Some(name) = pod.at("spec.runtimeClassName").as_str().map(str::to_owned) else {
        return if !pod.at("spec.overhead").exists() { Ok(()) } else { Err(unfounded(pod)) };
    };
    if name.is_empty() {
        return Err(ApiError::new(500, "", "resource name may not be empty"));
    }
    let Some(class) = a.ctx.server.objects.get("runtimeclasses", &name) else {
        return Err(refused(pod, format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let overhead = class.at("overhead.podFixed");
    let given = pod.at("spec.overhead");
    if class.at("overhead").exists() {
        if !given.is_empty() && !given.semantic_eq(overhead) {
            return Err(refused(pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into()));
        }
        pod.copy_from("spec.overhead", overhead).map_err(ApiError::internal)?;
    } else if !given.is_empty() {
        return Err(unfounded(pod));
    }
    for (k, v) in class.at("scheduling.nodeSelector").entries() {
        let own = pod.at("spec.nodeSelector").get(k).as_str().map(str::to_owned);
        match own {
            Some(own) if own != v.str() => {
                let why = format!("conflict: runtimeClass.scheduling.nodeSelector[{k}] = {}; pod.spec.nodeSelector[{k}] = {own}", v.str());
                return Err(refused(pod, why));
            }
            Some(_) => {}
            None => pod.set(&format!("spec.nodeSelector[{k}]"), v.str()).map_err(ApiError::internal)?,
        }
    }
    for t in class.at("scheduling.tolerations").iter() {
        if !pod.at("spec.tolerations").iter().any(|own| own.semantic_eq(t)) {
            pod.push("spec.tolerations", t.to_value()).map_err(ApiError::internal)?;
        }
    }
    Ok(())
}
