//! What expressions see of a request: the object and the one before, the request, its namespace, an authorizer.

use std::sync::Arc;

use cel::{
    Authorize, Check, Decision, EvalError, Ext, Question, Value, Variables,
    admission::{namespace_decl, request_decl},
};
use k8s_schema::Doc;
use serde_json::{Value as Json, json};

use super::{
    CALL_LIMIT,
    compiled::{Expression, Named},
};
use crate::{
    admission::{Attributes, matching, webhooks},
    authn::User,
    authz,
    registry::Resource,
    server::Server,
};

/// Asks the server's authorizer for the user of the request.
struct Asker {
    server: Arc<Server>,
    user: User,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("user", &self.user.name).finish_non_exhaustive()
    }
}

impl Authorize for Asker {
    fn authorize(&self, q: &Question) -> Decision {
        let user = match &q.service_account {
            None => self.user.clone(),
            Some((namespace, name)) => User {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                    crate::authn::AUTHENTICATED.into(),
                ],
                ..User::default()
            },
        };
        let asked = match &q.path {
            Some(path) => authz::Attributes { verb: q.verb.clone(), path: path.clone(), ..authz::Attributes::default() },
            None => authz::Attributes {
                verb: q.verb.clone(),
                is_resource: true,
                group: q.group.clone(),
                version: "*".into(),
                resource: q.resource.clone(),
                subresource: q.subresource.clone(),
                namespace: q.namespace.clone(),
                name: q.name.clone(),
                ..authz::Attributes::default()
            },
        };
        let decision = self.server.authz.decide_at_once(&user, &asked);
        let allowed = decision.allowed();
        let (authz::Decision::Allow(reason) | authz::Decision::Deny(reason) | authz::Decision::NoOpinion(reason)) = decision;
        Decision { allowed, reason, error: String::new() }
    }
}

/// Everything expressions may ask for, made once for a request.
pub struct Inputs {
    object: Json,
    old: Json,
    request: Json,
    namespace: Json,
    authorizer: Check,
    request_resource: Check,
}

impl Inputs {
    /// `res` is what the request is taken for.
    pub fn new(a: &Attributes<'_>, res: &Resource, doc: Option<&Doc>, old: Option<&Doc>) -> Self {
        let (name, namespace) = (matching::name_of(a, doc, old), matching::namespace_of(a, doc, old));
        let asker: Arc<dyn Authorize> = Arc::new(Asker { server: Arc::clone(&a.ctx.server), user: a.ctx.user.clone() });
        let question = Question {
            group: a.res.group.clone(),
            resource: a.res.plural.clone(),
            subresource: a.subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Question::default()
        };
        let kind = |r: &Resource| {
            let (group, version, kind) = webhooks::kind_of(r, a.subresource);
            json!({"group": group, "version": version, "kind": kind})
        };
        let resource = |r: &Resource| json!({"group": r.group, "version": r.version, "resource": r.plural});
        let user = &a.ctx.user;
        let extra: serde_json::Map<String, Json> = user.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let request = json!({
            "kind": kind(res), "resource": resource(res), "subResource": a.subresource, "requestKind": kind(a.res),
            "requestResource": resource(a.res), "requestSubResource": a.subresource, "name": name, "namespace": namespace,
            "operation": a.operation.name(), "dryRun": a.dry_run, "options": webhooks::options(a),
            "userInfo": {"username": user.name, "uid": user.uid, "groups": user.groups, "extra": extra},
        });
        let holder = if namespace.is_empty() { None } else { a.ctx.server.objects.get("namespaces", namespace) };
        Self {
            object: doc.map_or(Json::Null, Doc::to_value),
            old: old.map_or(Json::Null, Doc::to_value),
            request,
            namespace: holder.map_or(Json::Null, |d| d.to_value()),
            authorizer: Check::new(Arc::clone(&asker)),
            request_resource: Check::about(asker, question),
        }
    }

    /// Begins evaluating, with a parameter if there is one.
    pub fn run<'i>(&'i self, param: Option<&'i Json>, budget: u64) -> Run<'i> {
        let mut variables: Variables<'i> = [
            ("object", Value::json(&self.object, None)),
            ("oldObject", Value::json(&self.old, None)),
            ("request", Value::json(&self.request, Some(request_decl()))),
            ("namespaceObject", Value::json(&self.namespace, Some(namespace_decl()))),
            ("authorizer", Value::Ext(Ext::Authorizer(Box::new(self.authorizer.clone())))),
            ("authorizer.requestResource", Value::Ext(Ext::Authorizer(Box::new(self.request_resource.clone())))),
        ]
        .into_iter()
        .collect();
        if let Some(p) = param {
            variables.insert("params", Value::json(p, None));
        }
        Run { variables, budget }
    }
}

/// Evaluation of a policy's expressions.
pub struct Run<'i> {
    variables: Variables<'i>,
    pub budget: u64,
}

impl<'i> Run<'i> {
    fn value(&mut self, e: &Expression) -> Result<Value<'i>, String> {
        let program = e.program.as_ref().map_err(Clone::clone)?;
        let out = program.run(&self.variables, CALL_LIMIT);
        if out.cost > self.budget {
            return Err("validation failed due to running out of cost budget, no further validation rules will be run".into());
        }
        self.budget -= out.cost;
        out.value.map_err(|e| e.to_string())
    }

    pub fn evaluate(&mut self, e: &Expression) -> Result<Value<'i>, String> {
        self.value(e).map_err(|why| format!("expression '{}' resulted in error: {why}", e.source.trim()))
    }

    /// Whether all conditions hold. One that does not hold counts for more than one that fails.
    pub fn conditions(&mut self, conditions: &[Named]) -> Result<bool, String> {
        let mut failed = None;
        for c in conditions {
            match self.evaluate(&c.expression) {
                Ok(Value::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        failed.map_or(Ok(true), Err)
    }

    /// Makes the variables. One that fails does so where it is used.
    pub fn variables(&mut self, named: &[Named]) {
        let mut all: Vec<(String, Value<'i>)> = Vec::new();
        self.variables.insert("variables", Value::map(Vec::new()));
        for n in named {
            let v = self.value(&n.expression).unwrap_or_else(|why| Value::Failed(Arc::new(EvalError::other(why))));
            all.push((n.name.clone(), v));
            self.variables.insert("variables", Value::map(all.clone()));
        }
    }
}
