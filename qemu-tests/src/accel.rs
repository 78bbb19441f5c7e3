//! Whether the host's KVM really runs a guest. Some hosts let `/dev/kvm` be opened and then hang every guest, so the answer comes from a
//! boot of a few seconds, and is kept in the cache for as long as the host's kernel stays the same.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use image::cache::Cache;
use image::tools::Tools;

use crate::error::{Error, FileContext};

const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// What runs the guests' instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Emulation,
}

impl Accelerator {
    /// The `-accel` value.
    pub fn accel(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg,thread=multi",
        }
    }

    /// The `-cpu` value.
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Emulation => "EPYC",
        }
    }

    /// Finds out, or remembers.
    pub fn detect(cache: &Cache, tools: &Tools) -> Result<Self, Error> {
        if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Emulation);
        }
        let kernel = std::fs::read_to_string("/proc/version").unwrap_or_default();
        let memory = cache.root().join("kvm-probe");
        if let Ok(text) = std::fs::read_to_string(&memory)
            && let Some((answer, probed)) = text.split_once('\n')
            && probed == kernel
        {
            return Ok(if answer == "works" { Self::Kvm } else { Self::Emulation });
        }
        let works = probe(tools)?;
        std::fs::write(&memory, format!("{}\n{kernel}", if works { "works" } else { "hangs" })).on("write", &memory)?;
        Ok(if works { Self::Kvm } else { Self::Emulation })
    }
}

/// Boots SeaBIOS, which writes its first words to the debug port within a second of real execution.
fn probe(tools: &Tools) -> Result<bool, Error> {
    let mut command = tools.qemu()?;
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64"]);
    command.args(["-chardev", "stdio,id=debug", "-device", "isa-debugcon,iobase=0x402,chardev=debug"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| Error::Spawn { program: "qemu-system-x86_64".into(), source })?;
    let (sender, receiver) = std::sync::mpsc::channel();
    if let Some(mut output) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut buffer = [0; 512];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                text.extend_from_slice(&buffer[..count]);
                // The firmware says this after it has looked at the boot devices: well past its first instructions.
                if String::from_utf8_lossy(&text).contains("No bootable device") {
                    let _ = sender.send(());
                    return;
                }
            }
        });
    }
    let start = Instant::now();
    let works = receiver.recv_timeout(PROBE_LIMIT).is_ok();
    let _ = child.kill();
    let _ = child.wait();
    tracing::debug!(works, elapsed_ms = start.elapsed().as_millis(), "probed KVM");
    Ok(works)
}
