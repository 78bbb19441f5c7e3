//! The same binary as a short-lived child: what may hang, and what needs memory that PID 1 should not hold.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{modules, report, setup, shutdown, spawn};

/// Loads the drivers of the devices there are.
pub const COLDPLUG: &str = "--coldplug";
/// Loads the drivers of these modaliases.
pub const MODALIAS: &str = "--modalias";
/// Loads the modules that the image lists: files below the directory of modules in load order, or names.
pub const LISTED_MODULES: &str = "--listed-modules";
/// Unmounts everything on disks.
pub const UNMOUNT: &str = "--unmount";

/// Starts a helper; PID 1 reaps it like every other child.
pub fn start(args: &[&str]) -> std::io::Result<i32> {
    let child = Command::new("/proc/self/exe").args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    i32::try_from(child.id()).map_err(std::io::Error::other)
}

/// The helper's side. The kernel and the CNI plugins call it as `modprobe`.
pub fn run(args: &[String]) -> i32 {
    spawn::unblock_signals();
    let called_as = args.first().map_or("", |name| name.rsplit('/').next().unwrap_or(name));
    let rest = args.get(1..).unwrap_or_default();
    if called_as == "modprobe" {
        return modprobe(rest);
    }
    match rest.split_first() {
        Some((verb, rest)) => match verb.as_str() {
            spawn::HELPER => spawn::exec_service(rest),
            COLDPLUG => coldplug(),
            MODALIAS => load(rest.iter().map(String::as_str)),
            LISTED_MODULES => listed_modules(),
            UNMOUNT => shutdown::unmount_all(),
            _ => usage(),
        },
        None => usage(),
    }
}

fn usage() -> i32 {
    eprintln!("init is started by the kernel, as PID 1");
    2
}

/// `modprobe [options] [--] name… [parameters]`: as the kernel calls it (`-q -- name`). Only the first name counts, the rest
/// would be parameters, which the image's modules need none of.
fn modprobe(args: &[String]) -> i32 {
    let remove = args.iter().any(|arg| arg == "-r" || arg == "--remove");
    match args.iter().find(|arg| !arg.starts_with('-')) {
        Some(name) if !remove => load(std::iter::once(name.as_str())),
        _ => 1,
    }
}

fn load<'a>(wanted: impl Iterator<Item = &'a str>) -> i32 {
    let index = modules::Index::read(Path::new("/"));
    let mut code = 0;
    for wanted in wanted {
        let (_, errors) = modules::load(&index, wanted);
        for error in &errors {
            report::info(&report::chain(error));
            code = 1;
        }
    }
    code
}

/// A driver may make further devices, on other buses, so until nothing new appears.
fn coldplug() -> i32 {
    let index = modules::Index::read(Path::new("/"));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let new: Vec<String> = modules::modaliases().into_iter().filter(|alias| !seen.contains(alias)).collect();
        if new.is_empty() {
            break;
        }
        for alias in new {
            for error in modules::load(&index, &alias).1 {
                report::info(&report::chain(&error));
            }
            seen.insert(alias);
        }
    }
    0
}

fn listed_modules() -> i32 {
    let list = fs::read_to_string(Path::new(setup::SHARE).join("modules.list")).unwrap_or_default();
    let names = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (files, names): (Vec<&str>, Vec<&str>) = names.partition(|name| name.contains('/'));
    let base = modules::directory(Path::new("/"));
    let options = modules::Options::read(Path::new("/"));
    for file in files {
        if let Err(error) = modules::load_file(&base.join(file), &options) {
            report::info(&report::chain(&error));
        }
    }
    if names.is_empty() { 0 } else { load(names.into_iter()) }
}
