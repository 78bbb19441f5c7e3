//! init's own messages. [`info`] goes to the kernel log, which logd keeps; [`notice`] also to the consoles, as a line that
//! starts with `strake: `. Neither ever blocks or fails.

use std::error::Error;
use std::io::Write;

use crate::console;

/// For the log.
pub fn info(message: &str) {
    kmsg(6, message);
}

/// For the log, and for whoever watches the console.
pub fn notice(message: &str) {
    kmsg(6, message);
    console::write_line(message);
}

/// Something is wrong, and init goes on.
pub fn warn(message: &str) {
    kmsg(6, &format!("warning: {message}"));
    console::write_line(&format!("warning: {message}"));
}

/// The machine is about to go down because of this.
pub fn fatal(message: &str) {
    kmsg(6, &format!("fatal: {message}"));
    console::write_line(&format!("fatal: {message}"));
}

/// An error and what caused it, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The kernel stores one record per write. Level 6 keeps it off the consoles, which [`console`] writes itself.
fn kmsg(level: u8, message: &str) {
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        for line in message.lines() {
            let cut = line.char_indices().nth(800).map_or(line, |(at, _)| &line[..at]);
            let _ = file.write_all(format!("<{level}>init: {cut}\n").as_bytes());
        }
    }
}
