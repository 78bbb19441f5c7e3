//! The Kubernetes controllers, each a loop of observe → plan → apply.
//!
//! [`registry::CONTROLLERS`] lists them all. A controller's planning is a pure function over narrow structs ([`api`]); nothing in it reads a
//! clock or talks to the API. All controllers share one informer per resource ([`context::Informers`]).

mod api;
mod context;
mod controllers;
mod credentials;
mod expectations;
mod options;
mod ownership;
mod reconcile;
mod registry;
mod run;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

/// The entry point of `kube kube-controller-manager`; `args` begins with the program name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match options::Options::try_parse_from(args) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    component_base::start_logging("kube-controller-manager", options.verbosity);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kube-controller-manager: starting the runtime: {error}");
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
