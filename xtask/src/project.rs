//! The project's directory, its version, and cargo as it is called from here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The target every binary is built for; `.cargo/config.toml` names the same.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The checkout this program was built from, and cargo's directory for it.
#[derive(Clone, Debug)]
pub struct Project {
    /// The directory with the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// cargo's target directory.
    pub target: PathBuf,
    /// This program's own file. Asked for at the start: building the workspace may replace it.
    pub program: PathBuf,
    /// Whether the binaries are taken as they are.
    pub as_built: bool,
}

impl Project {
    /// Finds the checkout through cargo.
    pub fn find() -> Result<Self> {
        // As cargo runs it: a target directory shared between checkouts may hold the program another one compiled.
        let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let metadata = metadata(&here, &["--no-deps"])?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let path = |name: &str| metadata[name].as_str().map(PathBuf::from).with_context(|| format!("cargo metadata has no {name}"));
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")?, program, as_built: false })
    }

    /// Where the image's files are written.
    pub fn image_dir(&self) -> PathBuf {
        self.target.join("image")
    }

    /// Where those of a signed image are written, so that neither takes the other's place.
    pub fn signed_image_dir(&self) -> PathBuf {
        self.target.join("image-signed")
    }

    /// The directory of release binaries.
    pub fn binaries(&self) -> PathBuf {
        self.target.join(TARGET).join("release")
    }

    /// A cargo command in the checkout.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).args(arguments).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Builds every binary with the profile of the image. Always the whole workspace: cargo compiles a dependency again for each set of
    /// features that the selected packages ask for together, so one selection means compiling once.
    pub fn build(&self) -> Result<()> {
        if self.as_built {
            return Ok(());
        }
        succeed(&mut self.cargo(&["build", "--release", "--quiet", "--workspace", "--exclude", "bench", "--bins"]))
    }
}

/// What cargo knows of the workspace.
pub fn metadata(dir: &Path, arguments: &[&str]) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).current_dir(dir).args(["metadata", "--format-version", "1"]).args(arguments).output();
    let output = output.context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// Runs a command whose output goes to the terminal.
pub fn succeed(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.status().with_context(|| format!("cannot run {line}"))?;
    if !status.success() {
        bail!("{line} failed ({status})");
    }
    Ok(())
}

/// The command as a person would type it.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ")
}
