//! The build from packages and binaries to the ISO and the upgrade file. Each step writes one file of the output directory; when no input changed since
//! the last build, nothing is done.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::cpio;
use crate::debian::ROOT;
use crate::debian::store::{self, Versions};
use crate::digest;
use crate::disk::{self, DiskInputs};
use crate::error::{Error, FileContext};
use crate::executables;
use crate::firmware::Firmware;
use crate::hash_tree;
use crate::kmod;
use crate::media::{self, IsoInputs, UkiInputs};
use crate::menu;
use crate::oci::{self, ImageSpec};
use crate::process::run;
use crate::root::{self, Modules, OUR_PROGRAMS, Release, RootInputs};
use crate::sbom;
use crate::signing::Signing;
use crate::tools::Tools;
use crate::tree::Tree;
use crate::upgrade::{self, UpgradeInputs};

/// The pod sandbox image, which is also the image of static pods.
pub const STUB_IMAGE: &str = "strake.dev/stub:v1";
/// The image of the example workload.
pub const HELLO_IMAGE: &str = "strake.dev/hello:v1";

/// Raised when the builder changes so that equal inputs give another image.
const BUILDER: &str = "7";
const ZSTD_LEVEL: i32 = 15;
/// Where init finds what is otherwise on a medium (`init/src/stage_one.rs`).
const MEDIA_IN_MEMORY: &str = "media";

/// What an image is built from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The project's root directory.
    pub project: &'a Path,
    /// The directory with our static binaries.
    pub binaries: &'a Path,
    /// A program of Debian's by its place in the root, and what is there instead: a system that is wrong on purpose.
    pub replaced: Option<(&'a str, &'a Path)>,
    /// Where the results go.
    pub out: &'a Path,
    /// Strake's version.
    pub version: &'a str,
    /// The Kubernetes version it is compatible with.
    pub kubernetes: &'a str,
    /// Whether to move to the newest packages.
    pub versions: Versions,
    /// Who signs it, if anybody.
    pub signing: Option<&'a Signing>,
    /// The packages with microcode and firmware that it shall have, of those in `firmware.lock`.
    pub firmware: &'a [String],
}

/// A finished image: where its files are and what it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The UUID of the root's partition, from its root hash.
    pub root_uuid: String,
    /// What the root is verified against.
    pub verity: verity::Parameters,
    /// Strake's version.
    pub version: String,
    /// The Kubernetes version it is compatible with.
    pub kubernetes: String,
    /// The kernel's release.
    pub kernel: String,
    /// The hybrid ISO.
    pub iso: PathBuf,
    /// The disk image, for machines whose disk is written before they start.
    pub raw: PathBuf,
    /// The root file system with its hash tree.
    pub root: PathBuf,
    /// The UKI.
    pub uki: PathBuf,
    /// The upgrade file for machines that are installed.
    pub upgrade: PathBuf,
    /// The UKI with everything that is on the ISO inside, for machines that boot from the network.
    pub pxe: PathBuf,
    /// The software bill of materials (SPDX).
    pub sbom: PathBuf,
    /// The OCI archive of the example workload.
    pub hello: PathBuf,
    /// What it was made from.
    inputs: String,
}

