//! `cargo xtask image`: the binaries, then the image from them.

use std::time::Instant;

use anyhow::Result;
use image::cache::Cache;
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
    let inputs = Inputs {
        project: &project.root,
        binaries: &project.binaries(),
        out: &project.image_dir(),
        version: env!("CARGO_PKG_VERSION"),
        kubernetes: KUBERNETES,
        versions,
    };
    let image = image::build(&cache, &tools, &inputs, say)?;
    Ok(Built { image, tools, cache })
}

/// The command: builds, and prints what came out.
pub fn command(project: &Project, relock: bool) -> Result<()> {
    let started = Instant::now();
    let say = |step: &str| println!("[{:>6.1} s] {step}", started.elapsed().as_secs_f32());
    let Built { image, .. } = build(project, if relock { Versions::Newest } else { Versions::Locked }, &say)?;
    for (name, file) in [
        ("root", &image.root),
        ("UKI", &image.uki),
        ("ISO", &image.iso),
        ("upgrade file", &image.upgrade),
        ("example workload", &image.hello),
    ] {
        let size = std::fs::metadata(file)?.len() as f64 / f64::from(1 << 20);
        println!("{name:>16}  {size:>6.1} MiB  {}", file.display());
    }
    println!("{:>16}  {}", "root hash", image.verity.root_hash());
    println!("{:>16}  {}", "kernel", image.kernel);
    Ok(())
}
