//! Sizes that client and server both keep. A request beyond them is refused before it is read to its end.

/// The largest single message, in bytes, of a method without a stream.
pub const MESSAGE_BYTES: usize = 4 << 20;
/// Bytes of data in one [`crate::v1alpha1::Chunk`].
pub const CHUNK_BYTES: usize = 256 << 10;
/// Files of one machine config.
pub const CONFIG_FILES: usize = 32;
/// Bytes of all files of one machine config together.
pub const CONFIG_BYTES: usize = 1 << 20;
/// Bytes of an image archive that may be imported.
pub const IMAGE_BYTES: u64 = 8 << 30;
/// Bytes of an etcd snapshot.
pub const SNAPSHOT_BYTES: u64 = 8 << 30;
/// Entries of one directory listing.
pub const DIRECTORY_ENTRIES: usize = 10_000;
/// Bytes of a path or a name in a request.
pub const NAME_BYTES: usize = 4096;
/// Bytes of a file that may be read.
pub const FILE_BYTES: u64 = 1 << 30;
/// Lines asked for with `tail`.
pub const TAIL_LINES: u32 = 100_000;
