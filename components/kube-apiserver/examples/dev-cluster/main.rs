//! `cargo run -p kube-apiserver --example dev-cluster -- DIR [PORT]`: a control plane on loopback that runs until it is stopped.
//! DIR gets `admin.kubeconfig` and kubeconfigs of the components, `ca.crt`, `ca.key`, `sa.key`, `sa.pub`.

mod cluster;

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(dir) = args.next().map(PathBuf::from) else {
        eprintln!("usage: dev-cluster DIR [PORT]");
        return ExitCode::from(2);
    };
    let port = args.next().and_then(|p| p.parse().ok()).unwrap_or(16443);
    let (cluster, flags) = cluster::Cluster::prepare(&dir, Some(port));
    println!("export KUBECONFIG={}", cluster.dir.join("admin.kubeconfig").display());
    kube_apiserver::main(flags.into_iter())
}
