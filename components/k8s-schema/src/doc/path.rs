//! Paths in code: `spec.containers[0].image`, `metadata.labels[app.kubernetes.io/name]`.

/// One step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// A field of a struct, or a key of a map.
    Name(&'a str),
    /// What stood in brackets: an index of a list, or a key of a map.
    Bracket(&'a str),
}

impl<'a> Segment<'a> {
    /// The text of either.
    pub fn text(self) -> &'a str {
        match self {
            Segment::Name(s) | Segment::Bracket(s) => s,
        }
    }
}

/// The steps of a path. An empty path has none; a bracket ends at the next `]`.
pub(crate) fn segments(path: &str) -> Segments<'_> {
    Segments { rest: path }
}

pub(crate) struct Segments<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let rest = self.rest.strip_prefix('.').unwrap_or(self.rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let end = inner.find(']').unwrap_or(inner.len());
            self.rest = inner.get(end + 1..).unwrap_or("");
            return Some(Segment::Bracket(&inner[..end]));
        }
        let end = rest.bytes().position(|c| matches!(c, b'.' | b'[')).unwrap_or(rest.len());
        self.rest = &rest[end..];
        Some(Segment::Name(&rest[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::Segment::{Bracket, Name};
    use super::*;

    #[test]
    fn paths_are_split_at_dots_and_brackets() {
        let all = |p: &'static str| segments(p).collect::<Vec<_>>();
        assert_eq!(all(""), []);
        assert_eq!(all("a.b[0].c"), [Name("a"), Name("b"), Bracket("0"), Name("c")]);
        assert_eq!(all("metadata.labels[a.b/c]"), [Name("metadata"), Name("labels"), Bracket("a.b/c")]);
        assert_eq!(all("a[b"), [Name("a"), Bracket("b")]);
    }
}
