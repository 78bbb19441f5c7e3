//! Reading the files that configure the server and carry a version and a kind. What is wrong with one is told with its path, and with why.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// What a file of one kind is.
pub trait ConfigFile: DeserializeOwned {
    const KIND: &str;
    /// The versions that are read; the first is the one that errors name.
    const VERSIONS: &[&str];

    /// `apiVersion` and `kind` as they were written.
    fn head(&self) -> (&str, &str);
}

/// A file cannot be used; `what` is it for people, such as `audit policy`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    #[error("read the {what} {}", path.display())]
    Read { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("understand the {what} {}", path.display())]
    Content { what: &'static str, path: PathBuf, source: Box<dyn Error + Send + Sync> },
}

/// A text is not such a file.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("decode {kind}: {why}")]
    Shape { kind: &'static str, why: serde_yaml::Error },
    #[error("{api_version} {kind} is not {wanted}")]
    Kind { api_version: String, kind: String, wanted: String },
}

/// Reads a file and what `parse` makes of it.
pub fn read<T, E>(what: &'static str, path: &Path, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, ConfigFileError>
where
    E: Error + Send + Sync + 'static,
{
    let text = std::fs::read_to_string(path).map_err(|source| ConfigFileError::Read { what, path: path.to_owned(), source })?;
    parse(&text).map_err(|e| ConfigFileError::Content { what, path: path.to_owned(), source: e.into() })
}

/// The content of a file, when it is of the right kind and version.
pub fn decode<T: ConfigFile>(text: &str) -> Result<T, DecodeError> {
    checked(serde_yaml::from_str(text))
}

/// As [`decode`], of what stands within another file.
pub fn decode_value<T: ConfigFile>(value: serde_yaml::Value) -> Result<T, DecodeError> {
    checked(serde_yaml::from_value(value))
}

fn checked<T: ConfigFile>(decoded: Result<T, serde_yaml::Error>) -> Result<T, DecodeError> {
    let file = decoded.map_err(|why| DecodeError::Shape { kind: T::KIND, why })?;
    let (api_version, kind) = file.head();
    if kind != T::KIND || !T::VERSIONS.contains(&api_version) {
        let wanted = format!("{} {}", T::VERSIONS.first().unwrap_or(&""), T::KIND);
        return Err(DecodeError::Kind { api_version: api_version.to_owned(), kind: kind.to_owned(), wanted });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Example {
        api_version: String,
        kind: String,
    }

    impl ConfigFile for Example {
        const KIND: &str = "Example";
        const VERSIONS: &[&str] = &["example.io/v1", "example.io/v1beta1"];

        fn head(&self) -> (&str, &str) {
            (&self.api_version, &self.kind)
        }
    }

    fn whole(e: &ConfigFileError) -> String {
        format!("{e}: {}", e.source().map(ToString::to_string).unwrap_or_default())
    }

    #[test]
    fn errors_name_the_operation_the_path_and_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.yaml");
        let load = || read("example", &path, decode::<Example>);
        let e = whole(&load().unwrap_err());
        assert!(e.starts_with("read the example ") && e.contains("x.yaml: No such file"), "{e}");
        for (text, named) in [
            ("apiVersion: example.io/v1\nkind: Example\nmore: 1", "unknown field `more`"),
            ("kind: Example", "missing field `apiVersion`"),
            ("apiVersion: v1\nkind: Example", "v1 Example is not example.io/v1 Example"),
            ("apiVersion: example.io/v1\nkind: Other", "example.io/v1 Other is not example.io/v1 Example"),
        ] {
            std::fs::write(&path, text).unwrap();
            let e = whole(&load().unwrap_err());
            assert!(e.starts_with("understand the example ") && e.contains("x.yaml") && e.contains(named), "{e}");
        }
        std::fs::write(&path, "apiVersion: example.io/v1beta1\nkind: Example").unwrap();
        assert!(load().is_ok());
    }
}
