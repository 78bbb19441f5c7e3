//! Patches: partial documents laid over a config.
//!
//! A patch's document is matched with the config's of the same kind (and name, where there may be several); one that has no match is
//! added. Mappings are merged key by key, `null` removes a key, and lists and scalars replace what was there. `$patch: delete` in a document or mapping
//! removes it, `$patch: replace` replaces it as a whole.

use crate::path::FieldPath;
use crate::problem::{ConfigErrors, Problem};
use crate::v1alpha1::DocumentKind;
use crate::yaml::{self, Node};

const DIRECTIVE: &str = "$patch";

/// Lays patches over a config, one after the other, and gives the text of the result. The result is not checked: parse it.
pub fn patch<'a>(file: &str, text: &str, patches: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<String, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let mut documents = read(file, text, &mut errors);
    for (patch_file, patch_text) in patches {
        for overlay in read(patch_file, patch_text, &mut errors) {
            let Some(identity) = identity(&overlay) else {
                let reason = "a patch needs apiVersion and kind, and a name where there may be several of its kind".to_owned();
                errors.push(unplaced(patch_file, reason));
                continue;
            };
            let place = documents.iter().position(|d| self::identity(d).as_ref() == Some(&identity));
            match (place, directive(&overlay)) {
                (Some(i), Some("delete")) => drop(documents.remove(i)),
                (None, Some("delete")) => {
                    errors.push(unplaced(patch_file, format!("there is no document {} to delete", identity.join(" "))))
                }
                (Some(i), _) => documents[i] = merge(Some(std::mem::replace(&mut documents[i], Node::Null)), overlay),
                (None, _) => documents.push(merge(None, overlay)),
            }
        }
    }
    errors.or(yaml::render(&documents))
}

fn unplaced(file: &str, reason: String) -> Problem {
    Problem { file: file.to_owned(), line: 0, column: 0, document: String::new(), path: FieldPath::default(), reason }
}

fn read(file: &str, text: &str, errors: &mut ConfigErrors) -> Vec<Node> {
    let (documents, error) = yaml::parse(text);
    if let Some(error) = error {
        errors.push(Problem { line: error.line, column: error.column, ..unplaced(file, error.reason) });
    }
    documents.into_iter().map(|(_, node)| node).collect()
}

fn identity(document: &Node) -> Option<Vec<String>> {
    let text = |key: &str| document.get(key).and_then(Node::as_str).map(str::to_owned);
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    let name = if DocumentKind::is_named(&kind) { Some(text("name")?) } else { None };
    Some([version, kind].into_iter().chain(name).collect())
}

fn directive(node: &Node) -> Option<&str> {
    node.get(DIRECTIVE).and_then(Node::as_str)
}

fn merge(base: Option<Node>, overlay: Node) -> Node {
    let replace = directive(&overlay) == Some("replace");
    let Node::Map(overlay) = overlay else { return overlay };
    let mut entries = match base {
        Some(Node::Map(entries)) if !replace => entries,
        _ => Vec::new(),
    };
    for (key, value) in overlay {
        if key == DIRECTIVE {
            continue;
        }
        let place = entries.iter().position(|(k, _)| *k == key);
        let delete = value == Node::Null || directive(&value) == Some("delete");
        match (place, delete) {
            (Some(i), true) => drop(entries.remove(i)),
            (None, true) => {}
            (Some(i), false) => entries[i].1 = merge(Some(std::mem::replace(&mut entries[i].1, Node::Null)), value),
            (None, false) => entries.push((key, merge(None, value))),
        }
    }
    Node::Map(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str =
        "apiVersion: v\nkind: ClusterConfig\na: {b: 1, c: [1, 2]}\n---\napiVersion: v\nkind: LinkConfig\nname: eth0\nmtu: 9000\n";

    #[test]
    fn patches_merge_maps_replace_lists_and_delete() {
        let head = "apiVersion: v\nkind: ClusterConfig\n";
        let link = "---\napiVersion: v\nkind: LinkConfig\nname: eth0\nmtu: 9000\n";
        let cases = [
            ("a: {c: [3]}", "a:\n  b: 1\n  c:\n  - 3\n"),
            ("a: {b: null, d: {e: x}}", "a:\n  c:\n  - 1\n  - 2\n  d:\n    e: x\n"),
            ("a: {$patch: replace, d: 1}", "a:\n  d: 1\n"),
            ("a: {$patch: delete}", ""),
        ];
        for (overlay, expected) in cases {
            let patch_text = format!("{head}{overlay}\n");
            assert_eq!(patch("base", BASE, [("p", patch_text.as_str())]).expect(overlay), format!("{head}{expected}{link}"), "{overlay}");
        }
        let gone = patch("base", BASE, [("p", "apiVersion: v\nkind: LinkConfig\nname: eth0\n$patch: delete\n")]).expect("delete");
        assert!(!gone.contains("LinkConfig"));
        let added = patch("base", BASE, [("p", "apiVersion: v\nkind: LinkConfig\nname: eth1\nmtu: 1500\n")]).expect("add");
        assert!(added.contains("eth0") && added.contains("eth1"));
    }

    #[test]
    fn a_patch_that_says_not_what_it_patches_is_refused() {
        assert!(patch("base", BASE, [("p", "a: 1\n")]).is_err());
        assert!(patch("base", BASE, [("p", "apiVersion: v\nkind: LinkConfig\nmtu: 1\n")]).is_err());
        assert!(patch("base", BASE, [("p", "apiVersion: v\nkind: LinkConfig\nname: eth9\n$patch: delete\n")]).is_err());
    }
}
