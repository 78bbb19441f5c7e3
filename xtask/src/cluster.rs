//! `cargo xtask up` and `cargo xtask down`: a cluster of virtual machines that stays when the command ends.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use image::Versions;
use image::cache::Cache;
use image::tools::Tools;
use indicatif::{ProgressBar, ProgressStyle};
use qemu_tests::accel::Accelerator;
use qemu_tests::cluster::plan::{ClusterSpec, HELLO_PORT, MAX_WORKERS};
use qemu_tests::cluster::{Cluster, Programs, Progress};

use crate::image::{Built, build};
use crate::project::Project;
use crate::scenarios::short_dir;

/// What `up` takes.
#[derive(Args, Debug)]
pub struct Up {
    /// Worker machines beside the control plane
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_WORKERS)))]
    workers: u8,
    /// Memory of the control plane, in MiB
    #[arg(long, default_value_t = 1536, value_parser = clap::value_parser!(u32).range(512..))]
    memory: u32,
    /// Memory of each worker, in MiB; the same as --memory when unset
    #[arg(long, value_parser = clap::value_parser!(u32).range(512..))]
    worker_memory: Option<u32>,
    /// Size of each machine's disk, in GiB; the file takes only what is written
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(14..=2048))]
    disk: u64,
    /// Throw the present cluster away and start a new one
    #[arg(long)]
    fresh: bool,
}

/// The directory of the cluster.
pub fn directory(project: &Project) -> PathBuf {
    project.root.join("target/cluster")
}

/// Where the cluster's sockets are: short, and different for each checkout.
fn sockets(dir: &Path) -> PathBuf {
    // FNV-1a over the path: it only has to tell checkouts on one machine apart.
    let hash =
        dir.to_string_lossy().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    short_dir(&format!("cluster-{hash:016x}"))
}

/// The programs a cluster is driven with; they were built with the image.
pub fn programs(project: &Project, tools: &Tools) -> Programs {
    let switch = vec![project.program.clone().into(), "switch".into()];
    Programs { tools: tools.clone(), strakectl: project.binaries().join("strakectl"), switch }
}

/// Brings the cluster up and says what to do next.
pub fn up(project: &Project, wanted: &Up) -> Result<()> {
    let bars = Bars::default();
    bars.phase("image");
    let Built { image, tools, cache } = build(project, Versions::Locked, &|step| bars.note("image", step))?;
    let programs = programs(project, &tools);
    let accelerator = Accelerator::detect(&cache, &tools)?;
    let dir = directory(project);
    let spec = ClusterSpec {
        workers: wanted.workers,
        memory_mib: wanted.memory,
        worker_memory_mib: wanted.worker_memory.unwrap_or(wanted.memory),
        disk_bytes: wanted.disk << 30,
        ..ClusterSpec::small()
    };
    if wanted.fresh && dir.exists() {
        remove(&dir, &programs, &spec)?;
    }
    let cluster = Cluster::open(&dir, &sockets(&dir), &programs, &spec)?;
    if cluster.plan().spec != spec {
        bail!("the cluster in {} was made with other options ({:?}); add --fresh to replace it", dir.display(), cluster.plan().spec);
    }
    let outcome = cluster.up(&image.iso, std::slice::from_ref(&image.hello), accelerator, &bars);
    bars.finish(outcome.is_ok());
    outcome?;
    let kubectl = tools.wrappers(&cache)?.join("kubectl");
    println!("{}", next_steps(&cluster, &dir, project, &kubectl));
    Ok(())
}

/// Ends the cluster's machines and removes it.
pub fn down(project: &Project) -> Result<()> {
    let dir = directory(project);
    if !dir.exists() {
        println!("there is no cluster");
        return Ok(());
    }
    let cache = Cache::open()?;
    let tools = Tools::prepare(&cache, &project.root.join("image/locks"), Versions::Locked, &|step| println!("{step}"))?;
    // Only what ends the machines is needed, so nothing is built.
    let programs = Programs { tools, strakectl: project.binaries().join("strakectl"), switch: vec!["false".into()] };
    let unused = ClusterSpec { workers: 0, memory_mib: 0, worker_memory_mib: 0, disk_bytes: 0, ..ClusterSpec::small() };
    remove(&dir, &programs, &unused)
}

fn remove(dir: &Path, programs: &Programs, spec: &ClusterSpec) -> Result<()> {
    let run = sockets(dir);
    Cluster::open(dir, &run, programs, spec)?.down()?;
    for place in [dir, &run] {
        if place.exists() {
            std::fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
        }
    }
    Ok(())
}

fn next_steps(cluster: &Cluster, dir: &Path, project: &Project, kubectl: &Path) -> String {
    let plan = cluster.plan();
    let strakectl = project.binaries().join("strakectl");
    let hello: Vec<String> = plan.nodes.iter().map(|node| format!("curl http://127.0.0.1:{}", node.hello_port)).collect();
    let machines: Vec<String> = plan
        .nodes
        .iter()
        .map(|node| format!("    {:<9} {:<11} machine API at {}", node.name, node.address.to_string(), node.local_api()))
        .collect();
    format!(
        "\nThe cluster is Ready.\n{machines}\n\nNext:\n    export KUBECONFIG={dir}/kubeconfig STRAKECONFIG={dir}/strakeconfig\n    \
         export PATH=\"{bin}:{ours}:$PATH\"          # kubectl and strakectl\n    kubectl get nodes -o wide\n    \
         kubectl apply -f {root}/configs/examples/hello.yaml\n    {hello}        # node port {HELLO_PORT} of each machine\n    \
         strakectl services\n    cargo xtask down\n",
        machines = machines.join("\n"),
        dir = dir.display(),
        bin = kubectl.parent().unwrap_or(kubectl).display(),
        ours = strakectl.parent().unwrap_or(&strakectl).display(),
        root = project.root.display(),
        hello = hello.join("\n    "),
    )
}

/// One line per phase, with its time; the running one moves.
#[derive(Default)]
struct Bars {
    current: Mutex<Option<(ProgressBar, Instant, String)>>,
}

impl Bars {
    fn finish(&self, good: bool) {
        let current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some((bar, start, name)) = current {
            bar.finish_and_clear();
            println!("{} {name:<44} {:>6.1} s", if good { "✓" } else { "✗" }, start.elapsed().as_secs_f32());
        }
    }
}

impl Progress for Bars {
    fn phase(&self, name: &str) {
        self.finish(true);
        let bar = ProgressBar::new_spinner();
        // A template that is part of the program; the default is a fine replacement should it ever be wrong.
        bar.set_style(
            ProgressStyle::with_template("{spinner} {prefix:<44} {elapsed:>6} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        *self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((bar, Instant::now(), name.to_owned()));
    }

    fn note(&self, machine: &str, what: &str) {
        if let Some((bar, start, _)) = &*self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            bar.set_message(format!("{machine}: {what}"));
            if bar.is_hidden() {
                // No terminal: a line each, so that a log shows how far it came.
                println!("  [{:>6.1} s] {machine}: {what}", start.elapsed().as_secs_f32());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_directories_are_short_and_differ_between_checkouts() {
        let (one, two) = (sockets(Path::new("/a/target/cluster")), sockets(Path::new("/b/target/cluster")));
        assert_ne!(one, two);
        assert!(one.join("worker-9.qmp").as_os_str().len() < 107 || std::env::temp_dir().as_os_str().len() > 60);
    }
}
