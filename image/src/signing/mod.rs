//! Signing with keys that the user owns (`strakectl gen secureboot-keys`): the programs that the firmware starts, by Debian's sbsign; the
//! measurements of a kernel image, by which a TPM knows what may open a disk ([`measured`]); the
//! variables that make a firmware in setup mode trust these keys ([`variable`]: what Debian's sbvarsign 0.9.4 signs, OVMF refuses); and the
//! manifest of the upgrade file, by Ed25519.

mod lists;
mod measured;
mod variable;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pki::{SigningKey, VerifyingKey};
use slots::sealed::Measured;
use uuid::{Uuid, uuid};

use crate::cache::Cache;
use crate::debian::store::Versions;
use crate::digest;
use crate::error::{Error, FileContext};
use crate::process::run;
use crate::tools::Tools;
use variable::{Signer, Variable};

/// The files of a directory of keys, as `strakectl gen secureboot-keys` writes them.
const FILES: &[&str] = &["PK.pem", "PK.key", "KEK.pem", "KEK.key", "db.pem", "db.key", "upgrade.pub", "upgrade.key", "owner.guid"];
/// Of these the image depends; the others only sign.
const PUBLIC: &[&str] = &["PK.pem", "KEK.pem", "db.pem", "upgrade.pub", "owner.guid"];
/// The key that signs what a kernel image measures. Directories of keys that were made before there was one do without: so do TPM keys on their machines.
const MEASURED: (&str, &str) = ("pcr.pub", "pcr.key");

/// Whose variables PK and KEK are, and whose db is.
const GLOBAL: Uuid = uuid!("8be4df61-93ca-11d2-aa0d-00e098032b8c");
const IMAGE_SECURITY: Uuid = uuid!("d719b2cb-3d3a-4596-a3bc-dad00e67656f");

/// Who Microsoft's certificates belong to, as it tells firmware makers.
const MICROSOFT: Uuid = uuid!("77fa9abd-0359-4d32-bd60-28f4e78f784b");
/// Where python3-virt-firmware has them.
const MICROSOFT_DIR: &str = "usr/lib/python3/dist-packages/virt/firmware/certs";
/// Who may change the lists of what is trusted and what is not any more.
const MICROSOFT_KEK: &[&str] = &["MicrosoftCorporationKEKCA2011.pem", "MicrosoftCorporationKEK2KCA2023.pem"];
/// Who signs option ROMs. The authority of Windows itself is not needed for that and is left out.
const MICROSOFT_DB: &[&str] = &["MicrosoftCorporationUEFICA2011.pem", "MicrosoftUEFICA2023.pem"];

/// The security version of what is built here: raised when images before must not open a machine's disks any more, once this one proved good there.
pub const SECURITY_VERSION: u32 = 1;

/// The keys, and the tools that sign with them.
#[derive(Clone, Debug)]
pub struct Signing {
    dir: PathBuf,
    tools: Tools,
    owner: Uuid,
    microsoft: bool,
    upgrade_keys: String,
    security_version: u32,
}

impl Signing {
    /// Looks whether the keys are there and are keys, and fetches the tools. `microsoft`: whether machines shall trust Microsoft's certificates too.
    pub fn prepare(cache: &Cache, project: &Path, dir: &Path, microsoft: bool, say: &dyn Fn(&str)) -> Result<Self, Error> {
        if let Some(missing) = FILES.iter().find(|name| !dir.join(name).is_file()) {
            let what = dir.join(missing).display().to_string();
            return Err(Error::Missing { what, hint: "`strakectl gen secureboot-keys DIR` writes a directory of keys".into() });
        }
        let dir = std::path::absolute(dir).on("find", dir)?;
        let owner = read(&dir.join("owner.guid"))?;
        let owner = Uuid::parse_str(owner.trim()).map_err(|problem| Error::malformed(dir.join("owner.guid"), problem.to_string()))?;
        let upgrade_keys = read(&dir.join("upgrade.pub"))?;
        let keys =
            VerifyingKey::all_from_pem(&upgrade_keys).map_err(|problem| Error::malformed(dir.join("upgrade.pub"), problem.to_string()))?;
        let tools = Tools::signing(cache, &project.join("image/locks"), Versions::Locked, say)?;
        let signing = Self { dir, tools, owner, microsoft, upgrade_keys, security_version: SECURITY_VERSION };
        // A machine would refuse everything that is made with a key it does not know, which is better known now.
        if !keys.iter().any(|key| signing.manifest(b"").is_ok_and(|signature| key.verifies(b"", &signature))) {
            return Err(Error::malformed(signing.dir.join("upgrade.key"), "it is none of the keys in upgrade.pub"));
        }
        Ok(signing)
    }

    /// Signs images as this security version.
    pub fn as_security_version(self, security_version: u32) -> Self {
        Self { security_version, ..self }
    }

    /// The keys whose upgrade files the image shall take, in PEM.
    pub fn upgrade_keys(&self) -> &str {
        &self.upgrade_keys
    }

    /// Adds what the image depends on.
    pub fn add_to(&self, inputs: &mut digest::Inputs) -> Result<(), Error> {
        for name in PUBLIC {
            inputs.add(name, &digest::of_file(&self.dir.join(name))?);
        }
        if let Some(key) = self.measured_key() {
            inputs.add(MEASURED.0, &digest::of_file(&key)?);
            inputs.add("security version", &self.security_version.to_be_bytes());
        }
        inputs.add("microsoft", &[u8::from(self.microsoft)]);
        Ok(())
    }

