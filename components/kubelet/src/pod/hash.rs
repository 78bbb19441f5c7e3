//! Stable identities: the hash of a container's definition and the UID of a static pod.

use crate::model::pod::Container;
use sha2::{Digest, Sha256};

/// FNV-1a over 32 bits.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The hash kept on a running container. Only a change of name or image needs a new container: everything else in a running
/// container's definition cannot change, or changes in place.
pub fn container_hash(container: &Container) -> String {
    let picked = serde_json::json!({ "image": container.image, "name": container.name });
    format!("{:x}", fnv32a(picked.to_string().as_bytes()))
}

/// The UID of a static pod: the same manifest in the same file on the same node always gets the same UID, any change another.
pub fn static_pod_uid(manifest: &serde_json::Value, node: &str, source: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("host:{node}\nfile:{source}\n"));
    digest.update(manifest.to_string());
    digest.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_matches_its_published_vectors() {
        assert_eq!((fnv32a(b""), fnv32a(b"a"), fnv32a(b"foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    }

    #[test]
    fn only_name_and_image_change_the_hash() {
        let a = Container { name: "c".into(), image: "i:1".into(), ..Default::default() };
        let b = Container { args: vec!["x".into()], ..a.clone() };
        let c = Container { image: "i:2".into(), ..a.clone() };
        assert_eq!(container_hash(&a), container_hash(&b));
        assert_ne!(container_hash(&a), container_hash(&c));
    }
}
