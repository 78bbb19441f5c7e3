//! `strakectl media`: putting on an installation medium whose configs it takes when nobody is there to type a pairing string.
//!
//! The image builder leaves room for that in a file of the ISO, of the disk image and of the image for the network, which begins with a line that
//! nothing else begins with. Here the room is filled, in its place: nothing else changes, and what the firmware and the kernel verify is not
//! there, but in a signed image for the network, whose signature covers everything in it.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pki::VerifyingKey;

/// How the file begins (`image/src/build.rs` writes it).
const FIRST_LINE: &[u8] = b"# Whose configs this medium takes: written by `strakectl media`\n";
/// Bytes of the file.
const ROOM: usize = 4096;
/// What is read at once.
const PIECE: usize = 1 << 20;
/// The line that machines look for.
const ANYBODY: &str = "unsigned: allowed";
/// The line with a place to fetch the config from.
const URL: &str = "config-url:";

/// Put on an installation medium whose configs it takes without a pairing string.
///
/// A machine that is started from the medium, has no system installed, and finds a config behind a URL, on a volume labelled STRAKE-CFG or in the firmware's
/// OEM strings installs by itself, if one of these keys signed the config (`strakectl gen config-key`, `strakectl config sign`). Media are strake.iso,
/// strake.raw, and strake-pxe.efi if it is not signed.
#[derive(Debug, clap::Args)]
pub struct Media {
    /// The medium; it is changed in its place.
    #[arg(value_name = "FILE")]
    iso: PathBuf,
    /// Public keys in PEM; what was on the medium before is forgotten.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["allow_unsigned", "nobody"])]
    config_key: Vec<PathBuf>,
    /// Where machines fetch their config from (https or http); {mac}, {uuid} and {serial} in it become the machine's.
    #[arg(long, value_name = "URL")]
    config_url: Option<String>,
    /// Let any config install, whoever wrote it. Whoever can plug in a stick then owns the machine.
    #[arg(long)]
    allow_unsigned: bool,
    /// Take no config, as the ISO was built.
    #[arg(long, conflicts_with_all = ["config_key", "allow_unsigned", "config_url"])]
    nobody: bool,
}

impl Media {
    pub fn run(self) -> anyhow::Result<()> {
        let mut keys = String::new();
        for file in &self.config_key {
            keys += &fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        }
        let (content, fingerprints) = content(&keys, self.allow_unsigned, self.config_url.as_deref())?;
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
fn content(keys: &str, anybody: bool, url: Option<&str>) -> anyhow::Result<(Vec<u8>, Vec<String>)> {
    let known = if keys.is_empty() { Vec::new() } else { VerifyingKey::all_from_pem(keys).context("the config keys")? };
    let mut content = FIRST_LINE.to_vec();
    if anybody {
        content.extend(format!("{ANYBODY}\n").bytes());
    }
    if let Some(url) = url {
        let plain = url.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || !(url.starts_with("https://") || url.starts_with("http://")) {
            bail!("{url:?} is no URL that machines can fetch a config from: it begins with https:// or http:// and has no spaces");
        }
        content.extend(format!("{URL} {url}\n").bytes());
    }
    content.extend(keys.bytes());
    if content.len() > ROOM {
        bail!("the medium has room for {ROOM} bytes of keys, and these, with the URL, have {}", content.len());
    }
    content.resize(ROOM, b'\n');
    Ok((content, known.iter().map(VerifyingKey::fingerprint).collect()))
}

fn write(iso: &Path, content: &[u8]) -> anyhow::Result<()> {
    let what = || format!("change {}", iso.display());
    let mut file = OpenOptions::new().read(true).write(true).open(iso).with_context(what)?;
    if is_signed(&mut file).with_context(what)? {
        bail!(
            "{} is signed, and a change would make the signature wrong: build the image for the network without keys, or use the ISO",
            iso.display()
        );
    }
    file.rewind().with_context(what)?;
    let Some(at) = room(&mut file).with_context(what)? else {
        bail!("{} has no room for keys: it is no installation medium, or one of a version before there was any", iso.display());
    };
    file.seek(SeekFrom::Start(at)).with_context(what)?;
    file.write_all(content).with_context(what)?;
    file.sync_all().with_context(what)
}

/// Whether it is a program for the firmware with a signature (PE/COFF, 4.7: the certificate table).
fn is_signed(file: &mut impl Read) -> std::io::Result<bool> {
    let mut start = Vec::new();
    file.take(4096).read_to_end(&mut start)?;
    let number = |at: usize| start.get(at..at + 4).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize));
    if !start.starts_with(b"MZ") {
        return Ok(false);
    }
    // The fifth entry of the directories, which lie at 112 bytes of the optional header, which follows the signature and the file header.
    let size = number(0x3c).and_then(|header| number(header.checked_add(24 + 112 + 4 * 8 + 4)?));
    Ok(size.is_none_or(|size| size != 0))
}

