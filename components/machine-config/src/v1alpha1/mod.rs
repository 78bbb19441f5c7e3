//! The documents of `strake.dev/v1alpha1`. Every kind is in [`DocumentKind`], and nowhere else is there a list of them.

mod cluster;
mod link;
mod machine;
mod names;
mod secrets;
mod volume;

pub use cluster::{
    ApiServerConfig, ClusterConfig, ClusterNetwork, ComponentConfig, ControlPlaneEndpoint, DnsConfig, EtcdConfig, EtcdSnapshots, Resources,
};
pub use link::{LinkConfig, LinkMatch, RouteConfig};
pub use machine::{DiskSelector, InstallConfig, KubeletConfig, MachineConfig, Role, Taint, TaintEffect};
pub use names::{HostnameConfig, ResolverConfig, TimeConfig};
pub use secrets::{CertificateAuthorities, CertificateAuthority, MachineSecrets};
pub use volume::{
    EncryptionKey, EncryptionProvider, KeyFile, KeyKind, Passphrase, RECOVERY_SLOT, TpmKey, USER_VOLUME_LABEL, UserVolumeConfig,
    VolumeConfig, VolumeEncryption, VolumeName,
};

use serde_json::{Value as Json, json};

use crate::model::{Decoder, Value};
use crate::path::Step;
use crate::yaml::Node;

/// What every document says in `apiVersion`.
pub const API_VERSION: &str = "strake.dev/v1alpha1";

macro_rules! kinds {
    ($($kind:ident { named: $named:expr }),* $(,)?) => {
        /// One document of any kind.
        // A config has a handful of them: the size of the largest does not matter.
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, Debug, PartialEq)]
        pub enum DocumentKind { $(#[doc = concat!("A `", stringify!($kind), "` document.")] $kind($kind)),* }

        impl DocumentKind {
            /// The names of all kinds.
            pub const KINDS: &'static [&'static str] = &[$(stringify!($kind)),*];

            /// The kind's name.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => stringify!($kind)),* }
            }

            /// Decodes a document: `apiVersion`, `kind` and the kind's own fields.
            pub fn decode(node: &Node, d: &mut Decoder) -> Option<Self> {
                let entries = d.entries(node)?;
                let text = |key: &str, d: &mut Decoder| match entries.iter().find(|(k, _)| *k == key) {
                    Some((_, value)) => d.within(Step::Field(key.to_owned(), 0), |d| String::decode(value, d)),
                    None => {
                        d.report(format!("{key} is required"));
                        None
                    }
                };
                let version = text("apiVersion", d);
                let kind = text("kind", d);
                if let Some(version) = version && version != API_VERSION {
                    d.within(Step::Field("apiVersion".to_owned(), 0), |d| d.report(format!("{version:?} is not known; use {API_VERSION}")));
                    return None;
                }
                match kind?.as_str() {
                    $(stringify!($kind) => {
                        let mut known = vec!["apiVersion", "kind"];
                        known.extend_from_slice($kind::KEYS);
                        d.unknown(&entries, &known);
                        $kind::decode_entries(&entries, d).map(Self::$kind)
                    })*
                    other => {
                        d.within(Step::Field("kind".to_owned(), 0), |d| d.report(format!("{other:?} is not one of {}", Self::KINDS.join(", "))));
                        None
                    }
                }
            }

            /// The tree that `decode` reads back.
            pub fn encode(&self) -> Node {
                let mut entries = vec![
                    ("apiVersion".to_owned(), Node::Str(API_VERSION.to_owned())),
                    ("kind".to_owned(), Node::Str(self.kind().to_owned())),
                ];
                entries.extend(match self { $(Self::$kind(v) => v.encode_entries()),* });
                Node::Map(entries)
            }

            /// Whether there may be several of this kind, told apart by their `name`.
            pub fn is_named(kind: &str) -> bool {
                match kind {
                    $(stringify!($kind) => $named,)*
                    _ => false,
                }
            }
        }

        /// The JSON Schema of a document of any kind.
        pub fn json_schema() -> Json {
            let kinds: Vec<Json> = vec![$({
                let mut schema = $kind::schema();
                schema["title"] = json!(stringify!($kind));
                schema["properties"]["apiVersion"] = json!({"const": API_VERSION});
                schema["properties"]["kind"] = json!({"const": stringify!($kind)});
                if let Some(required) = schema["required"].as_array_mut() {
                    required.insert(0, json!("kind"));
                    required.insert(0, json!("apiVersion"));
                }
                schema
            }),*];
            json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$id": format!("https://{API_VERSION}"),
                "title": "Strake machine config document",
                "oneOf": kinds,
            })
        }
    };
}

kinds! {
    MachineConfig { named: false },
    ClusterConfig { named: false },
    MachineSecrets { named: false },
    LinkConfig { named: true },
    HostnameConfig { named: false },
    ResolverConfig { named: false },
    TimeConfig { named: false },
    VolumeConfig { named: true },
    UserVolumeConfig { named: true },
}

impl DocumentKind {
    /// What tells this document from the others: its kind, and its name where there may be several.
    pub fn identity(&self) -> String {
        match self {
            Self::LinkConfig(link) => format!("LinkConfig {}", link.name),
            Self::UserVolumeConfig(volume) => format!("UserVolumeConfig {}", volume.name),
            Self::VolumeConfig(volume) => format!("VolumeConfig {}", volume.name),
            other => other.kind().to_owned(),
        }
    }
}
