//! QEMU's monitor protocol (docs/interop/qmp-spec in QEMU): one JSON object per line over a unix socket. Each [`Monitor::execute`] is a
//! connection of its own, so that nothing is left open when a machine ends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, FileContext};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Lines (events, mostly) that may come before the answer.
const MAX_LINES: usize = 1000;

/// The monitor of one machine.
#[derive(Clone, Debug)]
pub struct Monitor {
    machine: String,
    socket: PathBuf,
}

impl Monitor {
    /// The monitor behind a socket.
    pub fn new(machine: &str, socket: &Path) -> Self {
        Self { machine: machine.to_owned(), socket: socket.to_owned() }
    }

    /// Runs a command and returns its result.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value, Error> {
        let stream = UnixStream::connect(&self.socket).on("connect to", &self.socket)?;
        stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT))).on("set up", &self.socket)?;
        let mut writer = stream.try_clone().on("share", &self.socket)?;
        let mut lines = BufReader::new(stream).lines();
        self.exchange(&mut lines, None, "greeting", |message| message.get("QMP").is_some())?;
        for (name, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
            let request = json!({"execute": name, "arguments": arguments});
            let answer = self.exchange(&mut lines, Some((&mut writer, request)), name, |message| message.get("return").is_some())?;
            if name == command {
                return Ok(answer["return"].clone());
            }
        }
        Ok(Value::Null)
    }

    /// Runs a command of the human monitor and returns its text.
    pub fn human(&self, line: &str) -> Result<String, Error> {
        let answer = self.execute("human-monitor-command", json!({"command-line": line}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn exchange(
        &self,
        lines: &mut impl Iterator<Item = std::io::Result<String>>,
        request: Option<(&mut UnixStream, Value)>,
        command: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        if let Some((writer, request)) = request {
            writer.write_all(format!("{request}\n").as_bytes()).on("write to", &self.socket)?;
        }
        let refused = |answer: String| Error::Monitor { machine: self.machine.clone(), command: command.to_owned(), answer };
        for line in lines.take(MAX_LINES) {
            let line = line.on("read from", &self.socket)?;
            let message: Value = serde_json::from_str(&line).map_err(|_| refused(line.clone()))?;
            if wanted(&message) {
                return Ok(message);
            }
            if message.get("error").is_some() {
                return Err(refused(message["error"]["desc"].as_str().unwrap_or(&line).to_owned()));
            }
        }
        Err(refused("the connection ended".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn serve(socket: &Path, answers: &'static [&'static str]) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {\"version\": {}}}\n").unwrap();
            let mut requests = BufReader::new(stream.try_clone().unwrap()).lines();
            for answer in answers {
                requests.next().unwrap().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        })
    }

    #[test]
    fn events_before_the_answer_are_skipped_and_refusals_carry_the_reason() {
        for (answers, expected) in [
            (&["{\"return\": {}}\n", "{\"event\": \"RESET\"}\n{\"return\": {\"status\": \"running\"}}\n"][..], Ok("running")),
            (&["{\"return\": {}}\n", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such disk\"}}\n"][..], Err("no such disk")),
            (&["{\"return\": {}}\n", "not json\n"][..], Err("not json")),
        ] {
            let scratch = tempfile::tempdir().unwrap();
            let socket = scratch.path().join("qmp");
            let server = serve(&socket, answers);
            let result = Monitor::new("m", &socket).execute("query-status", json!({}));
            match expected {
                Ok(status) => assert_eq!(result.unwrap()["status"], status),
                Err(reason) => assert!(result.unwrap_err().to_string().contains(reason)),
            }
            server.join().unwrap();
        }
    }
}
