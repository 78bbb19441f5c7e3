//! The process that holds a pod's namespaces: it sleeps, reaps the orphans of a shared PID namespace, and ends at SIGTERM
//! or SIGINT. It must never do anything else, because it runs in every pod.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGCHLD);
    if let Err(error) = signals.thread_block() {
        eprintln!("pause: block signals: {error}");
        std::process::exit(1);
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                eprintln!("pause: wait for a signal: {error}");
                std::process::exit(1);
            }
        }
    }
}

/// One SIGCHLD may stand for many children.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
