//! The power button: pressing it powers the machine off in order. Read from the kernel's input events (evdev).

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// `struct input_event` on 64-bit machines: two times of 8 bytes, type, code, value.
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;
/// The driver of the button may come late.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The buttons there are.
#[derive(Default)]
pub struct PowerButtons {
    devices: Vec<File>,
    look_at: Duration,
}

impl PowerButtons {
    /// Looks for buttons while there are none.
    pub fn refresh(&mut self, now: Duration) {
        if self.devices.is_empty() && now >= self.look_at {
            self.look_at = now + LOOK_AGAIN;
            self.devices = open(Path::new("/sys/class/input"), Path::new("/dev/input"));
        }
    }

    /// Looks at once, since drivers were just loaded.
    pub fn look(&mut self, now: Duration) {
        self.look_at = Duration::ZERO;
        self.refresh(now);
    }

    /// What to poll for reading.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.devices.iter().map(|device| device.as_fd())
    }

    /// Whether one was pressed since the last call. One that is gone is forgotten.
    pub fn pressed(&mut self) -> bool {
        let mut pressed = false;
        self.devices.retain_mut(|device| {
            let mut buffer = [0; EVENT * 16];
            match device.read(&mut buffer) {
                Ok(size) => {
                    pressed |= buffer[..size].chunks_exact(EVENT).any(is_press);
                    true
                }
                Err(error) => matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted),
            }
        });
        pressed
    }
}

fn open(class: &Path, devices: &Path) -> Vec<File> {
    let mut found = Vec::new();
    for entry in fs::read_dir(class).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_event = name.to_string_lossy().starts_with("event");
        let label = fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
        if is_event && label.trim() == "Power Button" {
            let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            found.extend(OpenOptions::new().read(true).custom_flags(flags).open(devices.join(&name)).ok());
        }
    }
    found
}

fn is_press(event: &[u8]) -> bool {
    let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    (half(16), half(18), value) == (EV_KEY, KEY_POWER, PRESSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_pressing_the_power_key_counts() {
        for (kind, code, value, expected) in
            [(1, 116, 1, true), (1, 116, 0, false), (1, 116, 2, false), (1, 30, 1, false), (0, 0, 0, false), (2, 116, 1, false)]
        {
            assert_eq!(is_press(&event(kind, code, value)), expected, "{kind} {code} {value}");
        }
    }

    #[test]
    fn buttons_are_found_by_their_name() {
        let dir = tempfile::tempdir().unwrap();
        for (name, label) in [("event0", "AT keyboard\n"), ("event1", "Power Button\n"), ("mouse0", "Power Button\n")] {
            let device = dir.path().join("class").join(name).join("device");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("name"), label).unwrap();
            fs::create_dir_all(dir.path().join("dev")).unwrap();
            let events = [event(1, 116, 1), event(0, 0, 0)].concat();
            fs::write(dir.path().join("dev").join(name), events).unwrap();
        }
        let devices = open(&dir.path().join("class"), &dir.path().join("dev"));
        let mut buttons = PowerButtons { devices, look_at: Duration::ZERO };
        assert_eq!(buttons.fds().count(), 1);
        assert!(buttons.pressed());
        assert!(!buttons.pressed());
    }
}
