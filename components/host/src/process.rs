//! Child processes that are bounded: in time, and in how much of their output is kept.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// How much of each of the two outputs is kept.
pub const MAX_OUTPUT: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("start {program}")]
    Start { program: String, source: io::Error },
    #[error("wait for {program}")]
    Wait { program: String, source: io::Error },
    #[error("{program} did not end within {timeout:?} and was killed")]
    Timeout { program: String, timeout: Duration },
    #[error("{program} failed with {status}: {message}")]
    Failed { program: String, status: ExitStatus, message: String },
}

/// What a child left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs a program to its end with nothing on its standard input. It is killed when its time is over or when the future is dropped.
/// A status other than success is no error here; see [`run_ok`].
pub async fn run(program: &str, args: &[&str], timeout: Duration) -> Result<Finished, RunError> {
    let name = || program.to_owned();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| RunError::Start { program: name(), source })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let finish = async {
        let (stdout, stderr, status) = tokio::join!(collect(stdout), collect(stderr), child.wait());
        Ok(Finished { status: status.map_err(|source| RunError::Wait { program: name(), source })?, stdout, stderr })
    };
    match tokio::time::timeout(timeout, finish).await {
        Ok(finished) => finished,
        Err(_) => {
            let _ = child.kill().await;
            Err(RunError::Timeout { program: name(), timeout })
        }
    }
}

/// Runs a program that must succeed; the error has the end of what it wrote to its standard error.
pub async fn run_ok(program: &str, args: &[&str], timeout: Duration) -> Result<Finished, RunError> {
    let finished = run(program, args, timeout).await?;
    if finished.status.success() {
        return Ok(finished);
    }
    let text = String::from_utf8_lossy(&finished.stderr);
    let message: Vec<&str> = text.trim().lines().rev().take(5).collect();
    let message = message.into_iter().rev().collect::<Vec<_>>().join(" / ");
    Err(RunError::Failed { program: program.to_owned(), status: finished.status, message })
}

/// Reads to the end, so that the child never blocks, and keeps the beginning.
async fn collect(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    let mut buffer = [0; 8 * 1024];
    while let Ok(size @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_OUTPUT - kept.len();
        kept.extend_from_slice(&buffer[..size.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn output_and_status_come_back() {
        let finished = run("/bin/sh", &["-c", "echo out; echo err >&2; exit 3"], LONG).await.unwrap();
        assert_eq!(
            (finished.status.code(), finished.stdout.as_slice(), finished.stderr.as_slice()),
            (Some(3), &b"out\n"[..], &b"err\n"[..])
        );
        let error = run_ok("/bin/sh", &["-c", "echo broken >&2; exit 1"], LONG).await.unwrap_err();
        assert!(error.to_string().ends_with("exit status: 1: broken"), "{error}");
        assert!(matches!(run("/nonexistent/x", &[], LONG).await, Err(RunError::Start { .. })));
    }

    #[tokio::test]
    async fn a_child_that_hangs_is_killed_and_one_that_floods_is_cut() {
        let error = run("/bin/sh", &["-c", "sleep 60"], Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(error, RunError::Timeout { .. }));
        let finished = run("/bin/sh", &["-c", "head -c 1000000 /dev/zero"], LONG).await.unwrap();
        assert_eq!((finished.status.success(), finished.stdout.len()), (true, MAX_OUTPUT));
    }
}
