//! What is wrong with an expression before it runs, shown with the line of source and a caret.

use std::fmt;

/// One complaint at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// In characters from the beginning of the source.
    pub offset: usize,
    pub message: String,
}

/// All complaints about a source. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Issues {
    text: String,
    pub list: Vec<Issue>,
}

/// So many complaints are shown.
const MAX_SHOWN: usize = 100;

impl Issues {
    pub fn new(source: &str, mut list: Vec<Issue>) -> Self {
        list.sort_by_key(|i| i.offset);
        list.truncate(MAX_SHOWN);
        Self { text: source.to_owned(), list }
    }

    /// The line, its number and the column (both from 1) of an offset.
    fn place(&self, offset: usize) -> (&str, usize, usize) {
        let mut begin = 0;
        for (i, line) in self.text.split('\n').enumerate() {
            let len = line.chars().count();
            if offset <= begin + len {
                return (line, i + 1, offset - begin + 1);
            }
            begin += len + 1;
        }
        ("", 1, 1)
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, issue) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            let (line, row, column) = self.place(issue.offset);
            write!(f, "ERROR: <input>:{row}:{column}: {}", issue.message)?;
            let shown = line.replace('\t', " ");
            write!(f, "\n | {shown}\n | ")?;
            for c in shown.chars().take(column - 1) {
                // Wide characters take a wide dot, so that the caret stands below its place.
                f.write_str(if c.is_ascii() { "." } else { "\u{ff0e}" })?;
            }
            f.write_str("^")?;
        }
        Ok(())
    }
}
