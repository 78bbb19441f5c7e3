//! The plan of the read-only root: our programs, Debian's programs with exactly the libraries they need, the kernel's modules, the
//! files init and machined fill `/etc` and containerd from, and the mount points.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::elf;
use crate::error::{Error, FileContext};
use crate::firmware::Firmware;
use crate::kmod::{self, DepmodFiles, ModuleIndex};
use crate::process::run;
use crate::sbom;
use crate::tools::Tools;
use crate::tree::Tree;

/// Debian's programs: where the package has it, where the root has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("usr/bin/containerd", "usr/bin/containerd"),
    ("usr/bin/containerd-shim-runc-v2", "usr/bin/containerd-shim-runc-v2"),
    ("usr/sbin/runc", "usr/bin/runc"),
    ("usr/bin/etcd", "usr/bin/etcd"),
    ("usr/bin/etcdutl", "usr/bin/etcdutl"),
    ("usr/sbin/nft", "usr/bin/nft"),
    ("usr/sbin/mke2fs", "usr/bin/mke2fs"),
    ("usr/sbin/e2fsck", "usr/bin/e2fsck"),
    ("usr/sbin/resize2fs", "usr/bin/resize2fs"),
    ("usr/sbin/cryptsetup", "usr/bin/cryptsetup"),
    ("usr/lib/cni/bridge", "usr/lib/cni/bridge"),
    ("usr/lib/cni/host-local", "usr/lib/cni/host-local"),
    ("usr/lib/cni/loopback", "usr/lib/cni/loopback"),
    ("usr/lib/cni/portmap", "usr/lib/cni/portmap"),
];
/// Our programs, by the name of their binary.
pub const OUR_PROGRAMS: &[&str] = &["init", "logd", "machined", "kube", "kube-proxy"];
/// The names under which the multi-call binary is started.
const KUBE_NAMES: &[&str] =
    &["kube-apiserver", "kube-scheduler", "kube-controller-manager", "cloud-controller-manager", "kubelet", "cluster-dns"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const MOUNT_POINTS: &[(&str, u32)] = &[
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("etc", 0o755),
    ("var", 0o755),
    ("root", 0o700),
    ("sysroot", 0o755),
    ("opt", 0o755),
    ("system/state", 0o755),
    ("system/etcd", 0o755),
];

/// What the root is made from.
#[derive(Clone, Copy, Debug)]
pub struct RootInputs<'a> {
    /// The tools, for unpacking modules.
    pub tools: &'a Tools,
    /// The unpacked Debian packages.
    pub packages: &'a Path,
    /// The directory with our static binaries.
    pub binaries: &'a Path,
    /// A program of Debian's by its place in the root, and what is there instead.
    pub replaced: Option<(&'a str, &'a Path)>,
    /// The project's `configs/`.
    pub configs: &'a Path,
    /// Content of `release.json`.
    pub release: &'a Release,
    /// The lock file's text, kept in the root.
    pub bill_of_materials: &'a str,
    /// The software bill of materials, in SPDX.
    pub sbom: &'a str,
    /// The OCI archive of the stub image.
    pub stub_image: &'a [u8],
    /// The keys whose upgrade files the system takes, in PEM; without any it takes those that nobody signed.
    pub upgrade_keys: Option<&'a str>,
    /// What drivers load for their devices, if the image shall have any.
    pub firmware: Option<&'a Firmware>,
}

/// What a machine says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Strake's version.
    pub version: String,
    /// The Kubernetes version it is compatible with.
    pub kubernetes: String,
    /// The kernel's release, as in `/usr/lib/modules/<release>`.
    pub kernel: String,
}

impl Release {
    fn json(&self) -> String {
        let value = json!({"name": "strake", "version": self.version, "kubernetes": self.kubernetes, "kernel": self.kernel});
        format!("{value}\n")
    }

    /// The same facts in the form of os-release(5).
    pub fn os_release(&self) -> String {
        let Self { version, .. } = self;
        format!("NAME=\"Strake\"\nID=strake\nVERSION_ID=\"{version}\"\nPRETTY_NAME=\"Strake {version}\"\nHOME_URL=\"https://strake.dev\"\n")
    }
}

/// The kernel's modules as the root and the initramfs need them.
#[derive(Clone, Debug)]
pub struct Modules {
    /// `/usr/lib/modules/<release>` of the unpacked packages.
    pub dir: PathBuf,
    index: ModuleIndex,
    texts: [String; 4],
}

