//! What the machine's processes use, read from /proc and the cgroup tree at the moment of the question.

use std::fs;
use std::path::Path;

use host::cgroup::Cgroup;

use crate::paths::Paths;

/// Most processes that are shown.
const MAX_PROCESSES: usize = 8192;
/// Clock ticks in a second as /proc shows them; the same on every Linux of this architecture.
const TICKS: f64 = 100.0;

/// One process. Sizes are bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    pub name: String,
    pub pid: i32,
    /// The cgroup's path below the tree's root.
    pub group: String,
    pub rss: u64,
    pub pss: u64,
    pub rss_anon: u64,
    pub cpu_seconds: f64,
    pub threads: u32,
    pub group_memory: u64,
}

/// The machine's memory in bytes, by proc_meminfo(5).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub total: u64,
    /// What could not be given to a new process.
    pub used: u64,
}

/// The machine's memory; nothing when the kernel does not tell.
pub fn machine_memory(paths: &Paths) -> Memory {
    let text = fs::read_to_string(paths.at("/proc/meminfo")).unwrap_or_default();
    let total = kilobytes(&text, "MemTotal");
    Memory { total, used: total.saturating_sub(kilobytes(&text, "MemAvailable")) }
}

/// Every process but the kernel's threads, by pid. One that ends meanwhile is left out.
pub fn processes(paths: &Paths) -> Vec<Process> {
    let mut pids: Vec<i32> = fs::read_dir(paths.at("/proc"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(|pid| process(paths, pid)).take(MAX_PROCESSES).collect()
}

fn process(paths: &Paths, pid: i32) -> Option<Process> {
    let at = paths.at(&format!("/proc/{pid}"));
    let read = |name: &str| fs::read_to_string(at.join(name)).ok();
    let name = program(&fs::read(at.join("cmdline")).ok()?)?;
    let status = read("status")?;
    let group = group_of(&read("cgroup")?)?;
    Some(Process {
        name,
        pid,
        rss: kilobytes(&status, "VmRSS"),
        rss_anon: kilobytes(&status, "RssAnon"),
        pss: kilobytes(&read("smaps_rollup").unwrap_or_default(), "Pss"),
        cpu_seconds: cpu_seconds(&read("stat")?)?,
        threads: field(&status, "Threads").and_then(|value| value.parse().ok()).unwrap_or(0),
        group_memory: group_memory(paths, &group),
        group,
    })
}

/// The memory of the cgroup that a process is in; `None` when there is no such process.
pub fn memory_of_group_of(paths: &Paths, pid: i32) -> Option<u64> {
    let text = fs::read_to_string(paths.at(&format!("/proc/{pid}/cgroup"))).ok()?;
    Some(group_memory(paths, &group_of(&text)?))
}

fn group_memory(paths: &Paths, group: &str) -> u64 {
    Cgroup::new(&paths.at(host::cgroup::ROOT), group).number("memory.current").ok().flatten().unwrap_or(0)
}

/// The program's name from its command line; of a multi-call program, what it was called as. Kernel threads have none.
fn program(command_line: &[u8]) -> Option<String> {
    let mut words = command_line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let first = words.next().filter(|word| !word.is_empty())?;
    let name = |word: &str| Path::new(word).file_name().map_or_else(|| word.to_owned(), |name| name.to_string_lossy().into_owned());
    let called = name(&first);
    if called == "kube" {
        return Some(words.next().filter(|word| !word.is_empty()).map_or(called, |word| name(&word)));
    }
    // Some programs write their titles over their arguments.
    Some(called.split_whitespace().next().unwrap_or_default().trim_end_matches(':').to_owned())
}

/// The path in the line of the unified hierarchy, `0::/path`.
fn group_of(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(|path| path.trim_start_matches('/').to_owned())
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn kilobytes(text: &str, key: &str) -> u64 {
    let number = field(text, key).and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// utime and stime of proc_pid_stat(5). The name before them may hold anything, spaces and brackets too.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok().map(f64::from);
    Some((next()? + next()?) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_as_people_know_them() {
        for (line, name) in [
            ("/usr/bin/kube\0kube-apiserver\0--v=2", Some("kube-apiserver")),
            ("kubelet\0--config", Some("kubelet")),
            ("/usr/bin/kube", Some("kube")),
            ("/usr/bin/etcd\0--name=cp-1", Some("etcd")),
            ("nginx: worker process", Some("nginx")),
            ("", None),
            ("\0", None),
        ] {
            assert_eq!(program(line.as_bytes()).as_deref(), name, "{line:?}");
        }
    }

    #[test]
    fn a_process_is_read_from_proc_and_its_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let put = |path: &str, text: &str| {
            let path = paths.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("/proc/42/cmdline", "/usr/bin/machined\0");
        put("/proc/42/status", "Name:\tmachined\nVmRSS:\t   20480 kB\nRssAnon:\t    8192 kB\nThreads:\t3\n");
        put("/proc/42/smaps_rollup", "00400000-7fff rollup\nRss: 20480 kB\nPss:               10240 kB\nPss_Anon: 1 kB\n");
        put("/proc/42/stat", "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 12 1 2");
        put("/proc/42/cgroup", "0::/system/machined\n");
        put("/sys/fs/cgroup/system/machined/memory.current", "31457280\n");
        put("/proc/7/cmdline", "");
        put("/proc/meminfo", "MemTotal:  102400 kB\nMemFree: 9 kB\nMemAvailable:   51200 kB\n");
        let expected = Process {
            name: "machined".into(),
            pid: 42,
            group: "system/machined".into(),
            rss: 20 << 20,
            pss: 10 << 20,
            rss_anon: 8 << 20,
            cpu_seconds: 2.0,
            threads: 3,
            group_memory: 30 << 20,
        };
        assert_eq!(processes(&paths), [expected]);
        assert_eq!(memory_of_group_of(&paths, 42), Some(30 << 20));
        assert_eq!(memory_of_group_of(&paths, 43), None);
        assert_eq!(machine_memory(&paths), Memory { total: 100 << 20, used: 50 << 20 });
    }

    #[test]
    fn this_process_is_seen() {
        let own = i32::try_from(std::process::id()).unwrap();
        let process = process(&Paths::default(), own).unwrap();
        assert!(process.rss > 0 && process.pss > 0 && process.rss >= process.rss_anon && process.threads > 0, "{process:?}");
    }
}
