//! Reads the declarations of a Go `types.go`: struct types with their tags and markers, named types, string constants.
//!
//! Only gofmt's output is understood, which is what the packages ship: one declaration or field per line, tabs for
//! nesting, a comment block directly above what it describes. It is not a Go parser and must never become one.

use std::collections::BTreeMap;

/// A comment marker such as `+listType=map`, without the plus sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    pub key: String,
    pub value: String,
}

#[derive(Debug, Clone, Default)]
pub struct Field {
    /// The Go name; for an embedded field the name of its type.
    pub go_name: String,
    pub embedded: bool,
    pub ty: String,
    /// Struct tag key → value.
    pub tags: BTreeMap<String, String>,
    pub markers: Vec<Marker>,
}

#[derive(Debug, Clone)]
pub enum Shape {
    Struct(Vec<Field>),
    /// `type A B` and `type A = B`.
    Named {
        target: String,
        alias: bool,
    },
}

#[derive(Debug, Clone)]
pub struct Decl {
    pub name: String,
    pub shape: Shape,
    pub markers: Vec<Marker>,
}

/// One Go file, or several of one package merged.
#[derive(Debug, Default)]
pub struct Package {
    /// Import alias → import path.
    pub imports: BTreeMap<String, String>,
    pub decls: Vec<Decl>,
    /// Typed string constants: (type, value), in source order.
    pub consts: Vec<(String, String)>,
}

impl Package {
    pub fn read(&mut self, source: &str) {
        let mut comments = Comments::default();
        let mut lines = source.lines();
        while let Some(line) = lines.next() {
            let trimmed = line.trim();
            if comments.take(trimmed) {
                continue;
            }
            if line == "import (" {
                for line in lines.by_ref().take_while(|l| *l != ")") {
                    self.import(line.trim());
                }
            } else if let Some(rest) = line.strip_prefix("import ") {
                self.import(rest);
            } else if line == "const (" {
                for line in lines.by_ref().take_while(|l| *l != ")") {
                    self.constant(line.trim());
                }
            } else if let Some(rest) = line.strip_prefix("const ") {
                self.constant(rest);
            } else if let Some(rest) = line.strip_prefix("type ") {
                let markers = comments.markers_of_type();
                let rest = rest.split("//").next().unwrap_or(rest).trim();
                if let Some(name) = rest.strip_suffix(" struct {") {
                    let fields = read_fields(&mut lines);
                    self.decls.push(Decl { name: name.to_owned(), shape: Shape::Struct(fields), markers });
                } else if let Some((name, target)) = rest.split_once(' ') {
                    let (target, alias) = match target.strip_prefix("= ") {
                        Some(target) => (target, true),
                        None => (target, false),
                    };
                    if !target.ends_with('{') && !target.starts_with("func") {
                        self.decls.push(Decl { name: name.to_owned(), shape: Shape::Named { target: target.to_owned(), alias }, markers });
                    }
                }
            }
            comments.clear();
        }
    }

    fn import(&mut self, line: &str) {
        let line = line.split("//").next().unwrap_or(line).trim();
        let (alias, path) = match line.split_once(' ') {
            Some((alias, path)) => (alias.to_owned(), path),
            None => (String::new(), line),
        };
        let path = path.trim_matches('"');
        let alias = if alias.is_empty() { path.rsplit('/').next().unwrap_or(path).to_owned() } else { alias };
        if !path.is_empty() {
            self.imports.insert(alias, path.to_owned());
        }
    }

    fn constant(&mut self, line: &str) {
        let Some((left, right)) = line.split_once('=') else { return };
        let mut words = left.split_whitespace();
        let (Some(_), Some(ty), None) = (words.next(), words.next(), words.next()) else { return };
        let right = right.trim();
        if let Some(value) = right.strip_prefix('"').and_then(|r| r.split('"').next()) {
            self.consts.push((ty.to_owned(), value.to_owned()));
        }
    }
}

/// The comment block being read, and the one before it (a type's markers may stand in either, as in gengo).
#[derive(Default)]
struct Comments {
    current: Vec<Marker>,
    previous: Vec<Marker>,
    in_block: bool,
}

