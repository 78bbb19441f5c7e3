//! The output of a service, cut into lines. A line that is too long is kept up to the bound; its rest is dropped.

use crate::journal::{MAX_MESSAGE, text};

/// What is left of the last read.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
    /// In the rest of a line that was too long.
    skipping: bool,
}

/// A line, and the priority it begins with (`<3>…`, as sd-daemon(3) has it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub priority: u8,
    pub message: String,
}

impl Lines {
    /// Takes what was read and gives the lines that are complete.
    pub fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Line)) {
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|&byte| byte == b'\n');
            let (part, rest) = match newline {
                Some(at) => (&bytes[..at], &bytes[at + 1..]),
                None => (bytes, &[][..]),
            };
            bytes = rest;
            if !self.skipping {
                let room = MAX_MESSAGE + 1 - self.pending.len();
                self.pending.extend_from_slice(&part[..part.len().min(room)]);
                if self.pending.len() > MAX_MESSAGE {
                    self.emit(&mut emit);
                    self.skipping = true;
                }
            }
            if newline.is_some() {
                if !self.skipping {
                    self.emit(&mut emit);
                }
                self.skipping = false;
            }
        }
    }

    fn emit(&mut self, emit: &mut impl FnMut(Line)) {
        if let Some(line) = read_line(&self.pending) {
            emit(line);
        }
        self.pending.clear();
    }
}

/// Empty lines say nothing.
fn read_line(bytes: &[u8]) -> Option<Line> {
    let (priority, message) = match bytes {
        [b'<', digit @ b'0'..=b'7', b'>', message @ ..] => (digit - b'0', message),
        message => (6, message),
    };
    let message = text(message, MAX_MESSAGE);
    (!message.is_empty()).then_some(Line { priority, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(chunks: &[&[u8]]) -> Vec<(u8, String)> {
        let mut reader = Lines::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            reader.push(chunk, |line| seen.push((line.priority, line.message)));
        }
        seen
    }

    #[test]
    fn lines_and_priorities_come_out_whole() {
        assert_eq!(lines(&[b"one\n\n<3>tw", b"o\r\n<9>x\nrest"]), [(6, "one".into()), (3, "two".into()), (6, "<9>x".into())]);
    }

    #[test]
    fn a_line_without_end_is_cut_once_and_the_next_is_whole() {
        let endless = vec![b'a'; MAX_MESSAGE * 3];
        let seen = lines(&[&endless, &endless, b"\nnext\n"]);
        assert_eq!(seen.len(), 2);
        assert!(seen[0].1.len() <= MAX_MESSAGE + 3 && seen[0].1.ends_with('…'));
        assert_eq!(seen[1].1, "next");
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(text in "[a-z<>0-9\n]{0,200}", size in 1usize..20) {
            let whole = lines(&[text.as_bytes()]);
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            prop_assert_eq!(lines(&chunks), whole);
        }
    }
}
