//! Figures of a running cluster, read from its machines through strakectl.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::bench::goals::Figure;
use crate::cluster;
use crate::project::{Project, describe};

/// A point that a machine's start reached.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Milestone {
    node: String,
    id: String,
    /// Since the kernel started.
    seconds: f64,
    /// With the firmware's and the loader's time, where they tell it.
    since_power_on: Option<f64>,
}

/// A process of a machine; memory in bytes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    node: String,
    name: String,
    rss: u64,
    /// Not of the row of the whole machine, and not where the kernel does not tell.
    pss: Option<u64>,
    rss_anon: Option<u64>,
}

/// The programs whose memory is told.
const PROGRAMS: &[&str] = &[
    "init",
    "machined",
    "logd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "cloud-controller-manager",
    "kubelet",
    "kube-proxy",
    "containerd",
    "cluster-dns",
];

/// Reads every machine of the cluster.
pub fn figures(project: &Project) -> Result<Vec<Figure>> {
    let mut figures = starts(&strakectl::<Milestone>(project, &["get", "boot"])?);
    figures.extend(memory(&strakectl::<Process>(project, &["stats"])?));
    Ok(figures)
}

fn strakectl<T: DeserializeOwned>(project: &Project, words: &[&str]) -> Result<Vec<T>> {
    let config = cluster::directory(project).join("strakeconfig");
    if !config.exists() {
        bail!("there is no cluster; `cargo xtask up` makes one");
    }
    let mut command = Command::new(project.binaries().join("strakectl"));
    command.env("STRAKECONFIG", config).args(words).args(["--output", "json"]);
    let line = describe(&command);
    let output = command.output().with_context(|| format!("cannot run {line}"))?;
    if !output.status.success() {
        bail!("{line} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{line} gave something else than expected"))
}

fn starts(milestones: &[Milestone]) -> Vec<Figure> {
    let figure = |milestone: &Milestone| {
        let Milestone { node, id, seconds, since_power_on } = milestone;
        Figure::new(format!("{node}: power-on to {id}"), since_power_on.unwrap_or(*seconds), "s")
    };
    milestones.iter().map(figure).collect()
}

fn memory(processes: &[Process]) -> Vec<Figure> {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    processes
        .iter()
        .filter(|process| PROGRAMS.contains(&process.name.as_str()))
        .flat_map(|process| {
            let Process { node, name, rss, pss, rss_anon } = process;
            [("RSS", Some(*rss)), ("PSS", *pss), ("RssAnon", *rss_anon)]
                .into_iter()
                .filter_map(move |(what, bytes)| Some(Figure::new(format!("{node}: {name} {what}"), mebibytes(bytes?), "MiB")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strakectl_prints_becomes_figures() {
        let boot = r#"[{"node":"cp-1","kind":"boot","id":"init","version":"1","seconds":1.5,"sincePowerOn":4.25},
            {"node":"cp-1","kind":"boot","id":"etcd","version":"1","seconds":9.0,"sincePowerOn":null}]"#;
        let expected = [Figure::new("cp-1: power-on to init", 4.25, "s"), Figure::new("cp-1: power-on to etcd", 9.0, "s")];
        assert_eq!(starts(&serde_json::from_str::<Vec<Milestone>>(boot).unwrap()), expected);
        let stats = r#"[{"node":"cp-1","name":"init","pid":1,"rss":2097152,"pss":1048576,"rssAnon":524288,"restarts":0},
            {"node":"cp-1","name":"(machine)","pid":null,"rss":3,"pss":null,"rssAnon":null},
            {"node":"cp-1","name":"hello","pid":9,"rss":1,"pss":1,"rssAnon":1}]"#;
        let figures = memory(&serde_json::from_str::<Vec<Process>>(stats).unwrap());
        assert_eq!(figures.len(), 3, "{figures:?}");
        assert_eq!(figures[0], Figure::new("cp-1: init RSS", 2.0, "MiB"));
    }
}
