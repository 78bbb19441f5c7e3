//! `strakectl media`: putting on an installation medium whose configs it takes when nobody is there to type a pairing string.
//!
//! The image builder leaves room for that in a file of the ISO, which begins with a line that nothing else begins with. Here the room is filled, in
//! its place: nothing else on the medium changes, and what the firmware and the kernel verify is not there.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pki::VerifyingKey;

/// How the file begins (`image/src/build.rs` writes it).
const FIRST_LINE: &[u8] = b"# Whose configs this medium takes: written by `strakectl media`\n";
/// Bytes of the file.
const ROOM: usize = 4096;
/// Files begin at sectors.
const SECTOR: usize = 2048;
/// The line that machines look for.
const ANYBODY: &str = "unsigned: allowed";

/// Put on an ISO whose configs it takes without a pairing string.
///
/// A machine that is started from the medium, has no system installed, and finds a config on a volume labelled STRAKE-CFG or in the firmware's OEM strings
/// installs by itself, if one of these keys signed the config (`strakectl gen config-key`, `strakectl config sign`).
#[derive(Debug, clap::Args)]
pub struct Media {
    /// The ISO; it is changed in its place.
    #[arg(value_name = "ISO")]
    iso: PathBuf,
    /// Public keys in PEM; what was on the medium before is forgotten.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["allow_unsigned", "nobody"])]
    config_key: Vec<PathBuf>,
    /// Let any config install, whoever wrote it. Whoever can plug in a stick then owns the machine.
    #[arg(long)]
    allow_unsigned: bool,
    /// Take no config, as the ISO was built.
    #[arg(long, conflicts_with_all = ["config_key", "allow_unsigned"])]
    nobody: bool,
}

impl Media {
    pub fn run(self) -> anyhow::Result<()> {
        let mut keys = String::new();
        for file in &self.config_key {
            keys += &fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        }
        let (content, fingerprints) = content(&keys, self.allow_unsigned)?;
        write(&self.iso, &content)?;
        match (fingerprints.is_empty(), self.allow_unsigned) {
            (_, true) => eprintln!("{} installs with any config", self.iso.display()),
            (true, false) => eprintln!("{} takes no config by itself", self.iso.display()),
            (false, false) => eprintln!("{} installs with a config signed by {}", self.iso.display(), fingerprints.join(", ")),
        }
        Ok(())
    }
}

/// What the room is filled with, and the keys' fingerprints.
fn content(keys: &str, anybody: bool) -> anyhow::Result<(Vec<u8>, Vec<String>)> {
    let known = if keys.is_empty() { Vec::new() } else { VerifyingKey::all_from_pem(keys).context("the config keys")? };
    let mut content = FIRST_LINE.to_vec();
    if anybody {
        content.extend(format!("{ANYBODY}\n").bytes());
    }
    content.extend(keys.bytes());
    if content.len() > ROOM {
        bail!("the medium has room for {ROOM} bytes of keys, and these have {}", content.len());
    }
    content.resize(ROOM, b'\n');
    Ok((content, known.iter().map(VerifyingKey::fingerprint).collect()))
}

fn write(iso: &Path, content: &[u8]) -> anyhow::Result<()> {
    let what = || format!("change {}", iso.display());
    let mut file = OpenOptions::new().read(true).write(true).open(iso).with_context(what)?;
    let Some(at) = room(&mut file).with_context(what)? else {
        bail!("{} has no room for keys: it is no installation medium, or one of a version before there was any", iso.display());
    };
    file.seek(SeekFrom::Start(at)).with_context(what)?;
    file.write_all(content).with_context(what)?;
    file.sync_all().with_context(what)
}

/// Where the file is.
fn room(iso: &mut impl Read) -> std::io::Result<Option<u64>> {
    let mut buffer = vec![0; 512 * SECTOR];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match iso.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        let found = buffer[..filled].chunks(SECTOR).position(|sector| sector.starts_with(FIRST_LINE));
        match found {
            Some(sector) => return Ok(Some(at + (sector * SECTOR) as u64)),
            None if filled < buffer.len() => return Ok(None),
            None => at += filled as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use pki::SigningKey;

    use super::*;

    #[test]
    fn the_room_on_the_medium_is_filled_and_nothing_else_changes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (iso, key) = (dir.path().join("iso"), dir.path().join("key"));
        let empty = content("", false).expect("content").0;
        let mut image = vec![7_u8; 700 * SECTOR];
        image.extend(&empty);
        image.extend(vec![8_u8; 3 * SECTOR]);
        fs::write(&iso, &image).expect("write");
        let public = SigningKey::generate().expect("key").public_pem();
        fs::write(&key, &public).expect("write");
        let verb = |keys: &[&PathBuf], allow_unsigned, nobody| Media {
            iso: iso.clone(),
            config_key: keys.iter().map(|key| (*key).clone()).collect(),
            allow_unsigned,
            nobody,
        };
        verb(&[&key], false, false).run().expect("keys");
        let changed = fs::read(&iso).expect("read");
        let at = 700 * SECTOR;
        assert_eq!((&changed[..at], &changed[at + ROOM..]), (&image[..at], &image[at + ROOM..]));
        let text = String::from_utf8_lossy(&changed[at..at + ROOM]).into_owned();
        assert!(text.contains(&public) && !text.contains(ANYBODY), "{text}");
        verb(&[], true, false).run().expect("anybody");
        let text = String::from_utf8_lossy(&fs::read(&iso).expect("read")[at..at + ROOM]).into_owned();
        assert!(text.contains(ANYBODY) && !text.contains("BEGIN"), "{text}");
        verb(&[], false, true).run().expect("nobody");
        assert_eq!(fs::read(&iso).expect("read"), image);

        assert!(content(&public.repeat(50), false).is_err());
        fs::write(&iso, vec![7_u8; 5000]).expect("write");
        assert!(verb(&[&key], false, false).run().expect_err("no room").to_string().contains("no room for keys"));
    }
}
