//! Sub-paths of volumes, resolved so that a symbolic link inside the volume can never lead out of it.
//!
//! The path is opened by the kernel strictly beneath the volume and the opened file, not the path, is bind-mounted to a place of the
//! kubelet's own, so nothing a pod changes in between matters.

use super::VolumeError;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

/// Bind-mounts `sub_path` of `volume` onto `target` unless that is done already.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<(), VolumeError> {
    if super::mounts::is_mounted(target) {
        return Ok(());
    }
    let opened = open_beneath(volume, sub_path)?;
    let is_dir = rustix::fs::fstat(&opened)
        .map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory)
        .map_err(|e| VolumeError::io("look at", &volume.join(sub_path), e.into()))?;
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(|e| VolumeError::io("create", parent, e))?;
    }
    if is_dir {
        std::fs::create_dir_all(target).map_err(|e| VolumeError::io("create", target, e))?;
    } else {
        std::fs::File::create(target).map_err(|e| VolumeError::io("create", target, e))?;
    }
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    super::mounts::bind(Path::new(&source), target)
}

/// Opens a path beneath a directory, making missing directories on the way.
fn open_beneath(volume: &Path, sub_path: &str) -> Result<OwnedFd, VolumeError> {
    let relative = Path::new(sub_path);
    if relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(VolumeError::Content(format!("subPath {sub_path:?} must be relative and without \"..\"")));
    }
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| VolumeError::io("open", volume, e.into()))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = |dir: &OwnedFd, path: &Path| rustix::fs::openat2(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    match open(&root, relative) {
        Ok(fd) => return Ok(fd),
        Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(VolumeError::io("resolve sub-path", &volume.join(sub_path), e.into())),
    }
    let mut walked = std::path::PathBuf::new();
    let mut parent = root;
    let root = rustix::io::fcntl_dupfd_cloexec(&parent, 0).map_err(|e| VolumeError::io("open", volume, e.into()))?;
    for part in relative.components() {
        walked.push(part);
        match open(&root, &walked) {
            Ok(fd) => parent = fd,
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, Path::new(part.as_os_str()), Mode::from_raw_mode(0o750))
                    .map_err(|e| VolumeError::io("create sub-path", &volume.join(&walked), e.into()))?;
                parent = open(&root, &walked).map_err(|e| VolumeError::io("open sub-path", &volume.join(&walked), e.into()))?;
            }
            Err(e) => return Err(VolumeError::io("resolve sub-path", &volume.join(&walked), e.into())),
        }
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir_all(volume.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("../..", volume.join("up")).unwrap();
        std::os::unix::fs::symlink("inside", volume.join("link")).unwrap();
        for (path, ok) in [
            ("inside", true),
            ("link", true),
            ("new/deep", true),
            ("out", false),
            ("out/passwd", false),
            ("up", false),
            ("../v", false),
            ("/etc", false),
        ] {
            assert_eq!(open_beneath(&volume, path).is_ok(), ok, "{path}");
        }
        assert!(volume.join("new/deep").is_dir());
    }
}
