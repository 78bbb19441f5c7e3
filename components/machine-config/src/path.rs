//! Paths to fields inside a document, as people write them: `network.podSubnets[0]`.

use std::fmt;

/// One step down into a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A mapping's key, and which of several equal keys (0 is the first).
    Field(String, usize),
    /// A list's element.
    Index(usize),
}

/// A path from a document's root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(pub Vec<Step>);

impl FieldPath {
    /// A path made of keys alone, written with dots.
    pub fn fields(dotted: &str) -> Self {
        Self(dotted.split('.').filter(|s| !s.is_empty()).map(|s| Step::Field(s.to_owned(), 0)).collect())
    }

    /// This path with one more element index.
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }

    /// This path with one more key.
    pub fn field(mut self, key: &str) -> Self {
        self.0.push(Step::Field(key.to_owned(), 0));
        self
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name, _) if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') && !name.is_empty() => {
                    write!(f, "{}{name}", if i == 0 { "" } else { "." })?
                }
                Step::Field(name, _) => write!(f, "[{name:?}]")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_people_write_them() {
        assert_eq!(FieldPath::fields("network.podSubnets").index(1).to_string(), "network.podSubnets[1]");
        assert_eq!(FieldPath::fields("labels").field("a.b/c").to_string(), "labels[\"a.b/c\"]");
        assert_eq!(FieldPath::default().to_string(), "");
    }
}
