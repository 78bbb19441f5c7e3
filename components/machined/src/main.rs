//! The machine daemon.

use std::process::ExitCode;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    // Another provider can't be installed before this line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("machined: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(machined::run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("machined: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to the journal socket; logd is started at the same time, so a moment is given to it. Without it, to standard
/// error, which init keeps.
fn log() {
    let quiet = ["h2", "hyper", "rustls", "netlink"].map(|library| (library, LevelFilter::WARN));
    let filter = Targets::new().with_default(LevelFilter::INFO).with_targets(quiet);
    for _ in 0..30 {
        if let Ok(journal) = tracing_journald::layer() {
            tracing_subscriber::registry().with(filter).with(journal.with_syslog_identifier("machined".to_owned())).init();
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    tracing_subscriber::registry().with(filter).with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false)).init();
}
