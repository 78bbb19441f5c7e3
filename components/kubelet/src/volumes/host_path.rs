//! hostPath volumes and the checks of their `type`.

use super::VolumeError;
use crate::model::pod::HostPathVolumeSource;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// Checks, and for the `…OrCreate` types makes, what lies at the path.
pub fn prepare(source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(VolumeError::Content(format!("hostPath {:?} must be absolute and without \"..\"", source.path)));
    }
    let kind = source.r#type.as_deref().unwrap_or("");
    let metadata = std::fs::metadata(path);
    let fail = |what: &str| Err(VolumeError::Content(format!("hostPath type check failed: {} is not {what}", source.path)));
    match (kind, metadata) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", Err(_)) => {
            std::fs::create_dir_all(path).map_err(|e| VolumeError::io("create", path, e))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(|e| VolumeError::io("set the mode of", path, e))
        }
        ("FileOrCreate", Err(_)) => {
            std::fs::OpenOptions::new().create_new(true).write(true).open(path).map(drop).map_err(|e| VolumeError::io("create", path, e))
        }
        ("Directory" | "DirectoryOrCreate", Ok(m)) if m.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Ok(m)) if m.is_file() => Ok(()),
        ("Socket", Ok(m)) if m.file_type().is_socket() => Ok(()),
        ("CharDevice", Ok(m)) if m.file_type().is_char_device() => Ok(()),
        ("BlockDevice", Ok(m)) if m.file_type().is_block_device() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => fail("a directory"),
        ("File" | "FileOrCreate", _) => fail("a file"),
        ("Socket", _) => fail("a socket file"),
        ("CharDevice", _) => fail("a character device"),
        ("BlockDevice", _) => fail("a block device"),
        (other, _) => Err(VolumeError::Content(format!("hostPath type {other:?} is not known"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, kind: &str| {
            prepare(&HostPathVolumeSource { path: dir.path().join(name).to_string_lossy().into_owned(), r#type: Some(kind.into()) })
        };
        assert!(at("d", "Directory").is_err());
        at("d", "DirectoryOrCreate").unwrap();
        at("d", "Directory").unwrap();
        assert!(at("d", "File").is_err() && at("d", "FileOrCreate").is_err());
        at("f", "FileOrCreate").unwrap();
        at("f", "File").unwrap();
        assert!(at("f", "Socket").is_err() && at("f", "Nonsense").is_err());
        assert!(at("missing", "").is_ok());
        assert!(prepare(&HostPathVolumeSource { path: "/a/../b".into(), r#type: None }).is_err());
    }
}
