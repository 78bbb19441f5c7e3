//! The ISO boots through UEFI, from a CD drive and from a disk, to the root's init.

use crate::error::{Error, FileContext};
use crate::machine::Disk;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario =
    Scenario { name: "boot", protects: "the ISO boots to the root's init, from a CD drive and from a disk it was copied to", run };

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
        machine.monitor().execute("system_powerdown", serde_json::json!({}))?;
        machine.wait_off(limit)?;
        context.say(&format!("{medium}: the power button ends it in order"));
    }
    Ok(())
}
