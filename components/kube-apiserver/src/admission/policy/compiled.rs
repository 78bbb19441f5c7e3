//! Policies and bindings as they are used: read and compiled once, again when some of them changed.

use std::sync::Arc;

use cel::{
    Env, Program, Type,
    admission::{declare_variables, environment},
    types::ObjectType,
};
use k8s_schema::{Doc, Ref};
use parking_lot::Mutex;

use super::constraints::Constraints;
use crate::objects::Objects;

/// An expression, compiled or with why it cannot be.
#[derive(Debug)]
pub struct Expression {
    pub source: String,
    pub program: Result<Program, String>,
}

#[derive(Debug)]
pub struct Named {
    pub name: String,
    pub expression: Expression,
}

#[derive(Debug)]
pub struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    pub reason: String,
}

/// What both kinds of policies have.
#[derive(Debug)]
pub struct Common {
    pub name: String,
    pub constraints: Constraints,
    /// `failurePolicy: Fail`: an error refuses the request.
    pub fail: bool,
    /// `apiVersion` and `kind` of parameters.
    pub param_kind: Option<(String, String)>,
    pub conditions: Vec<Named>,
    pub variables: Vec<Named>,
}

#[derive(Debug)]
pub struct Policy {
    pub common: Common,
    pub validations: Vec<Validation>,
    /// What the audit log is to hold of a request, by key.
    pub annotations: Vec<Named>,
}

/// How a mutation is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    Apply,
    Json,
}

#[derive(Debug)]
pub struct Mutation {
    pub patch: Patch,
    pub expression: Expression,
}

#[derive(Debug)]
pub struct MutatingPolicy {
    pub common: Common,
    pub mutations: Vec<Mutation>,
    /// `reinvocationPolicy: IfNeeded`.
    pub reinvoke: bool,
}

/// Where a policy is in force.
#[derive(Debug)]
pub struct Bound {
    pub name: String,
    pub policy: String,
    pub resources: Constraints,
    /// A reference to parameters, as it was written.
    pub param: Option<serde_json::Value>,
    /// Of policies that only judge.
    pub deny: bool,
    pub warn: bool,
    pub audit: bool,
}

impl Expression {
    pub fn of(source: &str, env: &Env) -> Self {
        let program = cel::compile(source, env).map(Program::new).map_err(|e| format!("compilation failed: {e}"));
        Self { source: source.to_owned(), program }
    }

    fn result(&self) -> Type {
        self.program.as_ref().map_or(Type::Dyn, |p| p.checked.result().clone())
    }
}

/// What mutations may name and make beside: `Object` with anything in it, and the operations of a JSON patch.
pub fn mutation_environment(mut env: Env) -> Env {
    let text = || Type::String;
    let patch = [("op", text()), ("path", text()), ("from", text()), ("value", Type::Dyn)];
    let structures = [
        ObjectType { name: "Object".into(), fields: std::collections::BTreeMap::new(), open: true },
        ObjectType { name: "JSONPatch".into(), fields: patch.map(|(n, t)| (n.to_owned(), t)).into(), open: false },
    ];
    env.structures.extend(structures.map(|s| (s.name.clone(), Arc::new(s))));
    env
}

/// Compiles match conditions.
pub fn conditions(list: Ref<'_>, env: &Env) -> Vec<Named> {
    let one = |c: Ref<'_>| Named { name: c.get("name").str().to_owned(), expression: Expression::of(c.get("expression").str(), env) };
    list.iter().map(one).collect()
}

/// Compiles variables in their order, each seeing those before it.
pub fn variables(list: Ref<'_>, env: &mut Env) -> Vec<Named> {
    let mut out = Vec::new();
    let mut fields = std::collections::BTreeMap::new();
    declare_variables(&fields, env);
    for v in list.iter() {
        let expression = Expression::of(v.get("expression").str(), env);
        let name = v.get("name").str().to_owned();
        fields.insert(name.clone(), expression.result());
        declare_variables(&fields, env);
        out.push(Named { name, expression });
    }
    out
}

impl Common {
    /// The environment of what else the policy has comes back.
    fn of(d: &Doc, mutating: bool) -> (Self, Env) {
        let spec = d.at("spec");
        let kind = spec.get("paramKind");
        let mut env = environment(kind.exists(), true);
        let conditions = conditions(spec.get("matchConditions"), &env);
        if mutating {
            env = mutation_environment(env);
        }
        let variables = variables(spec.get("variables"), &mut env);
        let common = Self {
            name: d.meta().name().to_owned(),
            constraints: Constraints::of(spec.get("matchConstraints")),
            fail: spec.get("failurePolicy").str() != "Ignore",
            param_kind: kind.exists().then(|| (kind.get("apiVersion").str().to_owned(), kind.get("kind").str().to_owned())),
            conditions,
            variables,
        };
        (common, env)
    }
}

