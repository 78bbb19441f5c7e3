//! Custom resources: definitions made into resources that are served like the built-in ones, and what is done to their objects.

pub mod cel;
pub mod controller;
pub mod conversion;
pub mod crd;
mod definition;
mod formats;
pub mod jsonpath;
pub mod objects;
mod review;
mod schema_rules;
mod shape;
mod structural;
pub mod table;
mod types;
mod validate;

pub use definition::{Custom, Definition, Scale, is_true, to_doc};

/// Where definitions are stored.
pub const PREFIX: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// Whether a value is what an omitted field means.
fn is_nothing(v: &serde_json::Value) -> bool {
    match v {
        serde_json::Value::Null => true,
        serde_json::Value::String(s) => s.is_empty(),
        serde_json::Value::Array(a) => a.is_empty(),
        _ => false,
    }
}
