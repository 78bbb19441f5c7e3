//! Mounting file systems, and what is mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::block::locked;

/// What to mount where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    pub source: PathBuf,
    /// Created when it is missing.
    pub target: PathBuf,
    /// `ext4`, `tmpfs`…
    pub kind: String,
    pub flags: Flags,
    /// The file system's own options.
    pub options: String,
}

/// The options that every file system has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
    pub bind: bool,
}

/// One mount of this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub source: String,
    pub target: PathBuf,
    pub kind: String,
    /// The options of the mount, not those of the file system.
    pub options: Vec<String>,
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
    /// Also when the file system made itself so, after errors.
    pub read_only: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("create mount point {0}")]
    CreateTarget(PathBuf, #[source] io::Error),
    #[error("mount {source_name} ({kind}) on {target}")]
    Mount { source_name: PathBuf, kind: String, target: PathBuf, source: io::Error },
    #[error("unmount {0}")]
    Unmount(PathBuf, #[source] io::Error),
    #[error("read the list of mounts")]
    List(#[source] io::Error),
    #[error("measure {0}")]
    Usage(PathBuf, #[source] io::Error),
}

/// Mounts.
pub trait Mounts: Send + Sync {
    /// Mounts; a second time on the same target mounts over it, so look first.
    fn mount(&self, request: &MountRequest) -> Result<(), MountError>;
    /// Unmounts. A `lazy` one is detached at once, whoever uses it.
    fn unmount(&self, target: &Path, lazy: bool) -> Result<(), MountError>;
    /// Every mount, in the order in which they were made.
    fn list(&self) -> Result<Vec<MountEntry>, MountError>;

    /// What is mounted on exactly this path; the topmost.
    fn mounted_at(&self, target: &Path) -> Result<Option<MountEntry>, MountError> {
        Ok(self.list()?.into_iter().rev().find(|entry| entry.target == target))
    }
}

/// How full the file system is that `path` lies on.
pub fn usage(path: &Path) -> Result<Usage, MountError> {
    let stat = rustix::fs::statvfs(path).map_err(|error| MountError::Usage(path.to_owned(), error.into()))?;
    Ok(Usage {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_inodes: stat.f_files,
        free_inodes: stat.f_ffree,
        read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) || has_stopped(path, Path::new("/sys")),
    })
}

/// Whether an ext4 stopped after errors. Kernels since 6.12 do not say so in the flags of the mount (ext4 is then shut down, until 6.15 even for
/// reads); but it has counted errors, and what syncs a directory of it is refused. A count alone may be of an earlier mount.
fn has_stopped(path: &Path, sys: &Path) -> bool {
    let errors = || -> Option<u64> {
        let device = rustix::fs::stat(path).ok()?.st_dev;
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let block = fs::canonicalize(sys.join("dev/block").join(number)).ok()?;
        let count = fs::read_to_string(sys.join("fs/ext4").join(block.file_name()?).join("errors_count")).ok()?;
        count.trim().parse().ok()
    };
    errors().is_some_and(|count| count > 0) && fs::File::open(path).and_then(|directory| directory.sync_all()).is_err()
}

/// This mount namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxMounts;

impl Mounts for LinuxMounts {
    fn mount(&self, request: &MountRequest) -> Result<(), MountError> {
        fs::create_dir_all(&request.target).map_err(|error| MountError::CreateTarget(request.target.clone(), error))?;
        let failed = |source: io::Error| MountError::Mount {
            source_name: request.source.clone(),
            kind: request.kind.clone(),
            target: request.target.clone(),
            source,
        };
        let mut flags = MountFlags::empty();
        for (wanted, flag) in [
            (request.flags.read_only, MountFlags::RDONLY),
            (request.flags.no_suid, MountFlags::NOSUID),
            (request.flags.no_dev, MountFlags::NODEV),
            (request.flags.no_exec, MountFlags::NOEXEC),
        ] {
            flags.set(flag, wanted);
        }
        if request.flags.bind {
            rustix::mount::mount_bind(&request.source, &request.target).map_err(|error| failed(error.into()))?;
            if !flags.is_empty() {
                // A bind mount takes its flags only from a second call.
                rustix::mount::mount_remount(&request.target, flags | MountFlags::BIND, "").map_err(|error| failed(error.into()))?;
            }
            return Ok(());
        }
        let options = std::ffi::CString::new(request.options.as_str()).map_err(|error| failed(error.into()))?;
        rustix::mount::mount(&request.source, &request.target, request.kind.as_str(), flags, options.as_c_str())
            .map_err(|error| failed(error.into()))
    }

    fn unmount(&self, target: &Path, lazy: bool) -> Result<(), MountError> {
        let flags = if lazy { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
        rustix::mount::unmount(target, flags).map_err(|error| MountError::Unmount(target.to_owned(), error.into()))
    }

    fn list(&self) -> Result<Vec<MountEntry>, MountError> {
        Ok(parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo").map_err(MountError::List)?))
    }
}

/// proc(5), /proc/pid/mountinfo: `id parent major:minor root target options [tags…] - kind source super-options`.
pub fn parse_mountinfo(text: &str) -> Vec<MountEntry> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(4);
            let (target, options) = (left.next()?, left.next()?);
            let mut right = right.split(' ');
            let (kind, source) = (right.next()?, right.next()?);
            Some(MountEntry {
                source: unescape(source),
                target: PathBuf::from(unescape(target)),
                kind: kind.to_owned(),
                options: options.split(',').map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// Space, tab, newline and backslash are written as octal numbers.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Mounts in memory.
#[derive(Debug, Default)]
pub struct FakeMounts {
    pub mounted: Mutex<Vec<MountEntry>>,
    /// Mounting one of these targets fails.
    pub broken: Mutex<Vec<PathBuf>>,
}

impl Mounts for FakeMounts {
    fn mount(&self, request: &MountRequest) -> Result<(), MountError> {
        if locked(&self.broken).contains(&request.target) {
            return Err(MountError::Mount {
                source_name: request.source.clone(),
                kind: request.kind.clone(),
                target: request.target.clone(),
                source: io::ErrorKind::InvalidData.into(),
            });
        }
        locked(&self.mounted).push(MountEntry {
            source: request.source.to_string_lossy().into_owned(),
            target: request.target.clone(),
            kind: request.kind.clone(),
            options: vec![if request.flags.read_only { "ro" } else { "rw" }.to_owned()],
        });
        Ok(())
    }

    fn unmount(&self, target: &Path, _lazy: bool) -> Result<(), MountError> {
        let mut mounted = locked(&self.mounted);
        match mounted.iter().rposition(|entry| entry.target == target) {
            Some(at) => {
                mounted.remove(at);
                Ok(())
            }
            None => Err(MountError::Unmount(target.to_owned(), io::ErrorKind::InvalidInput.into())),
        }
    }

    fn list(&self) -> Result<Vec<MountEntry>, MountError> {
        Ok(locked(&self.mounted).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mountinfo_is_read_with_and_without_tags() {
        let text = "22 1 7:0 / / ro,relatime shared:1 - erofs /dev/loop0 ro\n\
                    31 22 254:6 / /var/a\\040b rw,nosuid shared:10 master:2 - ext4 /dev/vda7 rw,x=y\n\
                    32 22 0:5 / /dev rw - devtmpfs none rw\nbroken\n";
        let entries = parse_mountinfo(text);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].target, Path::new("/var/a b"));
        assert_eq!((entries[1].source.as_str(), entries[1].kind.as_str()), ("/dev/vda7", "ext4"));
        assert_eq!(entries[1].options, ["rw", "nosuid"]);
    }

    #[test]
    fn this_process_sees_its_root() {
        assert!(LinuxMounts.mounted_at(Path::new("/")).unwrap().is_some());
        assert!(usage(Path::new("/")).unwrap().total_bytes > 0);
        assert!(usage(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn errors_of_an_earlier_mount_stop_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let device = rustix::fs::stat(dir.path()).unwrap().st_dev;
        let (blocks, counts) = (dir.path().join("dev/block"), dir.path().join("fs/ext4/vda5"));
        fs::create_dir_all(&blocks).unwrap();
        fs::create_dir_all(&counts).unwrap();
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        std::os::unix::fs::symlink(&counts, blocks.join(number)).unwrap();
        for count in ["", "0\n", "3\n"] {
            fs::write(counts.join("errors_count"), count).unwrap();
            assert!(!has_stopped(dir.path(), dir.path()), "{count:?}: what can be synced runs");
        }
        assert!(!has_stopped(Path::new("/nonexistent"), dir.path()));
    }

    #[test]
    fn the_fake_behaves_like_a_mount_table() {
        let fake = FakeMounts::default();
        let request = MountRequest {
            source: "/dev/vda1".into(),
            target: "/var".into(),
            kind: "ext4".into(),
            flags: Flags::default(),
            options: String::new(),
        };
        fake.mount(&request).unwrap();
        assert!(fake.mounted_at(Path::new("/var")).unwrap().is_some());
        fake.unmount(Path::new("/var"), false).unwrap();
        assert!(fake.unmount(Path::new("/var"), false).is_err());
        locked(&fake.broken).push("/var".into());
        assert!(fake.mount(&request).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[ -~\\\\\n]{0,200}") {
            let _ = parse_mountinfo(&text);
        }
    }
}
