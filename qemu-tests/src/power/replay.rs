//! The disks that a power cut could have left. A disk keeps every write that was flushed, and of the later ones any: all of them in their
//! order (a prefix), some, or some sectors of one. Writes to the same sector never change places: a disk's cache holds one content of a
//! sector. The variable store is flash: what it was given stays, byte after byte in the order of the log.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::contents::{Contents, Cutter, Left, Place, Region, SECTOR, Sector};
use super::log::{Device, Event};

/// A larger write to the boot partition is file data.
const FILE_DATA: u64 = 64 << 10;
/// Up to so many writes are each lost, and each kept, alone and with each other one, and torn at each of their sectors.
const EACH_ALONE: usize = 24;
/// Of up to so many writes every choice is looked at.
const EVERY_CHOICE: usize = 7;
/// The most sectors at which a write is torn in order.
const BOUNDARIES: usize = 64;
/// So many ways to tear each write.
const TEARS: usize = 6;

/// How a state came about, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Everything up to here was written.
    Prefix,
    /// Some of what was not flushed was lost.
    Lost,
    /// And one write only got so far.
    Torn,
}

/// Where in the log a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The last event before the cut.
    pub event: usize,
    /// How.
    pub how: How,
}

/// Whoever looks at the states.
pub trait Visitor {
    /// Looks at one.
    fn visit(&mut self, at: At, left: &Left<'_>) -> io::Result<()>;
    /// The scenario named this point.
    fn mark(&mut self, _text: &str) {}
    /// What in the variable store matters, so that states are sampled where it changes.
    fn variables(&self, store: &[u8]) -> u128;
}

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below this one.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.draw() % limit.max(1) as u64) as usize
    }

    fn in_ten(&mut self, chances: usize) -> bool {
        self.below(10) < chances
    }
}

/// A write that no flush has followed.
struct Pending {
    pieces: Vec<(Place, Sector)>,
    bulk: bool,
}

/// Goes through a log.
pub struct Replay<'a> {
    log: &'a File,
    regions: &'a [Region],
    /// So many random samples before each flush.
    samples: usize,
    chance: Chance,
    /// What is on the disk for certain, and what would be there if nothing were lost.
    durable: Contents,
    current: Contents,
    pending: Vec<Pending>,
}

impl<'a> Replay<'a> {
    /// From an empty disk and this variable store on.
    pub fn new(log: &'a File, regions: &'a [Region], variables: Vec<u8>, seed: u64, samples: usize) -> Self {
        let durable = Contents::new(regions.len(), variables);
        Self { log, regions, samples, chance: Chance::new(seed), current: durable.clone(), durable, pending: Vec::new() }
    }

    /// Shows every state to the visitor.
    pub fn run(&mut self, events: &[Event], visitor: &mut dyn Visitor) -> io::Result<()> {
        for (number, event) in events.iter().enumerate() {
            match event {
                Event::Mark(text) => {
                    self.samples(number, visitor)?;
                    visitor.mark(text);
                }
                Event::Flush(Device::Disk) => {
                    self.samples(number, visitor)?;
                    for write in self.pending.drain(..) {
                        self.durable.apply(&write.pieces);
                    }
                }
                Event::Flush(Device::Variables) => {}
                Event::Write { device: Device::Disk, offset, length, data, through } => {
                    self.write(number, *offset, *length, Some(*data), *through, visitor)?;
                }
                Event::Zero { device: Device::Disk, offset, length, through } => {
                    self.write(number, *offset, *length, None, *through, visitor)?;
                }
                Event::Write { device: Device::Variables, offset, length, data, .. } => {
                    let mut bytes = vec![0; *length as usize];
                    self.log.read_exact_at(&mut bytes, *data)?;
                    self.flash(number, *offset, &bytes, visitor)?;
                }
                Event::Zero { device: Device::Variables, offset, length, .. } => {
                    self.flash(number, *offset, &vec![0; *length as usize], visitor)?;
                }
            }
        }
        self.samples(events.len(), visitor)
    }

