//! One virtual machine: how QEMU is called, its process, its console, and pulling its plug.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use image::tools::Tools;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::accel::Accelerator;
use crate::console::Console;
use crate::error::{Error, FileContext};
use crate::power::recorder;
use crate::qmp::Monitor;

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(100);

/// What a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Its name.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors; one is fastest when several machines share two host processors.
    pub processors: u32,
    /// The last byte of its Ethernet address.
    pub address: u8,
    /// Its disk, if it has one.
    pub disk: Option<Disk>,
    /// The ISO in its drive, if any.
    pub iso: Option<PathBuf>,
    /// Its firmware starts what is in the drive, and not the disk.
    pub medium_first: bool,
    /// The switch it is plugged into, if any.
    pub switch: Option<PathBuf>,
    /// A file of rules by which its disk gives errors (QEMU's blkdebug), if it does.
    pub disk_errors: Option<PathBuf>,
    /// Which firmware starts it.
    pub firmware: Firmware,
    /// The socket of a recorder that serves its disk and its firmware's variables, if what it writes is recorded.
    pub recorder: Option<PathBuf>,
    /// A string in its SMBIOS table (type 11), which whoever runs the machine can put there.
    pub oem_string: Option<String>,
    /// What its hardware clock shows when it starts, if not the time; `1980-01-01` is an empty battery.
    pub clock: Option<String>,
    /// The file that it is given when it boots from the network, if it does.
    pub network_boot: Option<PathBuf>,
    /// The directory of its TPM's state, if it has a TPM; an empty one is a new TPM.
    pub tpm: Option<PathBuf>,
    /// The directory of its console, logs and firmware variables.
    pub dir: PathBuf,
    /// The directory of its sockets (short, because socket names are limited to 107 bytes).
    pub run: PathBuf,
}

/// A disk's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// A layer over another file rather than a plain file.
    pub overlay: bool,
}

/// Which firmware starts a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// OVMF.
    #[default]
    Uefi,
    /// OVMF that can check signatures: in setup mode until somebody enrols keys.
    SecureBoot,
    /// SeaBIOS.
    LegacyBios,
}

/// A machine that was started. Dropping it leaves it running; [`Machine::pull_plug`] ends it.
#[derive(Debug)]
pub struct Machine {
    spec: MachineSpec,
    console: Console,
}

