//! The lock file: exactly which packages an image is made from. One line per package, sorted, so that a diff reads well:
//! `name version sha256 size archive path`, where `archive` is `debian` or `security` and `path` is below that archive.

use std::collections::BTreeMap;
use std::path::Path;

use super::mirror::Mirror;
use crate::digest;
use crate::error::{Error, FileContext};

/// One locked package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedDeb {
    /// Package name.
    pub name: String,
    /// Debian version, epoch included.
    pub version: String,
    /// SHA-256 of the `.deb`, lower-case hexadecimal.
    pub sha256: String,
    /// Size of the `.deb` in bytes.
    pub size: u64,
    /// Which archive it lies in.
    pub archive: Archive,
    /// Path below the archive.
    pub path: String,
}

/// The two archives of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Archive {
    /// Suites and point releases.
    Debian,
    /// Security updates.
    Security,
}

impl Archive {
    fn as_str(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Security => "security",
        }
    }
}

impl LockedDeb {
    /// Where the package lies on `mirror`.
    pub fn url(&self, mirror: &Mirror) -> String {
        let base = match self.archive {
            Archive::Debian => &mirror.debian,
            Archive::Security => &mirror.security,
        };
        format!("{base}/{}", self.path)
    }

    /// The name of its file in the cache: the hash, so that two versions never meet.
    pub fn file_name(&self) -> String {
        format!("{}_{}.deb", self.name, &self.sha256[..16])
    }
}

/// A set of locked packages, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    debs: BTreeMap<String, LockedDeb>,
}

impl Lock {
    /// A lock of these packages.
    pub fn new(debs: impl IntoIterator<Item = LockedDeb>) -> Self {
        Self { debs: debs.into_iter().map(|deb| (deb.name.clone(), deb)).collect() }
    }

    /// The packages in the order of their names.
    pub fn debs(&self) -> impl Iterator<Item = &LockedDeb> {
        self.debs.values()
    }

    /// The version of a package.
    pub fn version(&self, name: &str) -> Option<&str> {
        self.debs.get(name).map(|deb| deb.version.as_str())
    }

    /// Of these packages those with these names; or the first name that is not among them.
    pub fn only<'a>(&self, names: &'a [String]) -> Result<Self, &'a str> {
        let find = |name: &'a String| self.debs.get(name).cloned().ok_or(name.as_str());
        Ok(Self::new(names.iter().map(find).collect::<Result<Vec<_>, _>>()?))
    }

    /// Both.
    pub fn and(&self, other: &Self) -> Self {
        Self::new(self.debs().chain(other.debs()).cloned())
    }

    /// Parses the text of a lock file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let debs = lines.map(|(index, line)| parse_line(line).map_err(|problem| format!("line {}: {problem}", index + 1)));
        Ok(Self::new(debs.collect::<Result<Vec<_>, _>>()?))
    }

    /// The text of the lock file.
    pub fn render(&self) -> String {
        let mut text = String::from("# name version sha256 size archive path; written by `cargo xtask image --relock`\n");
        for deb in self.debs.values() {
            let LockedDeb { name, version, sha256, size, archive, path } = deb;
            text.push_str(&format!("{name} {version} {sha256} {size} {} {path}\n", archive.as_str()));
        }
        text
    }

    /// Reads a lock file; `None` when there is none yet.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path).on("read", path)?;
        Self::parse(&text).map(Some).map_err(|problem| Error::malformed(path, problem))
    }

    /// A name for exactly this set of files.
    pub fn digest(&self) -> String {
        let mut inputs = digest::Inputs::default();
        for deb in self.debs.values() {
            inputs.add(&deb.name, deb.sha256.as_bytes());
        }
        inputs.finish()[..20].to_owned()
    }

    /// What changed from `old` to `self`, one line per package, for a person to read.
    pub fn changes_from(&self, old: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (name, deb) in &self.debs {
            match old.debs.get(name) {
                None => changes.push(format!("{name}: new, {}", deb.version)),
                Some(before) if before.version != deb.version => changes.push(format!("{name}: {} -> {}", before.version, deb.version)),
                Some(before) if before.sha256 != deb.sha256 => {
                    changes.push(format!("{name}: {} was rebuilt with other content", deb.version))
                }
                Some(_) => {}
            }
        }
        changes.extend(old.debs.keys().filter(|name| !self.debs.contains_key(*name)).map(|name| format!("{name}: no longer needed")));
        changes
    }
}