    /// Signs a program for the firmware, and checks that the certificate vouches for it.
    pub fn program(&self, program: &Path, out: &Path) -> Result<(), Error> {
        let (key, certificate) = (self.dir.join("db.key"), self.dir.join("db.pem"));
        run(self.tools.command("sbsign")?.arg("--key").arg(&key).arg("--cert").arg(&certificate).arg("--output").arg(out).arg(program))?;
        run(self.tools.command("sbverify")?.arg("--cert").arg(&certificate).arg(out)).map(drop)
    }

    /// The signature of an upgrade's manifest.
    pub fn manifest(&self, text: &[u8]) -> Result<Vec<u8>, Error> {
        let file = self.dir.join("upgrade.key");
        let key = SigningKey::from_pem(&read(&file)?).map_err(|problem| Error::malformed(&file, problem.to_string()))?;
        Ok(key.sign(text))
    }

    /// The public key of measurements, if there is one.
    pub fn measured_key(&self) -> Option<PathBuf> {
        let (public, private) = (self.dir.join(MEASURED.0), self.dir.join(MEASURED.1));
        (public.is_file() && private.is_file()).then_some(public)
    }

    /// The content of `.pcrsig` of a kernel image: the signature of what PCR 11 holds once it was started.
    pub fn measurements(&self, uki: &Path) -> Result<String, Error> {
        let private = self.dir.join(MEASURED.1);
        let key = pki::pem::private_key(&read(&private)?).map_err(|problem| Error::malformed(&private, problem.to_string()))?;
        let spki = self.measured_public()?;
        let image = std::fs::read(uki).on("read", uki)?;
        let pcr = measured::pcr(&image).map_err(|problem| Error::malformed(uki, problem))?;
        measured::signatures(&pcr, self.security_version, &spki, key.secret_der()).map_err(|problem| Error::malformed(&private, problem))
    }

    /// What the measurements of a kernel image say that is signed with these keys, for those who have not read it yet.
    pub fn measured(&self) -> Result<Option<Measured>, Error> {
        if self.measured_key().is_none() {
            return Ok(None);
        }
        let signer = verity::Digest(tpm::policy::hash(&[&self.measured_public()?]));
        Ok(Some(Measured { signer, security_version: self.security_version }))
    }

    fn measured_public(&self) -> Result<Vec<u8>, Error> {
        let public = self.dir.join(MEASURED.0);
        pki::pem::public_key(&read(&public)?).map_err(|problem| Error::malformed(&public, problem.to_string()))
    }

    /// What systemd-boot on the medium is told besides, and for how long it shows its menu, if that matters. Where Microsoft's certificates are enrolled too, no device loses what its option ROM does, so the
    /// keys are enrolled wherever the firmware is in setup mode; otherwise only in virtual machines, and people choose it in the menu.
    pub fn loader_conf(&self) -> (String, Option<u32>) {
        let (enroll, seconds) = if self.microsoft { ("force", None) } else { ("if-safe", Some(5)) };
        (format!("secure-boot-enroll {enroll}\n"), seconds)
    }

    /// The variables that systemd-boot writes to a firmware in setup mode: path on the medium, file. Each is signed as the firmware wants it
    /// also later: PK and KEK by PK, db by KEK.
    pub fn enrolment(&self, scratch: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
        let (kek, db) = if self.microsoft { (MICROSOFT_KEK, MICROSOFT_DB) } else { (&[][..], &[][..]) };
        let mut files = Vec::new();
        for (name, vendor, signer, others) in [("PK", GLOBAL, "PK", &[][..]), ("KEK", GLOBAL, "PK", kek), ("db", IMAGE_SECURITY, "KEK", db)]
        {
            let mut certificates = vec![(self.owner, der(&self.dir.join(format!("{name}.pem")))?)];
            for other in others {
                certificates.push((MICROSOFT, der(&self.tools.file(&format!("{MICROSOFT_DIR}/{other}"))?)?));
            }
            let out = scratch.join(format!("{name}.auth"));
            let content = lists::render(&certificates).ok_or_else(|| Error::malformed(&out, "a certificate is too long"))?;
            let key_file = self.dir.join(format!("{signer}.key"));
            let key = pki::pem::private_key(&read(&key_file)?).map_err(|problem| Error::malformed(&key_file, problem.to_string()))?;
            let signer = Signer { certificate: &der(&self.dir.join(format!("{signer}.pem")))?, key: key.secret_der() };
            let write = variable::write(&Variable { name, vendor, content: &content }, &signer, Timestamp::now());
            std::fs::write(&out, write.map_err(|problem| Error::malformed(&key_file, problem))?).on("write", &out)?;
            files.push((format!("loader/keys/auto/{name}.auth"), out));
        }
        Ok(files)
    }
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).on("read", file)
}

/// The first certificate of a file in PEM.
fn der(file: &Path) -> Result<Vec<u8>, Error> {
    let found = pki::pem::certificates(&read(file)?).map_err(|problem| Error::malformed(file, problem.to_string()))?;
    found.first().map(|certificate| certificate.to_vec()).ok_or_else(|| Error::malformed(file, "there is no certificate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_keys_says_where_they_come_from() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = Cache::at(scratch.path().join("cache")).unwrap();
        for name in &FILES[..5] {
            std::fs::write(scratch.path().join(name), "").unwrap();
        }
        let error = Signing::prepare(&cache, scratch.path(), scratch.path(), true, &|_| {}).unwrap_err().to_string();
        assert!(error.contains(FILES[5]) && error.contains("strakectl gen secureboot-keys"), "{error}");
    }
}
