//! Protobuf in and out of documents, byte for byte what upstream's generated code reads and writes.

mod decode;
mod encode;
mod revise;
pub(crate) mod wire;

pub use decode::{Envelope, open_envelope};
pub use encode::write_envelope;
pub use revise::Revisable;
pub use wire::{field_len, put_bytes, put_tag, put_varint};

/// What every protobuf-encoded object in the API begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
