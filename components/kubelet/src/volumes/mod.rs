//! Volumes of pods: made before the first container starts, refreshed while the pod runs, taken away when it is gone.
//!
//! Layout, upstream's: `<root>/pods/<uid>/volumes/<plugin>/<name>`, sub-path mounts in `volume-subpaths/<volume>/<container>/<index>`.

pub mod atomic_writer;
pub mod content;
pub mod host_path;
pub mod mounts;
pub mod sub_path;

use crate::api::Api;
use crate::config::Config;
use crate::model::pod::{Container, Pod, Volume};
use crate::runtime::container::MountedVolume;
use crate::runtime::expansion::expand;
use content::{Facts, ObjectKind};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{0}")]
    Content(String),
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Write(#[from] atomic_writer::WriteError),
    #[error("volume \"{0}\" is of a kind this node does not provide ({1})")]
    Unsupported(String, String),
}

impl VolumeError {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        VolumeError::Io { operation, path: path.into(), source }
    }
}

/// A failed volume of a pod.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
pub struct SetupError {
    pub volume: String,
    pub source: VolumeError,
}

/// Makes or refreshes every volume of a pod.
pub async fn setup(config: &Config, api: &Api, facts: &Facts<'_>) -> Result<BTreeMap<String, MountedVolume>, SetupError> {
    let mut mounted = BTreeMap::new();
    for volume in &facts.pod.spec.volumes {
        let result = setup_one(config, api, facts, volume).await;
        let volume_mount = result.map_err(|source| SetupError { volume: volume.name.clone(), source })?;
        mounted.insert(volume.name.clone(), volume_mount);
    }
    Ok(mounted)
}

async fn setup_one(config: &Config, api: &Api, facts: &Facts<'_>, volume: &Volume) -> Result<MountedVolume, VolumeError> {
    let pod = facts.pod;
    let dir = |plugin: &str| config.pod_dir(&pod.metadata.uid).join("volumes").join(plugin).join(&volume.name);
    let fs_group = pod.spec.security_context.as_ref().and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok());
    if volume.name.is_empty() || volume.name.contains('/') || volume.name.starts_with('.') {
        return Err(VolumeError::Content(format!("volume name {:?} is not allowed", volume.name)));
    }
    if let Some(host) = &volume.host_path {
        host_path::prepare(host)?;
        return Ok(MountedVolume { host_path: PathBuf::from(&host.path), read_only: false });
    }
    if let Some(empty) = &volume.empty_dir {
        let path = dir("kubernetes.io~empty-dir");
        let in_memory = empty.medium == "Memory";
        // After a reboot the directory is there but its tmpfs is not.
        let fresh = !path.exists() || in_memory && !mounts::is_mounted(&path);
        make_dir(&path)?;
        if in_memory {
            mounts::tmpfs(&path, empty.size_limit.as_ref().and_then(|q| q.value()).filter(|v| *v > 0))?;
        } else if !empty.medium.is_empty() {
            return Err(VolumeError::Unsupported(volume.name.clone(), format!("emptyDir medium {}", empty.medium)));
        }
        if fresh {
            // Any user of the pod may write here.
            let mode = if fs_group.is_some() { 0o2777 } else { 0o777 };
            std::os::unix::fs::chown(&path, None, fs_group).map_err(|e| VolumeError::io("set the owner of", &path, e))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .map_err(|e| VolumeError::io("set the mode of", &path, e))?;
        }
        return Ok(MountedVolume { host_path: path, read_only: false });
    }
    let (path, in_memory, payload) = if let Some(source) = &volume.config_map {
        (dir("kubernetes.io~configmap"), false, content::object_volume(api, pod, source, ObjectKind::ConfigMap).await?)
    } else if let Some(source) = &volume.secret {
        (dir("kubernetes.io~secret"), true, content::object_volume(api, pod, source, ObjectKind::Secret).await?)
    } else if let Some(source) = &volume.downward_api {
        (dir("kubernetes.io~downward-api"), false, content::downward_payload(source, facts, source.default_mode)?)
    } else if let Some(source) = &volume.projected {
        (dir("kubernetes.io~projected"), true, content::projected_volume(api, source, facts).await?)
    } else {
        let kind = volume.other.keys().next().cloned().unwrap_or_else(|| "no source".into());
        return Err(VolumeError::Unsupported(volume.name.clone(), kind));
    };
    make_dir(&path)?;
    if in_memory {
        // Secrets never touch the disk.
        mounts::tmpfs(&path, None)?;
    }
    atomic_writer::write(&path, &payload, fs_group)?;
    Ok(MountedVolume { host_path: path, read_only: true })
}

fn make_dir(path: &Path) -> Result<(), VolumeError> {
    std::fs::create_dir_all(path).map_err(|e| VolumeError::io("create", path, e))
}

/// Resolves and mounts the sub-paths of a container; index of the volume mount to host path.
pub fn sub_paths(
    config: &Config,
    pod: &Pod,
    container: &Container,
    volumes: &BTreeMap<String, MountedVolume>,
    env: &[(String, String)],
) -> Result<BTreeMap<usize, PathBuf>, VolumeError> {
    let mut resolved = BTreeMap::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let sub = if mount.sub_path_expr.is_empty() {
            mount.sub_path.clone()
        } else {
            let text = expand(&mount.sub_path_expr, |name| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()));
            if text.contains("$(") {
                return Err(VolumeError::Content(format!("subPathExpr {:?} names a variable that is not set", mount.sub_path_expr)));
            }
            text
        };
        let Some(volume) = volumes.get(&mount.name).filter(|_| !sub.is_empty()) else { continue };
        let target =
            config.pod_dir(&pod.metadata.uid).join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
        sub_path::bind(&volume.host_path, &sub, &target)?;
        resolved.insert(index, target);
    }
    Ok(resolved)
}

/// Takes a pod's directory away: mounts first, and never across a mount that could not be taken away.
pub fn teardown(config: &Config, uid: &str) -> Result<(), VolumeError> {
    let dir = config.pod_dir(uid);
    mounts::unmount_below(&dir)?;
    if !mounts::below(&dir).is_empty() {
        return Err(VolumeError::Content(format!("something is still mounted below {}", dir.display())));
    }
    match std::fs::remove_dir_all(&dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(VolumeError::io("remove", &dir, e)),
    }
}
