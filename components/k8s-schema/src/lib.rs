//! The Kubernetes schema table, schema-typed documents, and what is derived from them. Pure.
//!
//! [`Schema`] is the table of types; [`Doc`] is a document of one of them. Decoding, encoding, patches, server-side apply,
//! selectors, validation and OpenAPI all work on these two, for built-in kinds and custom resources alike.

#![warn(missing_docs)]

pub mod apply;
pub mod defaults;
pub mod doc;
pub mod json;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod proto;
pub mod quantity;
pub mod selector;
pub mod table;
pub mod time;

pub use doc::{Doc, EditError, IntOrString, Meta, Mut, OwnerReference, Ref};
pub use json::{DecodeError, Decoded, TypeMeta, peek_type_meta};
pub use quantity::Quantity;
pub use serde_json::{Value, json as value};
pub use table::{Field, Gvk, Kind, ListType, Schema, Type, TypeId, api_version, split_api_version};
