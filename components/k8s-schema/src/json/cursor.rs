//! A place in JSON text, and how far the next token, string, number or value reaches.
//!
//! Every rule of the grammar is kept here; what exactly is wrong is told by [`super::syntax`], which only runs then.

use std::borrow::Cow;

/// Why decoding ended early.
pub(crate) enum Stop {
    /// The syntax check will say.
    Syntax,
    /// An error of a type's own unmarshaller.
    Hard(String),
    /// More than [`MAX_DEPTH`] levels of what is kept.
    TooDeep,
}

/// A place in the text being decoded.
pub(crate) struct Cursor<'t> {
    pub(super) text: &'t [u8],
    pub(super) at: usize,
    pub(super) key: (usize, usize),
    pub(super) key_escaped: bool,
}

impl<'t> Cursor<'t> {
    pub fn new(text: &'t [u8]) -> Self {
        Cursor { text, at: 0, key: (0, 0), key_escaped: false }
    }

    /// The next byte that is no white space, not taken.
    #[inline]
    pub fn next_byte(&mut self) -> Result<u8, Stop> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(&c) => return Ok(c),
                None => return Err(Stop::Syntax),
            }
        }
    }

    pub fn end(&mut self) -> Result<(), Stop> {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        if self.at == self.text.len() { Ok(()) } else { Err(Stop::Syntax) }
    }

    /// At the start of an object or after a pair: reads the next key and its colon. False at the end, which is taken.
    pub fn next_key(&mut self, first: &mut bool) -> Result<bool, Stop> {
        let mut c = self.next_byte()?;
        if *first {
            self.at += 1; // {
            *first = false;
            c = self.next_byte()?;
            if c == b'}' {
                self.at += 1;
                return Ok(false);
            }
        } else {
            self.at += 1;
            match c {
                b'}' => return Ok(false),
                b',' => c = self.next_byte()?,
                _ => return Err(Stop::Syntax),
            }
        }
        if c != b'"' {
            return Err(Stop::Syntax);
        }
        let (start, end, escaped) = self.string_span()?;
        (self.key, self.key_escaped) = ((start, end), escaped);
        if self.next_byte()? != b':' {
            return Err(Stop::Syntax);
        }
        self.at += 1;
        Ok(true)
    }

    /// At the start of an array or after an element: whether there is another. False at the end, which is taken.
    pub(super) fn next_element(&mut self, first: &mut bool) -> Result<bool, Stop> {
        let c = self.next_byte()?;
        self.at += 1;
        if *first {
            *first = false;
            if self.next_byte()? == b']' {
                self.at += 1;
                return Ok(false);
            }
            return Ok(true);
        }
        match c {
            b']' => Ok(false),
            b',' => Ok(true),
            _ => Err(Stop::Syntax),
        }
    }

    pub fn key_text(&self) -> Cow<'t, str> {
        let raw = &self.text[self.key.0..self.key.1];
        if self.key_escaped { Cow::Owned(unescape(raw)) } else { Cow::Borrowed(std::str::from_utf8(raw).unwrap_or("")) }
    }

    /// Takes a string; start and end of what is between the quotes, and whether there are escapes.
    pub(super) fn string_span(&mut self) -> Result<(usize, usize, bool), Stop> {
        let start = self.at + 1;
        let mut at = start;
        let mut escaped = false;
        loop {
            match self.text.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok((start, at, escaped));
                }
                Some(b'\\') => {
                    escaped = true;
                    match self.text.get(at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
                        Some(b'u') if self.text.get(at + 2..at + 6).is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit)) => at += 6,
                        _ => return Err(Stop::Syntax),
                    }
                }
                Some(0..=0x1f) | None => return Err(Stop::Syntax),
                Some(_) => at += 1 + unmarked(&self.text[at + 1..], ends_or_escapes),
            }
        }
    }

    pub fn string_owned(&mut self) -> Result<String, Stop> {
        let (start, end, escaped) = self.string_span()?;
        let raw = &self.text[start..end];
        Ok(if escaped { unescape(raw) } else { String::from_utf8_lossy(raw).into_owned() })
    }

    pub(super) fn number_span(&mut self) -> Result<&'t str, Stop> {
        let start = self.at;
        let digits = |at: &mut usize| {
            let from = *at;
            while self.text.get(*at).is_some_and(u8::is_ascii_digit) {
                *at += 1;
            }
            *at > from
        };
        let mut at = start;
        if self.text.get(at) == Some(&b'-') {
            at += 1;
        }
        if self.text.get(at) == Some(&b'0') {
            at += 1;
        } else if !digits(&mut at) {
            return Err(Stop::Syntax);
        }
        if self.text.get(at) == Some(&b'.') {
            at += 1;
            if !digits(&mut at) {
                return Err(Stop::Syntax);
            }
        }
        if matches!(self.text.get(at), Some(b'e' | b'E')) {
            at += 1;
            if matches!(self.text.get(at), Some(b'+' | b'-')) {
                at += 1;
            }
            if !digits(&mut at) {
                return Err(Stop::Syntax);
            }
        }
        self.at = at;
        std::str::from_utf8(&self.text[start..at]).map_err(|_| Stop::Syntax)
    }

    pub(super) fn literal(&mut self, word: &[u8]) -> Result<(), Stop> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(Stop::Syntax)
        }
    }

    /// Passes over a value, checking only what finding its end needs; the syntax check does not follow unless something
    /// fails, so every rule of the grammar is kept here as well.
    pub fn skip(&mut self) -> Result<(), Stop> {
        let mut stack: Vec<bool> = Vec::new();
        let mut value_due = true;
        loop {
            let c = self.next_byte()?;
            if value_due {
                value_due = false;
                match c {
                    b'{' | b'[' => {
                        // Within one more, at least.
                        if stack.len() >= 9_999 {
                            return Err(Stop::Syntax);
                        }
                        stack.push(c == b'{');
                        let mut first = true;
                        let more = if c == b'{' { self.next_key(&mut first)? } else { self.next_element(&mut first)? };
                        if more {
                            value_due = true;
                        } else {
                            stack.pop();
                        }
                    }
                    b'"' => {
                        self.string_span()?;
                    }
                    b't' => self.literal(b"true")?,
                    b'f' => self.literal(b"false")?,
                    b'n' => self.literal(b"null")?,
                    _ => {
                        self.number_span()?;
                    }
                }
            } else {
                let mut first = false;
                let more = match stack.last() {
                    Some(true) => self.next_key(&mut first)?,
                    _ => self.next_element(&mut first)?,
                };
                if more {
                    value_due = true;
                } else {
                    stack.pop();
                }
            }
            if stack.is_empty() && !value_due {
                return Ok(());
            }
        }
    }
}

