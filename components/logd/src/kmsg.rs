//! Records of the kernel log, as /dev/kmsg gives them (the kernel's dev-kmsg ABI document): `prio,seq,time,flags;message\n`,
//! then lines of ` KEY=value`.

use crate::journal::{MAX_MESSAGE, text};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub priority: u8,
    pub sequence: u64,
    /// Microseconds since boot.
    pub time_us: u64,
    pub message: String,
}

/// `None` for what is no record. Continuation lines name devices and are left out.
pub fn parse(record: &[u8]) -> Option<Record> {
    let semicolon = record.iter().position(|&byte| byte == b';')?;
    let header = std::str::from_utf8(&record[..semicolon]).ok()?;
    let body = &record[semicolon + 1..];
    let message = &body[..body.iter().position(|&byte| byte == b'\n').unwrap_or(body.len())];
    let mut numbers = header.split(',');
    let priority: u64 = numbers.next()?.parse().ok()?;
    let sequence = numbers.next()?.parse().ok()?;
    let time_us = numbers.next()?.parse().ok()?;
    Some(Record { priority: (priority & 7) as u8, sequence, time_us, message: unescape(&text(message, MAX_MESSAGE)) })
}

/// The kernel writes unprintable bytes as `\x1b`.
fn unescape(message: &str) -> String {
    if !message.contains("\\x") {
        return message.to_owned();
    }
    let mut bytes = Vec::with_capacity(message.len());
    let mut rest = message.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\' && after.first() == Some(&b'x'))
            .then(|| after.get(1..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_read_and_others_refused() {
        let record = parse(b"6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n").unwrap();
        assert_eq!(record, Record { priority: 6, sequence: 339, time_us: 5140900, message: "NET: Registered protocol family 10".into() });
        assert_eq!(parse(b"30,1,2,c,x=y;a\\x1bb\\x\n").unwrap().message, "a\u{1b}b\\x");
        assert_eq!(parse(b"30,1,2,-;").unwrap().priority, 6);
        for bad in [&b""[..], b"6,1,2,-", b"x,1,2;m", b"6;m", b"6,1;m"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_record_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"6,1,2,-;", bytes.as_slice()].concat());
        }
    }
}