impl Modules {
    /// Reads depmod's files of a release.
    pub fn read(packages: &Path, release: &str) -> Result<Self, Error> {
        let dir = packages.join("usr/lib/modules").join(release);
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).on("read", dir.join(name));
        let texts = [read("modules.dep")?, read("modules.softdep")?, read("modules.alias")?, read("modules.builtin")?];
        let [dep, softdep, alias, builtin] = &texts;
        let index = ModuleIndex::parse(DepmodFiles { dep, softdep, alias, builtin });
        Ok(Self { dir, index, texts })
    }

    /// The load order of the modules named in a list file.
    pub fn load_order(&self, list: &Path) -> Result<Vec<String>, Error> {
        let names = kmod::list_items(&std::fs::read_to_string(list).on("read", list)?);
        self.index.load_order(&names).map_err(|name| Error::malformed(list, format!("the kernel has no module {name}")))
    }

    /// A module's content without compression.
    pub fn plain(&self, tools: &Tools, path: &str) -> Result<Vec<u8>, Error> {
        let file = self.dir.join(path);
        if path.ends_with(".xz") { run(tools.command("xz")?.arg("-dc").arg(&file)) } else { std::fs::read(&file).on("read", &file) }
    }
}

/// Plans the root.
pub fn plan(inputs: &RootInputs<'_>, modules: &Modules) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    for (name, target) in [("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("usr/sbin", "bin")] {
        tree.link(name, target);
    }
    for (path, mode) in MOUNT_POINTS {
        tree.dir(path, *mode);
    }
    add_programs(&mut tree, inputs)?;
    add_modules(&mut tree, inputs, modules)?;
    add_etc(&mut tree, inputs)?;
    if let Some(firmware) = inputs.firmware {
        firmware.add_to_root(&mut tree);
    }
    let share = "usr/share/strake";
    tree.file(&format!("{share}/release.json"), inputs.release.json(), 0o644);
    tree.file("usr/lib/os-release", inputs.release.os_release(), 0o644);
    tree.copy(&format!("{share}/sysctl.conf"), inputs.configs.join("sysctl.conf"), 0o644);
    tree.file(&format!("{share}/packages.lock"), inputs.bill_of_materials, 0o644);
    tree.file(sbom::PATH, inputs.sbom, 0o644);
    tree.file(&format!("{share}/images/stub.tar"), inputs.stub_image, 0o644);
    if let Some(keys) = inputs.upgrade_keys {
        tree.file(&format!("{share}/upgrade-keys.pem"), keys, 0o644);
    }
    Ok(tree)
}

