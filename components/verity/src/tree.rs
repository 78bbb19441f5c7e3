//! The hash tree: each block of a level holds the hashes of 128 blocks of the level below, the lowest level those of the data. On the disk
//! the levels stand from the top to the bottom.

use std::io::{self, Read};

use sha2::Digest as _;
use sha2::Sha256;

use crate::{BLOCK, Digest, MAX_DATA_BLOCKS, Parameters};

/// How much is read at a time, in blocks.
const PIECE: u64 = 64;
const DIGEST: usize = 32;

/// A finished tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// What stands on the disk behind the data.
    pub bytes: Vec<u8>,
    /// The hash of the first of its blocks.
    pub root_hash: Digest,
}

/// Why an image is not the one that was meant.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It could not be read to its end.
    #[error("read the {0}")]
    Read(&'static str, #[source] io::Error),
    /// Its data are others.
    #[error("the root hash is {found}, expected {expected}")]
    Root { expected: Digest, found: Digest },
    /// Its data are right, but the tree that the kernel will read is not theirs.
    #[error("block {0} of the hash tree is not what its data make")]
    Tree(u64),
}

/// Makes the tree of the next `data_blocks` blocks that are read.
pub fn build(data: &mut impl Read, data_blocks: u64, salt: &Digest) -> io::Result<Tree> {
    if !(1..=MAX_DATA_BLOCKS).contains(&data_blocks) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{data_blocks} blocks have no hash tree")));
    }
    // A SHA-256 that has taken the salt is the same for every block.
    let salted = Sha256::new().chain_update(salt.0);
    let mut digests = Vec::with_capacity(usize::try_from(data_blocks).unwrap_or_default() * DIGEST);
    let mut buffer = vec![0; PIECE as usize * BLOCK];
    let mut left = data_blocks;
    while left > 0 {
        let count = left.min(PIECE);
        // At most PIECE, which the buffer has room for.
        let piece = &mut buffer[..count as usize * BLOCK];
        data.read_exact(piece)?;
        hash_blocks(&salted, piece, &mut digests);
        left -= count;
    }
    let mut levels = Vec::new();
    while digests.len() > DIGEST {
        digests.resize(digests.len().next_multiple_of(BLOCK), 0);
        let mut above = Vec::with_capacity(digests.len() / BLOCK * DIGEST);
        hash_blocks(&salted, &digests, &mut above);
        levels.push(std::mem::replace(&mut digests, above));
    }
    let mut root_hash = [0; DIGEST];
    root_hash.copy_from_slice(&digests);
    levels.reverse();
    Ok(Tree { bytes: levels.concat(), root_hash: Digest(root_hash) })
}

/// Reads a whole image, data and tree, and says whether both are those of the parameters.
pub fn check(image: &mut impl Read, parameters: &Parameters) -> Result<(), CheckError> {
    let made = build(image, parameters.data_blocks(), &parameters.salt()).map_err(|error| CheckError::Read("data", error))?;
    if made.root_hash != parameters.root_hash() {
        return Err(CheckError::Root { expected: parameters.root_hash(), found: made.root_hash });
    }
    let mut block = [0; BLOCK];
    for (number, expected) in (0..).zip(made.bytes.chunks_exact(BLOCK)) {
        image.read_exact(&mut block).map_err(|error| CheckError::Read("hash tree", error))?;
        if block != *expected {
            return Err(CheckError::Tree(number));
        }
    }
    Ok(())
}

/// Whether a block is the [`Parameters::top_block`], which the root hash stands for.
pub fn check_top(block: &[u8; BLOCK], parameters: &Parameters) -> Result<(), CheckError> {
    let found = Digest(Sha256::new().chain_update(parameters.salt().0).chain_update(block).finalize().into());
    if found == parameters.root_hash() { Ok(()) } else { Err(CheckError::Root { expected: parameters.root_hash(), found }) }
}

