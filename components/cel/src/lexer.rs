//! Source to tokens, by the lexical grammar of the language's specification.

use std::sync::Arc;

use crate::issue::Issue;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Ident(String),
    /// The keywords `in`, `true`, `false` and `null`.
    Word(&'static str),
    Int(String),
    Uint(String),
    Double(String),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Op(&'static str),
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Spanned {
    pub token: Token,
    pub offset: usize,
    /// The token as it was written.
    pub text: String,
}

const OPERATORS: [&str; 26] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]", "{", "}", "=", "|",
];

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    issues: Vec<Issue>,
}

/// The tokens, the last of which is [`Token::End`], and what could not be read.
pub fn tokens(chars: &[char]) -> (Vec<Spanned>, Vec<Issue>) {
    let mut l = Lexer { chars, at: 0, issues: Vec::new() };
    let mut out = Vec::new();
    loop {
        l.blank();
        let offset = l.at;
        let Some(c) = l.peek(0) else {
            out.push(Spanned { token: Token::End, offset, text: "<EOF>".into() });
            return (out, l.issues);
        };
        let token = l.token(c);
        let text: String = chars[offset..l.at].iter().collect();
        match token {
            Some(token) => out.push(Spanned { token, offset, text }),
            None => l.issues.push(Issue { offset, message: format!("Syntax error: token recognition error at: '{}'", shown(&text)) }),
        }
    }
}

fn shown(text: &str) -> String {
    text.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r")
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn blank(&mut self) {
        while let Some(c) = self.peek(0) {
            if matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}') {
                self.at += 1;
            } else if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else {
                return;
            }
        }
    }

    fn token(&mut self, c: char) -> Option<Token> {
        if let Some(prefix) = self.string_prefix() {
            return self.string(prefix);
        }
        if c.is_ascii_digit() || c == '.' && self.peek(1).is_some_and(|d| d.is_ascii_digit()) {
            return Some(self.number());
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let begin = self.at;
            while self.peek(0).is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                self.at += 1;
            }
            let word: String = self.chars[begin..self.at].iter().collect();
            let keyword = ["in", "true", "false", "null"].into_iter().find(|k| *k == word);
            return Some(keyword.map_or(Token::Ident(word), Token::Word));
        }
        for op in OPERATORS {
            if op.chars().enumerate().all(|(i, o)| self.peek(i) == Some(o)) && !matches!(op, "=" | "|") {
                self.at += op.len();
                return Some(Token::Op(op));
            }
        }
        self.at += 1;
        None
    }

    fn number(&mut self) -> Token {
        let begin = self.at;
        let mut double = false;
        if self.peek(0) == Some('0') && matches!(self.peek(1), Some('x' | 'X')) && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit()) {
            self.at += 2;
            while self.peek(0).is_some_and(|c| c.is_ascii_hexdigit()) {
                self.at += 1;
            }
        } else {
            self.digits();
            if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
                double = true;
                self.at += 1;
                self.digits();
            }
            if matches!(self.peek(0), Some('e' | 'E')) {
                let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
                if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                    double = true;
                    self.at += 1 + sign;
                    self.digits();
                }
            }
        }
        let text: String = self.chars[begin..self.at].iter().collect();
        if double {
            return Token::Double(text);
        }
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Token::Uint(text);
        }
        Token::Int(text)
    }

    fn digits(&mut self) {
        while self.peek(0).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
    }

    /// How many characters stand before the quote, whether it is raw, whether it is bytes; none where no string begins.
    fn string_prefix(&self) -> Option<(usize, bool, bool)> {
        let quote = |i| matches!(self.peek(i), Some('"' | '\''));
        if quote(0) {
            return Some((0, false, false));
        }
        match (self.peek(0)?.to_ascii_lowercase(), self.peek(1)?.to_ascii_lowercase()) {
            ('r', _) if quote(1) => Some((1, true, false)),
            ('b', _) if quote(1) => Some((1, false, true)),
            ('b', 'r') | ('r', 'b') if quote(2) => Some((2, true, true)),
            _ => None,
        }
    }

    fn string(&mut self, (skip, raw, bytes): (usize, bool, bool)) -> Option<Token> {
        self.at += skip;
        let quote = self.peek(0)?;
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let width = if triple { 3 } else { 1 };
        self.at += width;
        let (mut text, mut raw_bytes) = (String::new(), Vec::new());
        loop {
            let c = self.peek(0)?;
            let ends = (0..width).all(|i| self.peek(i) == Some(quote));
            if ends {
                self.at += width;
                return Some(if bytes { Token::Bytes(raw_bytes.into()) } else { Token::String(text.into()) });
            }
            if matches!(c, '\n' | '\r') && !triple {
                return None;
            }
            self.at += 1;
            let mut put = |c: char| {
                text.push(c);
                raw_bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            };
            if c != '\\' || raw {
                put(c);
                continue;
            }
            let e = self.peek(0)?;
            self.at += 1;
            let plain = match e {
                'a' => Some('\u{7}'),
                'b' => Some('\u{8}'),
                'f' => Some('\u{c}'),
                'n' => Some('\n'),
                'r' => Some('\r'),
                't' => Some('\t'),
                'v' => Some('\u{b}'),
                '\\' | '\'' | '"' | '`' | '?' => Some(e),
                _ => None,
            };
            if let Some(p) = plain {
                put(p);
                continue;
            }
            let (digits, radix) = match e {
                'x' | 'X' => (2, 16),
                'u' if !bytes => (4, 16),
                'U' if !bytes => (8, 16),
                '0'..='3' => (2, 8),
                _ => return None,
            };
            let mut n = if radix == 8 { e.to_digit(8)? } else { 0 };
            for _ in 0..digits {
                n = n.checked_mul(radix)?.checked_add(self.peek(0)?.to_digit(radix)?)?;
                self.at += 1;
            }
            if bytes {
                raw_bytes.push(u8::try_from(n).ok()?);
            } else {
                text.push(char::from_u32(n)?);
            }
        }
    }
}
