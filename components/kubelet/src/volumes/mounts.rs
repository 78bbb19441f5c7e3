//! Mounts the kubelet makes for pods.

use super::VolumeError;
use rustix::mount::{MountFlags, UnmountFlags};
use std::path::{Path, PathBuf};

/// Mount points below a directory, deepest first.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = mount_points(&text).filter(|p| p.starts_with(dir)).collect();
    points.reverse();
    points
}

/// Whether something is mounted there.
pub fn is_mounted(path: &Path) -> bool {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_points(&text).any(|p| p == path)
}

/// Mount points of `/proc/self/mountinfo`, with its octal escapes undone.
fn mount_points(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(|escaped| {
        let mut bytes = Vec::with_capacity(escaped.len());
        let mut rest = escaped.as_bytes();
        while let Some((first, tail)) = rest.split_first() {
            let octal = (*first == b'\\')
                .then(|| tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok()))
                .flatten();
            match octal {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &tail[3..];
                }
                None => {
                    bytes.push(*first);
                    rest = tail;
                }
            }
        }
        PathBuf::from(String::from_utf8_lossy(&bytes).into_owned())
    })
}

/// Mounts a tmpfs, limited to `size` bytes when given.
pub fn tmpfs(target: &Path, size: Option<i64>) -> Result<(), VolumeError> {
    if is_mounted(target) {
        return Ok(());
    }
    let options = match size {
        Some(size) => format!("mode=0755,size={size}"),
        None => "mode=0755".to_owned(),
    };
    let options = std::ffi::CString::new(options).unwrap_or_default();
    rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .map_err(|e| VolumeError::io("mount tmpfs on", target, e.into()))
}

/// Bind-mounts `source` on `target`.
pub fn bind(source: &Path, target: &Path) -> Result<(), VolumeError> {
    rustix::mount::mount_bind(source, target).map_err(|e| VolumeError::io("bind-mount on", target, e.into()))
}

/// Takes everything mounted below a directory away.
pub fn unmount_below(dir: &Path) -> Result<(), VolumeError> {
    for point in below(dir) {
        match rustix::mount::unmount(&point, UnmountFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            // Still in use by someone who looks at it: it goes when they are done.
            Err(rustix::io::Errno::BUSY) => {
                rustix::mount::unmount(&point, UnmountFlags::DETACH).map_err(|e| VolumeError::io("unmount", &point, e.into()))?
            }
            Err(e) => return Err(VolumeError::io("unmount", &point, e.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let text = "36 35 98:0 /a /mnt/with\\040space rw - ext4 /dev/x rw\n37 35 98:0 / / rw - ext4 /dev/x rw\n";
        let points: Vec<PathBuf> = mount_points(text).collect();
        assert_eq!(points, [PathBuf::from("/mnt/with space"), PathBuf::from("/")]);
    }
}
