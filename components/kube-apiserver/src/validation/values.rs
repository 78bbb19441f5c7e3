//! Numbers, addresses and other values that many kinds share.

use k8s_schema::Ref;

use super::{ErrorList, FieldError, names};

pub fn non_negative(v: i64, path: &str, e: &mut ErrorList) {
    if v < 0 {
        e.push(FieldError::invalid(path, v, "must be greater than or equal to 0"));
    }
}

pub fn port(v: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&v)).then_some("must be between 1 and 65535, inclusive")
}

pub fn labels(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    let mut pairs: Vec<(&str, &str)> = r.entries().map(|(k, v)| (k, v.str())).collect();
    pairs.sort_unstable();
    // Labels count their length in bytes, and say so.
    let bytes = |m: String| match m.strip_suffix(" characters") {
        Some(rest) if rest.contains("must be no more than") => format!("{rest} bytes"),
        _ => m,
    };
    for (k, v) in pairs {
        let key = |m: String| match m.strip_prefix("a qualified name ") {
            Some(rest) => format!("a valid label key {rest}"),
            None => bytes(m),
        };
        e.all_invalid(path, k, names::qualified_name(k).into_iter().map(key));
        e.all_invalid(path, v, names::label_value(v).into_iter().map(bytes));
    }
}

pub fn annotations(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    const MAX: usize = 256 << 10;
    let mut total = 0;
    for (k, v) in r.entries() {
        e.all_invalid(path, k, names::qualified_name(&k.to_lowercase()));
        total += k.len() + v.str().len();
    }
    if total > MAX {
        e.push(FieldError::too_long(path, "", MAX));
    }
}

/// A metav1.LabelSelector.
pub fn label_selector(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    labels(r.get("matchLabels"), &super::child(path, "matchLabels"), e);
    for (i, x) in r.get("matchExpressions").iter().enumerate() {
        let p = super::index(&super::child(path, "matchExpressions"), i);
        let n = x.get("values").len();
        match x.get("operator").str() {
            "In" | "NotIn" if n == 0 => {
                e.push(FieldError::required(super::child(&p, "values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if n > 0 => {
                e.push(FieldError::forbidden(
                    super::child(&p, "values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
            "Exists" | "DoesNotExist" => {}
            other => e.push(FieldError::invalid(super::child(&p, "operator"), other, "not a valid selector operator")),
        }
        let k = x.get("key").str();
        e.all_invalid(&super::child(&p, "key"), k, names::qualified_name(k));
        for (j, v) in x.get("values").iter().enumerate() {
            e.all_invalid(&super::index(&super::child(&p, "values"), j), v.str(), names::label_value(v.str()));
        }
    }
}

pub fn is_ip(s: &str) -> bool {
    s.parse::<std::net::IpAddr>().is_ok()
}