impl Comments {
    fn take(&mut self, trimmed: &str) -> bool {
        if self.in_block {
            self.in_block = !trimmed.ends_with("*/");
            return true;
        }
        if trimmed.starts_with("/*") {
            self.in_block = !trimmed.ends_with("*/");
            return true;
        }
        if trimmed.is_empty() {
            if !self.current.is_empty() {
                self.previous = std::mem::take(&mut self.current);
            }
            return true;
        }
        let Some(text) = trimmed.strip_prefix("//") else { return false };
        if let Some(marker) = text.trim_start().strip_prefix('+') {
            let marker = marker.trim_end();
            let (key, value) = match split_marker(marker) {
                Some((key, value)) => (key, value),
                None => (marker, ""),
            };
            self.current.push(Marker { key: key.to_owned(), value: value.to_owned() });
        }
        true
    }

    fn markers_of_type(&self) -> Vec<Marker> {
        self.previous.iter().chain(&self.current).cloned().collect()
    }

    fn clear(&mut self) {
        self.current.clear();
        self.previous.clear();
    }
}

/// Splits at the first `=` outside parentheses: `k8s:alpha(since: "1.36")=+k8s:optional` is keyed by what is before.
fn split_marker(marker: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (i, c) in marker.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '=' if depth == 0 => return Some((&marker[..i], &marker[i + 1..])),
            _ => {}
        }
    }
    None
}

fn read_fields<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut comments = Comments::default();
    for line in lines {
        if line == "}" {
            break;
        }
        let trimmed = line.trim();
        if comments.take(trimmed) {
            if trimmed.is_empty() {
                comments.current.clear();
            }
            continue;
        }
        if let Some(mut field) = read_field(trimmed) {
            field.markers = std::mem::take(&mut comments.current);
            fields.push(field);
        }
        comments.clear();
    }
    fields
}

fn read_field(line: &str) -> Option<Field> {
    let (head, tail) = match line.split_once('`') {
        Some((head, tail)) => (head.trim(), tail.split('`').next().unwrap_or("")),
        None => (line.split("//").next().unwrap_or(line).trim(), ""),
    };
    let mut words = head.split_whitespace();
    let first = words.next()?;
    let rest: Vec<&str> = words.collect();
    let embedded = rest.is_empty();
    let ty = if embedded { first.to_owned() } else { rest.join(" ") };
    let go_name = if embedded { first.rsplit('.').next().unwrap_or(first).trim_start_matches('*').to_owned() } else { first.to_owned() };
    Some(Field { go_name, embedded, ty, tags: read_tags(tail), markers: Vec::new() })
}

fn read_tags(mut text: &str) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    while let Some((key, rest)) = text.split_once(":\"") {
        let Some(end) = rest.find('"') else { break };
        tags.insert(key.trim().to_owned(), rest[..end].to_owned());
        text = &rest[end + 1..];
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_with_markers_tags_and_embedding_is_read() {
        let mut p = Package::default();
        p.read(
            "package v1\n\nimport (\n\tmetav1 \"k8s.io/apimachinery/pkg/apis/meta/v1\"\n)\n\n// +enum\ntype Phase string\n\nconst (\n\t// x\n\tA Phase = \"A\"\n\tB Phase = \"B\" // y\n)\n\n// T is.\ntype T struct {\n\tmetav1.TypeMeta `json:\",inline\"`\n\n\t// text\n\t// +optional\n\t// +default=\"TCP\"\n\tP *[]Phase `json:\"p,omitempty\" protobuf:\"bytes,3,opt,name=p\"`\n}\n",
        );
        assert_eq!(p.consts, [("Phase".to_owned(), "A".to_owned()), ("Phase".to_owned(), "B".to_owned())]);
        assert_eq!(p.decls[0].markers[0].key, "enum");
        let Shape::Struct(fields) = &p.decls[1].shape else { panic!("a struct") };
        assert!(fields[0].embedded);
        assert_eq!((fields[0].go_name.as_str(), fields[0].ty.as_str()), ("TypeMeta", "metav1.TypeMeta"));
        assert_eq!(fields[1].ty, "*[]Phase");
        assert_eq!(fields[1].tags["protobuf"], "bytes,3,opt,name=p");
        assert_eq!(fields[1].markers[1], Marker { key: "default".to_owned(), value: "\"TCP\"".to_owned() });
    }
}
