//! The log of what a machine wrote: records with a header of 32 bytes, a write's data behind it. Disk and variable store share it, so that
//! their common order is known; marks say what the scenario knew at that point.

use std::io::{self, Read, Seek, SeekFrom, Write};

const MAGIC: &[u8; 4] = b"SPWL";
const HEADER: u64 = 32;
/// What the recorder offers to take at once.
pub const LARGEST: u64 = 32 << 20;
/// The longest mark.
const MARK: u64 = 200;
/// More records than any scenario makes.
const MOST: usize = 8 << 20;

/// What was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The machine's disk, with a volatile cache: only a flush makes writes durable.
    Disk,
    /// The firmware's variable store: flash, which keeps what it was given.
    Variables,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes, which stand in the log from `data` on. `through` is durable at once.
    Write { device: Device, offset: u64, length: u64, data: u64, through: bool },
    /// Zeroes.
    Zero { device: Device, offset: u64, length: u64, through: bool },
    /// Everything before is durable.
    Flush(Device),
    /// A point in time that the scenario named.
    Mark(String),
}

/// Why a log can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It could not be read.
    #[error("read the log of writes")]
    Read(#[source] io::Error),
    /// It is no log from here on.
    #[error("the log of writes is damaged at byte {0}")]
    Damaged(u64),
    /// It is longer than anything that is recorded.
    #[error("the log of writes has more than {MOST} records")]
    TooLong,
}

/// Appends to a log.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// A new log.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Data that was written.
    pub fn write(&mut self, device: Device, offset: u64, data: &[u8], through: bool) -> io::Result<()> {
        self.header(b'W', Some(device), through, offset, data.len() as u64)?;
        self.out.write_all(data)
    }

    /// Zeroes that were written.
    pub fn zero(&mut self, device: Device, offset: u64, length: u64, through: bool) -> io::Result<()> {
        self.header(b'Z', Some(device), through, offset, length)
    }

    /// A flush.
    pub fn flush(&mut self, device: Device) -> io::Result<()> {
        self.header(b'F', Some(device), false, 0, 0)
    }

    /// A mark; everything so far reaches the file.
    pub fn mark(&mut self, text: &str) -> io::Result<()> {
        let text = &text.as_bytes()[..text.len().min(MARK as usize)];
        self.header(b'M', None, false, 0, text.len() as u64)?;
        self.out.write_all(text)?;
        self.out.flush()
    }

    fn header(&mut self, kind: u8, device: Option<Device>, through: bool, offset: u64, length: u64) -> io::Result<()> {
        let mut header = [0; HEADER as usize];
        header[..4].copy_from_slice(MAGIC);
        header[4] = kind;
        header[5] = u8::from(device == Some(Device::Variables));
        header[6] = u8::from(through);
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[16..24].copy_from_slice(&length.to_le_bytes());
        self.out.write_all(&header)
    }
}

/// Reads a whole log, but for the data.
pub fn read(log: &mut (impl Read + Seek)) -> Result<Vec<Event>, LogError> {
    let total = log.seek(SeekFrom::End(0)).map_err(LogError::Read)?;
    let mut events = Vec::new();
    let mut at = 0;
    while at < total {
        if events.len() >= MOST {
            return Err(LogError::TooLong);
        }
        log.seek(SeekFrom::Start(at)).map_err(LogError::Read)?;
        let mut header = [0; HEADER as usize];
        if total - at < HEADER {
            return Err(LogError::Damaged(at));
        }
        log.read_exact(&mut header).map_err(LogError::Read)?;
        let (event, behind) = parse(&header, at + HEADER, total).ok_or(LogError::Damaged(at))?;
        let event = match event {
            Event::Mark(_) => {
                // At most MARK bytes: `parse` saw to it.
                let mut text = vec![0; behind as usize];
                log.read_exact(&mut text).map_err(LogError::Read)?;
                Event::Mark(String::from_utf8_lossy(&text).into_owned())
            }
            event => event,
        };
        events.push(event);
        at += HEADER + behind;
    }
    Ok(events)
}

/// A header, and how many bytes stand behind it.
fn parse(header: &[u8; HEADER as usize], data: u64, total: u64) -> Option<(Event, u64)> {
    let number = |at: usize| header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (offset, length) = (number(8)?, number(16)?);
    let device = [Device::Disk, Device::Variables].get(usize::from(header[5])).copied()?;
    let through = header[6] == 1;
    offset.checked_add(length)?;
    let (event, behind) = match header[4] {
        b'W' if length <= LARGEST => (Event::Write { device, offset, length, data, through }, length),
        b'Z' => (Event::Zero { device, offset, length, through }, 0),
        b'F' => (Event::Flush(device), 0),
        b'M' if length <= MARK => (Event::Mark(String::new()), length),
        _ => return None,
    };
    (header.starts_with(MAGIC) && data + behind <= total).then_some((event, behind))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = (u8, bool, u64, Vec<u8>, bool)> {
        (0..4u8, any::<bool>(), 0..1u64 << 40, prop::collection::vec(any::<u8>(), 0..40), any::<bool>())
    }

    fn written(events: &[(u8, bool, u64, Vec<u8>, bool)]) -> (Vec<u8>, Vec<Event>) {
        let mut writer = Writer::new(Vec::new());
        let mut expected = Vec::new();
        for (kind, flash, offset, data, through) in events.iter().cloned() {
            let device = if flash { Device::Variables } else { Device::Disk };
            let length = data.len() as u64;
            let place = writer.out.len() as u64 + HEADER;
            expected.push(match kind {
                0 => writer.write(device, offset, &data, through).map(|()| Event::Write { device, offset, length, data: place, through }),
                1 => writer.zero(device, offset, length, through).map(|()| Event::Zero { device, offset, length, through }),
                2 => writer.flush(device).map(|()| Event::Flush(device)),
                _ => writer.mark("a mark").map(|()| Event::Mark("a mark".to_owned())),
            });
        }
        (writer.out, expected.into_iter().map(Result::unwrap).collect())
    }

    proptest! {
        #[test]
        fn what_was_logged_is_read(events in prop::collection::vec(event(), 0..12)) {
            let (bytes, expected) = written(&events);
            prop_assert_eq!(read(&mut Cursor::new(&bytes)).unwrap(), expected);
        }

        #[test]
        fn a_log_that_is_cut_off_is_refused_unless_the_cut_is_between_records(events in prop::collection::vec(event(), 1..6), cut in 0..300usize) {
            let (bytes, expected) = written(&events);
            let cut = cut.min(bytes.len());
            match read(&mut Cursor::new(&bytes[..cut])) {
                Ok(found) => prop_assert_eq!(&found[..], &expected[..found.len()]),
                Err(error) => prop_assert!(matches!(error, LogError::Damaged(at) if at <= cut as u64)),
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in any::<u8>()) {
            let log = [&MAGIC[..], &[kind, 0, 0, 0], &bytes].concat();
            let _ = read(&mut Cursor::new(log));
            let _ = read(&mut Cursor::new(bytes));
        }
    }
}