/// A policy as it is read from its document.
pub trait Compiled: Sized {
    const POLICIES: &str;
    const BINDINGS: &str;

    fn of(d: &Doc) -> Self;
}

impl Compiled for Policy {
    const POLICIES: &str = "validatingadmissionpolicies";
    const BINDINGS: &str = "validatingadmissionpolicybindings";

    fn of(d: &Doc) -> Self {
        let (common, env) = Common::of(d, false);
        let validation = |v: Ref<'_>| Validation {
            expression: Expression::of(v.get("expression").str(), &env),
            message: v.get("message").str().to_owned(),
            message_expression: v.get("messageExpression").as_str().filter(|m| !m.is_empty()).map(|m| Expression::of(m, &env)),
            reason: v.get("reason").str().to_owned(),
        };
        let validations = d.at("spec.validations").iter().map(validation).collect();
        let annotation =
            |a: Ref<'_>| Named { name: a.get("key").str().to_owned(), expression: Expression::of(a.get("valueExpression").str(), &env) };
        let annotations = d.at("spec.auditAnnotations").iter().map(annotation).collect();
        Self { common, validations, annotations }
    }
}

impl Compiled for MutatingPolicy {
    const POLICIES: &str = "mutatingadmissionpolicies";
    const BINDINGS: &str = "mutatingadmissionpolicybindings";

    fn of(d: &Doc) -> Self {
        let (common, env) = Common::of(d, true);
        let mutation = |m: Ref<'_>| {
            let (patch, field) = match m.get("patchType").str() {
                "JSONPatch" => (Patch::Json, "jsonPatch"),
                _ => (Patch::Apply, "applyConfiguration"),
            };
            Mutation { patch, expression: Expression::of(m.get(field).get("expression").str(), &env) }
        };
        let mutations = d.at("spec.mutations").iter().map(mutation).collect();
        Self { common, mutations, reinvoke: d.at("spec.reinvocationPolicy").str() == "IfNeeded" }
    }
}

impl Bound {
    fn of(d: &Doc) -> Self {
        let spec = d.at("spec");
        let actions = spec.get("validationActions");
        Self {
            name: d.meta().name().to_owned(),
            policy: spec.get("policyName").str().to_owned(),
            resources: Constraints::of(spec.get("matchResources")),
            param: spec.get("paramRef").exists().then(|| spec.get("paramRef").to_value()),
            deny: actions.contains_str("Deny"),
            warn: actions.contains_str("Warn"),
            audit: actions.contains_str("Audit"),
        }
    }
}

pub type Current<P> = Arc<Vec<(P, Vec<Bound>)>>;

/// All policies of a kind that have bindings, by name.
#[derive(Debug)]
pub struct Policies<P> {
    read: Mutex<((i64, i64), Current<P>)>,
}

impl<P> Default for Policies<P> {
    fn default() -> Self {
        Self { read: Mutex::new(((0, 0), Arc::default())) }
    }
}

impl<P: Compiled> Policies<P> {
    pub fn current(&self, objects: &Objects) -> Current<P> {
        let (Some(policies), Some(bindings)) = (objects.reflector.cache(P::POLICIES), objects.reflector.cache(P::BINDINGS)) else {
            return Arc::default();
        };
        let ((policies, changed), (bindings, bindings_changed)) = (policies.snapshot(), bindings.snapshot());
        let revisions = (changed, bindings_changed);
        let mut read = self.read.lock();
        if read.0 != revisions {
            let mut by_policy: std::collections::BTreeMap<String, Vec<Bound>> = std::collections::BTreeMap::new();
            for b in bindings.range("", None).filter_map(|(_, s)| objects.doc(s)) {
                let b = Bound::of(&b);
                by_policy.entry(b.policy.clone()).or_default().push(b);
            }
            let all = policies.range("", None).filter_map(|(_, s)| objects.doc(s)).filter_map(|d| {
                let bindings = by_policy.remove(d.meta().name())?;
                Some((P::of(&d), bindings))
            });
            *read = (revisions, Arc::new(all.collect()));
        }
        Arc::clone(&read.1)
    }
}
