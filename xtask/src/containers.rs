//! The image's containerd and runc, run on this machine from their unpacked packages. They may be newer than this machine's C library, so
//! they run where the packages' libraries lie over the machine's own: in a mount namespace, which needs root.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use image::Versions;
use image::cache::Cache;
use image::debian::{ROOT, store};

use crate::host;
use crate::project::Project;

const PROGRAMS: &[&str] = &["usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/ctr", "usr/sbin/runc", "usr/bin/busybox"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Containers {
    /// A directory with containerd, its shim, ctr, runc and a static busybox.
    pub dir: PathBuf,
    libraries: PathBuf,
}

impl Containers {
    /// Makes the directory. Gives nothing where the programs cannot run.
    pub fn prepare(project: &Project, cache: &Cache) -> Result<Option<Self>> {
        if !host::is_root()? {
            return Ok(None);
        }
        let packages = store::prepare(cache, &project.root.join("image/locks"), &ROOT, Versions::Locked, &|step| println!("{step}"))?;
        let found = Self { dir: project.target.join("containers"), libraries: packages.dir.join(LIBRARIES) };
        if found.dir.exists() {
            std::fs::remove_dir_all(&found.dir).with_context(|| format!("cannot remove {}", found.dir.display()))?;
        }
        std::fs::create_dir_all(&found.dir).with_context(|| format!("cannot create {}", found.dir.display()))?;
        for program in PROGRAMS {
            link(&packages.dir.join(program), &found.dir)?;
        }
        let words = found.enter(&[found.dir.join("runc").into(), "--version".into()]);
        let mut probe = Command::new(&words[0]);
        probe.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(probe.status().is_ok_and(|status| status.success()).then_some(found))
    }

    /// The command line that runs `words` where the programs run.
    pub fn enter(&self, words: &[OsString]) -> Vec<OsString> {
        let script = format!("mount -t overlay overlay -o lowerdir=\"$0\":/{LIBRARIES} /{LIBRARIES} && exec \"$@\"");
        let prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script].map(OsString::from);
        prefix.into_iter().chain([self.libraries.clone().into()]).chain(words.iter().cloned()).collect()
    }
}

fn link(target: &Path, dir: &Path) -> Result<()> {
    let name = target.file_name().with_context(|| format!("{} has no name", target.display()))?;
    symlink(target, dir.join(name)).with_context(|| format!("cannot link {}", target.display()))
}
