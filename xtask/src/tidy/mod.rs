//! `cargo xtask tidy`: the rules of docs/architecture.md that a program can check. Each rule is a pure function from what cargo and git
//! know to a list of complaints.

mod dependencies;
mod files;
mod licences;

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::project::{Project, TARGET, metadata};

/// Checks everything; prints every complaint before it fails.
pub fn check(project: &Project) -> Result<()> {
    let metadata = metadata(&project.root, &["--no-deps"])?;
    let policy_file = project.root.join("deny.toml");
    let policy = std::fs::read_to_string(&policy_file).with_context(|| format!("cannot read {}", policy_file.display()))?;
    let mut complaints = dependencies::check(&metadata);
    complaints.extend(licences::check(&dependency_tree(project)?, &policy.parse()?));
    for path in tracked_files(project)? {
        // A file that was deleted but not yet committed is still listed.
        if let Ok(bytes) = std::fs::read(project.root.join(&path)) {
            complaints.extend(files::check(&path, &bytes));
        }
    }
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} rules of the project are broken", complaints.len());
    }
    Ok(())
}

/// Every crate that is really compiled, one a line, with its licence.
fn dependency_tree(project: &Project) -> Result<String> {
    let mut command =
        project.cargo(&["tree", "--quiet", "--workspace", "--target", TARGET, "--edges", "normal,build,dev", "--prefix", "none"]);
    let output = command.args(["--format", "{p}\t{l}"]).output().context("cannot run cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("cargo tree's output is not UTF-8")
}

/// The project's files, also new ones that are not ignored.
fn tracked_files(project: &Project) -> Result<Vec<String>> {
    let mut command = Command::new("git");
    command.current_dir(&project.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = command.output().context("cannot run git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(text.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}
