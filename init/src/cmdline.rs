//! The kernel command line: the words that init understands. Unknown words are the kernel's or somebody else's.

use std::time::Duration;

/// What the command line asks of init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
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
    let mut parsed = CommandLine { root_wait: DEFAULT_ROOT_WAIT };
    for word in line.split_ascii_whitespace() {
        if let Some(("strake.rootwait", seconds)) = word.split_once('=')
            && let Ok(seconds) = seconds.parse()
        {
            parsed.root_wait = Duration::from_secs(seconds).min(MAX_ROOT_WAIT);
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_and_bad_ones_ignored() {
        let minute = DEFAULT_ROOT_WAIT;
        let cases = [
            ("", minute),
            ("quiet console=ttyS0 ro", minute),
            // Which root is no matter of the command line, which need not be signed.
            ("strake.root=0b1c2d3e-0000-4000-8000-00000000abcd strake.rootwait=5\n", Duration::from_secs(5)),
            ("strake.rootwait=3 strake.rootwait=4", Duration::from_secs(4)),
            ("strake.rootwait=99999999", MAX_ROOT_WAIT),
            ("strake.rootwait=-1", minute),
            ("xstrake.rootwait=5", minute),
        ];
        for (line, root_wait) in cases {
            assert_eq!(parse(line), CommandLine { root_wait }, "{line:?}");
        }
    }
}
