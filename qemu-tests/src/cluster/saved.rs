//! Saved clusters: a cluster that was brought up once and shut down in order, from whose disks any number of scenarios start, each with
//! its own layer over them. So the test of one fault costs a boot, not an installation.

use std::path::Path;
use std::time::Duration;

use super::{Cluster, LAYER, Progress, disk};
use crate::accel::Accelerator;
use crate::error::{Error, FileContext};
use crate::machine::create_overlay;

/// The file that says that a saved cluster is complete.
const COMPLETE: &str = "saved";
/// What belongs to the cluster as a whole.
const FILES: &[&str] = &["cluster.json", "strakeconfig", "kubeconfig", "secrets.yaml", "bootstrapped"];
const SHUTDOWN: Duration = Duration::from_secs(300);

impl Cluster {
    /// Whether a directory holds a cluster whose [`Cluster::save`] was completed.
    pub fn is_saved_in(dir: &Path) -> bool {
        dir.join(COMPLETE).exists()
    }

    /// Shuts the machines down in order and marks the cluster as one to start others from.
    pub fn save(&self) -> Result<(), Error> {
        for node in self.plan.nodes.iter().rev() {
            self.clients().strakectl(["--timeout", "60", "-n", &node.local_api(), "shutdown"])?;
        }
        for node in &self.plan.nodes {
            self.machine(node).wait_off(SHUTDOWN)?;
        }
        self.network().stop()?;
        let mark = self.dir.join(COMPLETE);
        std::fs::write(&mark, "").on("write", &mark)
    }

    /// A copy of this saved cluster in another directory: the same identity, disks as layers over the saved ones.
    pub fn copy_to(&self, dir: &Path, run: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).on("create", dir)?;
        for name in FILES {
            let from = self.dir.join(name);
            std::fs::copy(&from, dir.join(name)).on("copy", &from)?;
        }
        for node in &self.plan.nodes {
            let (from, to) = (self.dir.join(&node.name), dir.join(&node.name));
            std::fs::create_dir_all(&to).on("create", &to)?;
            let config = self.config(node);
            std::fs::copy(&config, dir.join(format!("{}.yaml", node.name))).on("copy", &config)?;
            let variables = from.join("firmware-variables.fd");
            std::fs::copy(&variables, to.join("firmware-variables.fd")).on("copy", &variables)?;
            create_overlay(&self.programs.tools, &disk(&from), &to.join(LAYER))?;
        }
        Ok(Self { dir: dir.to_owned(), run: run.to_owned(), programs: self.programs.clone(), plan: self.plan.clone(), recorder: None })
    }

    /// Starts an installed cluster from its disks and waits until every machine is a Ready node.
    pub fn start(&self, accelerator: Accelerator, progress: &dyn Progress) -> Result<(), Error> {
        progress.phase("starting a saved cluster");
        self.start_network()?;
        for node in &self.plan.nodes {
            self.start_installed(node, accelerator)?;
        }
        let first = self.plan.control_plane();
        self.at(first, "waiting for the Kubernetes API", self.wait_kubernetes(progress))?;
        self.wait_nodes(progress)
    }
}
