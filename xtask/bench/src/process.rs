//! Processes that end with this one, and what the kernel says of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a log an error shows.
const LOG_LINES: usize = 15;

/// A running program.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a program with its output in `<dir>/<name>.log`.
    pub fn start(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let copy = file.try_clone().context("cannot share a log file")?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(copy).spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log when it ended.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("cannot ask for {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}); the end of its log:\n{}", self.name, self.end_of_log()),
        }
    }

    pub fn end_of_log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory in MiB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    pub rss: f64,
    /// With shared pages counted in part.
    pub pss: f64,
    /// What is no file's: heap and stacks.
    pub anonymous: f64,
}

/// The resident memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let (rollup, status) = (read("smaps_rollup")?, read("status")?);
    let find = |text: &str, key: &str| mebibytes(text, key).with_context(|| format!("process {pid} has no {key}"));
    Ok(Memory { rss: find(&rollup, "Rss:")?, pss: find(&rollup, "Pss:")?, anonymous: find(&status, "RssAnon:")? })
}

/// The value of a line like `Rss:    1024 kB`.
fn mebibytes(text: &str, key: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024.0)
}

/// Milliseconds that a process had a processor, from the scheduler's statistics of its threads. Threads that ended are not in it: the
/// programs measured here keep theirs.
pub fn processor_ms(pid: u32) -> Result<f64> {
    let tasks = format!("/proc/{pid}/task");
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
        // A thread may end between the listing and the read.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_figures_are_read() {
        assert_eq!(mebibytes("Rss:    2048 kB\nPss:  512 kB\n", "Pss:"), Some(0.5));
        assert_eq!(mebibytes("Pss_Anon: 5 kB\nPss: x kB\n", "Pss:"), None);
        let own = memory(std::process::id()).unwrap();
        assert!(own.rss >= own.pss && own.rss >= own.anonymous && own.pss > 0.0, "{own:?}");
        let before = processor_ms(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while processor_ms(std::process::id()).unwrap() <= before {
            sum = std::hint::black_box(sum + 1);
        }
    }

    #[test]
    fn a_program_that_ended_is_told_with_its_log() {
        let dir = std::env::temp_dir().join(format!("bench-process-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut running = Running::start("sh", Command::new("sh").args(["-c", "echo reason; exit 3"]), &dir).unwrap();
        running.child.wait().unwrap();
        let problem = running.still_runs().unwrap_err().to_string();
        fs::remove_dir_all(&dir).unwrap();
        assert!(problem.contains("exit status: 3") && problem.contains("reason"), "{problem}");
    }
}
