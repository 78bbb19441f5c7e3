//! JSON in and out of documents, with the behaviour and the error texts of Go's decoder and encoder.

pub(crate) mod cursor;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod peek;
pub mod syntax;
mod value;

pub use decode::{DecodeError, Decoded};
pub(crate) use encode::{write_compact, write_escaped, write_string};
pub use peek::{TypeMeta, peek_type_meta};
pub(crate) use value::field_value;
