//! The verified root as one definition for those who build it, install it and start it: a file system image followed by its dm-verity hash
//! tree (Documentation/admin-guide/device-mapper/verity.rst), and the few [`Parameters`] that a signed kernel image carries. The tree has
//! version 1 of the format, SHA-256, blocks of 4 KiB, the salt before each block, and no superblock: what stands on the disk is never
//! believed. Pure: bytes come in and go out.

mod digest;
mod parameters;
mod tree;

pub use digest::{BadDigest, Digest};
pub use parameters::{BadParameters, Parameters};
pub use tree::{CheckError, Tree, build, check, check_top};

/// Bytes of a block, of the data and of the tree alike.
pub const BLOCK: usize = 4096;
/// More blocks of data than any slot has: 4 GiB.
pub const MAX_DATA_BLOCKS: u64 = 1 << 20;
