//! Logging: to the machine's journal when standard error is connected to it, with fields and without a time of its own; else one line per
//! event on standard error.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Libraries whose details say nothing about the component.
const QUIET: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tower", "tonic"];
/// Set by whoever starts a program with its standard error connected to the journal: `device:inode` of it (systemd.exec(5)).
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// Starts logging. `verbosity` is upstream's `-v`: 4 and more is debug, 8 and more everything.
pub fn start_logging(component: &str, verbosity: u8) {
    let level = match verbosity {
        0..=3 => LevelFilter::INFO,
        4..=7 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = Targets::new().with_default(level).with_targets(QUIET.map(|library| (library, LevelFilter::INFO)));
    let subscriber = tracing_subscriber::registry().with(filter);
    // An error of `try_init` means that there is a subscriber already, as in tests: the first stays.
    if let (true, Ok(journal)) = (is_journal(std::env::var(JOURNAL_STREAM).ok().as_deref()), tracing_journald::layer()) {
        let _ = subscriber.with(journal.with_syslog_identifier(component.to_owned())).try_init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(verbosity >= 4);
    let _ = subscriber.with(lines).try_init();
}

/// Whether standard error is what the variable names: it may have been redirected since.
fn is_journal(stream: Option<&str>) -> bool {
    let Ok(found) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream.is_some_and(|stream| stream == format!("{}:{}", found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_that_standard_error_is_counts() {
        let found = rustix::fs::fstat(std::io::stderr()).unwrap();
        assert!(is_journal(Some(&format!("{}:{}", found.st_dev, found.st_ino))));
        assert!(!is_journal(Some(&format!("{}:{}", found.st_dev, found.st_ino.wrapping_add(1)))));
        assert!(!is_journal(Some("")) && !is_journal(None));
    }
}
