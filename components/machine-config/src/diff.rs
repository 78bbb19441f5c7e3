//! What a new config changes, for `--dry-run` and for deciding what must happen; and hiding secrets from people's screens.

use std::collections::BTreeSet;
use std::fmt;

use crate::config::Config;
use crate::path::FieldPath;
use crate::yaml::Node;

/// What stands in place of a secret.
pub const REDACTED: &str = "<redacted>";

/// What a change asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Applied while everything runs; components whose files change are restarted.
    Live,
    /// Takes effect with the next boot.
    Reboot,
    /// Only takes effect on a machine that is installed anew; it is refused on a running one.
    Reinstall,
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The document's identity.
    pub document: String,
    /// The field; empty for a whole document.
    pub path: FieldPath,
    /// The value before; `None` when it was not there or at its default.
    pub old: Option<Node>,
    /// The value after, likewise.
    pub new: Option<Node>,
    /// What it asks of the machine.
    pub effect: Effect,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.document)?;
        if !self.path.0.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        let show = |node: &Option<Node>| node.as_ref().map_or_else(|| "(default)".to_owned(), one_line);
        match (&self.old, &self.new) {
            (None, Some(new)) if self.path.0.is_empty() => write!(f, ": added {}", one_line(new))?,
            (Some(_), None) if self.path.0.is_empty() => write!(f, ": removed")?,
            (old, new) => write!(f, ": {} -> {}", show(old), show(new))?,
        }
        match self.effect {
            Effect::Live => Ok(()),
            Effect::Reboot => f.write_str("  [needs a reboot]"),
            Effect::Reinstall => f.write_str("  [needs a reinstallation]"),
        }
    }
}

fn one_line(node: &Node) -> String {
    crate::model::to_json(node).to_string()
}

/// Every field that differs, in the order of the documents. Secrets are hidden; that they differ is not.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let side = |config: &Config| -> Vec<(String, Node)> { config.documents().iter().map(|d| (d.identity(), d.encode())).collect() };
    let (old, new) = (side(old), side(new));
    let identities: Vec<&String> =
        old.iter().map(|(i, _)| i).chain(new.iter().map(|(i, _)| i).filter(|i| !old.iter().any(|(o, _)| o == *i))).collect();
    let mut changes = Vec::new();
    for identity in identities {
        let find = |side: &[(String, Node)]| side.iter().find(|(i, _)| i == identity).map(|(_, n)| n.clone());
        compare(identity, &FieldPath::default(), find(&old), find(&new), &mut changes);
    }
    changes
}

fn compare(document: &str, path: &FieldPath, old: Option<Node>, new: Option<Node>, changes: &mut Vec<Change>) {
    if old == new {
        return;
    }
    if let (Some(Node::Map(a)), Some(Node::Map(b))) = (&old, &new) {
        let keys: BTreeSet<&String> = a.iter().chain(b).map(|(k, _)| k).collect();
        for key in keys {
            let find = |side: &[(String, Node)]| side.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
            compare(document, &path.clone().field(key), find(a), find(b), changes);
        }
        return;
    }
    let hide = |node: Option<Node>| node.map(|n| if is_secret(path) { Node::Str(REDACTED.to_owned()) } else { redact(n) });
    changes.push(Change {
        document: document.to_owned(),
        path: path.clone(),
        old: hide(old),
        new: hide(new),
        effect: effect(document, path),
    });
}

/// The strongest effect of a set of changes.
pub fn strongest(changes: &[Change]) -> Effect {
    changes.iter().map(|c| c.effect).max().unwrap_or(Effect::Live)
}

/// Whether anything only takes effect with the next boot.
pub fn requires_reboot(changes: &[Change]) -> bool {
    changes.iter().any(|c| c.effect == Effect::Reboot)
}

/// Prefixes of fields that cannot change while the machine runs. Everything else can.
const EFFECTS: &[(&str, &str, Effect)] = &[
    ("MachineConfig", "role", Effect::Reinstall),
    ("MachineConfig", "install", Effect::Reinstall),
    ("ClusterConfig", "name", Effect::Reinstall),
    ("ClusterConfig", "network.podSubnets", Effect::Reinstall),
    ("ClusterConfig", "network.serviceSubnets", Effect::Reinstall),
    ("ClusterConfig", "network.nodeMask", Effect::Reinstall),
    ("MachineSecrets", "clusterID", Effect::Reinstall),
    ("MachineSecrets", "certificateAuthorities", Effect::Reinstall),
    ("MachineSecrets", "serviceAccountKey", Effect::Reinstall),
    ("VolumeConfig", "", Effect::Reinstall),
    ("HostnameConfig", "", Effect::Reboot),
    ("ClusterConfig", "network.dnsDomain", Effect::Reboot),
];

fn effect(document: &str, path: &FieldPath) -> Effect {
    let path = path.to_string();
    let kind = document.split(' ').next().unwrap_or_default();
    let under =
        |prefix: &str| prefix.is_empty() || path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['.', '[']));
    EFFECTS.iter().find(|(d, prefix, _)| *d == kind && under(prefix)).map_or(Effect::Live, |(_, _, e)| *e)
}

fn is_secret(path: &FieldPath) -> bool {
    matches!(path.0.last(), Some(crate::Step::Field(name, _)) if secret_key(name))
}

fn secret_key(name: &str) -> bool {
    matches!(name, "joinToken" | "serviceAccountKey" | "key")
}

/// The tree with every key and token of a `MachineSecrets` document replaced.
pub fn redact(node: Node) -> Node {
    let secrets = node.get("kind").and_then(Node::as_str).is_some_and(|k| k == "MachineSecrets");
    if secrets { hide(node) } else { node }
}

fn hide(node: Node) -> Node {
    match node {
        Node::Map(entries) => Node::Map(
            entries
                .into_iter()
                .map(|(key, value)| if secret_key(&key) { (key, Node::Str(REDACTED.to_owned())) } else { (key, hide(value)) })
                .collect(),
        ),
        Node::Seq(items) => Node::Seq(items.into_iter().map(hide).collect()),
        other => other,
    }
}
