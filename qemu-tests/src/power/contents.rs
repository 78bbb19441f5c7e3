//! What a disk and a variable store hold at some point of a log, as places in the log: no copy of a disk of 20 GiB is needed to look at
//! thousands of its states. Every part of the disk has a sum over the hashes of its sectors that follows each write, so equal states are
//! known as such at once.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use machine_config::layout::Partition;
use sha2::{Digest as _, Sha256};

use super::checker::Disk;

/// The unit in which a disk keeps or loses what was written.
pub const SECTOR: u64 = 512;

/// A part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its partition's label; the tables have names of their own.
    pub name: &'static str,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Region {
    /// Whether its content is what a machine works with and not what it is: file data of a root or of users.
    pub fn is_bulk(&self) -> bool {
        matches!(self.name, "ROOT-A" | "ROOT-B" | "ETCD" | "DATA")
    }
}

/// The regions of a disk with these partitions: every byte belongs to one.
pub fn regions(partitions: &[Partition], size: u64) -> Vec<Region> {
    let mut regions = Vec::new();
    let mut at = 0;
    for partition in partitions {
        if partition.start > at {
            regions.push(Region { name: if at == 0 { "table" } else { "gap" }, start: at, size: partition.start - at });
        }
        regions.push(Region { name: partition.label, start: partition.start, size: partition.size });
        at = partition.start + partition.size;
    }
    if at < size {
        regions.push(Region { name: "second table", start: at, size: size - at });
    }
    regions
}

/// One sector's content: where it stands in the log (0: zeroes), and its hash (0: zeroes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sector {
    source: u64,
    hash: u128,
    /// Part of a large write of file data.
    bulk: bool,
}

/// A sector of the disk: which region, and which of its sectors.
pub type Place = (usize, u64);

/// Sums over the hashes of a region's sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    all: u128,
    /// Without those of large writes of file data.
    metadata: u128,
}

impl Sum {
    fn replace(&mut self, old: Sector, new: Sector) {
        self.all = self.all.wrapping_sub(old.hash).wrapping_add(new.hash);
        let counted = |sector: Sector| if sector.bulk { 0 } else { sector.hash };
        self.metadata = self.metadata.wrapping_sub(counted(old)).wrapping_add(counted(new));
    }
}

/// The content of a disk that began empty, and of a variable store.
#[derive(Clone, Debug)]
pub struct Contents {
    sectors: Vec<HashMap<u64, Sector>>,
    sums: Vec<Sum>,
    /// The variable store.
    pub variables: Vec<u8>,
}

impl Contents {
    /// An empty disk.
    pub fn new(regions: usize, variables: Vec<u8>) -> Self {
        Self { sectors: vec![HashMap::new(); regions], sums: vec![Sum::default(); regions], variables }
    }

    fn get(&self, (region, sector): Place) -> Sector {
        self.sectors.get(region).and_then(|sectors| sectors.get(&sector)).copied().unwrap_or_default()
    }

    /// Changes sectors.
    pub fn apply(&mut self, pieces: &[(Place, Sector)]) {
        for ((region, sector), new) in pieces {
            let old = self.get((*region, *sector));
            self.sums[*region].replace(old, *new);
            if *new == Sector::default() {
                self.sectors[*region].remove(sector);
            } else {
                self.sectors[*region].insert(*sector, *new);
            }
        }
    }
}

/// Cuts a write to the disk into its sectors.
#[derive(Debug)]
pub struct Cutter<'a> {
    /// The log.
    pub log: &'a File,
    /// The disk's regions.
    pub regions: &'a [Region],
}

impl Cutter<'_> {
    /// The region of a byte of the disk.
    pub fn region(&self, offset: u64) -> Option<usize> {
        let at = self.regions.partition_point(|region| region.start + region.size <= offset);
        (at < self.regions.len()).then_some(at)
    }

    /// The sectors of a write; `data` is where its bytes stand in the log, if they are not zeroes.
    pub fn cut(&self, offset: u64, length: u64, data: Option<u64>, bulk: bool) -> io::Result<Vec<(Place, Sector)>> {
        if offset % SECTOR != 0 || length % SECTOR != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a write to the disk that is not one of whole sectors"));
        }
        let mut bytes = vec![0; if data.is_some() { length as usize } else { 0 }];
        if let Some(data) = data {
            self.log.read_exact_at(&mut bytes, data)?;
        }
        let mut pieces = Vec::with_capacity((length / SECTOR) as usize);
        for number in 0..length / SECTOR {
            let at = offset + number * SECTOR;
            let region = self.region(at).ok_or(io::ErrorKind::UnexpectedEof)?;
            let place = (region, (at - self.regions[region].start) / SECTOR);
            let content = bytes.get((number * SECTOR) as usize..((number + 1) * SECTOR) as usize);
            let sector = match (content, data) {
                (Some(content), Some(data)) if content.iter().any(|byte| *byte != 0) => {
                    Sector { source: data + number * SECTOR, hash: hash(place.1, content), bulk }
                }
                _ => Sector::default(),
            };
            pieces.push((place, sector));
        }
        Ok(pieces)
    }
}

