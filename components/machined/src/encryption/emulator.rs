//! A TPM for tests: Debian's swtpm, over a socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tpm::{MAX_MESSAGE, Tpm, Transport};

/// One end of the emulator's socket.
#[derive(Debug)]
pub struct Socket(UnixStream);

impl Transport for Socket {
    fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        let mut answer = vec![0; 10];
        self.0.read_exact(&mut answer)?;
        let size = u32::from_be_bytes(answer[2..6].try_into().unwrap()) as usize;
        answer.resize(size.clamp(10, MAX_MESSAGE), 0);
        self.0.read_exact(&mut answer[10..])?;
        Ok(answer)
    }
}

/// An emulator that ends with the test.
pub struct Emulator {
    child: Child,
    dir: tempfile::TempDir,
}

impl Emulator {
    /// A new TPM.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (format!("dir={},mode=0600", dir.path().display()), dir.path().join("socket"));
        let server = format!("type=unixio,path={}", socket.display());
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--tpmstate", &state, "--server", &server, "--flags", "not-need-init,startup-clear"]);
        let child = command.stdin(Stdio::null()).spawn().expect("swtpm, which `cargo xtask` installs on the host");
        Self { child, dir }
    }

    /// It, as the kernel has it.
    pub fn tpm(&self) -> Tpm<Socket> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixStream::connect(self.dir.path().join("socket")) {
                Ok(stream) => return Tpm::new(Socket(stream)),
                Err(problem) => assert!(Instant::now() < end, "{problem}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
