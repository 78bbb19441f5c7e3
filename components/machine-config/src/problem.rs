//! What is wrong with a config: every problem with its place, all of them at once.

use std::fmt;

use crate::path::FieldPath;

/// Most problems that one reading reports; the rest is counted.
pub const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name as the caller gave it.
    pub file: String,
    /// Line from 1; 0 when it has no place in the text (a document that is missing).
    pub line: usize,
    /// Column from 1; 0 likewise.
    pub column: usize,
    /// Which document: its kind, and its name when it has one.
    pub document: String,
    /// The field.
    pub path: FieldPath,
    /// What is wrong with it and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.document.is_empty() {
            write!(f, ": {}", self.document)?;
        }
        if !self.path.0.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Everything that is wrong, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The problems, at most [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub omitted: usize,
}

impl ConfigErrors {
    /// Adds a problem, or counts it when there are too many.
    pub fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.omitted += 1;
        }
    }

    /// Adds all of another's problems.
    pub fn extend(&mut self, other: ConfigErrors) {
        self.omitted += other.omitted;
        for problem in other.problems {
            self.push(problem);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// `Ok` when nothing is wrong.
    pub fn or<T>(mut self, value: T) -> Result<T, ConfigErrors> {
        if self.is_empty() {
            return Ok(value);
        }
        self.problems.sort_by(|a, b| (&a.file, a.line, a.column, &a.path).cmp(&(&b.file, b.line, b.column, &b.path)));
        Err(self)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
