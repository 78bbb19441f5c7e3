//! A structural schema: what a version of a CustomResourceDefinition says its objects look like, ready for pruning, defaulting and
//! validation. Read once when the definition is seen; nothing here looks at objects.

use std::{collections::BTreeMap, sync::OnceLock};

use regex::Regex;
use serde_json::{Map, Value};

/// A pattern as it was written and, when first needed, compiled.
#[derive(Debug, Clone)]
pub struct Pattern {
    pub text: String,
    compiled: OnceLock<Option<Regex>>,
}

/// A compiled pattern may take this much memory.
const PATTERN_SIZE: usize = 1 << 20;

impl Pattern {
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), compiled: OnceLock::new() }
    }

    pub fn compile(text: &str) -> Result<Regex, regex::Error> {
        regex::RegexBuilder::new(text).size_limit(PATTERN_SIZE).build()
    }

    /// A pattern that cannot be compiled matches nothing, as upstream's.
    pub fn is_match(&self, s: &str) -> bool {
        self.compiled.get_or_init(|| Self::compile(&self.text).ok()).as_ref().is_some_and(|r| r.is_match(s))
    }
}

/// What an object may have beside its declared properties.
#[derive(Debug, Clone, Default)]
pub enum Additional {
    #[default]
    Unsaid,
    Any(bool),
    Of(Box<Schema>),
}

/// A rule of `x-kubernetes-validations`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
}

/// A node of a schema. The value part (`maximum` and so on) is also what stands below `allOf` and the like.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    pub ty: String,
    pub properties: BTreeMap<String, Schema>,
    pub additional: Additional,
    pub items: Option<Box<Schema>>,
    pub default: Option<Value>,
    pub nullable: bool,
    pub preserve: bool,
    pub embedded: bool,
    pub int_or_string: bool,
    pub list_type: String,
    pub map_keys: Vec<String>,
    pub map_type: String,
    pub rules: Vec<Rule>,
    pub format: String,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub multiple_of: Option<f64>,
    pub enum_: Vec<Value>,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub required: Vec<String>,
    pub all_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
}

fn text(m: &Map<String, Value>, key: &str) -> String {
    m.get(key).and_then(Value::as_str).unwrap_or("").to_owned()
}

fn flag(m: &Map<String, Value>, key: &str) -> bool {
    m.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn texts(m: &Map<String, Value>, key: &str) -> Vec<String> {
    m.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn schemas(m: &Map<String, Value>, key: &str) -> Vec<Schema> {
    m.get(key).and_then(Value::as_array).into_iter().flatten().map(Schema::of).collect()
}

impl Schema {
    /// Reads a JSONSchemaProps. What a structural schema may not have is left out; validation of the definition speaks of it.
    pub fn of(v: &Value) -> Self {
        let empty = Map::new();
        let m = v.as_object().unwrap_or(&empty);
        let int = |k: &str| m.get(k).and_then(Value::as_i64);
        let float = |k: &str| m.get(k).and_then(Value::as_f64);
        let boxed = |k: &str| m.get(k).filter(|v| v.is_object()).map(|v| Box::new(Self::of(v)));
        Self {
            ty: text(m, "type"),
            properties: m
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), Self::of(v)))
                .collect(),
            additional: match m.get("additionalProperties") {
                Some(Value::Bool(b)) => Additional::Any(*b),
                Some(v @ Value::Object(_)) => Additional::Of(Box::new(Self::of(v))),
                _ => Additional::Unsaid,
            },
            items: boxed("items"),
            default: m.get("default").filter(|v| !v.is_null()).cloned(),
            nullable: flag(m, "nullable"),
            preserve: flag(m, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(m, "x-kubernetes-embedded-resource"),
            int_or_string: flag(m, "x-kubernetes-int-or-string"),
            list_type: text(m, "x-kubernetes-list-type"),
            map_keys: texts(m, "x-kubernetes-list-map-keys"),
            map_type: text(m, "x-kubernetes-map-type"),
            rules: m
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_object)
                .map(|r| Rule {
                    rule: text(r, "rule"),
                    message: text(r, "message"),
                    message_expression: text(r, "messageExpression"),
                    reason: text(r, "reason"),
                    field_path: text(r, "fieldPath"),
                    optional_old_self: r.get("optionalOldSelf").and_then(Value::as_bool),
                })
                .collect(),
            format: text(m, "format"),
            maximum: float("maximum"),
            exclusive_maximum: flag(m, "exclusiveMaximum"),
            minimum: float("minimum"),
            exclusive_minimum: flag(m, "exclusiveMinimum"),
            max_length: int("maxLength"),
            min_length: int("minLength"),
            pattern: m.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty()).map(Pattern::new),
            max_items: int("maxItems"),
            min_items: int("minItems"),
            multiple_of: float("multipleOf"),
            enum_: m.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            max_properties: int("maxProperties"),
            min_properties: int("minProperties"),
            required: texts(m, "required"),
            all_of: schemas(m, "allOf"),
            one_of: schemas(m, "oneOf"),
            any_of: schemas(m, "anyOf"),
            not: boxed("not"),
        }
    }

    /// The schema of a member of an object; none: nothing is known of it.
    pub fn member(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(match &self.additional {
            Additional::Of(s) => Some(s),
            _ => None,
        })
    }

    /// The schema at a simple path such as `.spec.replicas`.
    pub fn at(&self, path: &str) -> Option<&Self> {
        path.trim_start_matches('.').split('.').filter(|p| !p.is_empty()).try_fold(self, |s, p| s.properties.get(p))
    }

    /// Whether some node has a rule.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
            || self.properties.values().any(Self::has_rules)
            || self.items.as_deref().is_some_and(Self::has_rules)
            || matches!(&self.additional, Additional::Of(s) if s.has_rules())
    }
}
