//! Reads the words about a type out of a generated source: those of its JSON schema, which unlike the doc comments are upstream's to the letter.

use std::collections::BTreeMap;

/// The words of one source file, by definition and field (of the type itself: an empty name), escaped as in a string literal: on one line, and
/// without a tab.
///
/// Where in the schema a line belongs is told by its indentation, which the generator never varies; a file of another shape gives nothing.
pub fn descriptions(source: &str, table: &mut BTreeMap<(String, String), String>) {
    let Some(definition) = source.strip_prefix("// Generated from definition ").and_then(|s| s.lines().next()) else { return };
    let Some((_, schema)) = source.split_once("json_schema!({") else { return };
    let mut field = "";
    for line in schema.lines() {
        let trimmed = line.trim_start();
        let Some((key, rest)) = trimmed.strip_prefix('"').and_then(|l| l.split_once("\": ")) else { continue };
        let words = || rest.strip_prefix('"').and_then(|r| r.strip_suffix("\","));
        match (line.len() - trimmed.len(), key) {
            (12, "description") => insert(table, definition, "", words()),
            (20, "description") => insert(table, definition, field, words()),
            (16, name) => field = name,
            _ => {}
        }
    }
}

fn insert(table: &mut BTreeMap<(String, String), String>, definition: &str, field: &str, words: Option<&str>) {
    if let Some(words) = words {
        table.insert((definition.to_owned(), field.to_owned()), words.to_owned());
    }
}