/// Eight bytes with the same value.
const fn eight(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// A mark in the lowest byte of eight that is `byte`, and perhaps in higher ones.
pub(super) const fn is_byte(word: u64, byte: u8) -> u64 {
    let zero = word ^ eight(byte);
    zero.wrapping_sub(eight(1)) & !zero & eight(0x80)
}

/// A mark in the lowest byte of eight that is a control character, and perhaps in higher ones.
const fn is_control(word: u64) -> u64 {
    word.wrapping_sub(eight(0x20)) & !word & eight(0x80)
}

/// A mark in the lowest byte of eight with which a JSON string cannot just go on, and perhaps in higher ones.
pub(super) const fn ends_or_escapes(word: u64) -> u64 {
    is_byte(word, b'"') | is_byte(word, b'\\') | is_control(word)
}

/// How many bytes at the beginning certainly are none of those that `marks` marks, eight at a time.
#[inline]
pub(super) fn unmarked(text: &[u8], marks: impl Fn(u64) -> u64) -> usize {
    let mut at = 0;
    for word in text.as_chunks::<8>().0 {
        let marked = marks(u64::from_le_bytes(*word));
        if marked != 0 {
            return at + (marked.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at
}

/// Decodes the escapes of a string whose syntax was checked. Lone surrogates become U+FFFD, as in Go.
pub(super) fn unescape(raw: &[u8]) -> String {
    let raw = std::str::from_utf8(raw).unwrap_or("");
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let hex = |s: &str| s.get(..4).and_then(|h| u32::from_str_radix(h, 16).ok());
        let escape = rest.as_bytes().get(at + 1).copied().unwrap_or(b'\\');
        let mut used = 2;
        match escape {
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => {
                used = 6;
                let high = hex(&rest[at + 2..]).unwrap_or(0xfffd);
                let low = if (0xd800..0xdc00).contains(&high) {
                    rest.get(at + 6..).and_then(|r| r.strip_prefix("\\u")).and_then(hex)
                } else {
                    None
                };
                match low {
                    Some(low) if (0xdc00..0xe000).contains(&low) => {
                        used = 12;
                        out.push(char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)).unwrap_or('\u{fffd}'));
                    }
                    _ => out.push(char::from_u32(high).unwrap_or('\u{fffd}')),
                }
            }
            other => out.push(char::from(other)),
        }
        rest = rest.get(at + used..).unwrap_or("");
    }
    out.push_str(rest);
    out
}
