//! The authorizer library: an expression builds a question up, the caller answers it.

use std::{fmt, sync::Arc};

use super::{Function, NONE};
use crate::value::{EvalError, Ext, Result, Value};

/// What is asked. Empty is what was not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    pub verb: String,
    /// A path of no resource, when that is what the question is about.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// `namespace/name` of a service account to ask for, instead of the request's user.
    pub service_account: Option<(String, String)>,
    pub field_selector: String,
    pub label_selector: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: String,
}

/// Who answers.
pub trait Authorize: fmt::Debug + Send + Sync {
    fn authorize(&self, question: &Question) -> Decision;
}

/// A question in the making.
#[derive(Debug, Clone)]
pub struct Check {
    authorizer: Arc<dyn Authorize>,
    question: Question,
}

impl Check {
    pub fn new(authorizer: Arc<dyn Authorize>) -> Self {
        Self { authorizer, question: Question::default() }
    }

    /// A question that is already about a resource.
    pub fn about(authorizer: Arc<dyn Authorize>, question: Question) -> Self {
        Self { authorizer, question }
    }
}

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "path" => |a| with(a, |q, s| q.path = Some(s)),
        "group" => |a| with(a, |q, s| q.group = s),
        "resource" => |a| with(a, |q, s| q.resource = s),
        "subresource" => |a| with(a, |q, s| q.subresource = s),
        "namespace" => |a| with(a, |q, s| q.namespace = s),
        "name" => |a| with(a, |q, s| q.name = s),
        "fieldSelector" => |a| with(a, |q, s| q.field_selector = s),
        "labelSelector" => |a| with(a, |q, s| q.label_selector = s),
        "serviceAccount" => |a| {
            let [Value::Ext(Ext::Authorizer(c)), namespace, name] = a else { return Err(NONE) };
            let mut c = c.clone();
            c.question.service_account = Some((namespace.str()?.to_owned(), name.str()?.to_owned()));
            Ok(Value::Ext(Ext::Authorizer(c)))
        },
        "check" => |a| {
            let [Value::Ext(Ext::Authorizer(c)), verb] = a else { return Err(NONE) };
            let mut question = c.question.clone();
            question.verb = verb.str()?.to_owned();
            Ok(Value::Ext(Ext::Decision(Arc::new(c.authorizer.authorize(&question)))))
        },
        "allowed" => |a| Ok(Value::Bool(decision(a)?.allowed)),
        "reason" => |a| Ok(Value::string(decision(a)?.reason.as_str())),
        "errored" => |a| Ok(Value::Bool(!decision(a)?.error.is_empty())),
        "error" => |a| Ok(Value::string(decision(a)?.error.as_str())),
        _ => return None,
    })
}

fn with<'a>(args: &[Value<'a>], set: fn(&mut Question, String)) -> Result<Value<'a>> {
    let [Value::Ext(Ext::Authorizer(c)), s] = args else { return Err(NONE) };
    let mut c = c.clone();
    set(&mut c.question, s.str()?.to_owned());
    Ok(Value::Ext(Ext::Authorizer(c)))
}

fn decision<'x>(args: &'x [Value<'_>]) -> Result<&'x Decision> {
    match args.first() {
        Some(Value::Ext(Ext::Decision(d))) => Ok(d),
        _ => Err(EvalError::NoSuchOverload),
    }
}
