//! A file that begins anew when it is full, with a bounded number of old ones beside it, named by when they ended.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

pub struct Rotated {
    path: PathBuf,
    /// None: the standard output, which is never full.
    file: Option<File>,
    size: u64,
    max_bytes: u64,
    max_backups: usize,
    max_age: Duration,
    compress: bool,
}

fn append(path: &Path) -> io::Result<(File, u64)> {
    // What is audited is for the eyes of the server's owner.
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

impl Rotated {
    pub fn open(path: PathBuf, max_bytes: u64, max_backups: usize, max_age: Duration, compress: bool) -> io::Result<Self> {
        let (file, size) = if path.as_os_str() == "-" {
            (None, 0)
        } else {
            if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
                fs::create_dir_all(dir)?;
            }
            let (file, size) = append(&path)?;
            (Some(file), size)
        };
        Ok(Self { path, file, size, max_bytes, max_backups, max_age, compress })
    }

    pub fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            let mut out = io::stdout().lock();
            out.write_all(text)?;
            return out.flush();
        }
        let n = text.len() as u64;
        if self.size > 0 && self.size + n > self.max_bytes {
            fs::rename(&self.path, self.backup(Timestamp::now()))?;
            let (file, size) = append(&self.path)?;
            (self.file, self.size) = (Some(file), size);
            self.prune(SystemTime::now());
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(text)?;
        self.size += n;
        Ok(())
    }

    fn parts(&self) -> (String, String) {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.rsplit_once('.') {
            Some((stem, end)) => (format!("{stem}-"), format!(".{end}")),
            None => (format!("{name}-"), String::new()),
        }
    }

    /// `audit-2026-01-31T12-00-00.123.log`
    fn backup(&self, now: Timestamp) -> PathBuf {
        let (stem, end) = self.parts();
        let time: String = format!("{now:.3}").trim_end_matches('Z').replace(':', "-");
        self.path.with_file_name(format!("{stem}{time}{end}"))
    }

    /// Compresses old files, and removes those that are too many or too old. What fails is tried again with the next file.
    fn prune(&self, now: SystemTime) {
        let (stem, end) = self.parts();
        let dir = self.path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut old: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| {
                let name = p.file_name().unwrap_or_default().to_string_lossy();
                let time = name.strip_prefix(&stem).and_then(|n| n.strip_suffix(".gz").unwrap_or(n).strip_suffix(&end));
                time.is_some_and(|t| t.len() == 23 && t.starts_with("20"))
            })
            .collect();
        // Names sort by time: the newest first.
        old.sort();
        old.reverse();
        for (i, path) in old.iter().enumerate() {
            let age = fs::metadata(path).and_then(|m| m.modified()).ok().and_then(|t| now.duration_since(t).ok());
            let too_old = !self.max_age.is_zero() && age.is_some_and(|a| a > self.max_age);
            let result = if too_old || (self.max_backups > 0 && i >= self.max_backups) {
                fs::remove_file(path)
            } else if self.compress && path.extension().is_none_or(|e| e != "gz") {
                compress(path)
            } else {
                continue;
            };
            if let Err(e) = result {
                tracing::warn!(path = %path.display(), error = %e, "an old audit log cannot be compressed or removed");
            }
        }
    }
}

fn compress(path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let to = path.with_file_name(format!("{name}.gz"));
    let out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&to)?;
    let mut gz = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    io::copy(&mut File::open(path)?, &mut gz)?;
    gz.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn a_full_file_becomes_an_old_one_and_few_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/audit.log");
        let mut r = Rotated::open(path.clone(), 10, 2, Duration::ZERO, false).unwrap();
        for i in 0..5 {
            r.write(format!("line {i}\n").as_bytes()).unwrap();
            // Names have milliseconds.
            std::thread::sleep(Duration::from_millis(3));
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 4\n");
        let all = names(path.parent().unwrap());
        assert_eq!(all.len(), 3, "{all:?}");
        let newest = all.iter().filter(|n| *n != "audit.log").max().unwrap();
        assert_eq!(fs::read_to_string(path.with_file_name(newest)).unwrap(), "line 3\n");
    }

    #[test]
    fn what_was_there_is_added_to_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        fs::write(&path, "12345678").unwrap();
        fs::write(dir.path().join("audit-else"), "not ours").unwrap();
        let mut r = Rotated::open(path.clone(), 10, 1, Duration::ZERO, true).unwrap();
        r.write(b"9").unwrap();
        r.write(b"abc").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
        let all = names(dir.path());
        let gz = all.iter().find(|n| n.ends_with(".gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(dir.path().join(gz)).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), all.len()), ("123456789", 3));
    }

    #[test]
    fn old_files_go_when_they_are_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let r = Rotated::open(dir.path().join("a.log"), 10, 0, Duration::from_secs(60), false).unwrap();
        let old = r.backup("2026-01-31T12:00:00.5Z".parse().unwrap());
        assert_eq!(old.file_name().unwrap(), "a-2026-01-31T12-00-00.500.log");
        fs::write(&old, "x").unwrap();
        r.prune(SystemTime::now());
        assert!(old.exists());
        r.prune(SystemTime::now() + Duration::from_secs(120));
        assert!(!old.exists());
    }
}
