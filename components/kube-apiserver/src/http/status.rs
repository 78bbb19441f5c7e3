//! Errors as clients read them: `Status` objects with upstream's codes, reasons, details and texts.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::validation::ErrorList;

/// One entry of `details.causes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// An answer that is an error, behind one pointer: most calls succeed and should not carry room for it.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Parts>);

/// What an error says.
#[derive(Debug, Clone)]
pub struct Parts {
    pub code: u16,
    pub reason: Cow<'static, str>,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// Sent as headers beside the body.
    pub headers: Vec<(&'static str, String)>,
    /// Merged into the Status' metadata, such as a continue token.
    pub metadata: Option<Value>,
}

impl std::ops::Deref for ApiError {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl std::ops::DerefMut for ApiError {
    fn deref_mut(&mut self) -> &mut Parts {
        &mut self.0
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after: u32,
}

/// A group and resource (or kind), as messages show them: `deployments.apps`.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a>(pub &'a str, pub &'a str);

impl std::fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { f.write_str(self.1) } else { write!(f, "{}.{}", self.1, self.0) }
    }
}

impl ApiError {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Parts { code, reason: reason.into(), message: message.into(), details: None, headers: Vec::new(), metadata: None }))
    }

    fn about(mut self, g: Group<'_>, name: &str) -> Self {
        self.details = Some(Box::new(Details { name: name.into(), group: g.0.into(), kind: g.1.into(), ..Details::default() }));
        self
    }

    pub fn not_found(g: Group<'_>, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{g} {name:?} not found")).about(g, name)
    }

    /// No such path.
    pub fn no_resource() -> Self {
        let mut e = Self::new(404, "NotFound", "the server could not find the requested resource");
        e.details = Some(Box::default());
        e
    }

    pub fn already_exists(g: Group<'_>, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{g} {name:?} already exists")).about(g, name)
    }

    pub fn conflict(g: Group<'_>, name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {g} {name:?}: {why}")).about(g, name)
    }

    pub fn modified(g: Group<'_>, name: &str) -> Self {
        Self::conflict(g, name, "the object has been modified; please apply your changes to the latest version and try again")
    }

    pub fn forbidden(g: Group<'_>, name: &str, why: impl std::fmt::Display) -> Self {
        let message = if g.1.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{g} is forbidden: {why}")
        } else {
            format!("{g} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(g, name)
    }

    pub fn invalid(g: Group<'_>, name: &str, errors: &ErrorList) -> Self {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let shown = match all.as_slice() {
            [one] => one.clone(),
            _ => {
                // An aggregate names each text once, in the order of appearance.
                let mut seen: Vec<&str> = Vec::new();
                for m in &all {
                    if !seen.contains(&m.as_str()) {
                        seen.push(m);
                    }
                }
                if seen.len() == 1 { seen[0].to_owned() } else { format!("[{}]", seen.join(", ")) }
            }
        };
        let mut e = Self::new(
            422,
            "Invalid",
            if g.0.is_empty() && g.1.is_empty() {
                format!(" {name:?} is invalid: {shown}")
            } else {
                format!("{g} {name:?} is invalid: {shown}")
            },
        )
        .about(g, name);
        if let Some(d) = &mut e.details {
            d.causes = errors
                .iter()
                .map(|e| Cause { reason: e.cause_reason().to_owned(), message: e.error_body(), field: e.field().to_owned() })
                .collect();
        }
        e
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405 of a path that has no such method at all.
    pub fn method_not_allowed() -> Self {
        let mut e = Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        e.details = Some(Box::default());
        e
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {}", accepted.join(", ")))
    }

    pub fn unsupported_media_type(got: &str, accepted: &[&str]) -> Self {
        let _ = got;
        Self::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format - accepted media types include: {}", accepted.join(", ")),
        )
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let mut e = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        e.details = Some(Box::new(Details {
            causes: vec![Cause { reason: String::new(), message: message.to_string(), field: String::new() }],
            ..Details::default()
        }));
        e
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn timeout(message: impl std::fmt::Display, retry_after: u32) -> Self {
        let mut e = Self::new(504, "Timeout", format!("Timeout: {message}"));
        e.details = Some(Box::new(Details { retry_after, ..Details::default() }));
        e
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        let mut e = Self::new(429, "TooManyRequests", message);
        e.details = Some(Box::new(Details { retry_after, ..Details::default() }));
        if retry_after > 0 {
            e.headers.push(("retry-after", retry_after.to_string()));
        }
        e
    }

    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        self.details.get_or_insert_default().causes.push(Cause { reason: reason.into(), message: message.into(), field: field.into() });
        self
    }

    pub fn to_value(&self) -> Value {
        let mut v = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": self.metadata.clone().unwrap_or_else(|| json!({})),
            "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            v["reason"] = (*self.reason).into();
        }
        if let Some(d) = &self.details {
            v["details"] = d.to_value();
        }
        v["code"] = self.code.into();
        v
    }
}

impl Details {
    pub fn to_value(&self) -> Value {
        let mut m = serde_json::Map::new();
        for (k, v) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !v.is_empty() {
                m.insert(k.into(), v.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| {
                let mut m = serde_json::Map::new();
                for (k, v) in [("reason", &c.reason), ("message", &c.message), ("field", &c.field)] {
                    if !v.is_empty() {
                        m.insert(k.into(), v.as_str().into());
                    }
                }
                Value::Object(m)
            });
            m.insert("causes".into(), causes.collect());
        }
        if self.retry_after > 0 {
            m.insert("retryAfterSeconds".into(), self.retry_after.into());
        }
        Value::Object(m)
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<crate::storage::StoreError> for ApiError {
    fn from(e: crate::storage::StoreError) -> Self {
        use crate::storage::StoreError as S;
        match e {
            S::Compacted => Self::expired("The resourceVersion for the provided list is too old."),
            S::TooLarge => Self::too_large("etcdserver: request is too large"),
            S::Timeout => Self::timeout("etcdserver: request timed out", 0),
            e => {
                tracing::warn!(error = &e as &dyn std::error::Error, "storage failed");
                Self::new(500, "", e.to_string())
            }
        }
    }
}
