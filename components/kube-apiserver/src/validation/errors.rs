//! Field errors with upstream's types and texts, as they appear in a Status' causes.

use std::fmt;

use serde_json::Value;

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    /// The reason of a cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }
}

/// One complaint about one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    pub kind: Kind,
    pub field: String,
    /// The value as messages show it; empty when they don't.
    shown: String,
    detail: String,
}

/// A value as messages show it: strings quoted, numbers plain, structures as JSON.
pub trait Shown {
    fn shown(&self) -> String;
}

impl Shown for str {
    fn shown(&self) -> String {
        go_quote(self)
    }
}

impl Shown for String {
    fn shown(&self) -> String {
        go_quote(self)
    }
}

macro_rules! plain {
    ($($t:ty),*) => { $(impl Shown for $t { fn shown(&self) -> String { self.to_string() } })* };
}
plain!(i64, i32, u16, u32, usize, bool);

impl Shown for Value {
    fn shown(&self) -> String {
        match self {
            Value::String(s) => go_quote(s),
            v => v.to_string(),
        }
    }
}

impl<T: Shown + ?Sized> Shown for &T {
    fn shown(&self) -> String {
        (**self).shown()
    }
}

/// Go's `%q`.
pub fn go_quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

impl FieldError {
    fn new(kind: Kind, field: impl Into<String>, shown: String, detail: impl Into<String>) -> Self {
        Self { kind, field: field.into(), shown, detail: detail.into() }
    }

    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Kind::Required, field, String::new(), detail)
    }

    pub fn invalid(field: impl Into<String>, value: impl Shown, detail: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, field, value.shown(), detail)
    }

    /// `shown` appears as it is.
    pub fn invalid_raw(field: impl Into<String>, shown: &str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, field, shown.to_owned(), detail)
    }

    /// The value is of a wrong type.
    pub fn type_invalid(field: impl Into<String>, value: impl Shown, detail: impl Into<String>) -> Self {
        Self::new(Kind::TypeInvalid, field, value.shown(), detail)
    }

    /// A value that is a structure is not shown.
    pub fn of_value(kind: Kind, field: impl Into<String>, value: &Value, detail: impl Into<String>) -> Self {
        let shown = if value.is_object() || value.is_array() { String::new() } else { value.shown() };
        Self::new(kind, field, shown, detail)
    }

    pub fn internal(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Kind::Internal, field, String::new(), detail)
    }

    pub fn duplicate(field: impl Into<String>, value: impl Shown) -> Self {
        Self::new(Kind::Duplicate, field, value.shown(), "")
    }

    pub fn duplicate_of(field: impl Into<String>, value: impl Shown, detail: impl Into<String>) -> Self {
        Self::new(Kind::Duplicate, field, value.shown(), detail)
    }

    /// The same at another place.
    pub fn moved(&self, from: &str, to: &str) -> Self {
        let field = self.field.strip_prefix(from).map_or_else(|| self.field.clone(), |rest| format!("{to}{rest}"));
        Self { field, ..self.clone() }
    }

    pub fn not_found(field: impl Into<String>, value: impl Shown) -> Self {
        Self::new(Kind::NotFound, field, value.shown(), "")
    }

    /// Not found among others.
    pub fn not_found_of(field: impl Into<String>, value: impl Shown, detail: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, field, value.shown(), detail)
    }

    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, field, String::new(), detail)
    }

    pub fn not_supported(field: impl Into<String>, value: impl Shown, supported: &[&str]) -> Self {
        Self::not_supported_raw(field, &value.shown(), supported)
    }

    pub fn not_supported_raw(field: impl Into<String>, shown: &str, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| go_quote(s)).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(Kind::NotSupported, field, shown.to_owned(), detail)
    }

    pub fn too_long(field: impl Into<String>, _value: &str, max: usize) -> Self {
        Self::new(Kind::TooLong, field, String::new(), format!("may not be more than {max} bytes"))
    }

    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        Self::new(Kind::TooMany, field, actual.to_string(), format!("must have at most {max} items"))
    }

    pub fn cause_reason(&self) -> &'static str {
        self.kind.reason()
    }

    pub fn field(&self) -> &str {
        &self.field
    }

    /// The message of a cause: everything but the field.
    pub fn error_body(&self) -> String {
        let mut s = self.kind.text().to_owned();
        match self.kind {
            Kind::Required | Kind::Forbidden | Kind::TooLong | Kind::Internal => {}
            // A value that is not to be shown; an empty text has quotes.
            _ if self.shown.is_empty() => {}
            _ => {
                s.push_str(": ");
                s.push_str(&self.shown);
            }
        }
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.error_body())
    }
}

/// All that is wrong with an object, in the order it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorList(Vec<FieldError>);

impl ErrorList {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, e: FieldError) {
        self.0.push(e);
    }

    /// Every message as an invalid value of the field.
    pub fn all_invalid(&mut self, field: &str, value: impl Shown, messages: impl IntoIterator<Item = String>) {
        let shown = value.shown();
        for m in messages {
            self.0.push(FieldError::new(Kind::Invalid, field, shown.clone(), m));
        }
    }

    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.0.iter()
    }
}

pub fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

pub fn index(path: &str, i: usize) -> String {
    format!("{path}[{i}]")
}

pub fn key(path: &str, k: &str) -> String {
    format!("{path}[{k}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_upstreams() {
        let cases = [
            (
                FieldError::required("metadata.name", "name or generateName is required"),
                "metadata.name: Required value: name or generateName is required",
            ),
            (FieldError::invalid("a[0].b", "x\"y", "bad"), "a[0].b: Invalid value: \"x\\\"y\": bad"),
            (FieldError::invalid("n", -1i64, "must be positive"), "n: Invalid value: -1: must be positive"),
            (FieldError::not_supported("p", "x", &["A", "B"]), "p: Unsupported value: \"x\": supported values: \"A\", \"B\""),
            (FieldError::duplicate("p[1]", "x"), "p[1]: Duplicate value: \"x\""),
            (FieldError::forbidden("p", "no"), "p: Forbidden: no"),
            (FieldError::too_long("p", "", 63), "p: Too long: may not be more than 63 bytes"),
            (FieldError::too_many("p", 5, 4), "p: Too many: 5: must have at most 4 items"),
        ];
        for (e, want) in cases {
            assert_eq!(e.to_string(), want);
        }
    }
}
