//! Nothing is created in a namespace that is not there or is going; the system's namespaces are not deleted.

use k8s_schema::Doc;

use super::{Attributes, Operation};
use crate::http::{ApiError, Group};

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub fn admit(a: &Attributes<'_>, new: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.res.namespaced {
        return Ok(());
    }
    // Reviews are questions, not objects of a namespace.
    if a.res.prefix.is_empty() {
        return Ok(());
    }
    let ns = &a.ctx.info.namespace;
    let Some(namespace) = a.ctx.server.objects.reflector.cache("namespaces").and_then(|namespaces| namespaces.get(ns)) else {
        return Err(ApiError::not_found(Group("", "namespaces"), ns));
    };
    if namespace.field("status.phase") == Some("Terminating") {
        let (group, plural) = (&a.res.group, &a.res.plural);
        let why = format!("unable to create new content in namespace {ns} because it is being terminated");
        return Err(ApiError::forbidden(Group(group, plural), a.shown_name(new), why).with_cause(
            "NamespaceTerminating",
            format!("namespace {ns} is being terminated"),
            "metadata.namespace",
        ));
    }
    Ok(())
}

pub fn delete(a: &Attributes<'_>, _: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let Some(old) = old.filter(|_| a.operation == Operation::Delete && a.is("", "namespaces")) else { return Ok(()) };
    let name = old.at("metadata.name").str();
    if IMMORTAL.contains(&name) {
        return Err(ApiError::forbidden(Group("", "namespaces"), name, "this namespace may not be deleted"));
    }
    Ok(())
}