    fn write(
        &mut self,
        number: usize,
        offset: u64,
        length: u64,
        data: Option<u64>,
        through: bool,
        visitor: &mut dyn Visitor,
    ) -> io::Result<()> {
        let cutter = Cutter { log: self.log, regions: self.regions };
        let region = cutter.region(offset).map(|region| &self.regions[region]).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bulk = region.is_bulk() || region.name == "ESP" && length >= FILE_DATA;
        let pieces = cutter.cut(offset, length, data, bulk)?;
        self.current.apply(&pieces);
        if through {
            self.durable.apply(&pieces);
            let durable: HashSet<Place> = pieces.iter().map(|(place, _)| *place).collect();
            for write in &mut self.pending {
                write.pieces.retain(|(place, _)| !durable.contains(place));
            }
        } else {
            self.pending.push(Pending { pieces, bulk });
        }
        if !bulk {
            let left = Left::new(&Cutter { log: self.log, regions: self.regions }, &self.current);
            visitor.visit(At { event: number, how: How::Prefix }, &left)?;
        }
        Ok(())
    }

    fn flash(&mut self, number: usize, offset: u64, bytes: &[u8], visitor: &mut dyn Visitor) -> io::Result<()> {
        let range = offset as usize..offset as usize + bytes.len();
        let mut after = self.current.variables.clone();
        after.get_mut(range).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        if visitor.variables(&self.current.variables) != visitor.variables(&after) {
            // The disk may have lost something when the store had not been changed yet, and also when it had.
            self.samples(number, visitor)?;
        }
        self.durable.variables.clone_from(&after);
        self.current.variables = after;
        let left = Left::new(&Cutter { log: self.log, regions: self.regions }, &self.current);
        visitor.visit(At { event: number, how: How::Prefix }, &left)
    }

    /// States in which not all of what waits for a flush reached the disk.
    fn samples(&mut self, event: usize, visitor: &mut dyn Visitor) -> io::Result<()> {
        let cutter = Cutter { log: self.log, regions: self.regions };
        let at = |how| At { event, how };
        let quiet: Vec<usize> = (0..self.pending.len()).filter(|number| !self.pending[*number].bulk).collect();
        if self.pending.is_empty() {
            return visitor.visit(at(How::Prefix), &Left::new(&cutter, &self.current));
        }
        let state = |kept: &dyn Fn(usize) -> bool| {
            let mut left = Left::new(&cutter, &self.durable);
            for (_, write) in self.pending.iter().enumerate().filter(|(number, _)| kept(*number)) {
                left.keep(&write.pieces);
            }
            left
        };
        visitor.visit(at(How::Lost), &state(&|_| false))?;
        if quiet.len() <= EACH_ALONE {
            for (place, one) in quiet.iter().enumerate() {
                for other in &quiet[place..] {
                    visitor.visit(at(How::Lost), &state(&|number| number != *one && number != *other))?;
                    visitor.visit(at(How::Lost), &state(&|number| number == *one || number == *other))?;
                }
                let pieces = &self.pending[*one].pieces;
                for boundary in 1..pieces.len().min(BOUNDARIES) {
                    for part in [&pieces[..boundary], &pieces[boundary..]] {
                        let mut left = state(&|number| number < *one);
                        left.keep(part);
                        visitor.visit(at(How::Torn), &left)?;
                    }
                }
            }
        }
        if quiet.len() <= EVERY_CHOICE {
            for choice in 0..1_u32 << quiet.len() {
                let chosen = |number: usize| quiet.iter().position(|one| *one == number).is_none_or(|place| choice & 1 << place != 0);
                visitor.visit(at(How::Lost), &state(&chosen))?;
            }
        }
        for torn in quiet.iter().copied().filter(|number| self.pending[*number].pieces.len() > 1) {
            for _ in 0..TEARS {
                let later = self.chance.in_ten(3);
                let seed = self.chance.draw();
                let mut left = state(&|number| number < torn || later && number > torn);
                let mut chance = Chance::new(seed);
                left.keep(self.pending[torn].pieces.iter().filter(|_| chance.in_ten(5)));
                visitor.visit(at(How::Torn), &left)?;
            }
        }
        // Nothing more to choose from where only file data waits.
        let rounds = if quiet.is_empty() { 2 } else { self.samples };
        for _ in 0..rounds {
            let chances = 1 + self.chance.below(9);
            let kept: Vec<bool> = (0..self.pending.len()).map(|_| self.chance.in_ten(chances)).collect();
            let mut left = state(&|number| kept[number]);
            let how = match quiet.get(self.chance.below(quiet.len())) {
                Some(torn) if self.chance.in_ten(4) => {
                    left.keep(self.pending[*torn].pieces.iter().filter(|_| self.chance.in_ten(5)));
                    How::Torn
                }
                _ => How::Lost,
            };
            visitor.visit(at(how), &left)?;
        }
        Ok(())
    }
}