fn parse_line(line: &str) -> Result<LockedDeb, String> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [name, version, sha256, size, archive, path] = fields[..] else {
        return Err(format!("expected 6 fields, found {}", fields.len()));
    };
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("{sha256:?} is not a SHA-256"));
    }
    if name.is_empty() || name.contains('/') || path.contains("..") {
        return Err(format!("{name:?} at {path:?} is not a package"));
    }
    let archive = match archive {
        "debian" => Archive::Debian,
        "security" => Archive::Security,
        other => return Err(format!("unknown archive {other:?}")),
    };
    let size = size.parse().map_err(|_| format!("{size:?} is not a size"))?;
    Ok(LockedDeb { name: name.into(), version: version.into(), sha256: sha256.to_ascii_lowercase(), size, archive, path: path.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deb(name: &str, version: &str, hash_digit: char) -> LockedDeb {
        let sha256 = hash_digit.to_string().repeat(64);
        LockedDeb {
            name: name.into(),
            version: version.into(),
            sha256,
            size: 7,
            archive: Archive::Debian,
            path: format!("pool/{name}.deb"),
        }
    }

    #[test]
    fn what_is_rendered_is_read_back() {
        let lock = Lock::new([deb("b", "1:2-3", 'a'), deb("a", "1", 'b')]);
        assert_eq!(Lock::parse(&lock.render()), Ok(lock));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, problem) in [
            ("a 1", "line 1: expected 6 fields, found 2"),
            ("# c\na 1 zz 7 debian p", "line 2: \"zz\" is not a SHA-256"),
            (&format!("a 1 {} x debian p", "0".repeat(64)), "line 1: \"x\" is not a size"),
            (&format!("a 1 {} 1 ftp p", "0".repeat(64)), "line 1: unknown archive \"ftp\""),
            (&format!("a 1 {} 1 debian ../p", "0".repeat(64)), "line 1: \"a\" at \"../p\" is not a package"),
        ] {
            assert_eq!(Lock::parse(text), Err(problem.to_owned()));
        }
    }

    #[test]
    fn some_of_the_packages_are_a_lock_of_their_own() {
        let lock = Lock::new([deb("a", "1", 'a'), deb("b", "1", 'b'), deb("c", "1", 'c')]);
        let names = ["c".to_owned(), "a".to_owned()];
        let some = lock.only(&names).unwrap();
        assert_eq!(some, Lock::new([deb("a", "1", 'a'), deb("c", "1", 'c')]));
        assert_eq!(some.and(&Lock::new([deb("b", "1", 'b')])), lock);
        assert_eq!(lock.only(&["a".to_owned(), "z".to_owned()]), Err("z"));
    }

    #[test]
    fn changes_name_what_a_person_must_know() {
        let old = Lock::new([deb("same", "1", 'a'), deb("newer", "1", 'a'), deb("rebuilt", "1", 'a'), deb("gone", "1", 'a')]);
        let new = Lock::new([deb("same", "1", 'a'), deb("newer", "2", 'b'), deb("rebuilt", "1", 'c'), deb("added", "3", 'd')]);
        let expected = ["added: new, 3", "newer: 1 -> 2", "rebuilt: 1 was rebuilt with other content", "gone: no longer needed"];
        assert_eq!(new.changes_from(&old), expected);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,300}(\n\\PC{0,120}){0,3}") {
            let _ = Lock::parse(&text);
        }
    }
}
