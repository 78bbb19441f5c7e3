//! A machine that hangs: its processor is stopped through QEMU's stub for debuggers (the remote serial protocol of GDB), while it runs the
//! kernel, and given an endless loop to run with interrupts off. Nothing but a watchdog or the power brings it back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, FileContext};
use crate::machine::Machine;

/// `cli`, and a jump to itself.
const LOOP: &[u8] = &[0xfa, 0xeb, 0xfe];
/// rip in the answer to `g`: sixteen registers of eight bytes come before it.
const RIP: usize = 16 * 16;
/// Where the kernel's addresses begin.
const KERNEL: u64 = 1 << 63;
/// How often the processor may be met in a program.
const TRIES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(20);

/// Hangs a machine with one processor.
pub fn hang(machine: &Machine) -> Result<(), Error> {
    let spec = machine.spec();
    let socket = spec.run.join(format!("{}.gdb", spec.name));
    let said = machine.monitor().human(&format!("gdbserver unix:{},server=on,wait=off", socket.display()))?;
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        if Instant::now() > deadline {
            return Err(unexpected("the debugger's socket", said));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let done = Debugger::connect(&socket)?.hang();
    machine.monitor().human("gdbserver none")?;
    std::fs::remove_file(&socket)
        .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .on("remove", &socket)?;
    done
}

struct Debugger {
    stream: UnixStream,
    place: String,
}

impl Debugger {
    fn connect(socket: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket).on("connect to", socket)?;
        stream.set_read_timeout(Some(PATIENCE)).on("set up", socket)?;
        Ok(Self { stream, place: socket.display().to_string() })
    }

    fn hang(&mut self) -> Result<(), Error> {
        // Who connects stops the machine.
        self.ask("?")?;
        for _ in 0..TRIES {
            let registers = self.ask("g")?;
            let rip = instruction_pointer(&registers).ok_or_else(|| unexpected("the processor's registers", registers))?;
            if rip >= KERNEL {
                let code: String = LOOP.iter().map(|byte| format!("{byte:02x}")).collect();
                let answer = self.ask(&format!("M{rip:x},{:x}:{code}", LOOP.len()))?;
                if answer != "OK" {
                    return Err(unexpected("code to be written", answer));
                }
                self.ask("D")?;
                return Ok(());
            }
            self.send(&packet("c"))?;
            std::thread::sleep(Duration::from_millis(20));
            self.send(&[3])?;
            self.answer()?;
        }
        Err(unexpected("a processor that runs the kernel now and then", format!("a program, {TRIES} times")))
    }

    fn ask(&mut self, question: &str) -> Result<String, Error> {
        self.send(&packet(question))?;
        self.answer()
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes).on("write to", &self.place)
    }

    /// The next packet; acknowledgements before it are passed over.
    fn answer(&mut self) -> Result<String, Error> {
        let mut text = Vec::new();
        let mut byte = [0];
        loop {
            self.stream.read_exact(&mut byte).on("read from", &self.place)?;
            match (byte[0], text.is_empty()) {
                (b'$', true) => text.push(b'$'),
                (_, true) => {}
                (b'#', false) => break,
                (other, false) => text.push(other),
            }
        }
        // Two digits of a checksum.
        self.stream.read_exact(&mut [0; 2]).on("read from", &self.place)?;
        self.send(b"+")?;
        Ok(String::from_utf8_lossy(&text[1..]).into_owned())
    }
}

fn packet(text: &str) -> Vec<u8> {
    let sum = text.bytes().fold(0u8, u8::wrapping_add);
    format!("${text}#{sum:02x}").into_bytes()
}

/// From the answer to `g`: registers in hexadecimal digits, the lowest byte first.
fn instruction_pointer(registers: &str) -> Option<u64> {
    let digits = registers.get(RIP..RIP + 16)?;
    u64::from_str_radix(digits, 16).ok().map(u64::swap_bytes)
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the emulator's debugger".into(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_carry_a_checksum_and_registers_their_lowest_byte_first() {
        assert_eq!(packet("g"), b"$g#67");
        assert_eq!(packet("?"), b"$?#3f");
        let registers = "00".repeat(128) + "efcdab8967452381" + "ff";
        assert_eq!(instruction_pointer(&registers), Some(0x8123_4567_89ab_cdef));
        assert_eq!(instruction_pointer("00"), None);
    }
}
