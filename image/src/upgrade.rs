//! The upgrade file: what a machine that is installed already takes (the crate `slots` says what it consists of). Dates are zero, so equal
//! inputs give equal bytes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use slots::fields::Fields;
use slots::manifest::{ARCHITECTURE, FORMAT, MEMBERS, MOST, Manifest, SIGNATURE};
use slots::record::System;

use crate::digest;
use crate::error::{Error, FileContext};
use crate::signing::Signing;

/// What goes into it.
#[derive(Clone, Copy, Debug)]
pub struct UpgradeInputs<'a> {
    /// Strake's version.
    pub version: &'a str,
    /// The Kubernetes version of its components.
    pub kubernetes: &'a str,
    /// The kernel's release.
    pub kernel: &'a str,
    /// The root with its hash tree.
    pub root: &'a Path,
    /// What the root is verified against.
    pub verity: verity::Parameters,
    /// The kernel image.
    pub uki: &'a Path,
    /// The JSON Schema of the machine config that it reads.
    pub config_schema: &'a Path,
    /// Who signs it.
    pub signing: Option<&'a Signing>,
}

/// Writes the file.
pub fn write(inputs: &UpgradeInputs<'_>, out: &Path) -> Result<(), Error> {
    let size = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len()).on("look at", path);
    let system = System { version: inputs.version.to_owned(), kubernetes: inputs.kubernetes.to_owned(), root: inputs.verity };
    let schema = std::fs::read(inputs.config_schema).on("read", inputs.config_schema)?;
    let schema = serde_json::from_slice(&schema).map_err(|problem| Error::malformed(inputs.config_schema, problem.to_string()))?;
    let manifest = Manifest {
        format: FORMAT,
        architecture: ARCHITECTURE.to_owned(),
        system,
        kernel: inputs.kernel.to_owned(),
        uki_bytes: size(inputs.uki)?,
        uki_sha256: verity::Digest(digest::of_file(inputs.uki)?),
        config: Some(Fields::of_schema(&schema)),
        measured: inputs.signing.map(Signing::measured).transpose()?.flatten(),
    };
    let text = serde_json::to_vec(&manifest).map_err(|problem| Error::malformed(MEMBERS[0], problem.to_string()))?;
    if text.len() as u64 > MOST {
        return Err(Error::malformed(MEMBERS[0], format!("it has {} bytes, and machines read no more than {MOST}", text.len())));
    }
    let mut archive = tar::Builder::new(File::create(out).on("create", out)?);
    let mut append = |name: &str, bytes: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content).on("write", out)
    };
    append(MEMBERS[0], text.len() as u64, &mut &text[..])?;
    if let Some(signing) = inputs.signing {
        let signature = signing.manifest(&text)?;
        append(SIGNATURE, signature.len() as u64, &mut &signature[..])?;
    }
    for (name, path) in [(MEMBERS[1], inputs.root), (MEMBERS[2], inputs.uki)] {
        append(name, size(path)?, &mut File::open(path).on("open", path)?)?;
    }
    archive.into_inner().and_then(|mut file| file.flush()).on("finish", out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_in_their_order_and_the_manifest_is_about_them() {
        let dir = tempfile::tempdir().unwrap();
        let (root, uki, out) = (dir.path().join("root"), dir.path().join("uki"), dir.path().join("out"));
        std::fs::write(&root, vec![5; 3 * 4096]).unwrap();
        std::fs::write(&uki, b"kernel").unwrap();
        let verity = verity::Parameters::new(verity::Digest([1; 32]), verity::Digest([2; 32]), 2).unwrap();
        let config_schema = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/machine-config.schema.json");
        let (version, kubernetes, kernel) = ("1.2.3", "v1.36.2", "6.12");
        let inputs = UpgradeInputs { version, kubernetes, kernel, root: &root, verity, uki: &uki, config_schema, signing: None };
        write(&inputs, &out).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            if names.len() == 1 {
                let mut text = Vec::new();
                entry.read_to_end(&mut text).unwrap();
                let manifest = slots::manifest::read(&text).unwrap();
                assert_eq!((manifest.system.version.as_str(), manifest.uki_bytes), ("1.2.3", 6));
                assert_eq!(manifest.uki_sha256.0, digest::of_bytes(b"kernel"));
                let known = serde_json::json!({"apiVersion": "strake.dev/v1alpha1", "kind": "HostnameConfig", "hostname": "a"});
                let unknown = serde_json::json!({"apiVersion": "strake.dev/v1alpha1", "kind": "HostnameConfig", "nickname": "a"});
                assert_eq!(manifest.config.unwrap().unknown(&[known, unknown]), ["HostnameConfig.nickname"]);
                assert_eq!(entry.header().mtime().unwrap(), 0);
            }
        }
        assert_eq!(names, MEMBERS);
        write(&inputs, &out).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), bytes);
    }
}
