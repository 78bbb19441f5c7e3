//! Machine config documents: parse, merge, default, validate and diff.
//!
//! [`Documents`] is a text's documents, each typed and checked by itself; [`Config`] is a complete set of them, checked against one another,
//! which is what a machine runs on. Everything here is a pure function: nothing reads a file, a clock or a device.

#![warn(missing_docs)]

mod config;
pub mod diff;
pub mod disk;
pub mod layout;
pub mod merge;
pub mod model;
mod path;
mod problem;
pub mod v1alpha1;
pub mod values;
mod yaml;

pub use config::{Config, Documents, render as render_documents};
pub use path::{FieldPath, Step};
pub use problem::{ConfigErrors, Problem};
pub use v1alpha1::*;
pub use yaml::{Node, to_values, to_yaml};

use values::KubernetesVersion;

/// The version of Kubernetes that the built-in components speak.
pub const BUILT_IN_KUBERNETES: KubernetesVersion = KubernetesVersion { major: 1, minor: 36, patch: 2 };