fn add_programs(tree: &mut Tree, inputs: &RootInputs<'_>) -> Result<(), Error> {
    for name in OUR_PROGRAMS {
        let binary = inputs.binaries.join(name);
        if elf::read(&binary)?.is_dynamic {
            return Err(Error::malformed(&binary, "needs shared libraries; our programs must be static"));
        }
        tree.copy(&format!("usr/bin/{name}"), binary, 0o755);
    }
    for name in KUBE_NAMES {
        tree.link(&format!("usr/bin/{name}"), "kube");
    }
    // The kernel and the CNI plugins call this name to load a module.
    tree.link("usr/bin/modprobe", "init");
    for name in ["mkfs.ext4", "fsck.ext4"] {
        tree.link(&format!("usr/bin/{name}"), if name.starts_with("mkfs") { "mke2fs" } else { "e2fsck" });
    }
    for (from, to) in PROGRAMS {
        let instead = inputs.replaced.filter(|(place, _)| place == to).map(|(_, file)| file.to_owned());
        tree.copy(to, instead.unwrap_or_else(|| inputs.packages.join(from)), 0o755);
    }
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(|(from, _)| PathBuf::from(from)).collect();
    for library in elf::closure(inputs.packages, &programs, &[LIBRARIES])? {
        let from = inputs.packages.join(&library);
        // Of the libraries only the loader can be run.
        let mode = if library.ends_with("ld-linux-x86-64.so.2") { 0o755 } else { 0o644 };
        tree.copy(&library.to_string_lossy(), std::fs::canonicalize(&from).on("resolve", &from)?, mode);
    }
    tree.link("usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    Ok(())
}

fn add_modules(tree: &mut Tree, inputs: &RootInputs<'_>, modules: &Modules) -> Result<(), Error> {
    let exclude = inputs.configs.join("modules/exclude.list");
    let excluded = kmod::list_items(&std::fs::read_to_string(&exclude).on("read", &exclude)?);
    let mut kept: BTreeSet<String> = modules.index.keep(&excluded);
    let load = modules.load_order(&inputs.configs.join("modules/load.list"))?;
    kept.extend(load.iter().cloned());
    let target = format!("usr/lib/modules/{}", inputs.release.kernel);
    let [dep, softdep, alias, builtin] = &modules.texts;
    let mut dep = kmod::filter_dep(dep, &kept);
    for path in &kept {
        if load.contains(path) {
            // Loaded at every boot: the file system's own compression costs a fraction of xz's time.
            let plain = kmod::plain_name(path);
            tree.file(&format!("{target}/{plain}"), modules.plain(inputs.tools, path)?, 0o644);
            dep = kmod::rename(&dep, path, plain);
        } else {
            tree.copy(&format!("{target}/{path}"), modules.dir.join(path), 0o644);
        }
    }
    tree.file(&format!("{target}/modules.dep"), dep, 0o644);
    tree.file(&format!("{target}/modules.softdep"), kmod::filter_names(softdep, 1, &kept), 0o644);
    tree.file(&format!("{target}/modules.alias"), kmod::filter_names(alias, 2, &kept), 0o644);
    tree.file(&format!("{target}/modules.builtin"), builtin.clone(), 0o644);
    let list: String = load.iter().flat_map(|path| [kmod::plain_name(path), "\n"]).collect();
    tree.file("usr/share/strake/modules.list", list, 0o644);
    Ok(())
}

/// `/etc` is a tmpfs that init fills from here; machined adds what depends on the machine.
fn add_etc(tree: &mut Tree, inputs: &RootInputs<'_>) -> Result<(), Error> {
    let dir = inputs.configs.join("etc");
    for entry in std::fs::read_dir(&dir).on("list", &dir)? {
        let entry = entry.on("list", &dir)?;
        tree.copy(&format!("usr/share/strake/etc/{}", entry.file_name().to_string_lossy()), entry.path(), 0o644);
    }
    tree.link("usr/share/strake/etc/os-release", "/usr/lib/os-release");
    let certificates = inputs.packages.join("usr/share/ca-certificates/mozilla");
    let mut files = std::fs::read_dir(&certificates)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>())
        .on("list", &certificates)?;
    files.sort();
    let mut bundle = Vec::new();
    for file in files {
        bundle.extend(std::fs::read(&file).on("read", &file)?);
        if bundle.last() != Some(&b'\n') {
            bundle.push(b'\n');
        }
    }
    tree.file("usr/share/strake/etc/ssl/certs/ca-certificates.crt", bundle, 0o644);
    Ok(())
}

/// The tree of the stub image: the pause program, the links of a merged `/usr`, and empty directories to mount on.
pub fn stub_tree(pause: &Path) -> Tree {
    let mut tree = Tree::default();
    tree.copy("pause", pause, 0o755);
    for (name, target) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        tree.link(name, target);
    }
    for dir in [
        "usr/bin",
        "usr/sbin",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib64",
        "etc/kubernetes",
        "etc/ssl/certs",
        "proc",
        "sys",
        "dev",
        "run",
        "var/lib",
        "system/etcd",
    ] {
        tree.dir(dir, 0o755);
    }
    tree.dir("tmp", 0o1777);
    tree
}

/// The tree of the example workload: busybox with its applets, and a script that serves the pod's name over HTTP.
pub fn hello_tree(busybox: &Path, script: &Path) -> Tree {
    let mut tree = Tree::default();
    tree.copy("bin/busybox", busybox, 0o755);
    for applet in [
        "sh",
        "cat",
        "cp",
        "date",
        "echo",
        "env",
        "false",
        "grep",
        "head",
        "hostname",
        "httpd",
        "id",
        "ip",
        "kill",
        "ls",
        "mkdir",
        "nc",
        "nslookup",
        "ping",
        "printf",
        "ps",
        "rm",
        "sed",
        "sleep",
        "sort",
        "stat",
        "stty",
        "tail",
        "test",
        "time",
        "top",
        "touch",
        "tr",
        "traceroute",
        "true",
        "tty",
        "uname",
        "uptime",
        "vi",
        "wc",
        "wget",
        "which",
        "yes",
    ] {
        tree.link(&format!("bin/{applet}"), "busybox");
    }
    tree.copy("hello", script, 0o755);
    for dir in ["proc", "sys", "dev", "etc", "run"] {
        tree.dir(dir, 0o755);
    }
    tree.dir("tmp", 0o1777);
    tree
}
