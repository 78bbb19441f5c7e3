//! The things that boot: the UKI, the FAT image of an EFI system partition, and the hybrid ISO.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::bios;
use crate::error::{Error, FileContext};
use crate::process::run;
use crate::tools::Tools;
use crate::tree::Tree;

/// Every date in an image, in seconds since 1970: a constant, so that equal inputs give equal bytes.
pub const SOURCE_DATE_EPOCH: &str = "1767225600";
/// The ISO's volume label.
pub const VOLUME_LABEL: &str = "STRAKE";

const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const EROFS_UUID: &str = "5ef5e5b6-6f6e-4b0b-9c52-7374726b0001";
const MIB: u64 = 1 << 20;

/// Writes a tree as an EROFS image.
pub fn erofs(tools: &Tools, staging: &Path, out: &Path) -> Result<(), Error> {
    let mut command = tools.command("mkfs.erofs")?;
    command.env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH).args([
        "--quiet",
        "--all-root",
        "-zlz4hc,9",
        "-C65536",
        "-T",
        SOURCE_DATE_EPOCH,
        "-U",
        EROFS_UUID,
    ]);
    run(command.arg(out).arg(staging)).map(drop)
}

/// What goes into a UKI.
#[derive(Clone, Copy, Debug)]
pub struct UkiInputs<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// The kernel's release.
    pub kernel_release: &'a str,
    /// An archive with microcode, not compressed: the stub hands it to the kernel in front of the initramfs.
    pub microcode: Option<&'a Path>,
    /// The initramfs, in one or more archives, of which the first alone is compressed.
    pub initramfs: &'a [&'a Path],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Content of os-release(5).
    pub os_release: &'a str,
    /// The public key of whoever signs what is measured (PEM), and the signatures, once they are known.
    pub measured: Option<(&'a Path, Option<&'a Path>)>,
}

/// Builds a UKI.
pub fn uki(tools: &Tools, inputs: &UkiInputs<'_>, out: &Path) -> Result<(), Error> {
    let mut command = tools.command("ukify")?;
    command
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .arg("build")
        .arg("--stub")
        .arg(tools.file("usr/lib/systemd/boot/efi/linuxx64.efi.stub")?);
    command.arg("--linux").arg(inputs.kernel).args(["--uname", inputs.kernel_release]);
    if let Some(microcode) = inputs.microcode {
        command.arg("--microcode").arg(microcode);
    }
    for archive in inputs.initramfs {
        command.arg("--initrd").arg(archive);
    }
    command.args(["--cmdline", inputs.command_line, "--os-release", inputs.os_release]);
    if let Some((key, signatures)) = inputs.measured {
        command.arg("--pcrpkey").arg(key);
        if let Some(signatures) = signatures {
            command.arg("--section").arg(format!(".pcrsig:@{}", signatures.display()));
        }
    }
    run(command.arg("--output").arg(out)).map(drop)
}

/// A FAT image with these files (path with `/`, source), just large enough.
pub fn fat_image(files: &[(&str, &Path)], out: &Path) -> Result<(), Error> {
    let mut size = 0;
    for (_, source) in files {
        size += std::fs::metadata(source).on("look at", source)?.len();
    }
    fat_volume(files, (size + 2 * MIB).next_multiple_of(MIB), *b"STRAKE     ", out)
}

/// The same of this size and with this label.
pub fn fat_volume(files: &[(&str, &Path)], size: u64, label: [u8; 11], out: &Path) -> Result<(), Error> {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(out).on("create", out)?;
    file.set_len(size).on("size", out)?;
    let options = fatfs::FormatVolumeOptions::new().volume_id(0x5354_524b).volume_label(label);
    fatfs::format_volume(&file, options).on("format", out)?;
    let volume = fatfs::FileSystem::new(&file, fatfs::FsOptions::new().time_provider(&FixedTime)).on("open", out)?;
    for (path, source) in files {
        let mut dir = volume.root_dir();
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_some() {
                dir = dir.create_dir(part).on("create a directory in", out)?;
            } else {
                let mut target = dir.create_file(part).on("create a file in", out)?;
                target.truncate().on("truncate a file in", out)?;
                target.write_all(&std::fs::read(source).on("read", source)?).on("write a file in", out)?;
            }
        }
    }
    volume.unmount().on("finish", out)
}

/// What goes onto the ISO.
#[derive(Clone, Debug)]
pub struct IsoInputs<'a> {
    /// Files by their path on the ISO.
    pub files: &'a [(String, PathBuf)],
    /// The FAT image the firmware boots from.
    pub esp: &'a Path,
    /// A scratch directory.
    pub scratch: &'a Path,
}

/// Writes the hybrid ISO: UEFI boots it as CD and as disk; a legacy BIOS prints a message.
pub fn iso(tools: &Tools, inputs: &IsoInputs<'_>, out: &Path) -> Result<(), Error> {
    let mut tree = Tree::default();
    for (path, source) in inputs.files {
        tree.copy(path, source, 0o644);
    }
    tree.file("boot/bios.bin", bios::sector(), 0o644);
    let staging = inputs.scratch.join("iso");
    std::fs::create_dir_all(&staging).on("create", &staging)?;
    tree.write_to(&staging)?;
    let system_area = inputs.scratch.join("mbr.bin");
    File::create(&system_area).and_then(|mut file| file.write_all(&bios::sector())).on("write", &system_area)?;

    let mut arguments: Vec<OsString> =
        ["-as", "mkisofs", "-quiet", "-iso-level", "3", "-r", "-volid", VOLUME_LABEL].map(OsString::from).to_vec();
    arguments.extend(["-G".into(), system_area.into()]);
    arguments.extend(["-b", "boot/bios.bin", "-c", "boot/boot.cat", "-no-emul-boot", "-boot-load-size", "4"].map(OsString::from));
    arguments.extend(["-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot"].map(OsString::from));
    arguments.extend(["-append_partition".into(), "2".into(), ESP_TYPE.into(), inputs.esp.into(), "-appended_part_as_gpt".into()]);
    // Files and directories of the staging tree are as old as this build; the ISO is not.
    arguments.extend(["--set_all_file_dates".into(), format!("={SOURCE_DATE_EPOCH}").into()]);
    arguments.extend(["-o".into(), out.into(), staging.into()]);
    run(tools.command("xorriso")?.env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH).args(arguments)).map(drop)
}

/// The start of 1980, FAT's zero.
#[derive(Debug)]
struct FixedTime;

impl fatfs::TimeProvider for FixedTime {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        fatfs::DateTime { date: self.get_current_date(), time: fatfs::Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_fat_image_holds_its_files_and_is_reproducible() {
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path().join("uki");
        let content: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
        std::fs::write(&source, &content).unwrap();
        let images: Vec<Vec<u8>> = ["a", "b"]
            .iter()
            .map(|name| {
                let out = scratch.path().join(name);
                fat_image(&[("EFI/BOOT/BOOTX64.EFI", &source), ("EFI/Linux/strake.efi", &source)], &out).unwrap();
                std::fs::read(out).unwrap()
            })
            .collect();
        assert_eq!(images[0], images[1]);
        let volume = fatfs::FileSystem::new(std::io::Cursor::new(images[0].clone()), fatfs::FsOptions::new()).unwrap();
        let mut read = Vec::new();
        volume.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, content);
    }
}
