//! PID 1. In the initramfs (`/init`) it is stage one: it finds the root and moves into it. From the root (`/usr/bin/init`)
//! it is stage two: it prepares the system, supervises the host services, and takes the machine down in order.
//!
//! Small and synchronous: no threads, no network, no parser of anything a user wrote, never a data disk. It never exits: a
//! failure that it cannot work around is shown on the console and the machine reboots. What could hang or needs much memory
//! runs in a helper process, which is this binary again (see [`helper`]).

mod cmdline;
mod confinement;
mod console;
mod control;
mod event_loop;
mod gpt;
mod helper;
mod loader;
mod meta;
mod modules;
mod mounts;
mod output;
mod power_button;
mod report;
mod root;
mod services;
mod setup;
mod shutdown;
mod spawn;
mod stage_one;
mod supervisor;
mod uevent;
mod verified;
mod watchdog;

use std::time::Duration;

/// How long the reason of a fatal failure stays on the console.
const FATAL_DELAY: Duration = Duration::from_secs(10);

fn main() {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if std::process::id() != 1 {
        std::process::exit(helper::run(&args));
    }
    std::panic::set_hook(Box::new(|panic| report::fatal(&format!("panic: {panic}"))));
    let in_initramfs = args.first().is_some_and(|name| name == "/init");
    let outcome = std::panic::catch_unwind(|| if in_initramfs { stage_one::run() } else { event_loop::run() });
    if let Ok(Err(error)) = outcome {
        report::fatal(&report::chain(&*error));
    }
    report::fatal(&format!("rebooting in {} seconds", FATAL_DELAY.as_secs()));
    std::thread::sleep(FATAL_DELAY);
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        report::fatal(&format!("reboot: {error}"));
    }
    loop {
        std::thread::sleep(FATAL_DELAY);
    }
}
