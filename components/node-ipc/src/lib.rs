//! The local protocols between the host services: [`init`] (PID 1's control socket), [`logd`] (log queries) and [`stdio`]
//! (how init hands the output of services to logd).
//!
//! Pure: types, size bounds, encoding and decoding. Opening sockets is the caller's business, so that init and logd
//! (synchronous) and machined (async) share one definition. Every message is JSON and bounded by [`MAX_PACKET`] (packets)
//! or [`MAX_LINE`] (streams).
#![warn(missing_docs)]

pub mod codec;
pub mod init;
pub mod logd;
pub mod stdio;

pub use codec::{CodecError, LineDecoder, MAX_LINE, MAX_PACKET, decode, encode_line, encode_packet, read_line, write_line};
