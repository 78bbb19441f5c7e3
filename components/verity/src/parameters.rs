//! What must be known of a root before a byte of it is believed.

use serde::{Deserialize, Serialize};

use crate::{BLOCK, Digest, MAX_DATA_BLOCKS};

/// The kernel counts devices in these.
const SECTOR: u64 = 512;
/// Digests in one block of the tree.
const FAN_OUT: u64 = BLOCK as u64 / 32;

/// The parameters of one root. As JSON: `{"root_hash":"<64 digits>","salt":"<64 digits>","data_blocks":N}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Parameters {
    root_hash: Digest,
    salt: Digest,
    data_blocks: u64,
}

/// Parameters that no root has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a root of {0} blocks; it has between 1 and {MAX_DATA_BLOCKS}")]
pub struct BadParameters(u64);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    root_hash: Digest,
    salt: Digest,
    data_blocks: u64,
}

impl TryFrom<Written> for Parameters {
    type Error = BadParameters;

    fn try_from(written: Written) -> Result<Self, BadParameters> {
        Self::new(written.root_hash, written.salt, written.data_blocks)
    }
}

impl Parameters {
    /// The parameters of a root whose file system has this many blocks.
    pub fn new(root_hash: Digest, salt: Digest, data_blocks: u64) -> Result<Self, BadParameters> {
        if (1..=MAX_DATA_BLOCKS).contains(&data_blocks) {
            Ok(Self { root_hash, salt, data_blocks })
        } else {
            Err(BadParameters(data_blocks))
        }
    }

    /// What everything else follows from.
    pub fn root_hash(&self) -> Digest {
        self.root_hash
    }

    /// What is hashed before each block.
    pub fn salt(&self) -> Digest {
        self.salt
    }

    /// Blocks of the file system.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// The UUID of the partition that holds this root, and the name of its file on a medium.
    pub fn root_uuid(&self) -> String {
        self.root_hash.uuid()
    }

    /// Blocks of the tree, which follow the file system's.
    pub fn tree_blocks(&self) -> u64 {
        let (mut blocks, mut level) = (0, self.data_blocks);
        while level > 1 {
            level = level.div_ceil(FAN_OUT);
            blocks += level;
        }
        blocks
    }

    /// Bytes of file system and tree together.
    pub fn total_bytes(&self) -> u64 {
        (self.data_blocks + self.tree_blocks()) * BLOCK as u64
    }

    /// The place of the block whose hash is the root hash: the tree's first, or the only block there is.
    pub fn top_block(&self) -> u64 {
        if self.data_blocks == 1 { 0 } else { self.data_blocks }
    }

    /// Sectors of the verified device.
    pub fn sectors(&self) -> u64 {
        self.data_blocks * (BLOCK as u64 / SECTOR)
    }

    /// The parameters of the kernel's target `verity` with file system and tree on one device. A block that does not match stops the
    /// kernel: the machine must not go on with what it has read before, and the reason stays on the screen until it restarts.
    pub fn table(&self, device: &str) -> String {
        let Self { root_hash, salt, data_blocks } = self;
        format!("1 {device} {device} {BLOCK} {BLOCK} {data_blocks} {data_blocks} sha256 {root_hash} {salt} 1 panic_on_corruption")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(data_blocks: u64) -> Parameters {
        Parameters::new(Digest([0x11; 32]), Digest([0x22; 32]), data_blocks).unwrap()
    }

    #[test]
    fn the_tree_is_as_large_as_the_formats_own_tool_makes_it() {
        for (data, tree) in [(1, 0), (2, 4096), (128, 4096), (129, 12288), (16384, 528_384), (16385, 540_672)] {
            assert_eq!(parameters(data).tree_blocks() * 4096, tree, "{data}");
        }
        assert_eq!(parameters(129).total_bytes(), 132 * 4096);
        assert_eq!((parameters(1).top_block(), parameters(2).top_block()), (0, 2));
    }

    #[test]
    fn the_kernels_line_has_every_field_in_its_place() {
        let (hash, salt) = ("11".repeat(32), "22".repeat(32));
        let line = format!("1 /dev/vda2 /dev/vda2 4096 4096 300 300 sha256 {hash} {salt} 1 panic_on_corruption");
        assert_eq!(parameters(300).table("/dev/vda2"), line);
        assert_eq!(parameters(300).sectors(), 2400);
    }

    #[test]
    fn files_with_other_fields_or_sizes_are_refused() {
        let (hash, salt) = ("11".repeat(32), "22".repeat(32));
        let text = format!(r#"{{"root_hash":"{hash}","salt":"{salt}","data_blocks":300}}"#);
        assert_eq!(serde_json::to_string(&parameters(300)).unwrap(), text);
        assert_eq!(serde_json::from_str::<Parameters>(&text).unwrap(), parameters(300));
        for (from, to) in [("300", "0"), ("300", "1048577"), ("300", "-1"), ("1111", "111"), ("300", r#"300,"algorithm":"md5""#)] {
            assert!(serde_json::from_str::<Parameters>(&text.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
