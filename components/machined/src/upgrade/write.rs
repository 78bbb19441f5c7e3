//! From an upgrade file to a slot that can be started. The file is read once, as it comes: its manifest is checked before anything is written,
//! the old content of the slot is made unstartable before its first byte changes, and the new one can be started only after all of it was
//! read back from the disk.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::Path;

use slots::manifest::{self, MEMBERS, Manifest, Room, SIGNATURE};
use slots::record::{self, State, Upgrade};

use super::layout::Layout;
use super::{Trust, UpgradeError, table};
use crate::install::{Progress, slot};

/// Which file people are told of: it has no name here.
const FILE: &str = "the upgrade file";

/// The parts of an upgrade file, in their order.
pub struct Archive<'a, R: Read> {
    entries: tar::Entries<'a, R>,
    /// One that was met before it was asked for.
    met: Option<tar::Entry<'a, R>>,
}

impl<'a, R: Read> Archive<'a, R> {
    /// Begins to read.
    pub fn new(archive: &'a mut tar::Archive<R>) -> Result<Self, UpgradeError> {
        Ok(Archive { entries: archive.entries().map_err(UpgradeError::File)?, met: None })
    }

    fn next(&mut self) -> Result<Option<tar::Entry<'a, R>>, UpgradeError> {
        match self.met.take() {
            Some(entry) => Ok(Some(entry)),
            None => self.entries.next().transpose().map_err(UpgradeError::File),
        }
    }

    fn member(&mut self, wanted: &'static str) -> Result<tar::Entry<'a, R>, UpgradeError> {
        let missing = |found: &str| UpgradeError::Member { wanted, found: found.chars().take(80).collect() };
        let entry = self.next()?.ok_or_else(|| missing("nothing"))?;
        let name = name(&entry);
        if name == wanted { Ok(entry) } else { Err(missing(&name)) }
    }

    /// The first part, which is looked into only when whoever signed it is trusted.
    pub fn manifest(&mut self, trust: &Trust) -> Result<Manifest, UpgradeError> {
        let mut text = Vec::new();
        self.member(MEMBERS[0])?.take(manifest::MOST).read_to_end(&mut text).map_err(UpgradeError::File)?;
        trust.check(&text, self.signature()?.as_deref())?;
        manifest::read(&text).map_err(UpgradeError::Manifest)
    }

    /// What stands behind the manifest, if it is its signature.
    fn signature(&mut self) -> Result<Option<Vec<u8>>, UpgradeError> {
        let Some(entry) = self.next()? else { return Ok(None) };
        if name(&entry) != SIGNATURE {
            self.met = Some(entry);
            return Ok(None);
        }
        let mut signature = Vec::new();
        // A byte more than there may be: a longer one is none.
        entry.take(pki::SIGNATURE_BYTES as u64 + 1).read_to_end(&mut signature).map_err(UpgradeError::File)?;
        Ok(Some(signature))
    }

    fn sized(&mut self, wanted: &'static str, expected: u64) -> Result<tar::Entry<'a, R>, UpgradeError> {
        let entry = self.member(wanted)?;
        match entry.size() {
            has if has == expected => Ok(entry),
            has => Err(UpgradeError::Size { what: wanted, has, expected }),
        }
    }
}

fn name(entry: &tar::Entry<'_, impl Read>) -> String {
    String::from_utf8_lossy(&entry.path_bytes()).into_owned()
}

/// The room that there is for another system. An upgrade that is under way is an error.
pub fn room(layout: &Layout) -> Result<Room, UpgradeError> {
    if let Some(upgrade) = record::upgrade(&layout.read()?).filter(|upgrade| upgrade.state == State::Trying) {
        return Err(UpgradeError::UnderWay(upgrade.to.version));
    }
    let free = layout.boot.free(layout.other()).map_err(|error| UpgradeError::Boot("look for room", error))?;
    Ok(Room { slot: layout.idle.size, boot: free })
}

/// Writes the idle slot. `upgrade` is what META says of it from the first byte on.
pub fn write(
    layout: &Layout,
    archive: &mut Archive<'_, impl Read>,
    manifest: &Manifest,
    upgrade: &Upgrade,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), UpgradeError> {
    let slot = layout.other();
    let mut say = |stage: &'static str, detail: &str| progress(Progress { stage, done: 0, total: 0, detail: detail.to_owned() });
    // First nobody may start the slot, then nobody may fall back to it, then it is written.
    say("give up the old content", slot.label());
    layout.boot.remove(slot).map_err(|error| UpgradeError::Boot("remove the slot's kernel image", error))?;
    layout.change(|meta| {
        record::set_good(meta, slot, None);
        record::set_upgrade(meta, upgrade);
    })?;

    let (window, node) = (layout.idle_window(), layout.idle.node.as_path());
    let root = &manifest.system.root;
    let opened = OpenOptions::new().read(true).write(true).open(node);
    let mut device =
        opened.map_err(|source| crate::install::InstallError::Step { step: "open the slot", disk: node.to_owned(), source })?;
    let mut entry = archive.sized(MEMBERS[1], root.total_bytes())?;
    let total = entry.size();
    slot::copy_from(&mut entry, Path::new(FILE), total, (&mut device, node), &window, progress)?;
    progress(Progress { stage: "verify the system", done: 0, total: 0, detail: slot.label().to_owned() });
    slot::verify(&mut device, node, &window, root)?;
    drop(device);

    let named = table::set_uuid(&layout.disk.node, layout.disk.sector, layout.idle.number, &root.root_uuid());
    named.map_err(|source| UpgradeError::Table { label: slot.label(), source })?;
    progress(Progress { stage: "write the kernel image", done: 0, total: 0, detail: slots::loader::entry(slot).to_owned() });
    let mut uki = archive.sized(MEMBERS[2], manifest.uki_bytes)?;
    let installed = layout.boot.install(slot, &mut uki, manifest.uki_sha256);
    installed.map_err(|error| UpgradeError::Boot("write the kernel image", error))
}

/// A file that comes in pieces, to be read by a thread that may wait.
pub struct Pieces {
    pieces: tokio::sync::mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl Pieces {
    /// The pieces that are sent to this channel; it is closed behind the last one.
    pub fn new(pieces: tokio::sync::mpsc::Receiver<Vec<u8>>) -> Pieces {
        Pieces { pieces, current: io::Cursor::default() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer)? {
                0 if !buffer.is_empty() => match self.pieces.blocking_recv() {
                    Some(piece) => self.current = io::Cursor::new(piece),
                    None => return Ok(0),
                },
                count => return Ok(count),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use slots::record::System;
    use verity::Digest;

    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<(Manifest, u64), UpgradeError> {
        read_trusting(bytes, &Trust::default())
    }

    fn read_trusting(bytes: &[u8], trust: &Trust) -> Result<(Manifest, u64), UpgradeError> {
        let mut archive = tar::Archive::new(bytes);
        let mut archive = Archive::new(&mut archive)?;
        let manifest = archive.manifest(trust)?;
        let root = archive.sized(MEMBERS[1], manifest.system.root.total_bytes())?.size();
        archive.sized(MEMBERS[2], manifest.uki_bytes)?;
        Ok((manifest, root))
    }

    #[test]
    fn parts_come_in_their_order_and_size_or_are_refused() {
        let (root, verity) = crate::testing::root_image(2, 1);
        let manifest = Manifest {
            format: 1,
            architecture: "x86_64".into(),
            system: System { version: "0.2.0".into(), kubernetes: "v1.36.2".into(), root: verity },
            kernel: "6.12".into(),
            uki_bytes: 3,
            uki_sha256: Digest([0; 32]),
            config: None,
            measured: None,
        };
        let text = serde_json::to_vec(&manifest).unwrap();
        let (m, r, u) = (("manifest.json", &text[..]), ("root.erofs", &root[..]), ("strake.efi", &b"uki"[..]));
        assert_eq!(read(&archive(&[m, r, u])).unwrap(), (manifest, root.len() as u64));
        let told = |bytes: &[u8]| crate::api::chain(&read(bytes).unwrap_err());
        for (bytes, expected) in [
            (archive(&[]), "\"nothing\" where manifest.json should be"),
            (archive(&[r, u]), "\"root.erofs\" where manifest.json should be"),
            (archive(&[m, u, r]), "\"strake.efi\" where root.erofs should be"),
            (archive(&[("manifest.json", &b"{}"[..]), r, u]), "manifest cannot be read"),
            (archive(&[m, ("root.erofs", &root[1..]), u]), "root.erofs in the upgrade file has"),
            (archive(&[m, r, ("strake.efi", &b"ukix"[..])]), "has 4 bytes, and its manifest says 3"),
            (b"\x00garbage that is no archive".repeat(100), "read the upgrade file"),
        ] {
            assert!(told(&bytes).contains(expected), "{}: {expected}", told(&bytes));
        }
        let whole = archive(&[m, r, u]);
        assert!(read(&whole[..1000]).is_err(), "a file that is cut off");

        let (key, other) = (pki::SigningKey::generate().unwrap(), pki::SigningKey::generate().unwrap());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("keys"), key.public_pem()).unwrap();
        let trust = Trust::read(&dir.path().join("keys")).unwrap();
        let (right, wrong) = (key.sign(&text), other.sign(&text));
        let signed = archive(&[m, ("manifest.sig", &right), r, u]);
        assert_eq!(read_trusting(&signed, &trust).unwrap(), read(&whole).unwrap());
        assert!(read(&signed).is_ok(), "an image without keys takes a signed file");
        let long = [&right[..], b"x"].concat();
        let changed = [&text[..], b" "].concat();
        for (members, expected) in [
            (vec![m, r, u], "is not signed"),
            (vec![m], "is not signed"),
            (vec![m, ("manifest.sig", &wrong[..]), r, u], "no key of this image"),
            (vec![m, ("manifest.sig", &right[..40]), r, u], "no key of this image"),
            (vec![m, ("manifest.sig", &long[..]), r, u], "no key of this image"),
            (vec![("manifest.json", &changed[..]), ("manifest.sig", &right[..]), r, u], "changed after it was signed"),
            // What is not believed is not even read.
            (vec![("manifest.json", &b"{"[..]), ("manifest.sig", &right[..]), r, u], "changed after it was signed"),
            (vec![m, ("manifest.sig", &right[..])], "\"nothing\" where root.erofs should be"),
        ] {
            let error = crate::api::chain(&read_trusting(&archive(&members), &trust).unwrap_err());
            assert!(error.contains(expected), "{error}: {expected}");
        }
    }

    #[test]
    fn pieces_are_read_as_one_file() {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        for piece in [&b"ab"[..], b"", b"cdef"] {
            sender.try_send(piece.to_vec()).unwrap();
        }
        drop(sender);
        let mut text = String::new();
        Pieces::new(receiver).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdef");
    }
}
