//! The command line of Strake.

use std::process::ExitCode;

use clap::Parser;
use strakectl::commands::Cli;

fn main() -> ExitCode {
    // Another provider can't be installed before this line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("strakectl: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("strakectl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
