//! Runs a program to its end and keeps what it said for the error message.

use std::process::{Command, Stdio};

use crate::error::Error;

/// How much of a failed program's output an error carries.
const TAIL_BYTES: usize = 4000;

/// Runs `command`, returns its standard output, and turns a failure into an error with the end of its output.
pub fn run(command: &mut Command) -> Result<Vec<u8>, Error> {
    let program = describe(command);
    let output = command.stdin(Stdio::null()).output().map_err(|source| Error::Spawn { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.trim().is_empty() {
        text = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(Error::Program { program, status: output.status.to_string(), tail: tail(&text, TAIL_BYTES).trim().to_owned() })
}

/// The program's name as a person knows it: the loader that runs a tool is left out.
fn describe(command: &Command) -> String {
    let name = command.get_program().to_string_lossy().into_owned();
    let real = if name.contains("ld-linux") { command.get_args().nth(2).map(|arg| arg.to_string_lossy().into_owned()) } else { None };
    real.unwrap_or(name)
}

/// The last `limit` bytes of `text`, cut at a character boundary.
pub fn tail(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_programs_own_words() {
        let error = run(Command::new("sh").args(["-c", "echo broken disk >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("broken disk"), "{error}");
        assert!(error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn the_tail_never_cuts_a_character() {
        for (text, limit, expected) in [("abc", 10, "abc"), ("abc", 2, "bc"), ("aé", 1, ""), ("aé", 2, "é")] {
            assert_eq!(tail(text, limit), expected);
        }
    }
}
