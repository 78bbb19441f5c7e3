//! Runs scenarios on virtual machines and sums them up.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};
use image::{Image, Versions};
use qemu_tests::accel::Accelerator;
use qemu_tests::cluster::Programs;
use qemu_tests::scenarios::{ALL, IN_CI, IN_TURN, in_turn};
use qemu_tests::{Context, Scenario};

use crate::cluster::programs;
use crate::image::{Built, build};
use crate::project::Project;

/// What `cargo xtask test` runs: some always, and one of the long ones, whose turn follows from the commit.
pub fn of_ci(project: &Project) -> Vec<&'static Scenario> {
    // Without a repository it is always the same one's turn.
    let output = Command::new("git").current_dir(&project.root).args(["rev-parse", "HEAD"]).stderr(Stdio::null()).output();
    let commit = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    // Last: it may start from a cluster that one of the others saves.
    IN_CI.iter().chain([in_turn(&commit)]).collect()
}

/// The scenarios of these names.
pub fn select(names: &[String]) -> Result<Vec<&'static Scenario>> {
    names
        .iter()
        .map(|name| match ALL.iter().find(|scenario| scenario.name == name) {
            Some(scenario) => Ok(scenario),
            None => bail!(
                "there is no scenario {name:?}; there are: {}",
                ALL.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
            ),
        })
        .collect()
}

/// Prints what there is.
pub fn list() {
    for Scenario { name, protects, .. } in ALL {
        let has = |list: &[Scenario]| list.iter().any(|scenario| scenario.name == *name);
        let in_ci = if has(IN_CI) {
            ""
        } else if has(IN_TURN) {
            " (in turn)"
        } else {
            " (by name only)"
        };
        println!("{name:<16} {protects}{in_ci}");
    }
}

/// Builds the image and runs the scenarios one after the other; all of them, also after a failure.
pub fn run(project: &Project, scenarios: &[&Scenario]) -> Result<()> {
    let started = Instant::now();
    let Built { image, tools, cache } =
        build(project, Versions::Locked, &|step| println!("[{:>6.1} s] {step}", started.elapsed().as_secs_f32()))?;
    let machines = Machines { programs: programs(project, &tools), accelerator: Accelerator::detect(&cache, &tools)?, image };
    let mut failed = Vec::new();
    for scenario in scenarios {
        println!("scenario {}: {}", scenario.name, scenario.protects);
        let context = machines.context(project, scenario.name)?;
        let outcome = (scenario.run)(&context);
        let seconds = context.started.elapsed().as_secs_f32();
        std::fs::remove_dir_all(&context.run)?;
        match outcome {
            Ok(()) => println!("scenario {}: passed in {seconds:.1} s", scenario.name),
            Err(problem) => {
                println!("scenario {}: FAILED after {seconds:.1} s\n{:?}", scenario.name, anyhow::Error::from(problem));
                failed.push(scenario.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed scenarios: {}; their files are in {}", failed.join(", "), project.target.join("scenarios").display());
    }
    Ok(())
}

/// What virtual machines are made from.
pub struct Machines {
    pub programs: Programs,
    pub accelerator: Accelerator,
    pub image: Image,
}

impl Machines {
    /// What a scenario of this name is given, with empty directories.
    pub fn context(&self, project: &Project, name: &str) -> Result<Context> {
        let context = Context {
            project: project.root.clone(),
            programs: self.programs.clone(),
            image: self.image.clone(),
            accelerator: self.accelerator,
            dir: project.target.join("scenarios").join(name),
            saved: project.target.join("saved-clusters"),
            run: short_dir(&format!("{name}-{}", std::process::id())),
            started: Instant::now(),
        };
        context.prepare()?;
        Ok(context)
    }
}

/// A directory for sockets, whose names may have 107 bytes at most.
pub fn short_dir(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("strake-{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scenario_is_named_with_those_there_are() {
        assert_eq!(select(&["boot".to_owned()]).unwrap()[0].name, "boot");
        let problem = select(&["boto".to_owned()]).unwrap_err().to_string();
        assert!(problem.contains("\"boto\"") && problem.contains("legacy-bios"), "{problem}");
    }
}
