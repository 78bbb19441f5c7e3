//! meta/v1 LabelSelector: matching, and its query form.

use serde::{Deserialize, Serialize};

use crate::meta::{LabelMap, null_default};

/// meta/v1 LabelSelector. An empty selector matches everything; a missing one (an `Option` at the use site) matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(skip_serializing_if = "LabelMap::is_empty", deserialize_with = "null_default")]
    pub match_labels: LabelMap,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub match_expressions: Vec<Requirement>,
}

/// One expression. Operators are `In`, `NotIn`, `Exists`, `DoesNotExist`; node selectors add `Gt` and `Lt`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub values: Vec<String>,
}

/// A selector that cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selector requirement on {key:?}: {problem}")]
pub struct SelectorError {
    key: String,
    problem: &'static str,
}

impl Requirement {
    /// Whether these labels satisfy the requirement. An unknown operator, or one used wrongly, matches nothing.
    pub fn matches(&self, labels: &LabelMap) -> bool {
        let value = labels.get(&self.key);
        let number = |text: &String| text.parse::<i64>().ok();
        match self.operator.as_str() {
            "In" => value.is_some_and(|value| self.values.contains(value)),
            "NotIn" => value.is_none_or(|value| !self.values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" | "Lt" => match (value.and_then(number), self.values.first().and_then(number)) {
                (Some(have), Some(bound)) => (self.operator == "Gt" && have > bound) || (self.operator == "Lt" && have < bound),
                _ => false,
            },
            _ => false,
        }
    }

    /// Says what is wrong with the requirement as part of a label selector.
    pub fn check(&self) -> Result<(), SelectorError> {
        let problem = match (self.operator.as_str(), self.values.is_empty()) {
            ("In" | "NotIn", true) => "In and NotIn need values",
            ("Exists" | "DoesNotExist", false) => "Exists and DoesNotExist take no values",
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => return Ok(()),
            _ => "the operator is not one of In, NotIn, Exists, DoesNotExist",
        };
        Err(SelectorError { key: self.key.clone(), problem })
    }
}

impl LabelSelector {
    /// A selector on exact labels.
    pub fn labels<K: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        Self { match_labels: labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect(), match_expressions: Vec::new() }
    }

    /// Whether all parts match.
    pub fn matches(&self, labels: &LabelMap) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|r| r.matches(labels))
    }

    /// Matches everything.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Says what is wrong with the selector, if anything.
    pub fn check(&self) -> Result<(), SelectorError> {
        self.match_expressions.iter().try_for_each(Requirement::check)
    }

    /// The `labelSelector` query form, also what `scale.status.selector` carries.
    pub fn query(&self) -> String {
        let exact = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(|r| match r.operator.as_str() {
            "In" => format!("{} in ({})", r.key, r.values.join(",")),
            "NotIn" => format!("{} notin ({})", r.key, r.values.join(",")),
            "DoesNotExist" => format!("!{}", r.key),
            _ => r.key.clone(),
        });
        exact.chain(expressions).collect::<Vec<_>>().join(",")
    }
}

/// `a=b,c=d`.
pub fn format_labels(labels: &LabelMap) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> LabelMap {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn every_operator_follows_the_reference() {
        let have = labels(&[("app", "web"), ("cores", "8")]);
        for (key, operator, values, want) in [
            ("app", "In", &["web", "db"][..], true),
            ("app", "In", &["db"], false),
            ("none", "In", &["db"], false),
            ("app", "NotIn", &["db"], true),
            ("none", "NotIn", &["db"], true),
            ("app", "NotIn", &["web"], false),
            ("app", "Exists", &[], true),
            ("none", "Exists", &[], false),
            ("none", "DoesNotExist", &[], true),
            ("app", "DoesNotExist", &[], false),
            ("cores", "Gt", &["4"], true),
            ("cores", "Lt", &["4"], false),
            ("app", "Gt", &["4"], false),
            ("app", "Is", &["web"], false),
        ] {
            let r = Requirement { key: key.into(), operator: operator.into(), values: values.iter().map(|v| v.to_string()).collect() };
            assert_eq!(r.matches(&have), want, "{key} {operator} {values:?}");
        }
        assert!(LabelSelector::default().matches(&have));
    }

    #[test]
    fn the_query_form_is_the_one_the_api_parses() {
        let selector: LabelSelector =
            serde_json::from_str(r#"{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"t","operator":"In","values":["x","y"]},{"key":"z","operator":"DoesNotExist"}]}"#)
                .unwrap();
        assert_eq!(selector.query(), "a=b,t in (x,y),!z");
    }
}
