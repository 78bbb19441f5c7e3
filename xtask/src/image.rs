//! `cargo xtask image`: the binaries, then the image from them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use image::cache::Cache;
use image::digest;
use image::signing::{SECURITY_VERSION, Signing};
use image::tools::Tools;
use image::{Image, Inputs, Versions};

use crate::host;
use crate::project::Project;

/// The Kubernetes version the components are compatible with.
pub const KUBERNETES: &str = "v1.36.2";

/// What to build.
#[derive(clap::Args)]
pub struct Wanted {
    /// Move to the newest Debian packages and write the lock files
    #[arg(long)]
    relock: bool,
    /// Build it a second time in another directory and compare the bytes
    #[arg(long, conflicts_with_all = ["relock", "secureboot_keys", "firmware"])]
    twice: bool,
    /// Sign the boot chain and the upgrade file with these keys (`strakectl gen secureboot-keys DIR`); the ISO enrols them in a firmware in setup mode
    #[arg(long, value_name = "DIR")]
    secureboot_keys: Option<PathBuf>,
    /// Let machines trust these keys alone: without Microsoft's certificates, which the option ROMs of many cards are signed with
    #[arg(long, requires = "secureboot_keys")]
    no_microsoft: bool,
    /// Sign it as this security version instead of the project's: once it proved good on a machine, images of a lower one do not open that machine's encrypted
    /// volumes any more
    #[arg(long, value_name = "N", requires = "secureboot_keys")]
    security_version: Option<u32>,
    /// Add microcode or firmware for devices: a Debian package of image/locks/firmware.lock, such as intel-microcode or firmware-bnx2x; can be given several times
    #[arg(long, value_name = "PACKAGE")]
    firmware: Vec<String>,
}

/// What was built and what it was built with.
pub struct Built {
    pub image: Image,
    pub tools: Tools,
    pub cache: Cache,
}

/// Builds everything up to the ISO, unsigned.
pub fn build(project: &Project, versions: Versions, say: &dyn Fn(&str)) -> Result<Built> {
    build_wanted(project, versions, None, &[], say)
}

/// Whose keys sign, and what.
struct Keys<'a> {
    dir: &'a PathBuf,
    /// Whether machines trust Microsoft's too.
    microsoft: bool,
    security_version: u32,
}

/// The same, signed with the keys of a directory if there is one.
fn build_wanted(project: &Project, versions: Versions, keys: Option<Keys<'_>>, firmware: &[String], say: &dyn Fn(&str)) -> Result<Built> {
    host::prepare()?;
    let cache = Cache::open()?;
    say("tools");
    let tools = Tools::prepare(&cache, &project.root.join("image/locks"), versions, say)?;
    let prepare = |keys: Keys<'_>| {
        let prepared = Signing::prepare(&cache, &project.root, keys.dir, keys.microsoft, say);
        prepared.map(|signing| signing.as_security_version(keys.security_version))
    };
    let signing = keys.map(prepare).transpose()?;
    say("binaries");
    project.build()?;
    let out = if signing.is_some() { project.signed_image_dir() } else { project.image_dir() };
    let binaries = project.binaries();
    let inputs = Inputs { signing: signing.as_ref(), firmware, ..inputs(project, &binaries, &out, versions) };
    let image = image::build(&cache, &tools, &inputs, say)?;
    Ok(Built { image, tools, cache })
}

fn inputs<'a>(project: &'a Project, binaries: &'a Path, out: &'a Path, versions: Versions) -> Inputs<'a> {
    Inputs {
        project: &project.root,
        binaries,
        out,
        version: env!("CARGO_PKG_VERSION"),
        kubernetes: KUBERNETES,
        versions,
        signing: None,
        replaced: None,
        firmware: &[],
    }
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

fn files(image: &Image) -> [(&'static str, &Path); 8] {
    [
        ("root", &image.root),
        ("UKI", &image.uki),
        ("ISO", &image.iso),
        ("disk image", &image.raw),
        ("PXE image", &image.pxe),
        ("upgrade file", &image.upgrade),
        ("bill of materials", &image.sbom),
        ("example workload", &image.hello),
    ]
}

/// The command: builds, and prints what came out.
pub fn command(project: &Project, wanted: &Wanted) -> Result<()> {
    let started = Instant::now();
    let say = |step: &str| println!("[{:>6.1} s] {step}", started.elapsed().as_secs_f32());
    let versions = if wanted.relock { Versions::Newest } else { Versions::Locked };
    let security_version = wanted.security_version.unwrap_or(SECURITY_VERSION);
    let keys = wanted.secureboot_keys.as_ref().map(|dir| Keys { dir, microsoft: !wanted.no_microsoft, security_version });
    let Built { image, .. } =
        if wanted.twice { reproducible(project, &say)? } else { build_wanted(project, versions, keys, &wanted.firmware, &say)? };
    for (name, file) in files(&image) {
        let size = std::fs::metadata(file)?.len() as f64 / f64::from(1 << 20);
        println!("{name:>17}  {size:>6.1} MiB  {}", file.display());
    }
    println!("{:>17}  {}", "root hash", image.verity.root_hash());
    println!("{:>17}  {}", "kernel", image.kernel);
    let signed = match &wanted.secureboot_keys {
        Some(dir) => format!("with the keys in {}, as security version {security_version}", dir.display()),
        None => "by nobody: secure boot refuses it, and it takes any upgrade file (--secureboot-keys DIR signs)".to_owned(),
    };
    println!("{:>17}  {signed}", "signed");
    if wanted.twice {
        println!("{:>17}  two builds gave the same bytes", "reproducible");
    }
    Ok(())
}
