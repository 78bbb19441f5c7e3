//! `strakectl context`: the contexts of the strakeconfig.

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
}

impl Context {
    pub fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let path = cx.strakeconfig_path()?;
        let mut config = StrakeConfig::load(&path)?;
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
        }
    }
}
