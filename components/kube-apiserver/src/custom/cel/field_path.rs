//! The `fieldPath` of a rule: which field below is blamed. Dots and quoted keys, no positions in lists.

use crate::custom::structural::{Additional, Schema};

/// The path as errors append it (`a.b[key]`); none if it is no path, or none of this schema.
pub fn normalized(path: &str, schema: &Schema) -> Option<String> {
    let mut out = String::new();
    let (mut at, mut rest) = (schema, path.trim());
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (name, after) = match rest.strip_prefix('.') {
            Some(r) => {
                let end = r.find(['.', '[']).unwrap_or(r.len());
                (&r[..end], &r[end..])
            }
            None => {
                let r = rest.strip_prefix("['").map(|r| (r, "']")).or_else(|| rest.strip_prefix("[\"").map(|r| (r, "\"]")));
                let (r, close) = r?;
                let end = r.find(close)?;
                (&r[..end], &r[end + 2..])
            }
        };
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.'));
        if name.is_empty() || rest.starts_with('.') && (!plain || name.contains(['-', '/'])) {
            return None;
        }
        at = match (at.properties.get(name), &at.additional) {
            (Some(p), _) => {
                if rest.starts_with('.') {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(name);
                } else {
                    out.push_str(&format!("[{name}]"));
                }
                p
            }
            (None, Additional::Of(of)) => {
                out.push_str(&format!("[{name}]"));
                of
            }
            _ => return None,
        };
        rest = after;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_follow_the_schema() {
        let s = Schema::of(&json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b-c": {"type": "string"}}},
            "m": {"type": "object", "additionalProperties": {"type": "string"}}, "l": {"type": "array", "items": {"type": "string"}}}}));
        for (path, want) in [
            (".a", Some("a")),
            (".a['b-c']", Some("a[b-c]")),
            (".m['k']", Some("m[k]")),
            (".l", Some("l")),
            (".l[0]", None),
            (".zz", None),
            ("a b", None),
            (".a b", None),
            ("", None),
            (".a.", None),
        ] {
            assert_eq!(normalized(path, &s).as_deref(), want, "{path}");
        }
    }
}
