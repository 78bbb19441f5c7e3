//! The part of JSONPath that printer columns are written in: members, indexes, slices, wildcards, descents and simple filters.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    /// `..name`
    Descend(String),
    /// `?(@.a == "x")`
    Filter(Box<Path>, Compare, Value),
    Exists(Box<Path>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Path(Vec<Step>);

/// A path that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(String);

fn bad(what: &str) -> PathError {
    PathError(what.to_owned())
}

impl Path {
    /// Reads a path that begins with a dot (or with `$`, `@` or nothing).
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let mut rest = text.trim();
        rest = rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')).unwrap_or(rest);
        rest = rest.strip_prefix(['$', '@']).unwrap_or(rest);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if steps.len() > 256 {
                return Err(bad("too many steps"));
            }
            if let Some(r) = rest.strip_prefix("..") {
                let (name, r) = name(r);
                if name.is_empty() {
                    return Err(bad("a descent to nothing"));
                }
                steps.push(Step::Descend(name));
                rest = r;
            } else if let Some(r) = rest.strip_prefix('.') {
                let (name, r) = name(r);
                match name.as_str() {
                    "" if r.is_empty() && steps.is_empty() => {}
                    "" if r.starts_with('[') => {}
                    "" => return Err(bad("a member without a name")),
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Member(name)),
                }
                rest = r;
            } else if rest.starts_with('[') {
                let end = closing(rest).ok_or_else(|| bad("unterminated array"))?;
                steps.push(bracket(&rest[1..end])?);
                rest = &rest[end + 1..];
            } else if steps.is_empty() {
                let (name, r) = name(rest);
                if name.is_empty() {
                    return Err(bad("unrecognized character"));
                }
                steps.push(Step::Member(name));
                rest = r;
            } else {
                return Err(bad("unrecognized character"));
            }
        }
        Ok(Self(steps))
    }

    /// Everything the path leads to.
    pub fn find<'a>(&self, v: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![v];
        for step in &self.0 {
            found = found.into_iter().flat_map(|v| follow(step, v)).take(10_000).collect();
        }
        found
    }
}

/// A name up to the next step; a backslash takes the character after it as it is.
fn name(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '.' | '[' => return (out, &text[i..]),
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            c => out.push(c),
        }
    }
    (out, "")
}

/// Where the bracket that `text` begins with is closed.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ']' | ')') => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<String> {
    let q = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(q)?.strip_suffix(q)?;
    Some(inner.replace("\\'", "'").replace("\\\"", "\""))
}

fn bracket(text: &str) -> Result<Step, PathError> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquoted(text) {
        return Ok(Step::Member(name));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        return filter_of(filter.trim());
    }
    let number = |t: &str| if t.is_empty() { Ok(None) } else { t.parse().map(Some).map_err(|_| bad("invalid array index")) };
    if let Some((a, b)) = text.split_once(':') {
        return Ok(Step::Slice(number(a.trim())?, number(b.split(':').next().unwrap_or("").trim())?));
    }
    number(text)?.map(Step::Index).ok_or_else(|| bad("empty array index"))
}

fn filter_of(text: &str) -> Result<Step, PathError> {
    let operators = [
        ("==", Compare::Equal),
        ("!=", Compare::NotEqual),
        ("<=", Compare::LessOrEqual),
        (">=", Compare::GreaterOrEqual),
        ("<", Compare::Less),
        (">", Compare::Greater),
    ];
    for (sign, compare) in operators {
        if let Some((left, right)) = text.split_once(sign) {
            let right = right.trim();
            let value = match unquoted(right) {
                Some(s) => Value::String(s),
                None => serde_json::from_str(right).map_err(|_| bad("unrecognized value in a filter"))?,
            };
            return Ok(Step::Filter(Box::new(Path::parse(left)?), compare, value));
        }
    }
    Ok(Step::Exists(Box::new(Path::parse(text)?)))
}

fn children(v: &Value) -> Vec<&Value> {
    match v {
        Value::Array(a) => a.iter().collect(),
        Value::Object(m) => m.values().collect(),
        _ => Vec::new(),
    }
}

fn descend<'a>(name: &str, v: &'a Value, out: &mut Vec<&'a Value>) {
    if let Some(x) = v.get(name) {
        out.push(x);
    }
    children(v).into_iter().for_each(|c| descend(name, c, out));
}

fn holds(compare: Compare, a: &Value, b: &Value) -> bool {
    let order = match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
    };
    match compare {
        Compare::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
        Compare::NotEqual => !order.is_some_and(std::cmp::Ordering::is_eq),
        Compare::Less => order.is_some_and(std::cmp::Ordering::is_lt),
        Compare::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
        Compare::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
        Compare::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
    }
}

fn follow<'a>(step: &Step, v: &'a Value) -> Vec<&'a Value> {
    let at = |i: i64, n: usize| {
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        usize::try_from(if i < 0 { n + i } else { i }).ok()
    };
    match step {
        Step::Member(name) => v.get(name).into_iter().collect(),
        Step::Index(i) => v.as_array().and_then(|a| a.get(at(*i, a.len())?)).into_iter().collect(),
        Step::Slice(from, to) => {
            let Some(a) = v.as_array() else { return Vec::new() };
            let from = at(from.unwrap_or(0), a.len()).unwrap_or(0);
            let to = to.map_or(Some(a.len()), |t| at(t, a.len())).unwrap_or(0).min(a.len());
            a.get(from..to).into_iter().flatten().collect()
        }
        Step::All => children(v),
        Step::Descend(name) => {
            let mut out = Vec::new();
            descend(name, v, &mut out);
            out
        }
        Step::Filter(path, compare, value) => {
            children(v).into_iter().filter(|c| path.find(c).first().is_some_and(|x| holds(*compare, x, value))).collect()
        }
        Step::Exists(path) => children(v).into_iter().filter(|c| !path.find(c).is_empty()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_where_they_say() {
        let v = json!({"spec": {"a": 1, "l": ["x", "y"], "a.b": 2, "c": [{"type": "Ready", "status": "True"}, {"type": "Q", "n": 3}]}});
        for (path, want) in [
            (".spec.a", json!([1])),
            (".spec.l[0]", json!(["x"])),
            (".spec.l[-1]", json!(["y"])),
            (".spec.l[*]", json!(["x", "y"])),
            (".spec['a.b']", json!([2])),
            (".spec.a\\.b", json!([2])),
            (".spec.c[?(@.type==\"Ready\")].status", json!(["True"])),
            (".spec.c[?(@.n>2)].type", json!(["Q"])),
            (".spec.c[?(@.n)].type", json!(["Q"])),
            (".spec.l[0:1]", json!(["x"])),
            ("..type", json!(["Ready", "Q"])),
            (".none.x", json!([])),
        ] {
            assert_eq!(json!(Path::parse(path).unwrap().find(&v)), want, "{path}");
        }
        for bad in [".spec.a[", ".a[x]", ".a[]", ".a..", ".a[?(@.x==)]"] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
    }
}
