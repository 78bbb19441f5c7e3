//! ext4 file systems, made by e2fsprogs in a child process.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use machine_config::layout::Partition;

const MKFS: &str = "/usr/sbin/mkfs.ext4";
/// A disk that takes longer than this for an empty file system is broken.
const LIMIT: Duration = Duration::from_secs(600);

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum MkfsError {
    /// The program could not be run.
    #[error("run {MKFS}")]
    Run(#[source] std::io::Error),
    /// What was there before could not be removed.
    #[error("remove what was there")]
    Clear(#[source] io::Error),
    /// It failed; this is what it said.
    #[error("{MKFS} ended with {status}: {said}")]
    Failed { status: std::process::ExitStatus, said: String },
    /// It did not end.
    #[error("{MKFS} did not end within {} s", LIMIT.as_secs())]
    TimedOut,
}

/// Makes a file system at a partition's place on a disk, filled from a directory if there is one.
pub fn make(disk: &Path, partition: &Partition, content: Option<&Path>) -> Result<(), MkfsError> {
    // ext4 leaves the first KiB alone, where another format, of an encrypted volume for example, has its mark.
    clear_start(disk, partition.start).map_err(MkfsError::Clear)?;
    let mut command = Command::new(MKFS);
    command.args(arguments(partition)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(content) = content {
        command.arg("-d").arg(content);
    }
    command.arg(disk).arg(format!("{}k", partition.size / 1024));
    let mut child = command.spawn().map_err(MkfsError::Run)?;
    let end = Instant::now() + LIMIT;
    let status = loop {
        // What it says on standard error fits into the pipe, so it never waits for us to read.
        if let Some(status) = child.try_wait().map_err(MkfsError::Run)? {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(MkfsError::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_end(&mut said);
    }
    Err(MkfsError::Failed { status, said: String::from_utf8_lossy(&said).trim().to_owned() })
}

fn clear_start(disk: &Path, start: u64) -> io::Result<()> {
    let mut disk = OpenOptions::new().write(true).open(disk)?;
    disk.seek(SeekFrom::Start(start))?;
    disk.write_all(&[0; 4096])?;
    disk.sync_data()
}

/// 4 KiB blocks whatever the size; the inode tables are filled in later, by the kernel.
fn arguments(partition: &Partition) -> Vec<OsString> {
    let extended = format!("offset={},nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", partition.start);
    ["-F", "-q", "-b", "4096", "-m", "1", "-L", partition.label, "-E", &extended].map(OsString::from).to_vec()
}
