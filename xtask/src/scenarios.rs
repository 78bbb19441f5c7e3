//! Runs scenarios on virtual machines and sums them up.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use image::Versions;
use qemu_tests::accel::Accelerator;
use qemu_tests::scenarios::{ALL, IN_CI};
use qemu_tests::{Context, Scenario};

use crate::cluster::programs;
use crate::image::{Built, build};
use crate::project::Project;

/// The scenarios of these names; all that `cargo xtask test` runs when there are none.
pub fn select(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(IN_CI.iter().collect());
    }
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
        let in_ci = if IN_CI.iter().any(|scenario| scenario.name == *name) { "" } else { " (by name only)" };
        println!("{name:<16} {protects}{in_ci}");
    }
}

/// Builds the image and runs the scenarios one after the other; all of them, also after a failure.
pub fn run(project: &Project, scenarios: &[&Scenario]) -> Result<()> {
    let started = Instant::now();
    let Built { image, tools, cache } =
        build(project, Versions::Locked, &|step| println!("[{:>6.1} s] {step}", started.elapsed().as_secs_f32()))?;
    let programs = programs(project, &tools);
    let accelerator = Accelerator::detect(&cache, &tools)?;
    let mut failed = Vec::new();
    for scenario in scenarios {
        println!("scenario {}: {}", scenario.name, scenario.protects);
        let dir = project.target.join("scenarios").join(scenario.name);
        let run = short_dir(&format!("{}-{}", scenario.name, std::process::id()));
        let context = Context {
            project: project.root.clone(),
            programs: programs.clone(),
            image: image.clone(),
            accelerator,
            dir,
            saved: project.target.join("saved-clusters"),
            run,
            started: Instant::now(),
        };
        context.prepare()?;
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

/// A directory for sockets, whose names may have 107 bytes at most.
pub fn short_dir(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("strake-{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scenario_is_named_with_those_there_are() {
        assert_eq!(select(&[]).unwrap().len(), IN_CI.len());
        assert_eq!(select(&["boot".to_owned()]).unwrap()[0].name, "boot");
        let problem = select(&["boto".to_owned()]).unwrap_err().to_string();
        assert!(problem.contains("\"boto\"") && problem.contains("legacy-bios"), "{problem}");
    }
}
