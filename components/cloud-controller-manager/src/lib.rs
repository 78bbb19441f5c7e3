//! The cloud controller manager of bare metal: there is no cloud, the machines are the inventory.
//!
//! It initialises nodes that kubelets registered ([`nodes`]), removes those whose machine is gone ([`lifecycle`]) and plans the routes
//! between the nodes' pod ranges ([`routes`]), which the machines themselves apply.

mod api;
mod lifecycle;
mod nodes;
mod options;
mod routes;
mod run;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

/// The entry point of `kube cloud-controller-manager`; `args` begins with the program name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match options::Options::try_parse_from(args) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    component_base::start_logging("cloud-controller-manager", options.verbosity);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cloud-controller-manager: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
