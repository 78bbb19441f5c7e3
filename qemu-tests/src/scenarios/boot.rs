//! The ISO boots through UEFI, from a CD drive and from a disk, to the root's init.

use serde_json::json;

use crate::error::{Error, FileContext};
use crate::machine::{Disk, Machine};
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "boot",
    protects: "the ISO boots to the root's init, from a CD drive and from a disk it was copied to; the power button and Ctrl-Alt-Del work, other keys do nothing",
    run,
};

fn run(context: &Context) -> Result<(), Error> {
    for medium in ["cd", "disk"] {
        let mut spec = context.spec(&format!("boot-{medium}"), 1);
        if medium == "disk" {
            let copy = context.dir.join("stick.img");
            std::fs::copy(&context.image.iso, &copy).on("copy", &context.image.iso)?;
            spec.disk = Some(Disk { path: copy, overlay: false });
            spec.iso = None;
        }
        let machine = context.start(&spec)?;
        machine.wait_text(0, "stage two", context.patience(15))?;
        context.say(&format!("{medium}: the root's init runs"));
        let limit = context.patience(20);
        machine
            .wait_console(0, "the host services on the console", limit, |text| text.contains("service machined running").then_some(()))?;
        if medium == "cd" {
            keys(context, &machine)?;
        }
        machine.monitor().execute("system_powerdown", json!({}))?;
        machine.wait_off(limit)?;
        context.say(&format!("{medium}: the power button ends it in order"));
    }
    Ok(())
}

/// A person at the keyboard restarts the machine, in order, and does nothing else: neither text nor what the kernel knows as "magic" keys.
fn keys(context: &Context, machine: &Machine) -> Result<(), Error> {
    let start = machine.console().position();
    let magic = ["b", "o", "i", "s", "u"].map(|key| vec!["alt", "sysrq", key]);
    let text = ["r", "o", "o", "t", "ret"].map(|key| vec![key]);
    let others = [vec!["ctrl", "c"], vec!["ctrl", "d"], vec!["alt", "f2"], vec!["alt", "f1"], vec!["alt", "up"]];
    for pressed in magic.into_iter().chain(text).chain(others) {
        press(machine, &pressed)?;
    }
    let said = machine.console().text_from(start)?;
    for forbidden in ["sysrq: ", "login:", "Linux version"] {
        if said.contains(forbidden) {
            return Err(Error::Unexpected { what: "keys at the console".into(), expected: "nothing".into(), found: said });
        }
    }
    press(machine, &["ctrl", "alt", "delete"])?;
    machine.wait_text(start, "Ctrl-Alt-Del", context.patience(2))?;
    let again = "service machined running";
    machine.wait_console(start, "the host services after a restart", context.patience(20), |text| text.contains(again).then_some(()))?;
    context.say("cd: Ctrl-Alt-Del restarts it in order, and other keys do nothing");
    Ok(())
}

fn press(machine: &Machine, keys: &[&str]) -> Result<(), Error> {
    let keys: Vec<_> = keys.iter().map(|key| json!({"type": "qcode", "data": key})).collect();
    machine.monitor().execute("send-key", json!({ "keys": keys, "hold-time": 20 })).map(drop)
}