/// Content at a place. Never 0.
fn hash(sector: u64, content: &[u8]) -> u128 {
    let digest = Sha256::new().chain_update(sector.to_le_bytes()).chain_update(content).finalize();
    digest.iter().take(16).fold(0, |number: u128, byte| number << 8 | u128::from(*byte)).max(1)
}

/// What a power cut left: a content with some sectors as they were or as they should have become.
#[derive(Debug)]
pub struct Left<'a> {
    log: &'a File,
    regions: &'a [Region],
    base: &'a Contents,
    changed: HashMap<Place, Sector>,
    sums: Vec<Sum>,
    /// The variable store.
    pub variables: &'a [u8],
}

impl<'a> Left<'a> {
    /// A content as it is.
    pub fn new(cutter: &Cutter<'a>, base: &'a Contents) -> Self {
        let (sums, variables) = (base.sums.clone(), base.variables.as_slice());
        Self { log: cutter.log, regions: cutter.regions, base, changed: HashMap::new(), sums, variables }
    }

    /// What reached the disk after all.
    pub fn keep<'p>(&mut self, pieces: impl IntoIterator<Item = &'p (Place, Sector)>) {
        for (place, new) in pieces {
            let old = self.get(*place);
            self.sums[place.0].replace(old, *new);
            self.changed.insert(*place, *new);
        }
    }

    fn get(&self, place: Place) -> Sector {
        self.changed.get(&place).copied().unwrap_or_else(|| self.base.get(place))
    }

    /// What tells this state from others, not counting file data. The store's content comes as a number of the caller's.
    pub fn metadata(&self, variables: u128) -> [u8; 32] {
        let mut digest = Sha256::new().chain_update(variables.to_le_bytes());
        for (region, sum) in self.regions.iter().zip(&self.sums).filter(|(region, _)| !region.is_bulk()) {
            digest.update(region.start.to_le_bytes());
            digest.update(sum.metadata.to_le_bytes());
        }
        digest.finalize().into()
    }

    /// The same, counting everything.
    pub fn identity(&self, variables: u128) -> [u8; 32] {
        let digest = Sha256::new().chain_update(variables.to_le_bytes());
        self.sums.iter().fold(digest, |digest, sum| digest.chain_update(sum.all.to_le_bytes())).finalize().into()
    }

    /// The sectors of a range that are not zeroes, in order.
    fn written(&self, start: u64, size: u64) -> Vec<(u64, Sector)> {
        let mut found = Vec::new();
        for (number, region) in self.regions.iter().enumerate() {
            if region.start + region.size <= start || region.start >= start + size {
                continue;
            }
            let of_base = self.base.sectors[number].iter().filter(|(sector, _)| !self.changed.contains_key(&(number, **sector)));
            let changed = self.changed.iter().filter(|((of, _), new)| *of == number && **new != Sector::default());
            let all = of_base.map(|(at, sector)| (*at, *sector)).chain(changed.map(|((_, at), sector)| (*at, *sector)));
            found.extend(all.map(|(at, sector)| (region.start + at * SECTOR, sector)));
        }
        found.retain(|(at, _)| (start..start + size).contains(at));
        found.sort_unstable_by_key(|(at, _)| *at);
        found
    }
}

