//! Keeps container logs within their size: the file of a running container that grew too large is renamed, the runtime opens a new one,
//! and the oldest renamed files go.

use crate::cri::Cri;
use std::path::{Path, PathBuf};

/// Rotates one container's log when it is larger than `max_size`, keeping `max_files` files in all.
pub async fn rotate(cri: &Cri, container_id: &str, log: &Path, max_size: u64, max_files: u32) -> std::io::Result<()> {
    if std::fs::metadata(log).map_or(0, |m| m.len()) < max_size {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut rotated = rotated_files(log)?;
    for path in to_remove(&mut rotated, max_files) {
        std::fs::remove_file(path)?;
    }
    let mut target = log.as_os_str().to_owned();
    target.push(format!(".{stamp}"));
    std::fs::rename(log, &target)?;
    if let Err(error) = cri.reopen_log(container_id).await {
        // The container goes on writing to the renamed file: give it its name back and try again later.
        std::fs::rename(&target, log)?;
        return Err(std::io::Error::other(error));
    }
    Ok(())
}

/// Rotated files of a log.
fn rotated_files(log: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else { return Ok(Vec::new()) };
    let prefix = format!("{name}.");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// The oldest files beyond the limit, counting the live one and the one about to be made.
fn to_remove(rotated: &mut [PathBuf], max_files: u32) -> Vec<PathBuf> {
    rotated.sort();
    let keep = usize::try_from(max_files.saturating_sub(2)).unwrap_or(usize::MAX);
    rotated[..rotated.len().saturating_sub(keep)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_go() {
        let mut files: Vec<PathBuf> = ["0.log.20260103-0", "0.log.20260101-0", "0.log.20260102-0"].iter().map(PathBuf::from).collect();
        assert_eq!(to_remove(&mut files, 5), Vec::<PathBuf>::new());
        assert_eq!(to_remove(&mut files, 3), [PathBuf::from("0.log.20260101-0"), PathBuf::from("0.log.20260102-0")]);
        assert_eq!(to_remove(&mut files, 2).len(), 3);
    }
}