/// Where the file is.
fn room(medium: &mut impl Read) -> std::io::Result<Option<u64>> {
    // What may be the beginning of the line at the end of a piece is looked at again with the next.
    let (mut buffer, mut kept, mut at) = (vec![0; PIECE], 0, 0);
    loop {
        let mut filled = kept;
        while filled < buffer.len() {
            match medium.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if let Some(place) = find(&buffer[..filled], FIRST_LINE) {
            return Ok(Some(at + place as u64));
        }
        if filled < buffer.len() {
            return Ok(None);
        }
        kept = FIRST_LINE.len() - 1;
        buffer.copy_within(filled - kept.., 0);
        at += (filled - kept) as u64;
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted.first()?;
    let mut from = 0;
    while let Some(next) = text[from..].iter().position(|byte| byte == first) {
        if text[from + next..].starts_with(wanted) {
            return Some(from + next);
        }
        from += next + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use pki::SigningKey;

    use super::*;

    #[test]
    fn the_room_on_the_medium_is_filled_and_nothing_else_changes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (iso, key) = (dir.path().join("iso"), dir.path().join("key"));
        let empty = content("", false, None).expect("content").0;
        let public = SigningKey::generate().expect("key").public_pem();
        fs::write(&key, &public).expect("write");
        let verb = |keys: &[&PathBuf], allow_unsigned, nobody, url: Option<&str>| Media {
            iso: iso.clone(),
            config_key: keys.iter().map(|key| (*key).clone()).collect(),
            config_url: url.map(str::to_owned),
            allow_unsigned,
            nobody,
        };
        // At a sector of an ISO, anywhere in a program, and across what is read at once.
        for at in [700 * 2048, 12_345, PIECE - 10, 2 * PIECE - FIRST_LINE.len()] {
            let mut image = vec![b'#'; at];
            image.extend(&empty);
            image.extend(vec![8_u8; 5000]);
            fs::write(&iso, &image).expect("write");
            verb(&[&key], false, false, Some("https://host/{mac}")).run().expect("keys");
            let changed = fs::read(&iso).expect("read");
            assert!(changed[..at] == image[..at] && changed[at + ROOM..] == image[at + ROOM..], "{at}");
            let text = String::from_utf8_lossy(&changed[at..at + ROOM]).into_owned();
            assert!(text.contains(&public) && text.contains("\nconfig-url: https://host/{mac}\n") && !text.contains(ANYBODY), "{text}");
            verb(&[], true, false, None).run().expect("anybody");
            let text = String::from_utf8_lossy(&fs::read(&iso).expect("read")[at..at + ROOM]).into_owned();
            assert!(text.contains(ANYBODY) && !text.contains("BEGIN") && !text.contains(URL), "{text}");
            verb(&[], false, true, None).run().expect("nobody");
            assert!(fs::read(&iso).expect("read") == image, "{at}");
        }
        assert!(content(&public.repeat(50), false, None).is_err());
        for url in ["ftp://host/x", "https://host/a b", "https://host/\nunsigned: allowed", ""] {
            assert!(content("", false, Some(url)).is_err(), "{url:?}");
        }
        fs::write(&iso, vec![b'#'; 5000]).expect("write");
        assert!(verb(&[&key], false, false, None).run().expect_err("no room").to_string().contains("no room for keys"));
    }

    #[test]
    fn a_signed_program_is_not_changed() {
        let mut program = vec![0; 4096];
        program[..2].copy_from_slice(b"MZ");
        program[0x3c] = 0x80;
        assert!(!is_signed(&mut &program[..]).expect("read"));
        program[0x80 + 24 + 112 + 4 * 8 + 4] = 8;
        assert!(is_signed(&mut &program[..]).expect("read"));
        program[0x3c..0x40].copy_from_slice(&[0xff; 4]);
        assert!(is_signed(&mut &program[..]).expect("read"), "what cannot be understood is left alone");
        assert!(!is_signed(&mut &b"no program"[..]).expect("read"));
    }
}
