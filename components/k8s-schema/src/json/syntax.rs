//! A JSON syntax check whose errors are those of Go's scanner. It runs where decoding failed, to name the failure; a
//! syntax error anywhere in a body comes before any other error, because Go checks the whole body first.

/// How deep Go lets values nest.
const MAX_NESTING: usize = 10_000;

/// Checks that `text` is one JSON value. The error is Go's, without the `json: ` prefix it does not have either.
pub fn check(text: &[u8]) -> Result<(), String> {
    Scanner { text, at: 0, stack: Vec::new() }.run()
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    /// `true` for an object, `false` for an array.
    stack: Vec<bool>,
}

type Checked = Result<(), String>;

impl Scanner<'_> {
    fn run(mut self) -> Checked {
        self.value("looking for beginning of value")?;
        while let Some(&object) = self.stack.last() {
            if object { self.after_pair()? } else { self.after_element()? }
        }
        match self.peek() {
            None => Ok(()),
            Some(_) => self.unexpected("after top-level value"),
        }
    }

    fn peek(&mut self) -> Option<u8> {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn unexpected(&self, context: &str) -> Checked {
        match self.text.get(self.at) {
            None => Err("unexpected end of JSON input".to_owned()),
            Some(&c) => Err(format!("invalid character {} {context}", quote_char(c))),
        }
    }

    /// Reads a scalar, or opens a container and reads up to its first scalar or its end.
    fn value(&mut self, context: &str) -> Checked {
        let mut context = context;
        loop {
            match self.peek() {
                Some(b'{') => {
                    self.open(true)?;
                    if self.peek() == Some(b'}') {
                        self.close();
                        return Ok(());
                    }
                    self.key()?;
                }
                Some(b'[') => {
                    self.open(false)?;
                    if self.peek() == Some(b']') {
                        self.close();
                        return Ok(());
                    }
                }
                Some(b'"') => return self.string(),
                Some(b't') => return self.literal(b"true"),
                Some(b'f') => return self.literal(b"false"),
                Some(b'n') => return self.literal(b"null"),
                Some(b'-' | b'0'..=b'9') => return self.number(),
                _ => return self.unexpected(context),
            }
            context = "looking for beginning of value";
        }
    }

    fn open(&mut self, object: bool) -> Checked {
        if self.stack.len() >= MAX_NESTING {
            return self.unexpected("exceeded max depth");
        }
        self.stack.push(object);
        self.at += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.stack.pop();
        self.at += 1;
    }

    fn key(&mut self) -> Checked {
        if self.peek() != Some(b'"') {
            return self.unexpected("looking for beginning of object key string");
        }
        self.string()?;
        if self.peek() != Some(b':') {
            return self.unexpected("after object key");
        }
        self.at += 1;
        Ok(())
    }

    fn after_pair(&mut self) -> Checked {
        match self.peek() {
            Some(b'}') => {
                self.close();
                Ok(())
            }
            Some(b',') => {
                self.at += 1;
                self.key()?;
                self.value("looking for beginning of value")
            }
            _ => self.unexpected("after object key:value pair"),
        }
    }

    fn after_element(&mut self) -> Checked {
        match self.peek() {
            Some(b']') => {
                self.close();
                Ok(())
            }
            Some(b',') => {
                self.at += 1;
                self.value("looking for beginning of value")
            }
            _ => self.unexpected("after array element"),
        }
    }

    fn string(&mut self) -> Checked {
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.text.get(self.at) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.text.get(self.at).is_some_and(u8::is_ascii_hexdigit) {
                                    return self.unexpected("in \\u hexadecimal character escape");
                                }
                                self.at += 1;
                            }
                        }
                        _ => return self.unexpected("in string escape code"),
                    }
                }
                Some(0..=0x1f) | None => return self.unexpected("in string literal"),
                Some(_) => self.at += 1,
            }
        }
    }

    fn literal(&mut self, word: &[u8]) -> Checked {
        for (i, &c) in word.iter().enumerate() {
            if self.text.get(self.at) != Some(&c) {
                let word = String::from_utf8_lossy(word);
                return self.unexpected(&format!("in literal {word} (expecting {})", quote_char(word.as_bytes()[i])));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Checked {
        if self.text.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        match self.text.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.unexpected("in numeric literal"),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
                return self.unexpected("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if !self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
                return self.unexpected("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }
}

/// Go's quoting of the offending byte: `'x'`, `'\''`, `'"'`, `'\x01'`, and a byte above ASCII as the Latin-1 character.
fn quote_char(c: u8) -> String {
    match c {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => {
            let quoted = crate::time::quote(&char::from(c).to_string());
            let inner = quoted.trim_start_matches('"');
            let inner = inner.strip_suffix('"').unwrap_or(inner);
            // U+0080 to U+009F are not printable.
            if (0x80..0xa0).contains(&c) || c == 0xad { format!("'\\u{c:04x}'") } else { format!("'{inner}'") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_are_gos() {
        for (text, want) in [
            ("", "unexpected end of JSON input"),
            (" ", "unexpected end of JSON input"),
            ("hello", "invalid character 'h' looking for beginning of value"),
            ("{\"apiVersion\":\"v1\"", "unexpected end of JSON input"),
            ("{}x", "invalid character 'x' after top-level value"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
            ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\u{1}\"", "invalid character '\\x01' in string literal"),
            ("[1 2]", "invalid character '2' after array element"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("tru ", "invalid character ' ' in literal true (expecting 'e')"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1e", "unexpected end of JSON input"),
            ("01", "invalid character '1' after top-level value"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
        ] {
            assert_eq!(check(text.as_bytes()), Err(want.to_owned()), "{text}");
        }
        assert_eq!(check("[".repeat(10_001).as_bytes()), Err("invalid character '[' exceeded max depth".to_owned()));
        assert_eq!(check(b" {\"a\":[1,{},[],\"x\\u00e9\",null,true,-1.5e+3]} "), Ok(()));
    }

    proptest! {
        #[test]
        fn it_agrees_with_serde_json(text in "[\\[\\]{}:,\" a1.e+\\-tnu\\\\]{0,24}") {
            prop_assert_eq!(check(text.as_bytes()).is_ok(), serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok());
        }
    }
}
