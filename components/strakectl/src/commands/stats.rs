//! `strakectl stats`: what the processes of machines use.

use clap::ValueEnum;
use machine_api::v1alpha1::{ProcessStats, StatsRequest, StatsResponse};
use serde_json::{Value, json};

use super::{Cx, refused};

/// Show the memory and processor time of every process of a machine.
///
/// PSS counts shared pages in proportion; ANON is what the process alone holds and no file backs. GROUP MEMORY is what the
/// kernel charges to the process's cgroup, page cache included. The line (machine) says what all of it and the kernel hold
/// under RSS, and the size of its memory under GROUP MEMORY.
#[derive(Debug, clap::Args)]
pub struct Stats {
    /// Only processes of this name, such as machined or kube-apiserver; may be given several times.
    #[arg(value_name = "PROCESS")]
    names: Vec<String>,
    /// What the largest of comes first.
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Sort {
    /// Resident memory.
    #[default]
    Rss,
    /// Proportional memory.
    Pss,
    /// Anonymous memory.
    Anon,
    /// Processor time.
    Cpu,
    /// The name, in the order of the alphabet.
    Name,
}

impl Stats {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let columns = [
            "NAME",
            "PID",
            "RSS|bytes",
            "PSS|bytes",
            "ANON=rssAnon|bytes",
            "CPU S=cpuSeconds",
            "THREADS",
            "RESTARTS",
            "GROUP MEMORY=groupMemory|bytes",
            "GROUP",
        ];
        let (names, sort) = (&self.names, self.sort);
        cx.rows(&columns, |machine| async move {
            let StatsResponse { mut processes, memory_total, memory_used } =
                machine.services().stats(StatsRequest {}).await.map_err(refused)?.into_inner();
            processes.retain(|process| names.is_empty() || names.contains(&process.name));
            order(&mut processes, sort);
            // Machines of former versions do not tell it.
            let whole = (names.is_empty() && memory_total > 0).then(|| whole(memory_total, memory_used));
            Ok(whole.into_iter().chain(processes.into_iter().map(row)).collect())
        })
        .await
    }
}

fn order(processes: &mut [ProcessStats], sort: Sort) {
    processes.sort_by(|a, b| match sort {
        Sort::Rss => b.rss.cmp(&a.rss),
        Sort::Pss => b.pss.cmp(&a.pss),
        Sort::Anon => b.rss_anon.cmp(&a.rss_anon),
        Sort::Cpu => b.cpu_seconds.total_cmp(&a.cpu_seconds),
        Sort::Name => a.name.cmp(&b.name).then(a.pid.cmp(&b.pid)),
    });
}

/// The machine as a whole.
fn whole(total: u64, used: u64) -> Value {
    json!({
        "name": "(machine)", "pid": null, "group": "", "service": "", "rss": used, "pss": null, "rssAnon": null, "cpuSeconds": null,
        "groupMemory": total, "restarts": null, "threads": null,
    })
}

fn row(process: ProcessStats) -> Value {
    // init knows restarts of its services only.
    let restarts = (!process.service.is_empty()).then_some(process.restarts);
    // Every process holds something: what the kernel did not tell is not nothing.
    let pss = (process.pss > 0).then_some(process.pss);
    json!({
        "name": process.name, "pid": process.pid, "group": process.group, "service": process.service, "rss": process.rss, "pss": pss,
        "rssAnon": process.rss_anon, "cpuSeconds": process.cpu_seconds, "groupMemory": process.group_memory, "restarts": restarts,
        "threads": process.threads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_comes_first() {
        let process = |name: &str, rss, pss| ProcessStats { name: name.into(), rss, pss, ..ProcessStats::default() };
        let mut all = vec![process("b", 1, 9), process("a", 2, 3)];
        let names = |all: &[ProcessStats]| all.iter().map(|process| process.name.clone()).collect::<String>();
        order(&mut all, Sort::Rss);
        assert_eq!(names(&all), "ab");
        order(&mut all, Sort::Pss);
        assert_eq!(names(&all), "ba");
        order(&mut all, Sort::Name);
        assert_eq!(names(&all), "ab");
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let pod = row(ProcessStats { name: "etcd".into(), ..ProcessStats::default() });
        assert!(pod["restarts"].is_null() && pod["pss"].is_null());
        let service = row(ProcessStats { name: "kubelet".into(), service: "kubelet".into(), restarts: 2, ..ProcessStats::default() });
        assert_eq!(service["restarts"], 2);
    }
}
