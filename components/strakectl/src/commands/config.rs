//! `strakectl config`: machine configs as files, without any machine.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use machine_config::diff::{Change, Effect};
use machine_config::{Config as MachineConfig, DocumentKind, Documents, Problem};
use serde_json::json;

use super::Cx;
use super::config_key::Sign;
use crate::output::{self, Format};

/// Check, compare and patch machine configs.
#[derive(Debug, clap::Subcommand)]
pub enum Config {
    /// Check files; every problem is shown with its place.
    Validate {
        /// Files; each is a whole config, or single documents when it has no MachineConfig.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Read all files together as one config.
        #[arg(long)]
        together: bool,
    },
    /// Show what a new config changes and what that asks of the machine.
    Diff {
        /// The config before.
        old: PathBuf,
        /// The config after.
        new: PathBuf,
    },
    /// Lay patches over a config and print the result.
    Patch {
        /// The config.
        config: PathBuf,
        /// Patches, laid over it in order.
        #[arg(required = true, value_name = "PATCH")]
        patches: Vec<PathBuf>,
    },
    /// Print a config with every secret hidden.
    Redact {
        /// The config.
        config: PathBuf,
    },
    /// Explain a document or a field of it: what it says, its type and its default.
    Explain {
        /// A kind and a field's path, such as ClusterConfig.etcd.snapshots.keep; without one the kinds are listed.
        path: Option<String>,
    },
    /// Print the JSON Schema of the documents.
    Schema,
    Sign(Sign),
}

impl Config {
    /// Does what the command line says.
    pub fn run(self, cx: &Cx) -> anyhow::Result<()> {
        match self {
            Self::Sign(verb) => super::print(&verb.signed()?),
            Self::Validate { files, together } => validate(cx, &files, together),
            Self::Diff { old, new } => {
                let (old, new) = (complete(&old)?, complete(&new)?);
                let changes = machine_config::diff::diff(&old, &new);
                if cx.output == Format::Table {
                    let lines: String = changes.iter().map(|change| format!("{change}\n")).collect();
                    return super::print(&lines);
                }
                let rows: Vec<_> = changes.iter().map(change).collect();
                super::print(&output::render(cx.output, &[], &rows)?)
            }
            Self::Patch { config, patches } => {
                let text = read(&config)?;
                let patches: Vec<(String, String)> =
                    patches.iter().map(|p| Ok((p.display().to_string(), read(p)?))).collect::<anyhow::Result<_>>()?;
                let name = config.display().to_string();
                let result = machine_config::merge::patch(&name, &text, patches.iter().map(|(f, t)| (f.as_str(), t.as_str())))?;
                Documents::parse(&name, &result)?;
                super::print(&result)
            }
            Self::Redact { config } => super::print(&complete(&config)?.render_redacted()),
            Self::Explain { path } => super::explain::run(cx, &path.unwrap_or_default()),
            Self::Schema => super::print(&(serde_json::to_string_pretty(&machine_config::json_schema())? + "\n")),
        }
    }
}

fn change(change: &Change) -> output::Row {
    let value = |node: &Option<machine_config::Node>| node.as_ref().map(machine_config::model::to_json);
    let effect = match change.effect {
        Effect::Live => "live",
        Effect::Reboot => "reboot",
        Effect::Reinstall => "reinstall",
    };
    output::row(json!({
        "document": change.document, "path": change.path.to_string(), "old": value(&change.old), "new": value(&change.new), "effect": effect,
    }))
}

fn validate(cx: &Cx, files: &[PathBuf], together: bool) -> anyhow::Result<()> {
    let texts: Vec<(String, String)> = files.iter().map(|f| Ok((f.display().to_string(), read(f)?))).collect::<anyhow::Result<_>>()?;
    let groups: Vec<&[(String, String)]> = if together { vec![&texts] } else { texts.chunks(1).collect() };
    let (mut valid, mut refused) = (String::new(), Vec::new());
    for group in groups {
        let names = group.iter().map(|(f, _)| f.as_str()).collect::<Vec<_>>().join(", ");
        let checked = Documents::parse_all(group.iter().map(|(f, t)| (f.as_str(), t.as_str()))).and_then(|documents| {
            let whole = together || documents.iter().any(|d| matches!(d, DocumentKind::MachineConfig(_)));
            if whole { MachineConfig::from_documents(&documents).map(|_| "a complete config") } else { Ok("documents") }
        });
        match checked {
            Ok(what) => valid.push_str(&format!("{names}: valid ({what})\n")),
            Err(errors) => refused.push(errors),
        }
    }
    if cx.output == Format::Table {
        super::print(&valid)?;
        refused.iter().for_each(|errors| eprintln!("{errors}"));
    } else {
        let rows: Vec<_> = refused.iter().flat_map(|errors| &errors.problems).map(problem).collect();
        super::print(&output::render(cx.output, &[], &rows)?)?;
    }
    if refused.is_empty() { Ok(()) } else { bail!("not valid") }
}

fn problem(problem: &Problem) -> output::Row {
    output::row(json!({
        "file": problem.file, "line": problem.line, "column": problem.column, "document": problem.document, "path": problem.path.to_string(),
        "reason": problem.reason,
    }))
}

fn complete(file: &PathBuf) -> anyhow::Result<MachineConfig> {
    Ok(MachineConfig::parse(&file.display().to_string(), &read(file)?)?)
}

fn read(file: &PathBuf) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}
