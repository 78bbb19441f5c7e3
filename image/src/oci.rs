//! A tree as an OCI image archive with one layer (image-spec 1.1: `oci-layout`, `index.json`, `blobs/sha256/…` in a tar file), as
//! containerd imports it. Dates are zero and names sorted, so equal inputs give equal bytes.

use serde_json::{Value, json};

use crate::digest;
use crate::error::Error;
use crate::tree::{Entry, Tree};

/// What an image runs and is called.
#[derive(Clone, Debug)]
pub struct ImageSpec<'a> {
    /// Full reference, registry name and tag included.
    pub reference: &'a str,
    /// The command.
    pub entrypoint: &'a [&'a str],
    /// `uid:gid` of the process.
    pub user: &'a str,
    /// Environment, `NAME=value`.
    pub env: &'a [&'a str],
}

/// The archive's bytes.
pub fn archive(spec: &ImageSpec<'_>, tree: &Tree) -> Result<Vec<u8>, Error> {
    let layer = tar_of(tree)?;
    let config = blob(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": spec.entrypoint, "User": spec.user, "Env": spec.env, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(&layer)]},
    }));
    let manifest = blob(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }));
    let tag = spec.reference.rsplit(':').next().unwrap_or("latest");
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": spec.reference, "org.opencontainers.image.ref.name": tag});
    entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let index = blob(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }));
    let mut files = Tree::default();
    files.file("oci-layout", blob(&json!({"imageLayoutVersion": "1.0.0"})), 0o644);
    files.file("index.json", index, 0o644);
    for content in [layer, config, manifest] {
        files.file(&format!("blobs/sha256/{}", digest::hex(&digest::of_bytes(&content))), content, 0o644);
    }
    tar_of(&files)
}

fn blob(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest_of(content: &[u8]) -> String {
    format!("sha256:{}", digest::hex(&digest::of_bytes(content)))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest_of(content), "size": content.len()})
}

fn tar_of(tree: &Tree) -> Result<Vec<u8>, Error> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, entry) in tree.entries() {
        let mut header = tar::Header::new_ustar();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let content = Tree::content(entry)?.unwrap_or_default();
        let added = match entry {
            Entry::Dir { mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                builder.append_data(&mut header, format!("{path}/"), &[][..])
            }
            Entry::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, path, target)
            }
            Entry::Copy { mode, .. } | Entry::File { mode, .. } => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, &content[..])
            }
        };
        added.map_err(|source| Error::File { action: "add to a tar archive", path: path.into(), source })?;
    }
    builder.into_inner().map_err(|source| Error::File { action: "finish", path: "a tar archive".into(), source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    #[test]
    fn every_descriptor_points_at_a_blob_of_its_hash_and_size() {
        let mut tree = Tree::default();
        tree.file("pause", "program", 0o755);
        tree.link("bin", "usr/bin");
        let spec = ImageSpec { reference: "strake.dev/stub:v1", entrypoint: &["/pause"], user: "65535:65535", env: &[] };
        let bytes = archive(&spec, &tree).unwrap();
        assert_eq!(bytes, archive(&spec, &tree).unwrap());

        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        let follow = |descriptor: &Value| {
            let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = &files[&format!("blobs/sha256/{hash}")];
            assert_eq!(digest::hex(&digest::of_bytes(content)), hash);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "strake.dev/stub:v1");
        let manifest: Value = serde_json::from_slice(&follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/pause");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        follow(&manifest["layers"][0]);
    }
}
