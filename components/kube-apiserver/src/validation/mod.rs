//! Checking objects: errors that name a field, and the rules for names, labels and numbers that many kinds share. All pure.

pub mod addresses;
pub mod errors;
pub mod names;
pub mod values;

pub use errors::{ErrorList, FieldError, child, index, key};
