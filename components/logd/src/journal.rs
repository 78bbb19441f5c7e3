//! The native journal protocol: one datagram is one entry of `KEY=value\n` and, for values with newlines,
//! `KEY\n<length, 64 bits, little endian><value>\n`. Pure; whatever comes from a socket is bounded here.

use std::collections::BTreeMap;

/// The largest entry that is looked at.
pub const MAX_ENTRY: usize = 1024 * 1024;
/// Longer messages are cut.
pub const MAX_MESSAGE: usize = 16 * 1024;
const MAX_FIELDS: usize = 48;
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 1024;

/// What an entry says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    pub message: String,
    /// `PRIORITY`; 6 when it is missing or wrong.
    pub priority: u8,
    /// `SYSLOG_IDENTIFIER`: what the sender calls itself.
    pub identifier: Option<String>,
    /// The others, but for those that only a journal itself may set.
    pub fields: BTreeMap<String, String>,
}

/// Why a datagram is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("the entry is larger than {MAX_ENTRY} bytes")]
    TooLarge,
    #[error("the entry ends inside a field")]
    Truncated,
    #[error("the entry has no message")]
    NoMessage,
}

/// Parses a datagram. Fields beyond the bounds are dropped, values cut.
pub fn parse(datagram: &[u8]) -> Result<Record, ParseError> {
    if datagram.len() > MAX_ENTRY {
        return Err(ParseError::TooLarge);
    }
    let mut record = Record { priority: 6, ..Record::default() };
    let mut has_message = false;
    let mut rest = datagram;
    while !rest.is_empty() {
        let (key, value, after) = next_field(rest)?;
        rest = after;
        match key {
            b"" => {}
            b"MESSAGE" => {
                record.message = text(value, MAX_MESSAGE);
                has_message = true;
            }
            b"PRIORITY" => record.priority = priority(value).unwrap_or(6),
            b"SYSLOG_IDENTIFIER" => record.identifier = Some(text(value, MAX_KEY)),
            _ => {
                if record.fields.len() < MAX_FIELDS
                    && let Some(key) = field_name(key)
                {
                    record.fields.insert(key, text(value, MAX_VALUE));
                }
            }
        }
    }
    if has_message { Ok(record) } else { Err(ParseError::NoMessage) }
}

/// Key, value, and what follows.
fn next_field(bytes: &[u8]) -> Result<(&[u8], &[u8], &[u8]), ParseError> {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (line, rest) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    if let Some(equals) = line.iter().position(|&byte| byte == b'=') {
        return Ok((&line[..equals], &line[equals + 1..], rest));
    }
    if line.is_empty() {
        return Ok((b"", b"", rest));
    }
    let length = rest.get(..8).and_then(|length| length.try_into().ok()).map(u64::from_le_bytes).ok_or(ParseError::Truncated)?;
    let length = usize::try_from(length).map_err(|_| ParseError::Truncated)?;
    let value_end = length.checked_add(8).ok_or(ParseError::Truncated)?;
    let value = rest.get(8..value_end).ok_or(ParseError::Truncated)?;
    Ok((line, value, rest.get(value_end + 1..).unwrap_or_default()))
}

fn priority(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'0'..=b'7'] => Some(digit - b'0'),
        _ => None,
    }
}

/// Capital letters, digits and underscores, not beginning with an underscore. tracing-journald puts `F_` before its fields.
fn field_name(key: &[u8]) -> Option<String> {
    let key = key.strip_prefix(b"F_").unwrap_or(key);
    let well_formed = !key.is_empty()
        && key.len() <= MAX_KEY
        && key[0].is_ascii_uppercase()
        && key.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_');
    well_formed.then(|| String::from_utf8_lossy(key).into_owned())
}

/// Text of at most `limit` bytes; what is no UTF-8 is replaced.
pub fn text(value: &[u8], limit: usize) -> String {
    let mut text = String::from_utf8_lossy(&value[..value.len().min(limit)]).into_owned();
    if value.len() > limit {
        text.push('…');
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A sender, as the protocol's documentation describes it.
    fn encode(fields: &[(String, String)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in fields {
            bytes.extend_from_slice(key.as_bytes());
            if value.contains('\n') {
                bytes.push(b'\n');
                bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                bytes.push(b'=');
            }
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(b'\n');
        }
        bytes
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn both_forms_of_fields_are_read() {
        let datagram = encode(&[
            pair("PRIORITY", "3"),
            pair("MESSAGE", "first\nsecond"),
            pair("SYSLOG_IDENTIFIER", "kubelet"),
            pair("TARGET", "kubelet::pod"),
            pair("F_POD", "a=b"),
            pair("_PID", "1"),
            pair("lower", "x"),
        ]);
        let record = parse(&datagram).unwrap();
        assert_eq!((record.message.as_str(), record.priority, record.identifier.as_deref()), ("first\nsecond", 3, Some("kubelet")));
        assert_eq!(record.fields, BTreeMap::from([pair("POD", "a=b"), pair("TARGET", "kubelet::pod")]));
    }

    #[test]
    fn bad_entries_say_why() {
        let mut cut = encode(&[pair("MESSAGE", "a\nb")]);
        cut.truncate(cut.len() - 3);
        let cases: &[(&[u8], ParseError)] = &[
            (b"", ParseError::NoMessage),
            (b"\n\n", ParseError::NoMessage),
            (b"PRIORITY=3\n", ParseError::NoMessage),
            (b"MESSAGE\n\x01\x02", ParseError::Truncated),
            (b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xffabc\n", ParseError::Truncated),
            (&cut, ParseError::Truncated),
        ];
        for (datagram, error) in cases {
            assert_eq!(parse(datagram), Err(*error), "{datagram:?}");
        }
        assert_eq!(parse(&vec![b'A'; MAX_ENTRY + 1]), Err(ParseError::TooLarge));
    }

    #[test]
    fn everything_is_bounded() {
        let mut fields = vec![pair("MESSAGE", &"m".repeat(MAX_MESSAGE * 2)), pair("PRIORITY", "9")];
        fields.extend((0..200).map(|n| pair(&format!("KEY{n}"), &"v".repeat(MAX_VALUE * 2))));
        let record = parse(&encode(&fields)).unwrap();
        assert_eq!(record.message.chars().count(), MAX_MESSAGE + 1);
        assert_eq!((record.priority, record.fields.len()), (6, MAX_FIELDS));
        assert!(record.fields.values().all(|value| value.len() <= MAX_VALUE + 3));
    }

    proptest! {
        #[test]
        fn what_a_sender_writes_is_what_is_read(
            message in "[a-z\n]{0,20}[a-z]",
            fields in prop::collection::btree_map("[A-Z][A-Z0-9_]{0,10}", "[ -~\n]{0,29}[!-~]", 0..8),
        ) {
            let mut sent: Vec<(String, String)> = vec![pair("MESSAGE", &message)];
            let special = ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"];
            let expected: BTreeMap<String, String> =
                fields.into_iter().filter(|(key, _)| !special.contains(&key.as_str()) && !key.starts_with("F_")).collect();
            sent.extend(expected.clone());
            let record = parse(&encode(&sent)).unwrap();
            prop_assert_eq!(record.message, message);
            prop_assert_eq!(record.fields, expected);
        }

        #[test]
        fn no_datagram_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), keyed in any::<bool>()) {
            let mut datagram = if keyed { b"MESSAGE\n".to_vec() } else { Vec::new() };
            datagram.extend_from_slice(&bytes);
            let _ = parse(&datagram);
        }
    }
}
