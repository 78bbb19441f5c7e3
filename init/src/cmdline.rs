//! The kernel command line: the words that init understands, and whether it is the one that the image was built with. Unknown words are the
//! kernel's or somebody else's.
//!
//! The stub of a unified kernel image appends what it finds in the machine's SMBIOS table, in files beside the image, and, without secure
//! boot, takes another command line from whoever starts it. The image's own stands in the initramfs too, under the same signature.

use std::path::Path;
use std::time::Duration;

/// The image's own command line, in the initramfs.
pub const BUILT_IN: &str = "/cmdline";

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

/// What the running command line says otherwise than the image's own, for a person to read; nothing when they agree.
pub fn changed() -> Option<String> {
    let built_in = std::fs::read_to_string(Path::new(BUILT_IN)).unwrap_or_default();
    difference(&built_in, &std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

fn difference(built_in: &str, running: &str) -> Option<String> {
    const MOST: usize = 200;
    let (built_in, running): (Vec<_>, Vec<_>) = (built_in.split_ascii_whitespace().collect(), running.split_ascii_whitespace().collect());
    if built_in == running {
        return None;
    }
    let words = match running.strip_prefix(&built_in[..]) {
        Some(added) => format!("it has more: {}", added.join(" ")),
        None => format!("it is: {}", running.join(" ")),
    };
    Some(words.chars().take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_images_own_words_are_its_own() {
        for (built_in, running, expected) in [
            ("a b=1", "a b=1\n", None),
            ("a  b=1\n", " a b=1 ", None),
            ("", "", None),
            ("a b=1", "a b=1 init=/x", Some("it has more: init=/x")),
            ("a b=1", "a b=2", Some("it is: a b=2")),
            ("a b=1", "b=1 a", Some("it is: b=1 a")),
            ("a b=1", "", Some("it is: ")),
            ("", "a", Some("it has more: a")),
        ] {
            assert_eq!(difference(built_in, running).as_deref(), expected, "{built_in:?} {running:?}");
        }
    }

    proptest! {
        #[test]
        fn no_added_word_goes_unseen(line in "[a-z= ]{0,40}", added in "[a-z.=]{1,300}") {
            let longer = format!("{line} {added}");
            prop_assert!(difference(&line, &longer).is_some());
        }
    }

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
