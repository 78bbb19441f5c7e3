//! Label and field selectors: parsing, matching and printing as upstream's `labels` and `fields` packages do.

use crate::doc::Ref;
use crate::names;
use crate::time::quote;
use std::fmt;

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`
    Equals,
    /// `==`
    DoubleEquals,
    /// `!=`
    NotEquals,
    /// `in`
    In,
    /// `notin`
    NotIn,
    /// The key alone.
    Exists,
    /// `!key`
    DoesNotExist,
    /// `>`
    GreaterThan,
    /// `<`
    LessThan,
}

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// What it is compared to; none for existence.
    pub values: Vec<String>,
}

/// Why a selector was refused, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// A label selector: all requirements hold. [`LabelSelector::nothing`] matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches every set of labels.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches none.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses the text of a `labelSelector` parameter.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser { tokens: scan(text), at: 0 }.parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From a `metav1.LabelSelector`: absent matches nothing, empty everything.
    pub fn from_ref(selector: Ref<'_>) -> Result<Self, SelectorError> {
        if !selector.exists() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").entries() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.str().to_owned()])?);
        }
        for expression in selector.get("matchExpressions").iter() {
            let operator = match expression.get("operator").str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError(format!("{} is not a valid label selector operator", quote(other)))),
            };
            let values = expression.get("values").strings().map(str::to_owned).collect();
            requirements.push(Requirement::new(expression.get("key").str(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From a plain map of labels, such as a Service's selector. Nothing is validated; an empty map matches everything.
    pub fn from_set<'a>(set: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut requirements: Vec<Requirement> = set
            .into_iter()
            .map(|(k, v)| Requirement { key: k.to_owned(), operator: Operator::Equals, values: vec![v.to_owned()] })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// What has to hold, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// The one value that a key must have, if the selector says so.
    pub fn exact_match(&self, key: &str) -> Option<&str> {
        let r = self.requirements.iter().find(|r| r.key == key)?;
        match (r.operator, &r.values[..]) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [value]) => Some(value),
            _ => None,
        }
    }

    /// Whether labels match, given a way to look them up.
    pub fn matches<'l>(&self, lookup: impl Fn(&str) -> Option<&'l str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(lookup(&r.key)))
    }

    /// Whether the labels at a place match (`metadata.labels`).
    pub fn matches_ref(&self, labels: Ref<'_>) -> bool {
        self.matches(|key| labels.get(key).as_str())
    }
}

impl Requirement {
    /// Checked as upstream's `NewRequirement`.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        let mut errors = Vec::new();
        let key_errors = names::label_key(key);
        if !key_errors.is_empty() {
            errors.push(format!("<nil>: Invalid value: {}: {}", quote(key), key_errors.join("; ")));
        }
        let listed = || {
            let quoted: Vec<String> = values.iter().map(|v| quote(v)).collect();
            format!("[{}]", quoted.join(","))
        };
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errors.push(format!("values: Invalid value: {}: for 'in', 'notin' operators, values set can't be empty", listed()));
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errors.push(format!("values: Invalid value: {}: exact-match compatibility requires one single value", listed()));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errors.push(format!("values: Invalid value: {}: values set must be empty for exists and does not exist", listed()));
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errors.push(format!("values: Invalid value: {}: for 'Gt', 'Lt' operators, exactly one value is required", listed()));
                }
                for (i, v) in values.iter().enumerate() {
                    if v.parse::<i64>().is_err() {
                        errors.push(format!(
                            "values[{i}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                            quote(v)
                        ));
                    }
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let problems = names::label_value(value);
            if !problems.is_empty() {
                errors.push(format!("values[{i}][{key}]: Invalid value: {}: {}", quote(value), problems.join("; ")));
            }
        }
        match errors.len() {
            0 => {
                values.dedup();
                Ok(Self { key: key.to_owned(), operator, values })
            }
            1 => Err(SelectorError(errors.remove(0))),
            _ => Err(SelectorError(format!("[{}]", errors.join(", ")))),
        }
    }

    /// Whether a label's value (none: it has no such label) fulfils it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let has = |v: &str| self.values.iter().any(|x| x == v);
        match (self.operator, value) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, Some(v)) => has(v),
            (Operator::NotEquals | Operator::NotIn, Some(v)) => !has(v),
            (Operator::NotEquals | Operator::NotIn | Operator::DoesNotExist, None) => true,
            (Operator::Exists, v) => v.is_some(),
            (Operator::DoesNotExist, Some(_)) => false,
            (Operator::GreaterThan | Operator::LessThan, Some(v)) => {
                match (v.parse::<i64>(), self.values.first().map(|v| v.parse::<i64>())) {
                    (Ok(a), Some(Ok(b))) if self.operator == Operator::GreaterThan => a > b,
                    (Ok(a), Some(Ok(b))) => a < b,
                    _ => false,
                }
            }
            (_, None) => false,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values = self.values.clone();
        values.sort();
        let values = values.join(",");
        let key = &self.key;
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{r}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
    Error,
}

fn symbol(text: &str) -> Option<Kind> {
    Some(match text {
        ")" => Kind::Close,
        "," => Kind::Comma,
        "!" => Kind::Not,
        "==" => Kind::DoubleEquals,
        "=" => Kind::Equals,
        ">" => Kind::Greater,
        "<" => Kind::Less,
        "!=" => Kind::NotEquals,
        "(" => Kind::Open,
        _ => return None,
    })
}

fn scan(text: &str) -> Vec<(Kind, String)> {
    let special = |c: char| "=!(),><".contains(c);
    let space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    // Upstream's scanner takes NUL for the end.
    let text = text.split('\0').next().unwrap_or("");
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(space);
    while !rest.is_empty() {
        let length = if rest.starts_with(special) {
            let two = rest.get(..2).filter(|t| symbol(t).is_some());
            two.map_or(1, str::len)
        } else {
            rest.find(|c| special(c) || space(c)).unwrap_or(rest.len())
        };
        let (token, tail) = rest.split_at(length);
        let kind = match token {
            "in" => Kind::In,
            "notin" => Kind::NotIn,
            _ if token.starts_with(special) => symbol(token).unwrap_or(Kind::Error),
            _ => Kind::Identifier,
        };
        tokens.push((kind, token.to_owned()));
        rest = tail.trim_start_matches(space);
    }
    tokens.push((Kind::End, String::new()));
    tokens
}

struct Parser {
    tokens: Vec<(Kind, String)>,
    at: usize,
}

type Parsed<T> = Result<T, SelectorError>;

fn fail<T>(message: String) -> Parsed<T> {
    Err(SelectorError(message))
}

impl Parser {
    /// The next token where a value or key may stand: `in` and `notin` are words there.
    fn peek(&self) -> (Kind, &str) {
        let (kind, text) = self.raw(self.at);
        (if matches!(kind, Kind::In | Kind::NotIn) { Kind::Identifier } else { kind }, text)
    }

    fn raw(&self, at: usize) -> (Kind, &str) {
        self.tokens.get(at).map_or((Kind::End, ""), |(k, t)| (*k, t.as_str()))
    }

    fn next(&mut self) -> (Kind, String) {
        let (kind, text) = self.peek();
        let token = (kind, text.to_owned());
        self.at += 1;
        token
    }

    fn parse(mut self) -> Parsed<Vec<Requirement>> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Kind::Identifier | Kind::Not, _) => {
                    let r = self.requirement().map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
                    requirements.push(r);
                    match self.next() {
                        (Kind::End, _) => return Ok(requirements),
                        (Kind::Comma, _) => {
                            let (kind, text) = self.peek();
                            if !matches!(kind, Kind::Identifier | Kind::Not) {
                                return fail(format!("found '{text}', expected: identifier after ','"));
                            }
                        }
                        (_, text) => return fail(format!("found '{text}', expected: ',' or 'end of string'")),
                    }
                }
                (Kind::End, _) => return Ok(requirements),
                (_, text) => return fail(format!("found '{text}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Parsed<Requirement> {
        let (mut kind, mut key) = self.next();
        let negated = kind == Kind::Not;
        if negated {
            (kind, key) = self.next();
        }
        if kind != Kind::Identifier {
            return fail(format!("found '{key}', expected: identifier"));
        }
        let problems = names::label_key(&key);
        if !problems.is_empty() {
            return fail(format!("<nil>: Invalid value: {}: {}", quote(&key), problems.join("; ")));
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Kind::End | Kind::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (kind, text) = self.raw(self.at);
        let operator = match kind {
            Kind::In => Operator::In,
            Kind::NotIn => Operator::NotIn,
            Kind::Equals => Operator::Equals,
            Kind::DoubleEquals => Operator::DoubleEquals,
            Kind::NotEquals => Operator::NotEquals,
            Kind::Greater => Operator::GreaterThan,
            Kind::Less => Operator::LessThan,
            _ => return fail(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        self.at += 1;
        let mut values = if matches!(operator, Operator::In | Operator::NotIn) { self.values()? } else { vec![self.exact_value()?] };
        values.sort();
        values.dedup();
        Requirement::new(&key, operator, values)
    }

    fn exact_value(&mut self) -> Parsed<String> {
        if matches!(self.peek().0, Kind::End | Kind::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Kind::Identifier, text) => Ok(text),
            (_, text) => fail(format!("found '{text}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Parsed<Vec<String>> {
        let (kind, text) = self.next();
        if kind != Kind::Open {
            return fail(format!("found '{text}' expected: '('"));
        }
        let mut values = Vec::new();
        match self.peek() {
            (Kind::Identifier | Kind::Comma, _) => {}
            (Kind::Close, _) => {
                self.at += 1;
                return Ok(vec![String::new()]);
            }
            (_, text) => return fail(format!("found '{text}', expected: ',', ')' or identifier")),
        }
        loop {
            match self.next() {
                (Kind::Identifier, text) => {
                    values.push(text);
                    match self.peek() {
                        (Kind::Comma, _) => {}
                        (Kind::Close, _) => break,
                        (_, text) => return fail(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Kind::Comma, _) => {
                    let next = self.peek().0;
                    // An empty value before the first comma, between two, or after the last.
                    if values.is_empty() || matches!(next, Kind::Close | Kind::Comma) {
                        values.push(String::new());
                    }
                    if next == Kind::Close {
                        break;
                    }
                }
                (_, text) => return fail(format!("found '{text}', expected: ',', or identifier")),
            }
        }
        self.at += 1;
        Ok(values)
    }
}

/// One requirement of a field selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    /// Such as `metadata.name`.
    pub field: String,
    /// `=` or `!=`.
    pub negated: bool,
    /// What it is compared to.
    pub value: String,
}

/// A field selector: all requirements hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Parses the text of a `fieldSelector` parameter.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let split = term.char_indices().find_map(|(i, _)| {
                ["!=", "==", "="].into_iter().find(|op| term[i..].starts_with(op)).map(|op| (&term[..i], op, &term[i + op.len()..]))
            });
            let Some((field, operator, value)) = split else {
                return fail(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            requirements.push(FieldRequirement { field: field.to_owned(), negated: operator == "!=", value: unescape(value)? });
        }
        Ok(Self { requirements })
    }

    /// Of one equality.
    pub fn equal(field: &str, value: &str) -> Self {
        Self { requirements: vec![FieldRequirement { field: field.to_owned(), negated: false, value: value.to_owned() }] }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// What has to hold.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// The value that a field must have, if the selector says so.
    pub fn exact_match(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.field == field && !r.negated).map(|r| r.value.as_str())
    }

    /// Whether fields match, given their values. A field that does not exist reads as the empty string.
    pub fn matches<'f>(&self, value: impl Fn(&str) -> &'f str) -> bool {
        self.requirements.iter().all(|r| (value(&r.field) == r.value) != r.negated)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{}{}{}{value}", if i > 0 { "," } else { "" }, r.field, if r.negated { "!=" } else { "=" })?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return fail(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return fail("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => return fail(format!("invalid field selector: unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn label_selectors_match_as_upstreams() {
        let labels = [("app", "x"), ("tier", "5"), ("empty", "")];
        let lookup = |k: &str| labels.iter().find(|(l, _)| *l == k).map(|(_, v)| *v);
        for (text, want) in [
            ("", true),
            ("app=x", true),
            ("app==x,tier=5", true),
            ("app!=x", false),
            ("nope!=x", true),
            ("app in (a,x)", true),
            ("app notin (a, x)", false),
            ("nope notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!nope", true),
            ("tier>4", true),
            ("tier<5", false),
            ("empty=", true),
            ("empty in ()", true),
            ("empty in (,a)", true),
            ("in in (in)", false),
        ] {
            assert_eq!(LabelSelector::parse(text).map(|s| s.matches(lookup)), Ok(want), "{text}");
        }
        assert_eq!(LabelSelector::parse(" b in (y,x) ,a=1,!c").unwrap().to_string(), "a=1,b in (x,y),!c");
        assert!(!LabelSelector::nothing().matches(lookup) && LabelSelector::everything().matches(lookup));
    }

    #[test]
    fn errors_of_label_selectors_are_upstreams() {
        for (text, want) in [
            (
                "tier>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            ("tier>=1", "unable to parse requirement: found '=', expected: identifier"),
            ("app in x", "unable to parse requirement: found 'x' expected: '('"),
            ("app in (x", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("in (a)", "unable to parse requirement: found '(', expected: in, notin, =, ==, !=, gt, lt"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("app,", "found '', expected: identifier after ','"),
            ("app=x,,tier", "found ',', expected: identifier after ','"),
            ("app=x tier=1", "found 'tier', expected: ',' or 'end of string'"),
            ("app===x", "unable to parse requirement: found '=', expected: identifier"),
            ("app!x", "unable to parse requirement: found '!', expected: in, notin, =, ==, !=, gt, lt"),
            ("!app=x", "found '=', expected: ',' or 'end of string'"),
            ("!!app", "unable to parse requirement: found '!', expected: identifier"),
            ("app in", "unable to parse requirement: found '' expected: '('"),
            ("app in (x y)", "unable to parse requirement: found 'y', expected: ',' or ')'"),
            ("/a=b", "unable to parse requirement: <nil>: Invalid value: \"/a\": prefix part must be non-empty"),
        ] {
            assert_eq!(LabelSelector::parse(text).map_err(|e| e.0), Err(want.to_owned()), "{text}");
        }
        let e = LabelSelector::parse("app in (x,-y)").unwrap_err().0;
        assert!(
            e.starts_with("unable to parse requirement: values[0][app]: Invalid value: \"-y\": a valid label must be an empty string"),
            "{e}"
        );
    }

    #[test]
    fn field_selectors_parse_escape_and_match() {
        let s = FieldSelector::parse("spec.nodeName=n1,metadata.name!=a\\,b").unwrap();
        assert_eq!(s.to_string(), "metadata.name!=a\\,b,spec.nodeName=n1");
        assert!(s.matches(|f| if f == "spec.nodeName" { "n1" } else { "" }));
        assert_eq!(s.exact_match("spec.nodeName"), Some("n1"));
        assert!(FieldSelector::parse("").unwrap().is_empty());
        assert_eq!(FieldSelector::parse("bad").unwrap_err().0, "invalid selector: 'bad'; can't understand 'bad'");
        assert_eq!(FieldSelector::parse("a=b\\x").unwrap_err().0, "invalid field selector: invalid escape sequence: \\x");
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_what_parses_the_same(text in "[a-c!=(), <>0-9in]{0,24}") {
            if let Ok(s) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&s.to_string()), Ok(s));
            }
            let _ = FieldSelector::parse(&text);
        }
    }
}
