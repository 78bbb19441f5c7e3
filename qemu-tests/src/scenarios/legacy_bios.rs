//! A machine that starts the ISO in legacy BIOS mode says on its screen that UEFI is needed.

use std::time::{Duration, Instant};

use image::bios::MESSAGE;
use serde_json::json;

use crate::error::{Error, FileContext};
use crate::machine::Firmware;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "legacy-bios",
    protects: "the ISO says that UEFI is needed when a legacy BIOS starts it, from a CD and from a USB stick",
    run,
};

/// The text screen of a VGA adapter: 80 by 25 cells of a character and its colour.
const SCREEN: (u64, u64) = (0xb8000, 80 * 25 * 2);

fn run(context: &Context) -> Result<(), Error> {
    for medium in ["cd", "disk"] {
        let mut spec = context.spec(&format!("bios-{medium}"), 1);
        spec.firmware = Firmware::LegacyBios;
        spec.memory_mib = 128;
        if medium == "disk" {
            let copy = context.dir.join("stick.img");
            std::fs::copy(&context.image.iso, &copy).on("copy", &context.image.iso)?;
            spec.disk = Some(crate::machine::Disk { path: copy, overlay: false });
            spec.iso = None;
        }
        let machine = context.start(&spec)?;
        let dump = context.dir.join(format!("screen-{medium}"));
        let wanted = MESSAGE.lines().next().unwrap_or_default();
        let limit = context.patience(10);
        let deadline = Instant::now() + limit;
        loop {
            machine.monitor().execute("pmemsave", json!({"val": SCREEN.0, "size": SCREEN.1, "filename": dump}))?;
            let cells = std::fs::read(&dump).on("read", &dump)?;
            let screen: String = cells.chunks(2).map(|cell| char::from(cell[0])).collect();
            if screen.contains(wanted) {
                context.say(&format!("{medium}: the screen says {wanted:?}"));
                break;
            }
            if Instant::now() > deadline {
                return Err(machine.deadline(&format!("{wanted:?} on the screen, which shows {:?}", screen.trim()), limit));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    Ok(())
}
