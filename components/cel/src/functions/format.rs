//! Kubernetes' named formats: what names, labels, times and the like have to look like.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{Function, NONE, regexes, time};
use crate::value::{EvalError, Ext, Result, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named(&'static str);

/// The formats' names, each with the function `format.<name>()` that gives it.
macro_rules! formats {
    ($($name:literal),* $(,)?) => {
        const NAMES: &[&str] = &[$($name),*];

        fn constant(function: &str) -> Option<Function> {
            match function {
                $(concat!("format.", $name) => Some(|_| Ok(Value::Ext(Ext::Format(Named($name))))),)*
                _ => None,
            }
        }
    };
}

formats!(
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
);

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

pub fn lookup(name: &str) -> Option<Function> {
    match name {
        "format.named" => Some(|a| {
            let name = a.first().ok_or(NONE)?.str()?;
            Ok(Value::Optional(NAMES.iter().find(|n| **n == name).map(|n| std::sync::Arc::new(Value::Ext(Ext::Format(Named(n)))))))
        }),
        "validate" => Some(validate),
        other => constant(other),
    }
}

fn validate<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let [Value::Ext(Ext::Format(Named(name))), s] = args else { return Err(NONE) };
    let wrong = complaints(name, s.str()?)?;
    if wrong.is_empty() {
        return Ok(Value::Optional(None));
    }
    Ok(Value::some(Value::list(wrong.into_iter().map(Value::string).collect())))
}

fn shaped(pattern: &str, s: &str) -> Result<bool> {
    Ok(regexes::compile(pattern).map_err(|e| EvalError::other(e.to_string()))?.is_match(s))
}

fn complaints(name: &str, s: &str) -> Result<Vec<String>> {
    let named = |limit: usize, pattern: &str, text: &str| -> Result<Vec<String>> {
        let mut out = Vec::new();
        if s.len() > limit {
            out.push(format!("must be no more than {limit} bytes"));
        }
        if !shaped(pattern, s)? {
            out.push(text.to_owned());
        }
        Ok(out)
    };
    const PART: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
    let one = |ok: bool, text: &str| if ok { Vec::new() } else { vec![text.to_owned()] };
    Ok(match name {
        "dns1123Label" => named(63, &format!("^{PART}$"), LABEL)?,
        "dns1123Subdomain" => named(253, &format!(r"^{PART}(\.{PART})*$"), SUBDOMAIN)?,
        "dns1035Label" => named(63, "^[a-z]([-a-z0-9]*[a-z0-9])?$", LABEL1035)?,
        "dns1123LabelPrefix" => prefix("dns1123Label", s)?,
        "dns1123SubdomainPrefix" => prefix("dns1123Subdomain", s)?,
        "dns1035LabelPrefix" => prefix("dns1035Label", s)?,
        "labelValue" => named(63, "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$", VALUE)?,
        "qualifiedName" => qualified(s)?,
        "uri" => one(super::url::lookup("isURL").is_some_and(|f| matches!(f(&[Value::string(s)]), Ok(Value::Bool(true)))), "invalid URI"),
        "uuid" => one(
            shaped("^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$", s)?,
            "does not match the UUID format",
        ),
        "byte" => one(BASE64_STANDARD.decode(s).is_ok(), "invalid base64"),
        "date" => one(s.len() == 10 && s.parse::<jiff::civil::Date>().is_ok(), "invalid date"),
        "datetime" => one(time::parse_timestamp(s).is_some(), "invalid datetime"),
        _ => return Err(NONE),
    })
}

/// Names to be continued may end with a dash.
fn prefix(name: &str, s: &str) -> Result<Vec<String>> {
    let cut = s.strip_suffix('-').map(|s| format!("{s}a"));
    complaints(name, cut.as_deref().unwrap_or(s))
}

fn qualified(s: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [domain, name] => {
            if domain.is_empty() {
                out.push("prefix part must be non-empty".into());
            } else {
                out.extend(complaints("dns1123Subdomain", domain)?.into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => return Ok(vec![format!("a valid label key must consist of one name part, or two with a slash between them: {NAME}")]),
    };
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        out.push("name part must be no more than 63 bytes".into());
    }
    if !shaped("^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$", name)? {
        out.push(NAME.into());
    }
    Ok(out)
}
