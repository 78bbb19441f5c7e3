//! The kernel command line: the words that init understands. Unknown words are the kernel's or somebody else's.

use std::time::Duration;

/// What the command line asks of init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// `strake.root=`: the UUID of the root image, in lower case.
    pub root_uuid: Option<String>,
    /// `strake.rootwait=`: for how long stage one looks for the root.
    pub root_wait: Duration,
}

const DEFAULT_ROOT_WAIT: Duration = Duration::from_secs(60);
const MAX_ROOT_WAIT: Duration = Duration::from_secs(3600);

/// Reads `/proc/cmdline`; an unreadable one is an empty one.
pub fn read() -> CommandLine {
    parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Parses a command line. The last of several equal words wins, as with the kernel's own.
pub fn parse(line: &str) -> CommandLine {
    let mut parsed = CommandLine { root_uuid: None, root_wait: DEFAULT_ROOT_WAIT };
    for word in line.split_ascii_whitespace() {
        match word.split_once('=') {
            Some(("strake.root", uuid)) if is_uuid(uuid) => parsed.root_uuid = Some(uuid.to_ascii_lowercase()),
            Some(("strake.rootwait", seconds)) => {
                if let Ok(seconds) = seconds.parse() {
                    parsed.root_wait = Duration::from_secs(seconds).min(MAX_ROOT_WAIT);
                }
            }
            _ => {}
        }
    }
    parsed
}

/// The UUID becomes part of a file name, so nothing but the canonical form is taken.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_and_bad_ones_ignored() {
        let uuid = "0b1c2d3e-0000-4000-8000-00000000abcd";
        let minute = DEFAULT_ROOT_WAIT;
        let cases = [
            ("", None, minute),
            ("quiet console=ttyS0 ro", None, minute),
            ("strake.root=0B1C2D3E-0000-4000-8000-00000000ABCD strake.rootwait=5\n", Some(uuid), Duration::from_secs(5)),
            ("strake.root=../../etc/passwd", None, minute),
            ("strake.root=0b1c2d3e-0000-4000-8000-00000000abc", None, minute),
            ("strake.rootwait=99999999 strake.root=", None, MAX_ROOT_WAIT),
            ("strake.rootwait=-1", None, minute),
            ("xstrake.root=0b1c2d3e-0000-4000-8000-00000000abcd", None, minute),
        ];
        for (line, root_uuid, root_wait) in cases {
            assert_eq!(parse(line), CommandLine { root_uuid: root_uuid.map(str::to_owned), root_wait }, "{line:?}");
        }
    }
}