fn hash_blocks(salted: &Sha256, blocks: &[u8], digests: &mut Vec<u8>) {
    for block in blocks.chunks_exact(BLOCK) {
        digests.extend_from_slice(&salted.clone().chain_update(block).finalize());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const SALT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    /// Block n is the number n + 1 as eight little-endian bytes, over and over.
    fn data(blocks: u64) -> Vec<u8> {
        (1..=blocks).flat_map(|number| number.to_le_bytes().repeat(BLOCK / 8)).collect()
    }

    fn image(blocks: u64) -> (Vec<u8>, Parameters) {
        let (mut image, salt) = (data(blocks), SALT.parse().unwrap());
        let tree = build(&mut Cursor::new(&image), blocks, &salt).unwrap();
        image.extend(tree.bytes);
        (image, Parameters::new(tree.root_hash, salt, blocks).unwrap())
    }

    /// What veritysetup 2.6.1 makes of the same data with `--no-superblock --salt=… --hash=sha256`: the root hash, and the SHA-256 of
    /// its whole tree.
    #[test]
    fn trees_are_those_of_the_formats_own_tool() {
        for (blocks, root_hash, tree) in [
            (1, "e25651bb0069aaac78fa89a8db31b102e0d33f3fcb2c56ed62210947aab58eda", "e3b0c44298fc1c14"),
            (2, "c6f4cd6edf44bb763d2db98ee6583a21110de95793d54c569d8a8b9d33420b52", "f69f0966cbfdd453"),
            (128, "ba1322903895c51e7e71bbcf1249b818aa856a86f75ec2f17241303dc593557d", "af5802ba72e72da0"),
            (129, "58e4a74931b1251d9f05c07d495d9e9d712f1289bbf55b89c8582709296587e3", "b70a13afcf5c982f"),
            (16385, "d43bb8c3d69982420d6522abb69b5433adc6fd63713f3bb0fbd6b8ec33d52310", "31fd6603d29ed29d"),
        ] {
            let made = build(&mut Cursor::new(data(blocks)), blocks, &SALT.parse().unwrap()).unwrap();
            assert_eq!(made.root_hash.to_string(), root_hash, "{blocks}");
            let whole = Digest(Sha256::digest(&made.bytes).into()).to_string();
            assert!(whole.starts_with(tree), "{blocks}: {whole}");
            assert_eq!(made.bytes.len() as u64, image_tree_bytes(blocks));
        }
    }

    fn image_tree_bytes(blocks: u64) -> u64 {
        Parameters::new(Digest([0; 32]), Digest([0; 32]), blocks).unwrap().tree_blocks() * BLOCK as u64
    }

    #[test]
    fn one_flipped_bit_anywhere_is_found() {
        for blocks in [1, 2, 129] {
            let (image, parameters) = image(blocks);
            assert_eq!(image.len() as u64, parameters.total_bytes());
            check(&mut Cursor::new(&image), &parameters).unwrap();
            for place in [0, 4095, image.len() / 2, image.len() - BLOCK, image.len() - 1] {
                let mut damaged = image.clone();
                damaged[place] ^= 0x10;
                assert!(check(&mut Cursor::new(&damaged), &parameters).is_err(), "{blocks} blocks, byte {place}");
            }
            let short = &image[..image.len() - 1];
            assert!(matches!(check(&mut Cursor::new(short), &parameters), Err(CheckError::Read(..))));
        }
    }

    #[test]
    fn a_tree_of_other_data_is_told_from_other_data() {
        let (mut image, parameters) = image(300);
        image[300 * BLOCK + 5] ^= 1;
        assert!(matches!(check(&mut Cursor::new(&image), &parameters), Err(CheckError::Tree(0))));
        image[300 * BLOCK + 5] ^= 1;
        image[7 * BLOCK] ^= 1;
        assert!(matches!(check(&mut Cursor::new(&image), &parameters), Err(CheckError::Root { .. })));
    }

    #[test]
    fn the_top_block_alone_tells_another_root() {
        for blocks in [1, 2, 300] {
            let (image, parameters) = image(blocks);
            let at = usize::try_from(parameters.top_block()).unwrap() * BLOCK;
            let mut top: [u8; BLOCK] = image[at..at + BLOCK].try_into().unwrap();
            check_top(&top, &parameters).unwrap();
            top[31] ^= 1;
            assert!(matches!(check_top(&top, &parameters), Err(CheckError::Root { .. })), "{blocks}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused_before_anything_is_read() {
        for blocks in [0, MAX_DATA_BLOCKS + 1, u64::MAX] {
            let error = build(&mut io::empty(), blocks, &Digest([0; 32])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{blocks}");
        }
    }
}
