//! The two slots of an installed disk. An upgrade writes the slot that does not run and tries it once; what is known of both survives in
//! META, a partition of 1 MiB outside of every file system, because it is needed before any file system is.
//!
//! Here are the formats and the decisions, which init, machined and the image builder share: what META holds ([`meta`], [`record`]), what
//! an upgrade file begins with ([`manifest`]), which config a system reads ([`fields`]), whether a machine takes it now ([`checks`]), what the boot loader is told ([`loader`]), how a slot is
//! named in the partition table ([`table`]), when a system that is tried is good ([`gate`]), and which images open encrypted volumes ([`sealed`], [`kernel_image`]). No effects: bytes and values go in and
//! come out.
#![warn(missing_docs)]

pub mod checks;
pub mod fields;
pub mod gate;
pub mod kernel_image;
pub mod loader;
pub mod manifest;
pub mod meta;
pub mod record;
pub mod sealed;
pub mod table;
