//! The packages' files: fetched into the cache, checked against the lock, unpacked into a directory named after the lock.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::PackageSet;
use super::apt::PrivateApt;
use super::lock::{Lock, LockedDeb};
use super::mirror::{self, Mirror};
use crate::cache::{Cache, fill_once};
use crate::digest;
use crate::error::{Error, FileContext};
use crate::process::run;

/// apt's own fetcher: it knows the host's proxies and checks the hash.
const FETCHER: &str = "/usr/lib/apt/apt-helper";
/// Packages per call of the fetcher.
const BATCH: usize = 40;

/// An unpacked package set.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// The directory with all packages' files in it.
    pub dir: PathBuf,
    /// What it was made from.
    pub lock: Lock,
}

/// Whether to keep the locked versions or to move to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// The lock file's; a version that left the mirror is locked again, loudly.
    Locked,
    /// The newest the mirror has.
    Newest,
}

/// Makes sure that the set's packages are unpacked in the cache, and says where.
pub fn prepare(cache: &Cache, lock_dir: &Path, set: &PackageSet, versions: Versions, say: &dyn Fn(&str)) -> Result<Unpacked, Error> {
    prepare_some(cache, lock_dir, set, None, versions, say)
}

/// The same with only those packages of the set that have these names. All of the set is locked.
pub fn prepare_some(
    cache: &Cache,
    lock_dir: &Path,
    set: &PackageSet,
    only: Option<&[String]>,
    versions: Versions,
    say: &dyn Fn(&str),
) -> Result<Unpacked, Error> {
    let _held = cache.lock("packages")?;
    let lock_file = lock_dir.join(format!("{}.lock", set.name));
    let old = Lock::read(&lock_file)?;
    let lock = match (&old, versions) {
        (Some(lock), Versions::Locked) => match unpack(cache, set, &chosen(lock, set, only)?, say) {
            Ok(unpacked) => return Ok(unpacked),
            Err(problem) => {
                say(&format!("WARNING: a locked version of {}.lock cannot be had any more: {problem}", set.name));
                say("WARNING: locking to what the mirror has now; commit the changed lock file");
                resolve(cache, set)?
            }
        },
        _ => resolve(cache, set)?,
    };
    for change in old.map(|old| lock.changes_from(&old)).unwrap_or_default() {
        say(&format!("{}.lock: {change}", set.name));
    }
    std::fs::create_dir_all(lock_dir).on("create", lock_dir)?;
    std::fs::write(&lock_file, lock.render()).on("write", &lock_file)?;
    unpack(cache, set, &chosen(&lock, set, only)?, say)
}

fn chosen(lock: &Lock, set: &PackageSet, only: Option<&[String]>) -> Result<Lock, Error> {
    let Some(names) = only else { return Ok(lock.clone()) };
    lock.only(names).map_err(|name| Error::Missing {
        what: format!("package {name} in {}.lock", set.name),
        hint: format!("it has {}", lock.debs().map(|deb| deb.name.as_str()).collect::<Vec<_>>().join(", ")),
    })
}

fn resolve(cache: &Cache, set: &PackageSet) -> Result<Lock, Error> {
    let apt = PrivateApt::update(&cache.dir("apt")?, &host_mirror()?, &mirror::keyring()?)?;
    apt.resolve(set)
}

fn host_mirror() -> Result<Mirror, Error> {
    mirror::from_host(Path::new("/etc/apt"))
}

fn unpack(cache: &Cache, set: &PackageSet, lock: &Lock, say: &dyn Fn(&str)) -> Result<Unpacked, Error> {
    let dir = cache.dir("unpacked")?.join(format!("{}-{}", set.name, lock.digest()));
    fill_once(&dir, |partial| {
        let debs = fetch(cache, lock, say)?;
        say(&format!("unpacking {} packages", debs.len()));
        debs.iter().try_for_each(|deb| run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(partial)).map(drop))
    })?;
    Ok(Unpacked { dir, lock: lock.clone() })
}

fn fetch(cache: &Cache, lock: &Lock, say: &dyn Fn(&str)) -> Result<Vec<PathBuf>, Error> {
    let dir = cache.dir("debs")?;
    let mut missing: Vec<&LockedDeb> = Vec::new();
    for deb in lock.debs() {
        if verify(&dir, deb).is_err() {
            missing.push(deb);
        }
    }
    if !missing.is_empty() {
        let mirror = host_mirror()?;
        let megabytes = missing.iter().map(|deb| deb.size).sum::<u64>() / 1_000_000;
        say(&format!("fetching {} packages, {megabytes} MB", missing.len()));
        for batch in missing.chunks(BATCH) {
            let mut command = Command::new(FETCHER);
            command.arg("download-file");
            for deb in batch {
                command.arg(deb.url(&mirror)).arg(dir.join(deb.file_name())).arg(format!("SHA256:{}", deb.sha256));
            }
            run(&mut command)?;
        }
        missing.iter().try_for_each(|deb| verify(&dir, deb).map(drop))?;
    }
    Ok(lock.debs().map(|deb| dir.join(deb.file_name())).collect())
}

fn verify(dir: &Path, deb: &LockedDeb) -> Result<(), Error> {
    let path = dir.join(deb.file_name());
    let actual = digest::hex(&digest::of_file(&path)?);
    if actual == deb.sha256 {
        return Ok(());
    }
    std::fs::remove_file(&path).on("remove", &path)?;
    Err(Error::Hash { file: deb.file_name(), expected: deb.sha256.clone(), actual })
}

#[cfg(test)]
mod tests {
    use super::super::lock::Archive;
    use super::*;

    #[test]
    fn a_deb_that_was_changed_in_the_cache_is_thrown_away() {
        let scratch = tempfile::tempdir().unwrap();
        let mut deb = LockedDeb {
            name: "a".into(),
            version: "1".into(),
            sha256: digest::hex(&digest::of_bytes(b"good")),
            size: 4,
            archive: Archive::Debian,
            path: "pool/a.deb".into(),
        };
        let path = scratch.path().join(deb.file_name());
        std::fs::write(&path, "good").unwrap();
        verify(scratch.path(), &deb).unwrap();
        deb.sha256 = format!("{}{}", &deb.sha256[..16], "0".repeat(48));
        assert!(matches!(verify(scratch.path(), &deb), Err(Error::Hash { .. })));
        assert!(!path.exists());
    }
}