/// A number for a store's whole content.
pub fn number_of(bytes: &[u8]) -> u128 {
    Sha256::digest(bytes).iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// Bytes in a write, for people.
pub fn sectors(length: u64) -> u64 {
    length / SECTOR
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;

    use super::super::checker::Disk;
    use super::super::log::Writer;
    use super::*;

    const REGIONS: [Region; 1] = [Region { name: "META", start: 0, size: 8 * SECTOR }];

    /// The first byte of each sector, and the first of the variable store.
    #[derive(Default)]
    struct Seen(BTreeSet<(Vec<u8>, u8)>, Vec<(String, usize)>);

    impl Visitor for Seen {
        fn visit(&mut self, _: At, left: &Left<'_>) -> io::Result<()> {
            let mut bytes = vec![0; 8 * 512];
            left.read_at(0, &mut bytes)?;
            self.0.insert((bytes.iter().step_by(512).take(4).copied().collect(), left.variables[0]));
            Ok(())
        }

        fn mark(&mut self, text: &str) {
            self.1.push((text.to_owned(), self.0.len()));
        }

        fn variables(&self, store: &[u8]) -> u128 {
            number_of(store)
        }
    }

    #[test]
    fn what_was_flushed_stays_and_of_the_rest_anything_may_be_there() {
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(&mut file);
        writer.write(Device::Disk, 0, &[1; 512], false).unwrap();
        writer.flush(Device::Disk).unwrap();
        writer.mark("flushed").unwrap();
        writer.write(Device::Disk, 512, &[2; 1024], false).unwrap();
        writer.write(Device::Variables, 0, &[9], false).unwrap();
        writer.write(Device::Disk, 1536, &[3; 512], false).unwrap();
        file.flush().unwrap();
        let events = super::super::log::read(&mut file).unwrap();
        let mut seen = Seen::default();
        Replay::new(&file, &REGIONS, vec![0xff], 1, 600).run(&events, &mut seen).unwrap();

        let before: BTreeSet<_> = [(vec![0, 0, 0, 0], 0xff), (vec![1, 0, 0, 0], 0xff)].into();
        assert_eq!(seen.1, [("flushed".to_owned(), 2)]);
        assert!(before.is_subset(&seen.0));
        let later: BTreeSet<_> = seen.0.difference(&before).cloned().collect();
        // Of three sectors that were not flushed any, in the store's old state without the last, and in its new one.
        let mut expected = BTreeSet::new();
        for kept in 0..8u8 {
            let sectors = vec![1, if kept & 1 != 0 { 2 } else { 0 }, if kept & 2 != 0 { 2 } else { 0 }, if kept & 4 != 0 { 3 } else { 0 }];
            if kept & 4 == 0 {
                expected.insert((sectors.clone(), 0xff));
            }
            expected.insert((sectors, 9));
        }
        expected.remove(&(vec![1, 0, 0, 0], 0xff));
        assert_eq!(later, expected);

        // Of few writes every choice is looked at, and a tear at each sector, also without random samples.
        let mut few = Seen::default();
        Replay::new(&file, &REGIONS, vec![0xff], 1, 0).run(&events, &mut few).unwrap();
        for sectors in [[0, 0, 0], [2, 2, 0], [0, 0, 3], [2, 2, 3], [2, 0, 0], [0, 2, 0]] {
            assert!(few.0.contains(&([&[1][..], &sectors[..]].concat(), 9)), "{sectors:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_states() {
        let numbers = |seed| {
            let mut chance = Chance::new(seed);
            (0..5).map(|_| chance.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
