//! `cargo xtask image`: the binaries, then the image from them.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use image::cache::Cache;
use image::digest;
use image::tools::Tools;
use image::{Image, Inputs, Versions};

use crate::host;
use crate::project::Project;

/// The Kubernetes version the components are compatible with.
pub const KUBERNETES: &str = "v1.36.2";

/// What was built and what it was built with.
pub struct Built {
    pub image: Image,
    pub tools: Tools,
    pub cache: Cache,
}

/// Builds everything up to the ISO.
pub fn build(project: &Project, versions: Versions, say: &dyn Fn(&str)) -> Result<Built> {
    host::prepare()?;
    let cache = Cache::open()?;
    say("tools");
    let tools = Tools::prepare(&cache, &project.root.join("image/locks"), versions, say)?;
    say("binaries");
    project.build()?;
    let image = image::build(&cache, &tools, &inputs(project, &project.binaries(), &project.image_dir(), versions), say)?;
    Ok(Built { image, tools, cache })
}

fn inputs<'a>(project: &'a Project, binaries: &'a Path, out: &'a Path, versions: Versions) -> Inputs<'a> {
    Inputs { project: &project.root, binaries, out, version: env!("CARGO_PKG_VERSION"), kubernetes: KUBERNETES, versions }
}

/// Builds the image and then once more in another directory: the same bytes, or it is said which file has others.
pub fn reproducible(project: &Project, say: &dyn Fn(&str)) -> Result<Built> {
    let built = build(project, Versions::Locked, say)?;
    let scratch = project.target.join("image-again");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    say("once more, to compare");
    let again = image::build(&built.cache, &built.tools, &inputs(project, &project.binaries(), &scratch, Versions::Locked), &|_| ())?;
    let mut others = Vec::new();
    for ((name, first), (_, second)) in files(&built.image).into_iter().zip(files(&again)) {
        if digest::of_file(first)? != digest::of_file(second)? {
            others.push(format!("{name}: {} and {}", first.display(), second.display()));
        }
    }
    if !others.is_empty() {
        bail!("two builds from the same inputs differ: {}", others.join("; "));
    }
    std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    Ok(built)
}

fn files(image: &Image) -> [(&'static str, &Path); 5] {
    [("root", &image.root), ("UKI", &image.uki), ("ISO", &image.iso), ("upgrade file", &image.upgrade), ("example workload", &image.hello)]
}

/// The command: builds, and prints what came out.
pub fn command(project: &Project, relock: bool, twice: bool) -> Result<()> {
    let started = Instant::now();
    let say = |step: &str| println!("[{:>6.1} s] {step}", started.elapsed().as_secs_f32());
    let Built { image, .. } = match (twice, relock) {
        (true, _) => reproducible(project, &say)?,
        (false, true) => build(project, Versions::Newest, &say)?,
        (false, false) => build(project, Versions::Locked, &say)?,
    };
    for (name, file) in files(&image) {
        let size = std::fs::metadata(file)?.len() as f64 / f64::from(1 << 20);
        println!("{name:>16}  {size:>6.1} MiB  {}", file.display());
    }
    println!("{:>16}  {}", "root hash", image.verity.root_hash());
    println!("{:>16}  {}", "kernel", image.kernel);
    if twice {
        println!("{:>16}  two builds gave the same bytes", "reproducible");
    }
    Ok(())
}
