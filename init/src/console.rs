//! What a person in front of the machine sees. Virtual terminals show a status block above the last messages, drawn anew on a
//! change; serial consoles get plain lines, so that a capture of them can be searched. Writing never blocks: what a slow line
//! does not take waits in a bounded buffer, and beyond that is dropped.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use node_ipc::init::ConsoleStatus;

const BACKLOG: usize = 32 * 1024;
const RECENT_LINES: usize = 12;

static CONSOLES: Mutex<Option<Consoles>> = Mutex::new(None);

struct Consoles {
    devices: Vec<Device>,
    status: ConsoleStatus,
    version: String,
    recent: VecDeque<String>,
}

struct Device {
    file: File,
    terminal: bool,
    backlog: VecDeque<u8>,
}

/// Shows a message.
pub fn write_line(message: &str) {
    with(|consoles| {
        let line = clean(message);
        if consoles.recent.len() == RECENT_LINES {
            consoles.recent.pop_front();
        }
        consoles.recent.push_back(line.clone());
        consoles.show(&format!("strake: {line}\r\n"));
    });
}

/// Shows another status. The same one again shows nothing.
pub fn set_status(status: ConsoleStatus) {
    with(|consoles| {
        if consoles.status != status {
            consoles.status = status;
            let lines: String = status_lines(&consoles.status).iter().map(|line| format!("strake: {line}\r\n")).collect();
            consoles.show(&lines);
        }
    });
}

/// What the release file says; shown in the block.
pub fn set_version(version: &str) {
    with(|consoles| consoles.version = clean(version));
}

/// Goes on with what a slow line did not take. Says whether something is left.
pub fn flush() -> bool {
    let mut left = false;
    with(|consoles| {
        for device in &mut consoles.devices {
            device.flush();
            left |= !device.backlog.is_empty();
        }
    });
    left
}

fn with(action: impl FnOnce(&mut Consoles)) {
    // A poisoned lock is a panic that is being reported right now: what it guards is only text.
    let mut guard = CONSOLES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    action(guard.get_or_insert_with(Consoles::open));
}

impl Consoles {
    fn open() -> Self {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut devices: Vec<Device> = active.split_ascii_whitespace().filter_map(Device::open).collect();
        if devices.is_empty() {
            devices.extend(Device::open("console"));
        }
        Self { devices, status: ConsoleStatus::default(), version: String::new(), recent: VecDeque::new() }
    }

    fn show(&mut self, plain: &str) {
        let block = block(&self.version, &self.status, self.recent.iter());
        for device in &mut self.devices {
            device.put(if device.terminal { &block } else { plain });
        }
    }
}

impl Device {
    fn open(name: &str) -> Option<Self> {
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let file = OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(format!("/dev/{name}")).ok()?;
        Some(Self { file, terminal: is_virtual_terminal(name), backlog: VecDeque::new() })
    }

    fn put(&mut self, text: &str) {
        if self.terminal {
            // Each block replaces the one before.
            self.backlog.clear();
        }
        if self.backlog.len() + text.len() <= BACKLOG {
            self.backlog.extend(text.as_bytes());
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match self.file.write(self.backlog.make_contiguous()) {
                Ok(written) if written > 0 => drop(self.backlog.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => self.backlog.clear(),
            }
        }
    }
}

/// `tty0`…`tty63`; serial lines have letters after `tty`.
fn is_virtual_terminal(name: &str) -> bool {
    name.strip_prefix("tty").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The status as lines of `key=value` words.
fn status_lines(status: &ConsoleStatus) -> Vec<String> {
    let mut first =
        format!("stage={} name={} addresses={}", clean(&status.stage), clean(&status.hostname), clean(&status.addresses.join(",")));
    for (key, value) in [("role", &status.role), ("slot", &status.slot), ("ready", &status.health)] {
        if !value.is_empty() {
            first.push_str(&format!(" {key}={}", clean(value)));
        }
    }
    if let Some(pairing) = &status.pairing {
        first.push_str(&format!(" pairing={}", clean(pairing)));
    }
    std::iter::once(first).chain(status.errors.iter().map(|error| format!("error: {}", clean(error)))).collect()
}

/// The whole screen of a virtual terminal: cleared, the status, then the last messages.
fn block<'a>(version: &str, status: &ConsoleStatus, recent: impl Iterator<Item = &'a String>) -> String {
    let mut rows = vec![
        ("", format!("strake {version}")),
        ("name", clean(&status.hostname)),
        ("stage", clean(&status.stage)),
        ("addresses", clean(&status.addresses.join(" "))),
    ];
    let more = [("role", &status.role), ("system", &status.slot), ("ready", &status.health)];
    rows.extend(more.into_iter().filter(|(_, value)| !value.is_empty()).map(|(label, value)| (label, clean(value))));
    if let Some(pairing) = &status.pairing {
        rows.push(("pairing", clean(pairing)));
    }
    rows.extend(status.errors.iter().map(|error| ("error", clean(error))));
    let mut text = String::from("\x1b[H\x1b[2J");
    for (label, value) in rows {
        text.push_str(&format!("  {label:<10} {value}\r\n"));
    }
    text.push_str("\r\n");
    for line in recent {
        text.push_str(&format!("  {line}\r\n"));
    }
    text
}

/// No control characters reach a terminal, and no line is endless.
fn clean(text: &str) -> String {
    text.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_status_is_one_searchable_line_and_one_per_error() {
        let status = ConsoleStatus {
            hostname: "cp-1".into(),
            addresses: vec!["10.5.0.11".into(), "fd00::1".into()],
            stage: "maintenance".into(),
            errors: vec!["disk\x1b[2J gone".into()],
            pairing: Some("abc-123".into()),
            ..ConsoleStatus::default()
        };
        assert_eq!(
            status_lines(&status),
            ["stage=maintenance name=cp-1 addresses=10.5.0.11,fd00::1 pairing=abc-123", "error: disk [2J gone"]
        );
        assert_eq!(status_lines(&ConsoleStatus::default()), ["stage= name= addresses="]);
        let installed = ConsoleStatus { role: "worker".into(), slot: "ROOT-B".into(), health: "12/14".into(), ..ConsoleStatus::default() };
        assert_eq!(status_lines(&installed), ["stage= name= addresses= role=worker slot=ROOT-B ready=12/14"]);
        assert!(block("0.1", &installed, [].iter()).contains("  role       worker\r\n  system     ROOT-B\r\n  ready      12/14\r\n"));
    }

    #[test]
    fn the_block_clears_the_screen_once_and_shows_everything() {
        let status = ConsoleStatus { stage: "running".into(), pairing: Some("p".into()), ..Default::default() };
        let recent = ["one".to_owned(), "two".to_owned()];
        let text = block("0.1", &status, recent.iter());
        assert!(text.starts_with("\x1b[H\x1b[2J"));
        for part in ["strake 0.1", "stage      running", "pairing    p", "  one\r\n  two\r\n"] {
            assert!(text.contains(part), "{part} in {text:?}");
        }
    }

    #[test]
    fn only_numbered_ttys_are_terminals() {
        for (name, expected) in [("tty0", true), ("tty12", true), ("ttyS0", false), ("ttyAMA0", false), ("hvc0", false), ("tty", false)] {
            assert_eq!(is_virtual_terminal(name), expected, "{name}");
        }
    }
}