/// Builds the image, or finds that it is built already.
pub fn build(cache: &Cache, tools: &Tools, inputs: &Inputs<'_>, say: &dyn Fn(&str)) -> Result<Image, Error> {
    let packages = store::prepare(cache, &inputs.project.join("image/locks"), &ROOT, inputs.versions, say)?;
    let firmware = Firmware::prepare(cache, &inputs.project.join("image/locks"), inputs.firmware, inputs.versions, say)?;
    let lock = firmware.as_ref().map_or_else(|| packages.lock.clone(), |firmware| packages.lock.and(&firmware.lock));
    let bill_of_materials = lock.render();
    let cargo_lock = inputs.project.join("Cargo.lock");
    let cargo_lock = std::fs::read_to_string(&cargo_lock).on("read", &cargo_lock)?;
    let programs: Vec<&str> = OUR_PROGRAMS.iter().copied().chain(["pause"]).collect();
    let sbom_text = sbom::document(inputs.version, &lock, &cargo_lock, &programs)?;
    let digest = input_digest(inputs, &bill_of_materials, &sbom_text)?;
    let manifest = inputs.out.join("image.json");
    if let Some(image) = finished(&manifest, &digest) {
        say("the image is up to date");
        return Ok(image);
    }
    std::fs::create_dir_all(inputs.out).on("create", inputs.out)?;
    remove(&manifest)?;
    let scratch = inputs.out.join("scratch");
    remove(&scratch)?;
    std::fs::create_dir_all(&scratch).on("create", &scratch)?;

    let kernel = index_modules(tools, &packages.dir)?;
    let modules = Modules::read(&packages.dir, &kernel)?;
    let release = Release { version: inputs.version.to_owned(), kubernetes: inputs.kubernetes.to_owned(), kernel: kernel.clone() };

    say("root file system");
    let stub_spec = ImageSpec { reference: STUB_IMAGE, entrypoint: &["/pause"], user: "65535:65535", env: &[] };
    let stub = oci::archive(&stub_spec, &root::stub_tree(&inputs.binaries.join("pause")))?;
    let configs = inputs.project.join("configs");
    let root_inputs = RootInputs {
        tools,
        packages: &packages.dir,
        binaries: inputs.binaries,
        replaced: inputs.replaced,
        configs: &configs,
        release: &release,
        bill_of_materials: &bill_of_materials,
        sbom: &sbom_text,
        stub_image: &stub,
        upgrade_keys: inputs.signing.map(Signing::upgrade_keys),
        firmware: firmware.as_ref(),
    };
    let staging = scratch.join("root");
    std::fs::create_dir(&staging).on("create", &staging)?;
    let tree = root::plan(&root_inputs, &modules)?;
    executables::check(&tree, &configs.join("executables.list"))?;
    tree.write_to(&staging)?;
    let root_file = inputs.out.join("root.erofs");
    remove(&root_file)?;
    media::erofs(tools, &staging, &root_file)?;
    let verity = hash_tree::append(&root_file)?;
    let root_uuid = verity.root_uuid();

    say("initramfs and UKI");
    let initramfs = inputs.out.join("initramfs.zst");
    let arguments = command_line(&configs.join("kernel-arguments"))?;
    let mut tree = initramfs_tree(inputs, tools, &modules, &kernel, &verity, firmware.as_ref())?;
    // What the command line must be, for init to compare: the stub of the UKI may take more from elsewhere.
    tree.file("cmdline", arguments.as_str(), 0o644);
    let packed = zstd::encode_all(&cpio::archive(&tree)?[..], ZSTD_LEVEL);
    std::fs::write(&initramfs, packed.on("compress", &initramfs)?).on("write", &initramfs)?;
    let microcode = inputs.out.join("microcode.cpio");
    remove(&microcode)?;
    let early = firmware.as_ref().map(Firmware::microcode).transpose()?.flatten();
    if let Some(early) = &early {
        std::fs::write(&microcode, early).on("write", &microcode)?;
    }
    let size = std::fs::metadata(&initramfs).on("look at", &initramfs)?.len();
    say(&sizes(size, early.as_deref(), firmware.as_ref())?);
    let uki = inputs.out.join("strake.efi");
    let vmlinuz = packages.dir.join(format!("boot/vmlinuz-{kernel}"));
    let uki_inputs = UkiInputs {
        kernel: &vmlinuz,
        kernel_release: &kernel,
        microcode: early.is_some().then_some(microcode.as_path()),
        initramfs: &[&initramfs],
        command_line: &arguments,
        os_release: &release.os_release(),
        measured: None,
    };
    let mut boot_loader = packages.dir.join("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
    let (mut more, mut seconds, mut enrolment) = (String::new(), None, Vec::new());
    if let Some(signing) = inputs.signing {
        say("signatures");
        let plain = scratch.join("unsigned.efi");
        let measured = signing.measured_key();
        media::uki(tools, &UkiInputs { measured: measured.as_deref().map(|key| (key, None)), ..uki_inputs }, &plain)?;
        if let Some(key) = &measured {
            let signatures = scratch.join("pcrsig.json");
            std::fs::write(&signatures, signing.measurements(&plain)?).on("write", &signatures)?;
            remove(&plain)?;
            media::uki(tools, &UkiInputs { measured: Some((key, Some(&signatures))), ..uki_inputs }, &plain)?;
        }
        remove(&uki)?;
        signing.program(&plain, &uki)?;
        let signed = scratch.join("systemd-bootx64.efi");
        signing.program(&boot_loader, &signed)?;
        (more, seconds) = signing.loader_conf();
        enrolment = signing.enrolment(&scratch)?;
        boot_loader = signed;
    } else {
        media::uki(tools, &uki_inputs, &uki)?;
    }

    say("ISO");
    let esp = scratch.join("esp.img");
    let mut boot_files = vec![("EFI/BOOT/BOOTX64.EFI".to_owned(), boot_loader.clone()), (menu::SYSTEM.to_owned(), uki.clone())];
    boot_files.extend(menu::files(&scratch, &more, seconds)?);
    boot_files.extend(enrolment);
    let boot_files: Vec<(&str, &Path)> = boot_files.iter().map(|(path, file)| (path.as_str(), file.as_path())).collect();
    media::fat_image(&boot_files, &esp)?;
    let keys = scratch.join("config-keys.pem");
    std::fs::write(&keys, room_for_keys()).on("write", &keys)?;
    let files = [
        ("strake/config-keys.pem".to_owned(), keys.clone()),
        (format!("strake/{root_uuid}.erofs"), root_file.clone()),
        (menu::SYSTEM.to_owned(), uki.clone()),
        ("EFI/systemd/systemd-bootx64.efi".to_owned(), boot_loader.clone()),
    ];
    let iso = inputs.out.join("strake.iso");
    remove(&iso)?;
    media::iso(tools, &IsoInputs { files: &files, esp: &esp, scratch: &scratch }, &iso)?;

    say("disk image");
    let raw = inputs.out.join("strake.raw");
    remove(&raw)?;
    let (loader, verity_of) = (&boot_loader, &verity);
    disk::write(&DiskInputs { loader, uki: &uki, root: &root_file, verity: verity_of, keys: &keys, scratch: &scratch }, &raw)?;

    say("image for the network");
    let mut inside = Tree::default();
    for dir in ["", "/strake", "/EFI", "/EFI/Linux", "/EFI/systemd"] {
        inside.dir(&format!("{MEDIA_IN_MEMORY}{dir}"), 0o755);
    }
    for (path, source) in &files {
        inside.copy(&format!("{MEDIA_IN_MEMORY}/{path}"), source, 0o644);
    }
    let inside_file = scratch.join("media.cpio");
    std::fs::write(&inside_file, cpio::archive(&inside)?).on("write", &inside_file)?;
    let pxe = inputs.out.join("strake-pxe.efi");
    remove(&pxe)?;
    let pxe_inputs = UkiInputs { initramfs: &[&initramfs, &inside_file], ..uki_inputs };
    match inputs.signing {
        None => media::uki(tools, &pxe_inputs, &pxe)?,
        Some(signing) => {
            let plain = scratch.join("unsigned-pxe.efi");
            media::uki(tools, &pxe_inputs, &plain)?;
            signing.program(&plain, &pxe)?;
        }
    }

    say("bill of materials");
    let sbom = inputs.out.join("strake.spdx.json");
    std::fs::write(&sbom, &sbom_text).on("write", &sbom)?;

    say("upgrade file");
    let upgrade = inputs.out.join("strake.upgrade");
    let (version, kubernetes) = (inputs.version, inputs.kubernetes);
    let (config_schema, signing) = (&configs.join("machine-config.schema.json"), inputs.signing);
    let upgrade_inputs =
        UpgradeInputs { version, kubernetes, kernel: &kernel, root: &root_file, verity, uki: &uki, config_schema, signing };
    upgrade::write(&upgrade_inputs, &upgrade)?;

    let hello = inputs.out.join("hello.tar");
    let hello_tree = root::hello_tree(&packages.dir.join("usr/bin/busybox"), &configs.join("examples/hello.sh"));
    let hello_spec = ImageSpec { reference: HELLO_IMAGE, entrypoint: &["/hello"], user: "65532:65532", env: &["PATH=/bin", "HOME=/tmp"] };
    std::fs::write(&hello, oci::archive(&hello_spec, &hello_tree)?).on("write", &hello)?;

    remove(&scratch)?;
    let (version, kubernetes) = (version.to_owned(), kubernetes.to_owned());
    let image =
        Image { root_uuid, verity, version, kubernetes, kernel, iso, raw, root: root_file, uki, upgrade, pxe, sbom, hello, inputs: digest };
    let text = serde_json::to_vec_pretty(&image).map_err(|problem| Error::malformed(&manifest, problem.to_string()))?;
    std::fs::write(&manifest, text).on("write", &manifest)?;
    Ok(image)
}

/// What stands where `strakectl media` puts the keys of those whose configs a medium takes: nobody's.
fn room_for_keys() -> Vec<u8> {
    let mut room = b"# Whose configs this medium takes: written by `strakectl media`\n".to_vec();
    room.resize(4096, b'\n');
    room
}

fn finished(manifest: &Path, digest: &str) -> Option<Image> {
    let image: Image = serde_json::from_slice(&std::fs::read(manifest).ok()?).ok()?;
    let complete = [&image.iso, &image.raw, &image.root, &image.uki, &image.upgrade, &image.pxe, &image.sbom, &image.hello]
        .iter()
        .all(|file| file.is_file());
    (image.inputs == digest && complete).then_some(image)
}

fn input_digest(inputs: &Inputs<'_>, bill_of_materials: &str, sbom: &str) -> Result<String, Error> {
    let mut all = digest::Inputs::default();
    all.add("builder", BUILDER.as_bytes()).add("packages", bill_of_materials.as_bytes()).add("sbom", sbom.as_bytes());
    all.add("version", inputs.version.as_bytes()).add("kubernetes", inputs.kubernetes.as_bytes());
    if let Some(signing) = inputs.signing {
        signing.add_to(&mut all)?;
    }
    for name in OUR_PROGRAMS.iter().chain(["pause"].iter()) {
        all.add(name, &digest::of_file(&inputs.binaries.join(name))?);
    }
    if let Some((place, file)) = inputs.replaced {
        all.add(place, &digest::of_file(file)?);
    }
    let mut directories = vec![inputs.project.join("configs")];
    while let Some(dir) = directories.pop() {
        let entries = std::fs::read_dir(&dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).on("list", &dir)?;
        let mut paths: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                directories.push(path);
            } else {
                all.add(&path.to_string_lossy(), &digest::of_file(&path)?);
            }
        }
    }
    Ok(all.finish())
}

