//! Container logs in the CRI format: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`, one file per run of a container.

use jiff::Timestamp;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// One record of a log file.
#[derive(Debug, Clone, PartialEq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stderr: bool,
    /// The record continues in the next one of the same stream.
    pub partial: bool,
    /// Without the newline.
    pub text: &'a [u8],
}

/// Splits a record (without its newline) into its parts; `None` when it is not in the format.
pub fn parse(record: &[u8]) -> Option<Line<'_>> {
    let mut parts = record.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let tags = parts.next()?;
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some(Line { time, stderr, partial, text: parts.next().unwrap_or_default() })
}

/// What part of a log is wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// Only one stream; `None` for both.
    pub stderr_only: Option<bool>,
}

/// Turns records into what a reader sees, one at a time, within the byte limit.
#[derive(Debug)]
pub struct Renderer {
    options: Options,
    left: u64,
    /// The last record was partial, so the next one continues the line.
    continues: [bool; 2],
}

impl Renderer {
    pub fn new(options: Options) -> Self {
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        Self { options, left, continues: [false; 2] }
    }

    /// Whether the byte limit is reached.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Appends what one record shows.
    pub fn render(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let Some(line) = parse(record) else { return };
        if self.options.stderr_only.is_some_and(|wanted| wanted != line.stderr) {
            return;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return;
        }
        let continues = &mut self.continues[usize::from(line.stderr)];
        if self.options.timestamps && !*continues {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        *continues = line.partial;
        let added = (out.len() - start) as u64;
        if added > self.left {
            out.truncate(start + usize::try_from(self.left).unwrap_or(usize::MAX));
        }
        self.left = self.left.saturating_sub(added);
    }
}

const BLOCK: u64 = 64 * 1024;

/// The offset where the last `lines` records begin. As upstream, records are counted, also when several make one long line.
pub fn tail_offset(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut found = 0u64;
    let mut at = end;
    let mut buffer = Vec::new();
    while at > 0 {
        let size = BLOCK.min(at);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        buffer.resize(usize::try_from(size).unwrap_or(0), 0);
        file.read_exact(&mut buffer)?;
        for (index, byte) in buffer.iter().enumerate().rev() {
            let position = at + index as u64;
            if *byte == b'\n' && position + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
    }
    Ok(0)
}

/// The end of a log as text, for a termination message: at most `lines` lines and `limit` bytes. Empty when there is none.
pub fn tail_text(path: &Path, lines: u64, limit: usize) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let offset = tail_offset(&mut file, lines)?;
        let end = file.seek(SeekFrom::End(0))?;
        // Only the end is wanted, and records are longer than what they show.
        let start = offset.max(end.saturating_sub(4 * limit as u64 + 1024));
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(end - start).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return String::new() };
    let mut renderer = Renderer::new(Options::default());
    let mut out = Vec::new();
    for record in bytes.split(|b| *b == b'\n') {
        renderer.render(record, &mut out);
    }
    let start = out.len().saturating_sub(limit);
    String::from_utf8_lossy(&out[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const LOG: &str = "2026-11-22T20:00:00.000000001Z stdout F one\n2026-11-22T20:00:01Z stderr P tw\n2026-11-22T20:00:02Z stderr F o\n2026-11-22T20:00:03Z stdout F \n";

    fn render(options: Options) -> String {
        let mut renderer = Renderer::new(options);
        let mut out = Vec::new();
        for record in LOG.as_bytes().split(|b| *b == b'\n') {
            renderer.render(record, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn records_become_lines() {
        let since = Some("2026-11-22T20:00:01Z".parse().unwrap());
        for (options, expected) in [
            (Options::default(), "one\ntwo\n\n"),
            (
                Options { timestamps: true, ..Default::default() },
                "2026-11-22T20:00:00.000000001Z one\n2026-11-22T20:00:01Z two\n2026-11-22T20:00:03Z \n",
            ),
            (Options { since, ..Default::default() }, "two\n\n"),
            (Options { limit_bytes: Some(5), ..Default::default() }, "one\nt"),
            (Options { stderr_only: Some(true), ..Default::default() }, "two\n"),
        ] {
            assert_eq!(render(options.clone()), expected, "{options:?}");
        }
    }

    #[test]
    fn tails() {
        let mut file = tempfile::tempfile().unwrap();
        for i in 0..5000 {
            writeln!(file, "2026-11-22T20:00:00Z stdout F line {i}").unwrap();
        }
        for n in [0u64, 1, 3, 4999, 5000, 6000] {
            let offset = tail_offset(&mut file, n).unwrap();
            file.seek(SeekFrom::Start(offset)).unwrap();
            let mut rest = String::new();
            file.read_to_string(&mut rest).unwrap();
            assert_eq!(rest.lines().count() as u64, n.min(5000), "{n}");
        }
    }

    #[test]
    fn the_end_of_a_log_stands_in_for_a_message() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LOG.as_bytes()).unwrap();
        assert_eq!(tail_text(file.path(), 80, 2048), "one\ntwo\n\n");
        assert_eq!(tail_text(file.path(), 80, 3), "o\n\n");
        assert_eq!(tail_text(Path::new("/nonexistent"), 80, 3), "");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
