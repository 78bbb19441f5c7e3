//! The programs that drive a cluster from outside: strakectl from the workspace and a pinned real kubectl.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::tools::Tools;
use serde_json::Value;

use crate::error::Error;
use crate::machine::run;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// QEMU, its firmware, kubectl.
    pub tools: Tools,
    /// strakectl's executable.
    pub strakectl: PathBuf,
    /// The program and first arguments that serve a switch; the socket's name is added.
    pub switch: Vec<OsString>,
}

impl Programs {
    /// The command that serves the switch of a network.
    pub fn switch_command(&self, socket: &Path) -> Command {
        let mut command = Command::new(&self.switch[0]);
        command.args(&self.switch[1..]).arg(socket);
        command
    }
}

/// strakectl and kubectl with a cluster's credentials.
#[derive(Clone, Debug)]
pub struct Clients {
    programs: Programs,
    strakeconfig: PathBuf,
    kubeconfig: PathBuf,
}

impl Clients {
    /// Clients that use the credentials in a cluster's directory.
    pub fn new(programs: &Programs, dir: &Path) -> Self {
        Self { programs: programs.clone(), strakeconfig: dir.join("strakeconfig"), kubeconfig: dir.join("kubeconfig") }
    }

    /// The file with the Kubernetes credentials.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A strakectl command.
    pub fn strakectl_command<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, arguments: I) -> Command {
        let mut command = Command::new(&self.programs.strakectl);
        command.env("STRAKECONFIG", &self.strakeconfig).env("NO_COLOR", "1").args(arguments);
        command
    }

    /// Runs strakectl to its end.
    pub fn strakectl<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, arguments: I) -> Result<String, Error> {
        run(&mut self.strakectl_command(arguments))
    }

    /// A kubectl command.
    pub fn kubectl_command<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, arguments: I) -> Result<Command, Error> {
        let mut command = self.programs.tools.command("kubectl")?;
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--request-timeout=60s").args(arguments);
        Ok(command)
    }

    /// Runs kubectl to its end.
    pub fn kubectl<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, arguments: I) -> Result<String, Error> {
        run(&mut self.kubectl_command(arguments)?)
    }

    /// What `kubectl get … -o json` prints.
    pub fn get(&self, arguments: &[&str]) -> Result<Value, Error> {
        let text = self.kubectl([&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|problem| Error::Unexpected {
            what: format!("kubectl get {}", arguments.join(" ")),
            expected: "JSON".into(),
            found: problem.to_string(),
        })
    }

    /// The names of the nodes whose condition Ready is True.
    pub fn ready_nodes(&self) -> Result<Vec<String>, Error> {
        Ok(ready_nodes(&self.get(&["nodes"])?))
    }
}

/// Names of Ready nodes in a NodeList.
pub fn ready_nodes(list: &Value) -> Vec<String> {
    let ready = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.clone().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let nodes = list["items"].as_array().into_iter().flatten();
    nodes.filter(ready).filter_map(|node| node["metadata"]["name"].as_str()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_true_ready_condition_counts() {
        let node = |name: &str, kind: &str, status: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": kind, "status": status}]}});
        let list = json!({"items": [node("a", "Ready", "True"), node("b", "Ready", "Unknown"), node("c", "DiskPressure", "True"), {"metadata": {"name": "d"}}]});
        assert_eq!(ready_nodes(&list), ["a"]);
        assert!(ready_nodes(&json!({"kind": "Status"})).is_empty());
    }
}
