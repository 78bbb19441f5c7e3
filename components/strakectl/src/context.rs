//! The strakeconfig file: which clusters a person knows, how to reach their machines and as whom.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It could not be read.
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// It could not be written.
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    /// It is not a strakeconfig.
    #[error("{path} is not a strakeconfig")]
    Parse { path: PathBuf, source: serde_yaml::Error },
    /// It could not be made text.
    #[error("write the strakeconfig as YAML")]
    Encode(#[source] serde_yaml::Error),
    /// There is no such context.
    #[error("there is no context {name:?} in {path}; it has: {known}")]
    Unknown { name: String, path: PathBuf, known: String },
    /// None is current, and none was named.
    #[error("{path} has no current context; choose one of these with --context or `strakectl context use`: {known}")]
    NoCurrent { path: PathBuf, known: String },
    /// A field is not base64 of text.
    #[error("{field} of the context is not base64 of a PEM text")]
    Field { field: &'static str },
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrakeConfig {
    /// The context that is used when none is named.
    #[serde(default)]
    pub context: String,
    /// All contexts by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One cluster and one identity in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Control-plane machines, `host` or `host:port`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// The machines that are meant when `--nodes` is not given; empty is the first endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// The machine CA, base64 of PEM.
    pub ca: String,
    /// The client certificate, base64 of PEM.
    pub crt: String,
    /// Its key, base64 of PEM.
    pub key: String,
}

/// The three PEM texts of a context.
#[derive(Clone)]
pub struct Credentials {
    /// The machine CA.
    pub ca: String,
    /// The client certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Context {
    /// A context from PEM texts.
    pub fn new(endpoints: Vec<String>, credentials: &Credentials) -> Context {
        let encode = |pem: &str| STANDARD.encode(pem);
        Context {
            endpoints,
            nodes: Vec::new(),
            ca: encode(&credentials.ca),
            crt: encode(&credentials.certificate),
            key: encode(&credentials.key),
        }
    }

    /// The PEM texts.
    pub fn credentials(&self) -> Result<Credentials, ContextError> {
        let decode = |field, text: &str| {
            STANDARD.decode(text.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(ContextError::Field { field })
        };
        Ok(Credentials { ca: decode("ca", &self.ca)?, certificate: decode("crt", &self.crt)?, key: decode("key", &self.key)? })
    }
}

impl StrakeConfig {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<StrakeConfig, ContextError> {
        let text = fs::read_to_string(path).map_err(|source| ContextError::Read { path: path.to_owned(), source })?;
        serde_yaml::from_str(&text).map_err(|source| ContextError::Parse { path: path.to_owned(), source })
    }

    /// The file's text.
    pub fn to_yaml(&self) -> Result<String, ContextError> {
        serde_yaml::to_string(self).map_err(ContextError::Encode)
    }

    /// Writes the file, readable for its owner only.
    pub fn save(&self, path: &Path) -> Result<(), ContextError> {
        write_private(path, self.to_yaml()?.as_bytes()).map_err(|source| ContextError::Write { path: path.to_owned(), source })
    }

    /// The context of this name, or the one that is current. `path` is for the error.
    pub fn select(&self, name: Option<&str>, path: &Path) -> Result<(&str, &Context), ContextError> {
        let name = name.unwrap_or(&self.context);
        if name.is_empty() {
            return Err(ContextError::NoCurrent {
                path: path.to_owned(),
                known: self.contexts.keys().cloned().collect::<Vec<_>>().join(", "),
            });
        }
        let found = self.contexts.get_key_value(name).map(|(name, context)| (name.as_str(), context));
        found.ok_or_else(|| ContextError::Unknown {
            name: name.to_owned(),
            path: path.to_owned(),
            known: self.contexts.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

/// Writes a file that only its owner reads, through a new file beside it.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn credentials() -> Credentials {
        Credentials { ca: "CA\n".into(), certificate: "CRT\n".into(), key: "KEY\n".into() }
    }

    #[test]
    fn what_is_saved_is_loaded_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/strakeconfig");
        let context = Context::new(vec!["127.0.0.1:41001".into()], &credentials());
        let config = StrakeConfig { context: "c".into(), contexts: BTreeMap::from([("c".to_owned(), context)]) };
        config.save(&path).unwrap();
        assert_eq!(StrakeConfig::load(&path).unwrap(), config);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (name, context) = config.select(None, &path).unwrap();
        assert_eq!((name, context.credentials().unwrap().key.as_str()), ("c", "KEY\n"));
    }

    #[test]
    fn mistakes_are_named() {
        let config = StrakeConfig { context: "gone".into(), contexts: BTreeMap::from([("here".to_owned(), Context::default())]) };
        let error = config.select(None, Path::new("f")).unwrap_err().to_string();
        assert_eq!(error, "there is no context \"gone\" in f; it has: here");
        let bad = Context { ca: "%".into(), ..Context::default() };
        assert!(matches!(bad.credentials(), Err(ContextError::Field { field: "ca" })));
        assert!(serde_yaml::from_str::<StrakeConfig>("context: a\nbogus: 1\n").is_err());
    }
}