/// Runs depmod over the unpacked kernel package, once, and says the kernel's release.
fn index_modules(tools: &Tools, packages: &Path) -> Result<String, Error> {
    let dir = packages.join("usr/lib/modules");
    let mut releases = Vec::new();
    for entry in std::fs::read_dir(&dir).on("list", &dir)? {
        releases.push(entry.on("list", &dir)?.file_name().to_string_lossy().into_owned());
    }
    let [release] = &releases[..] else {
        return Err(Error::malformed(&dir, format!("expected one kernel, found {releases:?}")));
    };
    let done = dir.join(release).join("strake-indexed");
    if !done.exists() {
        let lib = packages.join("lib");
        if !lib.exists() {
            std::os::unix::fs::symlink("usr/lib", &lib).on("link", &lib)?;
        }
        run(tools.command("depmod")?.arg("-b").arg(packages).arg(release))?;
        std::fs::write(&done, "").on("write", &done)?;
    }
    Ok(release.clone())
}

/// How large the initramfs is, and what somebody asked for beside it.
fn sizes(initramfs: u64, microcode: Option<&[u8]>, firmware: Option<&Firmware>) -> Result<String, Error> {
    let kib = |bytes: u64| bytes.div_ceil(1 << 10);
    let mut text = format!("the initramfs has {} KiB", kib(initramfs));
    if let Some(microcode) = microcode {
        text.push_str(&format!(", with {} KiB of microcode in front", kib(microcode.len() as u64)));
    }
    if let Some(firmware) = firmware {
        let (files, bytes) = firmware.size()?;
        text.push_str(&format!("; {files} files of firmware, {} KiB", kib(bytes)));
    }
    Ok(text)
}