impl Machine {
    /// Starts the machine. Its console is appended to; the variables of its firmware are made when they are not there.
    pub fn start(tools: &Tools, accelerator: Accelerator, spec: &MachineSpec) -> Result<Self, Error> {
        for dir in [&spec.dir, &spec.run] {
            std::fs::create_dir_all(dir).on("create", dir)?;
        }
        let machine = Self::attach(spec);
        if machine.is_running() {
            return Ok(machine);
        }
        // Left by a machine whose plug was pulled; the new one's must not be taken for it.
        if machine.monitor_socket().exists() {
            std::fs::remove_file(machine.monitor_socket()).on("remove", machine.monitor_socket())?;
        }
        let variables = spec.dir.join("firmware-variables.fd");
        if spec.firmware != Firmware::LegacyBios && !variables.exists() {
            let template = tools.file("usr/share/OVMF/OVMF_VARS_4M.fd")?;
            std::fs::copy(&template, &variables).on("copy", &template)?;
        }
        let code = match spec.firmware {
            Firmware::SecureBoot => tools.file("usr/share/OVMF/OVMF_CODE_4M.secboot.fd")?,
            Firmware::Uefi | Firmware::LegacyBios => tools.file("usr/share/OVMF/OVMF_CODE_4M.fd")?,
        };
        let tpm = free_tpm_socket(spec);
        if let Some(state) = &spec.tpm {
            start_tpm(state, &tpm)?;
        }
        let output = spec.dir.join("qemu.log");
        let log = File::create(&output).on("create", &output)?;
        let errors = log.try_clone().on("share", &output)?;
        let mut command = tools.qemu()?;
        command.args(arguments(spec, accelerator, &code, &variables, &tpm)).stdin(Stdio::null()).stdout(log).stderr(errors);
        // A group of its own: a Ctrl-C in the terminal that started a detached cluster must not reach it.
        command.process_group(0);
        let mut child = command.spawn().map_err(|source| Error::Spawn { program: "qemu-system-x86_64".into(), source })?;
        std::fs::write(spec.dir.join("pid"), child.id().to_string()).on("write", spec.dir.join("pid"))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let ended = child.try_wait().on("wait for QEMU in", &spec.dir)?.is_some();
            if ended || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(machine.ended("its monitor"));
            }
            if machine.monitor_socket().exists() && machine.is_running() {
                break;
            }
            std::thread::sleep(POLL);
        }
        // Reaped by a thread so that a machine that ended is not taken for a running one.
        std::thread::spawn(move || child.wait());
        Ok(machine)
    }

    /// A machine that may have been started by another process.
    pub fn attach(spec: &MachineSpec) -> Self {
        Self { console: Console::new(&spec.dir.join("console.log")), spec: spec.clone() }
    }

    /// What it is made of.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Its serial console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Its monitor.
    pub fn monitor(&self) -> Monitor {
        Monitor::new(&self.spec.name, &self.monitor_socket())
    }

    /// Whether its process lives. A process that reused the number is told apart by its command line.
    pub fn is_running(&self) -> bool {
        self.process().is_some()
    }

    fn process(&self) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(self.spec.dir.join("pid")).ok()?.trim().parse().ok()?;
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = monitor_argument(&self.monitor_socket());
        String::from_utf8_lossy(&command_line).split('\0').any(|word| word == ours).then_some(pid)
    }

    /// Ends the machine at once, as a power cut does.
    pub fn pull_plug(&self) -> Result<(), Error> {
        let Some(pid) = self.process() else { return Ok(()) };
        run(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is_running() {
            if Instant::now() > deadline {
                return Err(self.deadline("its process to end", Duration::from_secs(10)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Presses the reset button.
    pub fn reset(&self) -> Result<(), Error> {
        self.monitor().execute("system_reset", json!({})).map(drop)
    }

    /// Waits until `found` says so of the console's text after `start`.
    pub fn wait_console<T>(&self, start: u64, what: &str, limit: Duration, found: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(value) = found(&self.console.text_from(start)?) {
                return Ok(value);
            }
            if !self.is_running() {
                return Err(self.ended(what));
            }
            if Instant::now() > deadline {
                return Err(self.deadline(what, limit));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for a text on the console after `start`.
    pub fn wait_text(&self, start: u64, text: &str, limit: Duration) -> Result<(), Error> {
        self.wait_console(start, &format!("{text:?} on the console"), limit, |console| console.contains(text).then_some(()))
    }

    /// Waits until the machine switched itself off.
    pub fn wait_off(&self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() > deadline {
                return Err(self.deadline("power off", limit));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The error that this machine did not do something in time.
    pub fn deadline(&self, what: &str, limit: Duration) -> Error {
        let console = self.console.tail(40);
        Error::Deadline { machine: self.spec.name.clone(), what: what.to_owned(), seconds: limit.as_secs(), console }
    }

    /// The error that this machine's process ended.
    pub fn ended(&self, what: &str) -> Error {
        let output = std::fs::read_to_string(self.spec.dir.join("qemu.log")).unwrap_or_default();
        let console = self.console.tail(40);
        Error::Ended { machine: self.spec.name.clone(), what: what.to_owned(), output: output.trim().to_owned(), console }
    }

    fn monitor_socket(&self) -> PathBuf {
        self.spec.run.join(format!("{}.qmp", self.spec.name))
    }
}

/// Starts the emulator of a TPM. It ends with the machine that it is plugged into.
fn start_tpm(state: &Path, socket: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(state).on("create", state)?;
    match std::fs::remove_file(socket) {
        Err(problem) if problem.kind() != std::io::ErrorKind::NotFound => return Err(problem).on("remove", socket),
        _ => {}
    }
    let log = state.join("log");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let output = File::create(&log).on("create", &log)?;
        let errors = output.try_clone().on("share", &log)?;
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--terminate", "--tpmstate", &format!("dir={},mode=0600", state.display())]);
        command.args(["--ctrl", &format!("type=unixio,path={}", socket.display())]);
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let mut child = command.spawn().map_err(|source| Error::Spawn { program: "swtpm".into(), source })?;
        // The one of a machine whose plug was pulled holds the state for a moment longer; then this one ends at once.
        while Instant::now() < deadline && child.try_wait().on("wait for swtpm in", state)?.is_none() {
            if socket.exists() {
                std::thread::spawn(move || child.wait());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            let found = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(Error::Unexpected { what: "swtpm".into(), expected: "its socket".into(), found });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A place for the socket of a TPM's emulator that no other start of the machine has: an emulator that ends takes its socket's name away,
/// and the one of a machine whose plug was pulled may do so after the next one began.
fn free_tpm_socket(spec: &MachineSpec) -> PathBuf {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let start = STARTS.fetch_add(1, Ordering::Relaxed);
    spec.run.join(format!("{}-{}-{start}.tpm", spec.name, std::process::id()))
}

/// Creates an empty disk; `bytes` are not taken until they are written.
pub fn create_disk(path: &Path, bytes: u64) -> Result<Disk, Error> {
    let file = File::create(path).on("create", path)?;
    file.set_len(bytes).on("size", path)?;
    Ok(Disk { path: path.to_owned(), overlay: false })
}

/// Creates a layer over a disk that is not written to any more.
pub fn create_overlay(tools: &Tools, base: &Disk, path: &Path) -> Result<Disk, Error> {
    let format = if base.overlay { "qcow2" } else { "raw" };
    run(tools.command("qemu-img")?.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(&base.path).arg(path))?;
    Ok(Disk { path: path.to_owned(), overlay: true })
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|source| Error::Spawn { program: program.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(Error::Program { program, status: output.status.to_string(), output: format!("{}{}", text.trim(), errors.trim()) })
}

fn monitor_argument(socket: &Path) -> String {
    format!("unix:{},server=on,wait=off", socket.display())
}

fn recorded(socket: &Path, export: &str) -> String {
    format!("nbd:unix:{}:exportname={export}", socket.display())
}

fn arguments(spec: &MachineSpec, accelerator: Accelerator, code: &Path, variables: &Path, tpm: &Path) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |parts: &[&str]| words.extend(parts.iter().map(|part| (*part).to_owned()));
    add(&["-name", &spec.name, "-no-user-config", "-nodefaults", "-display", "none", "-vga", "std"]);
    let secure = spec.firmware == Firmware::SecureBoot;
    // Only code in system management mode may write the variables, so that a system cannot enrol keys.
    add(&[
        "-machine",
        if secure { "q35,hpet=off,smm=on" } else { "q35,hpet=off" },
        "-accel",
        accelerator.accel(),
        "-cpu",
        accelerator.cpu(),
    ]);
    if secure {
        add(&["-global", "driver=cfi.pflash01,property=secure,value=on"]);
    }
    if let Some(text) = &spec.oem_string {
        add(&["-smbios", &format!("type=11,value={text}")]);
    }
    if spec.tpm.is_some() {
        add(&["-chardev", &format!("socket,id=tpm,path={}", tpm.display())]);
        add(&["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]);
    }
    add(&["-smp", &spec.processors.to_string(), "-m", &spec.memory_mib.to_string(), "-rtc"]);
    add(&[&format!("base={}", spec.clock.as_deref().unwrap_or("utc"))]);
    add(&["-qmp", &monitor_argument(&spec.run.join(format!("{}.qmp", spec.name)))]);
    add(&["-chardev", &format!("file,id=console,path={},append=on", spec.dir.join("console.log").display()), "-serial", "chardev:console"]);
    add(&["-device", "virtio-rng-pci", "-device", "i6300esb", "-action", "watchdog=reset"]);
    if spec.firmware != Firmware::LegacyBios {
        add(&["-drive", &format!("if=pflash,unit=0,format=raw,readonly=on,file={}", code.display())]);
        let variables =
            spec.recorder.as_ref().map_or_else(|| variables.display().to_string(), |socket| recorded(socket, recorder::VARIABLES));
        add(&["-drive", &format!("if=pflash,unit=1,format=raw,file={variables}")]);
    }
    if let (Some(_), Some(socket)) = (&spec.disk, &spec.recorder) {
        // Flushes must reach the recorder; it does not pass them on.
        let file = recorded(socket, recorder::DISK);
        add(&["-drive", &format!("if=none,id=disk,format=raw,cache=writeback,file={file}")]);
        add(&["-device", &format!("virtio-blk-pci,drive=disk,serial=strake-{},bootindex=1", spec.name)]);
    } else if let Some(Disk { path, overlay }) = &spec.disk {
        // A plain file is safe without flushes as long as the host lives: what QEMU was told is in the host's page cache, also when
        // QEMU is killed. A layered file keeps its tables in QEMU, so there flushes must count.
        let (format, cache) = if *overlay { ("qcow2", "writeback") } else { ("raw", "unsafe") };
        let rules = spec.disk_errors.as_ref().map(|rules| format!("blkdebug:{}:", rules.display())).unwrap_or_default();
        add(&["-drive", &format!("if=none,id=disk,format={format},cache={cache},discard=unmap,file={rules}{}", path.display())]);
        add(&["-device", &format!("virtio-blk-pci,drive=disk,serial=strake-{},bootindex=1", spec.name)]);
    }
    if let Some(iso) = &spec.iso {
        add(&["-drive", &format!("if=none,id=cd,media=cdrom,format=raw,readonly=on,file={}", iso.display())]);
        add(&["-device", &format!("ide-cd,drive=cd,bootindex={}", if spec.medium_first { 0 } else { 2 })]);
    }
    if let Some(file) = &spec.network_boot {
        // QEMU's own little network, which answers DHCP and TFTP and leads nowhere.
        let (dir, name) = (file.parent().unwrap_or(Path::new("/")).display(), file.file_name().unwrap_or_default().to_string_lossy());
        add(&["-netdev", &format!("user,id=boot,restrict=on,tftp={dir},bootfile={name}")]);
        add(&["-device", "virtio-net-pci,netdev=boot,romfile=,bootindex=3"]);
    }
    if let Some(switch) = &spec.switch {
        add(&["-netdev", &format!("stream,id=net,server=off,addr.type=unix,addr.path={},reconnect-ms=500", switch.display())]);
        add(&["-device", &format!("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:05:00:{:02x}", spec.address)]);
    }
    // A slot into which a device can be put while the machine runs.
    add(&["-device", "pcie-root-port,id=free-slot,chassis=1"]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MachineSpec {
        MachineSpec {
            name: "cp-1".into(),
            memory_mib: 1024,
            processors: 1,
            address: 11,
            disk: Some(Disk { path: "/d/disk".into(), overlay: false }),
            iso: Some("/d/strake.iso".into()),
            medium_first: false,
            switch: Some("/r/switch".into()),
            disk_errors: None,
            firmware: Firmware::Uefi,
            recorder: None,
            oem_string: None,
            clock: None,
            network_boot: None,
            tpm: None,
            dir: "/d".into(),
            run: "/r".into(),
        }
    }

    #[test]
    fn the_disk_is_tried_before_the_drive_and_the_address_is_the_machines_own() {
        let line = arguments(&spec(), Accelerator::Emulation, Path::new("/c"), Path::new("/v"), Path::new("/r/tpm")).join(" ");
        for part in [
            "drive=disk,serial=strake-cp-1,bootindex=1",
            "ide-cd,drive=cd,bootindex=2",
            "mac=52:54:00:05:00:0b",
            "-accel tcg,thread=multi",
            "-smp 1 -m 1024",
            "format=raw,cache=unsafe",
            "unit=1,format=raw,file=/v",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        let mut layered = spec();
        layered.disk = Some(Disk { path: "/d/layer".into(), overlay: true });
        layered.firmware = Firmware::LegacyBios;
        let line = arguments(&layered, Accelerator::Emulation, Path::new("/c"), Path::new("/v"), Path::new("/r/tpm")).join(" ");
        assert!(line.contains("format=qcow2,cache=writeback") && !line.contains("pflash"), "{line}");
        let failing = MachineSpec { disk_errors: Some("/d/rules".into()), ..spec() };
        let line = arguments(&failing, Accelerator::Emulation, Path::new("/c"), Path::new("/v"), Path::new("/r/tpm")).join(" ");
        assert!(line.contains("discard=unmap,file=blkdebug:/d/rules:/d/disk"), "{line}");
        let served = MachineSpec { recorder: Some("/r/nbd".into()), ..spec() };
        let line = arguments(&served, Accelerator::Emulation, Path::new("/c"), Path::new("/v"), Path::new("/r/tpm")).join(" ");
        for part in ["unit=1,format=raw,file=nbd:unix:/r/nbd:exportname=variables", "cache=writeback,file=nbd:unix:/r/nbd:exportname=disk"]
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        layered.firmware = Firmware::SecureBoot;
        layered.oem_string = Some("io.example=1".into());
        layered.tpm = Some("/t".into());
        let line = arguments(&layered, Accelerator::Emulation, Path::new("/c"), Path::new("/v"), Path::new("/r/tpm")).join(" ");
        for part in [
            "smm=on",
            "property=secure,value=on",
            "unit=0,format=raw,readonly=on,file=/c",
            "type=11,value=io.example=1",
            "path=/r/tpm",
            "tpm-crb,tpmdev=tpm0",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn a_foreign_process_is_never_taken_for_the_machine() {
        let scratch = tempfile::tempdir().unwrap();
        let mut spec = spec();
        spec.dir = scratch.path().to_owned();
        std::fs::write(scratch.path().join("pid"), std::process::id().to_string()).unwrap();
        let machine = Machine::attach(&spec);
        assert!(!machine.is_running());
        machine.pull_plug().unwrap();
    }
}
