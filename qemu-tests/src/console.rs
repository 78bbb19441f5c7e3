//! A machine's serial console as a growing file: waiting for a text, and the readable end of it for error messages.

use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext};

/// The most of a console that is looked at: a machine that floods its console must not fill our memory.
const MAX_BYTES: u64 = 16 << 20;

/// The console's file.
#[derive(Clone, Debug)]
pub struct Console {
    path: PathBuf,
}

impl Console {
    /// The console written to a file.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes written so far; a place to search from.
    pub fn position(&self) -> u64 {
        std::fs::metadata(&self.path).map(|data| data.len()).unwrap_or(0)
    }

    /// What was written after `start`, without terminal sequences.
    pub fn text_from(&self, start: u64) -> Result<String, Error> {
        use std::io::{Read, Seek, SeekFrom};
        let Ok(mut file) = std::fs::File::open(&self.path) else { return Ok(String::new()) };
        file.seek(SeekFrom::Start(start)).on("seek in", &self.path)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).on("read", &self.path)?;
        Ok(plain(&String::from_utf8_lossy(&bytes)))
    }

    /// The last `lines` lines.
    pub fn tail(&self, lines: usize) -> String {
        let start = self.position().saturating_sub(64 << 10);
        let text = self.text_from(start).unwrap_or_default();
        let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| format!("    {line}\n")).collect()
    }
}

/// Text without escape sequences and carriage returns.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                // A control sequence ends with a byte from @ to ~ (ECMA-48, 5.4).
                for char in chars.by_ref() {
                    if ('@'..='~').contains(&char) {
                        break;
                    }
                }
            }
            '\x1b' => {
                chars.next();
            }
            '\r' | '\0' => {}
            other => out.push(other),
        }
    }
    out
}

/// The value of the last `key=value` word on the console.
pub fn last_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.rsplit([' ', '\n', '\t']).find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terminal_sequences_are_removed() {
        for (raw, expected) in
            [("\x1b[2J\x1b[01;01Hready\r\n", "ready\n"), ("a\x1b[31mb\x1b[0mc", "abc"), ("\x1bcx", "x"), ("\x1b[", ""), ("plain", "plain")]
        {
            assert_eq!(plain(raw), expected, "{raw:?}");
        }
    }

    #[test]
    fn the_last_value_wins() {
        let text = "strake: stage=a pairing=OLD\nnoise\nstrake: stage=maintenance pairing=NEW addresses=10.5.0.100,fe80::1\n";
        assert_eq!(last_value(text, "pairing"), Some("NEW"));
        assert_eq!(last_value(text, "addresses"), Some("10.5.0.100,fe80::1"));
        assert_eq!(last_value(text, "air"), None);
        assert_eq!(last_value("pairing=", "pairing"), None);
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\r\n\r\ntwo\nthree\n").unwrap();
        assert_eq!(Console::new(file.path()).tail(2), "    two\n    three\n");
        assert_eq!(Console::new(Path::new("/nonexistent")).tail(2), "");
    }

    proptest! {
        #[test]
        fn plain_text_never_holds_an_escape(text in "[\\x00-\\x7f]{0,200}") {
            prop_assert!(!plain(&text).contains(['\x1b', '\r']));
        }
    }
}
