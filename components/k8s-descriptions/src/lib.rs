//! What the built-in types and fields of Kubernetes are for, in words.
//!
//! The words are upstream's, taken by the build script from the sources of `k8s-openapi` (decision 13). In the program they are 150 KB that
//! nothing touches until somebody asks for an OpenAPI document; [`Descriptions::open`] unpacks them for as long as the answer is made.

use std::{
    io::Read,
    sync::{Arc, Mutex, PoisonError, Weak},
};

#[cfg(test)]
mod extract;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.deflate"));

/// What is unpacked now, for those who ask at the same time.
static OPEN: Mutex<Weak<Descriptions>> = Mutex::new(Weak::new());

/// The table cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[error("unpack the descriptions of types and fields")]
pub struct UnpackError(#[from] std::io::Error);

/// The table, unpacked: about 0.8 MB.
#[derive(Debug)]
pub struct Descriptions {
    /// Lines `definition <tab> field <tab> words`, sorted by the first two.
    text: String,
    /// Where each line begins.
    lines: Vec<u32>,
}

impl Descriptions {
    /// Unpacks the table, or shares the one that somebody holds.
    pub fn open() -> Result<Arc<Self>, UnpackError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = open.upgrade() {
            return Ok(shared);
        }
        let mut text = String::new();
        flate2::read::DeflateDecoder::new(PACKED).read_to_string(&mut text)?;
        let mut lines = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            lines.push(at);
            at += line.len() as u32;
        }
        let unpacked = Arc::new(Self { text, lines });
        *open = Arc::downgrade(&unpacked);
        Ok(unpacked)
    }

    /// The words about a definition, such as `io.k8s.api.core.v1.Pod`, or about one of its fields.
    pub fn get(&self, definition: &str, field: Option<&str>) -> Option<String> {
        let field = field.unwrap_or("");
        if let Some(words) = self.find(definition, field) {
            return Some(unescape(words));
        }
        // Lists are a generic type in the sources; what says which type an object is of is the same in all.
        let element = definition.strip_suffix("List").filter(|_| matches!(field, "apiVersion" | "kind"))?;
        self.find(element, field).map(unescape)
    }

    fn find(&self, definition: &str, field: &str) -> Option<&str> {
        let parts = |at: u32| {
            let line = self.text[at as usize..].lines().next().unwrap_or("");
            let mut parts = line.splitn(3, '\t');
            let mut next = || parts.next().unwrap_or("");
            (next(), next(), next())
        };
        let found = self.lines.binary_search_by(|at| {
            let (d, f, _) = parts(*at);
            (d, f).cmp(&(definition, field))
        });
        found.ok().map(|i| parts(self.lines[i]).2)
    }
}

/// Of the escapes of a string literal, those that the generator writes.
fn unescape(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    let mut chars = words.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(other) => out.push(other),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn types_and_fields_of_every_package_are_described() {
        let all = Descriptions::open().unwrap();
        for (definition, field, wanted) in [
            ("io.k8s.api.core.v1.Pod", None, "collection of containers"),
            ("io.k8s.api.core.v1.PodSpec", Some("containers"), "containers"),
            ("io.k8s.api.core.v1.ContainerPort", Some("hostIP"), "host IP"),
            ("io.k8s.api.core.v1.PodList", Some("kind"), "REST resource"),
            ("io.k8s.api.apps.v1.DeploymentSpec", Some("replicas"), "pods"),
            ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", Some("name"), "unique"),
            ("io.k8s.apimachinery.pkg.api.resource.Quantity", None, "fixed-point"),
            ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec", Some("group"), "group"),
            ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec", Some("caBundle"), "CA"),
        ] {
            let words = all.get(definition, field).unwrap_or_else(|| panic!("{definition} {field:?}"));
            assert!(words.contains(wanted), "{definition} {field:?}: {words}");
        }
        assert_eq!(all.get("io.k8s.api.core.v1.PodSpec", Some("nope")), None);
        assert_eq!(all.get("io.k8s.api.core.v1.Nope", None), None);
    }

    #[test]
    fn quotes_and_line_ends_are_those_of_the_text() {
        let all = Descriptions::open().unwrap();
        let quantity = all.get("io.k8s.apimachinery.pkg.api.resource.Quantity", None).unwrap();
        assert!(quantity.contains("\n\n") && quantity.contains("\"canonical form\"") && !quantity.contains('\\'));
        assert_eq!(unescape(r#"a\n\"b\"\t\\"#), "a\n\"b\"\t\\");
    }

    #[test]
    fn the_table_is_shared_by_those_who_hold_it() {
        let (first, second) = (Descriptions::open().unwrap(), Descriptions::open().unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert!(first.lines.len() > 2500, "{}", first.lines.len());
        assert!(PACKED.len() < 200_000, "{}", PACKED.len());
    }

    #[test]
    fn a_source_of_another_shape_gives_nothing() {
        let mut table = BTreeMap::new();
        for source in
            ["", "// Generated from definition a.B", "pub mod a;", "// Generated from definition a.B\njson_schema!({\n\"description\""]
        {
            extract::descriptions(source, &mut table);
        }
        assert!(table.is_empty(), "{table:?}");
        let source = "// Generated from definition a.B\n json_schema!({\n            \"description\": \"A \\\"b\\\".\",\n            \"properties\": {\n                \
                      \"x\": {\n                    \"description\": \"An x.\",\n                    \"items\": {\n                        \"description\": \"no\",\n";
        extract::descriptions(source, &mut table);
        let got: Vec<_> = table.iter().map(|((_, f), w)| (f.as_str(), w.as_str())).collect();
        assert_eq!(got, [("", "A \\\"b\\\"."), ("x", "An x.")]);
    }
}
