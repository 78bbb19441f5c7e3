//! `cargo xtask bench`: figures of the release binaries on this machine, with the goal and upstream's figure beside each.
//!
//! The control plane is measured by the program `bench` (xtask/bench), in namespaces that end with it. What is not natively there, a
//! whole machine, is measured in a running cluster of `cargo xtask up`, or by `cargo xtask bench boot` in machines of its own.

mod boot;
mod cluster;
mod goals;
mod native;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use image::cache::Cache;
use image::tools::Tools;
use image::{Inputs, Versions};

use crate::bench::goals::Figure;
use crate::image::KUBERNETES;
use crate::project::Project;

/// What `bench` takes.
#[derive(Args, Debug)]
pub struct Bench {
    /// What to measure [default: start idle image]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Measure the running cluster of `cargo xtask up`: seconds from power-on, memory of every process
    #[arg(long)]
    cluster: bool,
    /// How long nothing happens before memory is read
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    idle: u64,
    /// How often kube-apiserver is started; the median counts
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How many ConfigMaps the requests are about
    #[arg(long, default_value_t = 4000)]
    objects: usize,
    /// How many pods the part `pods` is about
    #[arg(long, default_value_t = 100_000)]
    pods: usize,
    /// Speak to etcd without TLS, as upstream's figures were measured
    #[arg(long)]
    plain_etcd: bool,
    /// Measure the control-plane programs in this directory instead of those built here
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Make the image of the binaries that were built last, whatever changed since
    #[arg(long)]
    as_built: bool,
}

/// The parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// kube-apiserver from start to ready, with an empty etcd
    Start,
    /// Memory of the components when nothing happens
    Idle,
    /// Sizes of the image, and how long it takes to build from a warm cache
    Image,
    /// Requests to kube-apiserver: rate, latency, processor time, memory
    Apiserver,
    /// Memory of kube-apiserver with very many pods
    Pods,
    /// Virtual machines: from power-on to the machine API and to a Ready node, and what an upgrade costs
    Boot,
}

/// Measures and prints one part after the other.
pub fn command(project: &Project, wanted: &Bench) -> Result<()> {
    let parts = match (&wanted.parts[..], wanted.cluster) {
        ([], true) => &[][..],
        ([], false) => &[Part::Start, Part::Idle, Part::Image],
        (parts, _) => parts,
    };
    let project = &Project { as_built: wanted.as_built, ..project.clone() };
    let cache = Cache::open()?;
    let tools = Tools::prepare(&cache, &project.root.join("image/locks"), Versions::Locked, &|step| eprintln!("{step}"))?;
    let (image_wanted, native_wanted) = (parts.contains(&Part::Image), parts.iter().any(|part| !matches!(part, Part::Image | Part::Boot)));
    if image_wanted || native_wanted && wanted.binaries.is_none() {
        eprintln!("building");
        project.build()?;
    }
    if native_wanted {
        native::build(project)?;
    }
    for part in parts {
        let figures = match part {
            Part::Boot => boot::figures(project)?,
            Part::Image => image(project, &cache, &tools)?,
            Part::Start => native::run(project, &cache, &tools, wanted, &["start", "--rounds", &wanted.rounds.to_string()])?,
            Part::Idle => native::run(project, &cache, &tools, wanted, &["idle", "--seconds", &wanted.idle.to_string()])?,
            Part::Apiserver => native::run(project, &cache, &tools, wanted, &["apiserver", "--objects", &wanted.objects.to_string()])?,
            Part::Pods => native::run(project, &cache, &tools, wanted, &["pods", "--pods", &wanted.pods.to_string()])?,
        };
        print!("{}", goals::render(&figures));
    }
    if wanted.cluster {
        print!("{}", goals::render(&cluster::figures(project)?));
    }
    Ok(())
}

/// Builds the image in a directory of its own, so that nothing of it is there before.
fn image(project: &Project, cache: &Cache, tools: &Tools) -> Result<Vec<Figure>> {
    let out = project.target.join("bench-image");
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let inputs = Inputs {
        project: &project.root,
        binaries: &project.binaries(),
        out: &out,
        version: env!("CARGO_PKG_VERSION"),
        kubernetes: KUBERNETES,
        versions: Versions::Locked,
        signing: None,
        firmware: &[],
        replaced: None,
    };
    let begin = Instant::now();
    let built = image::build(cache, tools, &inputs, &|step| eprintln!("{step}"))?;
    let seconds = begin.elapsed().as_secs_f64();
    let mut figures = vec![Figure::new("image build", seconds, "s")];
    figures.extend(sizes(&built)?);
    std::fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    Ok(figures)
}

/// How large an image's files are.
fn sizes(image: &image::Image) -> Result<Vec<Figure>> {
    let megabytes = |file: &PathBuf| -> Result<f64> {
        let size = std::fs::metadata(file).with_context(|| format!("cannot find {}", file.display()))?.len();
        Ok(size as f64 / 1e6)
    };
    let files = [("ISO", &image.iso), ("root", &image.root), ("UKI", &image.uki)];
    files.into_iter().map(|(name, file)| Ok(Figure::new(name, megabytes(file)?, "MB"))).collect()
}
