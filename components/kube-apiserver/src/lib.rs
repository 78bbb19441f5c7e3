//! The Kubernetes API server.
//!
//! `storage` keeps objects as bytes and follows etcd; `registry` says what is served; `http` speaks to clients; `handlers` answer by
//! verb, `aggregation` hands on what extension servers answer; `kinds` holds what is special about each kind, `custom` what definitions add to them; `authn`, `authz` and `admission` decide who may, `audit` records who did; `flow_control` decides when; `webhook` calls what users run to convert and admit objects; `bootstrap` fills a new cluster.

mod admission;
mod aggregation;
mod audit;
mod authn;
mod authz;
mod bootstrap;
mod config_file;
mod custom;
mod flags;
mod flow_control;
mod handlers;
mod http;
mod kinds;
mod kubelet;
mod metrics;
mod objects;
mod registry;
mod server;
mod services;
mod storage;
mod validation;
mod webhook;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs the API server with a command line whose first argument is the program's name, until a signal ends it.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let arguments = args.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let flags = match flags::Flags::try_parse_from(args) {
        Ok(f) => f,
        Err(e) => {
            // Help and version are no errors; printing to a closed terminal may fail and nobody is left to tell.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    component_base::start_logging("kube-apiserver", flags.verbosity);
    // The provider may have been installed before, in a test.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = flags.into_config().and_then(|config| {
        let config = server::Config { arguments, ..config };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let stop = CancellationToken::new();
            tokio::spawn(stop_on_signal(stop.clone()));
            server::run(config, stop).await
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be received; the server will end without draining");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    stop.cancel();
}
