//! Installing without anybody there: a config that lies ready for a machine that was started from a medium, or from a disk with the raw disk image.
//! Where it may lie, in this order: behind a URL ([`url`]), on a volume labelled `STRAKE-CFG` ([`volume`]), and in the firmware's tables
//! ([`firmware`]). The first that there is counts, also when it can't be used: another one must not win because somebody spoiled the first.
//!
//! Whoever can plug in a stick is not yet somebody who may install a machine: the config must be signed with a key that stands on the medium
//! ([`Trust`]), unless the medium says that it takes any. A machine that has an installed disk is never installed again by itself.

mod firmware;
pub mod url;
mod volume;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use machine_api::limits;
use pki::VerifyingKey;
use pki::signed_text::{self, Signed};

use crate::paths::Paths;

/// The file on the medium that says whom it believes (`strakectl media`).
const KEYS: &str = "strake/config-keys.pem";
/// The line in it that lets anybody install.
const ANYBODY: &str = "unsigned: allowed";
/// More than the builder leaves room for.
const KEYS_MOST: u64 = 16 << 10;

/// A config that was found, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// For people.
    pub place: String,
    /// As it lies there.
    pub text: String,
}

/// Why a config that lies ready is not used.
#[derive(Debug, thiserror::Error)]
pub enum UnattendedError {
    /// It can't be read.
    #[error("read the config on {place}")]
    Read { place: String, source: std::io::Error },
    /// It is no text, or there is too much of it.
    #[error("the config on {place} {problem}")]
    Text { place: String, problem: String },
    /// It can't be had from where it should come.
    #[error("the config at {url}")]
    Url { url: String, source: url::UrlError },
    /// The medium's keys are none.
    #[error("the keys on the medium ({KEYS}) can't be used")]
    Keys(#[source] pki::PkiError),
    /// The medium believes nobody.
    #[error(
        "there is a config on {0}, but this medium has no key for configs: put one on it with `strakectl media`, or use the pairing string"
    )]
    Nobody(String),
    /// Nobody signed it.
    #[error("the config on {0} is not signed, and this medium takes only what its keys signed; sign it with `strakectl config sign`")]
    Unsigned(String),
    /// Somebody else signed it, or it was changed.
    #[error("the config on {0} was signed with no key of this medium, or changed after it was signed")]
    WrongSignature(String),
}

/// What stands on the medium about configs: a file of it, or of the boot partition where the system was started from a disk. Nothing there is no text.
pub fn keys(paths: &Paths, boot_partition: Option<&Path>) -> Result<String, UnattendedError> {
    let mut text = String::new();
    let read = match boot_partition {
        Some(node) => volume::read_fat(node, KEYS, KEYS_MOST).map(|content| text = content),
        None => File::open(paths.media().join(KEYS)).and_then(|file| file.take(KEYS_MOST).read_to_string(&mut text)).map(drop),
    };
    match read {
        Ok(()) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(UnattendedError::Read { place: KEYS.to_owned(), source }),
    }
}

/// Whom the medium believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    keys: Vec<VerifyingKey>,
    anybody: bool,
}

impl Trust {
    /// By what stands on the medium ([`keys`]). Nothing there is nobody.
    pub fn parse(text: &str) -> Result<Trust, UnattendedError> {
        let anybody = text.lines().any(|line| line.trim() == ANYBODY);
        let keys = match text.contains("-----BEGIN") {
            true => VerifyingKey::all_from_pem(text).map_err(UnattendedError::Keys)?,
            false => Vec::new(),
        };
        Ok(Trust { keys, anybody })
    }

    /// The config, if it is to be believed.
    pub fn check<'a>(&'a self, found: &'a Found) -> Result<&'a str, UnattendedError> {
        let place = || found.place.clone();
        match signed_text::check(&self.keys, &found.text) {
            Signed::By(_, text) => Ok(text),
            // The signature is a comment, whoever wrote it.
            Signed::Wrong | Signed::Not if self.anybody => Ok(&found.text),
            _ if self.keys.is_empty() => Err(UnattendedError::Nobody(place())),
            Signed::Wrong => Err(UnattendedError::WrongSignature(place())),
            Signed::Not => Err(UnattendedError::Unsigned(place())),
        }
    }
}

/// Looks for a config that lies ready.
pub fn look(paths: &Paths) -> Result<Option<Found>, UnattendedError> {
    match volume::look(paths)? {
        Some(found) => Ok(Some(found)),
        None => firmware::look(paths),
    }
}

/// A config's text from a reader that may have anything.
fn text(place: &str, reader: impl Read) -> Result<Found, UnattendedError> {
    let (mut bytes, most) = (Vec::new(), limits::CONFIG_BYTES as u64);
    let failed = |source| UnattendedError::Read { place: place.to_owned(), source };
    reader.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    let problem = |problem: String| UnattendedError::Text { place: place.to_owned(), problem };
    if bytes.len() as u64 > most {
        return Err(problem(format!("has more than {most} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| problem("is no text".to_owned()))?;
    Ok(Found { place: place.to_owned(), text })
}

#[cfg(test)]
mod tests {
    use pki::SigningKey;

    use super::*;

    #[test]
    fn only_what_the_mediums_keys_signed_is_taken_unless_it_takes_anything() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let found = |text: String| Found { place: "the volume".into(), text };
        let (plain, signed, foreign) =
            (found("a: 1\n".into()), found(signed_text::sign(&key, "a: 1\n")), found(signed_text::sign(&other, "a: 1\n")));
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        assert_eq!(keys(&paths, None).unwrap(), "");
        std::fs::create_dir_all(paths.media().join("strake")).unwrap();
        let trust = |content: &str| {
            std::fs::write(paths.media().join(KEYS), content).unwrap();
            Trust::parse(&keys(&paths, None).unwrap()).unwrap()
        };
        for (content, plain_is, signed_is, foreign_is) in [
            (key.public_pem() + "\n\n\n", "is not signed", "a: 1\n", "no key of this medium"),
            ("# nothing yet\n\n\n".to_owned(), "has no key", "has no key", "has no key"),
            (format!("{ANYBODY}\n"), "a: 1\n", signed.text.as_str(), foreign.text.as_str()),
            (format!("{ANYBODY}\n{}", key.public_pem()), "a: 1\n", "a: 1\n", foreign.text.as_str()),
        ] {
            let trust = trust(&content);
            for (found, expected) in [(&plain, plain_is), (&signed, signed_is), (&foreign, foreign_is)] {
                match trust.check(found) {
                    Ok(text) => assert_eq!(text, expected, "{content}"),
                    Err(error) => assert!(error.to_string().contains(expected), "{error}: {expected}"),
                }
            }
        }
        let none = Trust::parse("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n");
        assert!(matches!(none, Err(UnattendedError::Keys(_))), "a key that is none never lets anybody in");
        assert_eq!(Trust::parse("").unwrap(), Trust::default());
    }

    #[test]
    fn a_config_is_text_and_not_too_long() {
        assert_eq!(text("x", &b"a: 1"[..]).unwrap().text, "a: 1");
        assert!(matches!(text("x", &b"\xff"[..]), Err(UnattendedError::Text { .. })));
        assert!(matches!(text("x", std::io::repeat(b'a')), Err(UnattendedError::Text { .. })));
    }
}