fn initramfs_tree(
    inputs: &Inputs<'_>,
    tools: &Tools,
    modules: &Modules,
    kernel: &str,
    verity: &verity::Parameters,
    firmware: Option<&Firmware>,
) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    for dir in ["dev", "proc", "sys", "run", "sysroot"] {
        tree.dir(dir, 0o755);
    }
    tree.copy("init", inputs.binaries.join("init"), 0o755);
    let mut list = String::new();
    for path in modules.load_order(&inputs.project.join("configs/modules/initramfs.list"))? {
        let target = format!("/usr/lib/modules/{kernel}/{}", kmod::plain_name(&path));
        // The initramfs is compressed as a whole, which a module that is compressed already would spoil.
        let content = modules.plain(tools, &path)?;
        if let Some(firmware) = firmware {
            firmware.add_for_driver(&mut tree, &content);
        }
        tree.file(&target, content, 0o644);
        list.push_str(&target);
        list.push('\n');
    }
    tree.file("modules.list", list, 0o644);
    let parameters = serde_json::to_vec(verity).map_err(|problem| Error::malformed("verity.json", problem.to_string()))?;
    tree.file("verity.json", parameters, 0o644);
    Ok(tree)
}

/// Says nothing of the root: its parameters are in the initramfs, where no boot entry changes them.
fn command_line(arguments: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(arguments).on("read", arguments)?;
    Ok(kmod::list_items(&text).join(" "))
}

fn remove(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return std::fs::remove_dir_all(path).on("remove", path);
    }
    match std::fs::remove_file(path) {
        Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.on("remove", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_the_list_of_arguments() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\nconsole=tty0\npanic=10 # reboot\n").unwrap();
        assert_eq!(command_line(file.path()).unwrap(), "console=tty0 panic=10");
    }

    #[test]
    fn the_kernel_restarts_at_a_damaged_root_and_takes_either_partition_table() {
        let arguments = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/kernel-arguments");
        let line = command_line(&arguments).unwrap();
        assert!(line.split(' ').any(|word| word == "panic=10"), "panic_on_corruption needs a restart");
        assert!(line.split(' ').any(|word| word == "gpt"), "an upgrade that is cut off may leave the second copy of the table alone");
    }
}
