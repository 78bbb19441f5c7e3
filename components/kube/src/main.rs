//! The Kubernetes components in one executable: which one it is, the name it was started under or the first argument says.

use std::{ffi::OsString, path::Path, process::ExitCode};

type Main = fn(std::vec::IntoIter<OsString>) -> ExitCode;

/// Components under their upstream names.
const COMPONENTS: &[(&str, Main)] = &[
    ("kube-apiserver", |a| kube_apiserver::main(a)),
    ("kube-scheduler", |a| kube_scheduler::main(a)),
    ("kube-controller-manager", |a| kube_controller_manager::main(a)),
    ("cloud-controller-manager", |a| cloud_controller_manager::main(a)),
    ("kubelet", |a| kubelet::main(a)),
    ("cluster-dns", |a| cluster_dns::main(a)),
];

fn find(name: &OsString) -> Option<(&'static str, Main)> {
    let base = Path::new(name).file_name()?.to_str()?;
    COMPONENTS.iter().find(|(n, _)| *n == base).copied()
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let by_name = args.first().and_then(find);
    let chosen = by_name.or_else(|| {
        let c = args.get(1).and_then(find);
        if c.is_some() {
            args.remove(0);
        }
        c
    });
    match chosen {
        Some((name, run)) => {
            args[0] = name.into();
            run(args.into_iter())
        }
        None => {
            let names: Vec<&str> = COMPONENTS.iter().map(|(n, _)| *n).collect();
            eprintln!("usage: kube <component> [flags…], with one of the components {}", names.join(", "));
            ExitCode::from(2)
        }
    }
}
