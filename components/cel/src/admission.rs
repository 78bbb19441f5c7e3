//! What expressions of admission policies and of webhooks' match conditions may name: the request, its namespace, an authorizer.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use crate::{
    Env, Type, library,
    schema::{Decl, ListKind},
    types::ObjectType,
};

fn text() -> Decl {
    Decl::simple(Type::String, 2, 3 << 20)
}

fn object(name: &str, fields: Vec<(&str, Decl)>) -> Decl {
    Decl::plain_object(name, fields.into_iter().map(|(n, d)| (n.to_owned(), d, false)))
}

/// The request, as its fields are declared to expressions.
pub fn request_decl() -> &'static Decl {
    static DECL: LazyLock<Decl> = LazyLock::new(|| {
        let kind = || object("kubernetes.GroupVersionKind", vec![("group", text()), ("version", text()), ("kind", text())]);
        let resource = || object("kubernetes.GroupVersionResource", vec![("group", text()), ("version", text()), ("resource", text())]);
        let list = || Decl::list(text(), None, ListKind::Atomic);
        let user = object(
            "kubernetes.UserInfo",
            vec![("username", text()), ("uid", text()), ("groups", list()), ("extra", Decl::map(list(), None))],
        );
        object(
            "kubernetes.AdmissionRequest",
            vec![
                ("kind", kind()),
                ("resource", resource()),
                ("subResource", text()),
                ("requestKind", kind()),
                ("requestResource", resource()),
                ("requestSubResource", text()),
                ("name", text()),
                ("namespace", text()),
                ("operation", text()),
                ("userInfo", user),
                ("dryRun", Decl::simple(Type::Bool, 4, 0)),
                ("options", Decl::simple(Type::Dyn, 1, 3 << 20)),
            ],
        )
    });
    &DECL
}

/// A namespace, as far as expressions see it.
pub fn namespace_decl() -> &'static Decl {
    static DECL: LazyLock<Decl> = LazyLock::new(|| {
        let time = || Decl::simple(Type::Timestamp, 21, 30);
        let map = || Decl::map(text(), None);
        let list = || Decl::list(text(), None, ListKind::Atomic);
        let meta = object(
            "kubernetes.NamespaceMetadata",
            vec![
                ("name", text()),
                ("generateName", text()),
                ("namespace", text()),
                ("labels", map()),
                ("annotations", map()),
                ("UID", text()),
                ("creationTimestamp", time()),
                ("deletionGracePeriodSeconds", Decl::simple(Type::Int, 1, 0)),
                ("deletionTimestamp", time()),
                ("generation", Decl::simple(Type::Int, 1, 0)),
                ("resourceVersion", text()),
                ("finalizers", list()),
            ],
        );
        let spec = object("kubernetes.NamespaceSpec", vec![("finalizers", list())]);
        let status = object("kubernetes.NamespaceStatus", vec![("phase", text())]);
        object("kubernetes.Namespace", vec![("metadata", meta), ("spec", spec), ("status", status)])
    });
    &DECL
}

/// What expressions may name. `variables` come later, one by one.
pub fn environment(params: bool, namespace: bool) -> Env {
    let mut env = Env::new([
        ("object", Type::Dyn),
        ("oldObject", Type::Dyn),
        ("request", request_decl().ty.clone()),
        ("authorizer", Type::Opaque(library::AUTHORIZER)),
        ("authorizer.requestResource", Type::Opaque(library::RESOURCE_CHECK)),
    ]);
    if namespace {
        env.variables.insert("namespaceObject".into(), namespace_decl().ty.clone());
    }
    if params {
        env.variables.insert("params".into(), Type::Dyn);
    }
    env
}

/// Declares `variables`, whose fields are those that were compiled before.
pub fn declare_variables(fields: &BTreeMap<String, Type>, env: &mut Env) {
    let object = ObjectType { name: "kubernetes.variables".into(), fields: fields.clone(), open: false };
    env.variables.insert("variables".into(), Type::Object(Arc::new(object)));
}
