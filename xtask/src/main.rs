//! cargo xtask: everything a person or CI does with the project that is more than cargo itself.

mod bench;
mod cluster;
mod containers;
mod host;
mod image;
mod project;
mod scenarios;
mod schema;
mod test;
mod tidy;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::project::Project;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Builds, tests and runs Strake.")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring up a cluster of virtual machines from the ISO, or the one that is there
    Up(cluster::Up),
    /// End the cluster and remove it
    Down,
    /// Build the image: root, UKI, ISO and upgrade file
    Image(image::Wanted),
    /// Run everything CI runs, or only the named scenarios
    Test {
        /// Run only this scenario (may be repeated)
        #[arg(long = "scenario", value_name = "NAME")]
        scenarios: Vec<String>,
        /// Run the scenarios with the binaries that were built last, whatever changed since
        #[arg(long, requires = "scenarios")]
        as_built: bool,
        /// Print the scenarios and what they protect
        #[arg(long)]
        list: bool,
    },
    /// Measure start, memory, requests and sizes, with the goals and upstream's figures beside them
    Bench(bench::Bench),
    /// Make the Kubernetes schema table and golden objects anew from the pinned packages
    Schema(schema::Schema),
    /// Check the rules of the project that a program can check
    Tidy,
    /// Serve the Ethernet switch of a test network
    #[command(hide = true)]
    Switch { socket: PathBuf },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Verb::Switch { socket } => Ok(qemu_tests::switch::serve(&socket)?),
        Verb::Up(up) => cluster::up(&Project::find()?, &up),
        Verb::Down => cluster::down(&Project::find()?),
        Verb::Image(wanted) => image::command(&Project::find()?, &wanted),
        Verb::Test { list: true, .. } => {
            scenarios::list();
            Ok(())
        }
        Verb::Bench(wanted) => bench::command(&Project::find()?, &wanted),
        Verb::Schema(wanted) => schema::command(&Project::find()?, &wanted),
        Verb::Tidy => tidy::check(&Project::find()?),
        Verb::Test { scenarios, .. } if scenarios.is_empty() => test::all(&Project::find()?),
        Verb::Test { scenarios, as_built, .. } => {
            let project = Project { as_built, ..Project::find()? };
            scenarios::run(&project, &scenarios::select(&scenarios)?)
        }
    }
}
