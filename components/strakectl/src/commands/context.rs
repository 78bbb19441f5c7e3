//! `strakectl context`: the contexts of the strakeconfig.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::Cx;
use crate::context::StrakeConfig;
use crate::output;

/// Look at and choose contexts of the strakeconfig.
#[derive(Debug, clap::Subcommand)]
pub enum Context {
    /// List the contexts.
    List,
    /// Make a context the current one.
    Use {
        /// Its name.
        name: String,
    },
    /// Set the machines that are meant when --nodes is not given.
    Nodes {
        /// HOST or HOST:PORT; none means the first endpoint.
        nodes: Vec<String>,
    },
    /// Take the contexts of another strakeconfig over into this one, and use its current one.
    Add {
        /// The other file, such as the one that `gen cluster` or `gen client` wrote.
        file: PathBuf,
        /// Under this name, when the file has one context.
        #[arg(long)]
        name: Option<String>,
        /// Replace contexts of the same name.
        #[arg(long)]
        force: bool,
    },
    /// Remove a context.
    Remove {
        /// Its name.
        name: String,
    },
}

impl Context {
    pub fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let path = cx.strakeconfig_path()?;
        if let Context::Add { file, name, force } = self {
            return add(&path, &file, name, force);
        }
        let mut config = cx.strakeconfig(&path)?;
        match self {
            Context::List => {
                let rows: Vec<_> = config
                    .contexts
                    .iter()
                    .map(|(name, context)| {
                        let current = Value::from(if *name == config.context { "*" } else { "" });
                        output::row(json!({"current": current, "name": name, "endpoints": context.endpoints, "nodes": context.nodes}))
                    })
                    .collect();
                super::print(&output::render(cx.output, &["CURRENT", "NAME", "ENDPOINTS", "NODES"], &rows)?)
            }
            Context::Use { name } => {
                config.context = config.select(Some(&name), &path)?.0.to_owned();
                Ok(config.save(&path)?)
            }
            Context::Nodes { nodes } => {
                let name = config.select(cx.context.as_deref(), &path)?.0.to_owned();
                if let Some(context) = config.contexts.get_mut(&name) {
                    context.nodes = nodes;
                }
                Ok(config.save(&path)?)
            }
            Context::Remove { name } => {
                let name = config.select(Some(&name), &path)?.0.to_owned();
                config.contexts.remove(&name);
                if config.context == name {
                    config.context.clear();
                }
                Ok(config.save(&path)?)
            }
            Context::Add { .. } => Ok(()),
        }
    }
}

/// Into a strakeconfig that may not be there yet.
fn add(path: &Path, file: &Path, name: Option<String>, force: bool) -> anyhow::Result<()> {
    let mut config = if path.exists() { StrakeConfig::load(path)? } else { StrakeConfig::default() };
    let mut other = StrakeConfig::load(file)?;
    if let Some(name) = name {
        let mut contexts = std::mem::take(&mut other.contexts).into_values();
        match (contexts.next(), contexts.next()) {
            (Some(only), None) => other.contexts.insert(name.clone(), only),
            _ => bail!("--name is for a file with one context"),
        };
        other.context = name;
    }
    let taken: Vec<&str> = other.contexts.keys().filter(|name| config.contexts.contains_key(*name)).map(String::as_str).collect();
    ensure!(force || taken.is_empty(), "{} has {} already: give another --name, or replace with --force", path.display(), taken.join(", "));
    if other.contexts.contains_key(&other.context) {
        config.context = other.context;
    }
    config.contexts.extend(other.contexts);
    Ok(config.save(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context as Entry;
    use std::collections::BTreeMap;

    #[test]
    fn contexts_are_taken_over_under_free_names_only() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("own"), dir.path().join("other"));
        let entry = |endpoint: &str| Entry { endpoints: vec![endpoint.into()], ..Entry::default() };
        let write = |name: &str, endpoint: &str| {
            let config = StrakeConfig { context: name.into(), contexts: BTreeMap::from([(name.to_owned(), entry(endpoint))]) };
            config.save(&file).unwrap();
        };
        write("prod", "10.0.0.1");
        add(&path, &file, None, false).unwrap();
        write("prod", "10.9.9.9");
        assert!(add(&path, &file, None, false).unwrap_err().to_string().contains("has prod already"));
        add(&path, &file, Some("test".into()), false).unwrap();
        let config = StrakeConfig::load(&path).unwrap();
        assert_eq!(config.context, "test");
        assert_eq!(
            (config.contexts["prod"].endpoints[0].as_str(), config.contexts["test"].endpoints[0].as_str()),
            ("10.0.0.1", "10.9.9.9")
        );
        add(&path, &file, None, true).unwrap();
        assert_eq!(StrakeConfig::load(&path).unwrap().contexts["prod"].endpoints, ["10.9.9.9"]);
    }
}