impl Disk for Left<'_> {
    fn size(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.start + region.size)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buffer);
        let cutter = Cutter { log: self.log, regions: self.regions };
        // Where several sectors stand behind each other in the log, they are read at once.
        while !rest.is_empty() {
            let mut run: Option<(u64, u64)> = None;
            let mut taken = 0;
            while taken < rest.len() as u64 {
                let here = at + taken;
                let region = cutter.region(here).ok_or(io::ErrorKind::UnexpectedEof)?;
                let within = here - self.regions[region].start;
                let source = self.get((region, within / SECTOR)).source;
                let (source, skip) = (if source == 0 { 0 } else { source + within % SECTOR }, SECTOR - within % SECTOR);
                let fits = match run {
                    None => true,
                    Some((0, _)) => source == 0,
                    Some((first, _)) => source == first + taken,
                };
                if !fits {
                    break;
                }
                run = Some(run.unwrap_or((source, 0)));
                taken = (taken + skip).min(rest.len() as u64);
            }
            let (now, later) = rest.split_at_mut(taken as usize);
            match run {
                Some((source @ 1.., _)) => self.log.read_exact_at(now, source)?,
                _ => now.fill(0),
            }
            (at, rest) = (at + taken, later);
        }
        Ok(())
    }

    fn fingerprint(&self, start: u64, size: u64) -> Option<u128> {
        let number = self.regions.iter().position(|region| (region.start, region.size) == (start, size))?;
        Some(self.sums[number].all)
    }

    fn copy(&self, start: u64, size: u64, to: &File) -> io::Result<()> {
        let written = self.written(start, size);
        let mut buffer = Vec::new();
        let mut rest = written.as_slice();
        while let [(at, first), ..] = rest {
            let follows = |(number, (place, sector)): &(usize, &(u64, Sector))| {
                let behind = *number as u64 * SECTOR;
                *place == at + behind && sector.source == first.source + behind && behind < 1 << 20
            };
            let count = rest.iter().enumerate().take_while(follows).count().max(1);
            buffer.resize(count * SECTOR as usize, 0);
            self.log.read_exact_at(&mut buffer, first.source)?;
            to.write_all_at(&buffer, at - start)?;
            rest = &rest[count..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const REGIONS: [Region; 2] =
        [Region { name: "META", start: 0, size: 4 * SECTOR }, Region { name: "DATA", start: 4 * SECTOR, size: 4 * SECTOR }];

    proptest! {
        /// The same as writing to a plain array of bytes; and the sums know equal content as equal, whichever way it came about.
        #[test]
        fn a_disk_holds_what_was_written_last(
            writes in prop::collection::vec((0..8u64, 1..4u64, 0..3u8), 0..12),
            kept in prop::collection::vec((0..8u64, 1..4u64, 0..3u8), 0..4),
            at in 0..4000u64,
            length in 0..600usize,
        ) {
            let (mut log, mut plain) = (tempfile::tempfile().unwrap(), vec![0; 8 * 512]);
            log.write_all(&[9; 512]).unwrap();
            let mut end = 512;
            let mut contents = Contents::new(2, Vec::new());
            let mut pieces = Vec::new();
            for (sector, count, fill) in writes.iter().chain(&kept) {
                let count = (*count).min(8 - sector);
                let data = vec![*fill; (count * SECTOR) as usize];
                log.write_all(&data).unwrap();
                plain[(sector * SECTOR) as usize..((sector + count) * SECTOR) as usize].copy_from_slice(&data);
                let cutter = Cutter { log: &log, regions: &REGIONS };
                pieces.push(cutter.cut(sector * SECTOR, count * SECTOR, Some(end), false).unwrap());
                end += data.len() as u64;
            }
            for pieces in &pieces[..writes.len()] {
                contents.apply(pieces);
            }
            // All of it once more, for the comparison below.
            log.write_all(&plain).unwrap();
            let cutter = Cutter { log: &log, regions: &REGIONS };
            let mut left = Left::new(&cutter, &contents);
            left.keep(pieces[writes.len()..].iter().flatten());
            let mut found = vec![1; length.min(plain.len().saturating_sub(at as usize))];
            left.read_at(at, &mut found).unwrap();
            prop_assert_eq!(&found, &plain[at as usize..at as usize + found.len()]);
            let copy = tempfile::tempfile().unwrap();
            copy.set_len(8 * 512).unwrap();
            left.copy(0, 8 * 512, &copy).unwrap();
            let mut copied = vec![1; 8 * 512];
            copy.read_exact_at(&mut copied, 0).unwrap();
            prop_assert_eq!(&copied, &plain);

            let mut again = Contents::new(2, Vec::new());
            again.apply(&Cutter { log: &log, regions: &REGIONS }.cut(0, 8 * SECTOR, Some(end), false).unwrap());
            let cutter = Cutter { log: &log, regions: &REGIONS };
            let other = Left::new(&cutter, &again);
            prop_assert_eq!(left.fingerprint(0, 4 * SECTOR), other.fingerprint(0, 4 * SECTOR));
            prop_assert_eq!(left.metadata(1), other.metadata(1));
            prop_assert_ne!(left.metadata(1), other.metadata(2));
        }
    }

    #[test]
    fn users_data_makes_no_other_state_and_large_writes_of_file_data_neither() {
        let mut log = tempfile::tempfile().unwrap();
        log.write_all(&[3; 4096]).unwrap();
        let cutter = Cutter { log: &log, regions: &REGIONS };
        let empty = Contents::new(2, Vec::new());
        let state = |offset, bulk| {
            let mut left = Left::new(&cutter, &empty);
            left.keep(&cutter.cut(offset, SECTOR, Some(512), bulk).unwrap());
            (left.metadata(0), left.fingerprint(0, 4 * SECTOR))
        };
        let nothing = (Left::new(&cutter, &empty).metadata(0), Some(0));
        assert_eq!(state(5 * SECTOR, false), nothing);
        assert_ne!(state(SECTOR, false), nothing);
        assert_eq!(state(SECTOR, true).0, nothing.0);
        assert_ne!(state(SECTOR, true).1, nothing.1, "the checker still looks at it");
        assert!(cutter.cut(100, SECTOR, None, false).is_err());
        assert!(cutter.cut(8 * SECTOR, SECTOR, None, false).is_err());
    }
}
