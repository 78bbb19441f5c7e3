//! Which images open volumes whose keys a TPM keeps, as far as it can be told before the image was started: what the image says of its signed
//! measurements, and what the keys were sealed for. The TPM decides in the end; this is for people who are about to start the image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use verity::Digest;

/// What an image's signed measurements say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// The hash of the public key that they are signed with.
    pub signer: Digest,
    /// The image's security version.
    pub security_version: u32,
}

/// One key of a volume that a TPM keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedKey {
    /// The hash of the public key whose images get it.
    pub signer: Digest,
    /// The oldest security version that gets it now.
    pub lowest: u32,
    /// The newest one.
    pub highest: u32,
}

/// A volume that opens without a person when the TPM gives one of these keys, and in no other way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedVolume {
    /// Its name.
    pub label: String,
    /// The keys.
    pub keys: Vec<SealedKey>,
}

/// Which volumes an image would not open, and why, in one sentence; nothing when it opens all of them. Without `image` it has no signed measurements.
pub fn locked(image: Option<&Measured>, volumes: &[SealedVolume]) -> Option<String> {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for volume in volumes {
        let problems: Vec<String> = volume.keys.iter().filter_map(|key| problem(image, key)).collect();
        if problems.len() == volume.keys.len() {
            let mut unequal = problems;
            unequal.dedup();
            reasons.entry(unequal.join("; ")).or_default().push(&volume.label);
        }
    }
    let told = reasons.iter().map(|(why, labels)| format!("{} would stay locked until a person opens them: {why}", labels.join(", ")));
    (!reasons.is_empty()).then(|| told.collect::<Vec<_>>().join("; "))
}

/// Why an image does not get a key.
fn problem(image: Option<&Measured>, key: &SealedKey) -> Option<String> {
    let Some(Measured { signer, security_version }) = image else {
        return Some("the image carries no signed measurements, so the TPM gives it no key".to_owned());
    };
    let (lowest, highest) = (key.lowest, key.highest);
    match security_version {
        _ if *signer != key.signer => {
            Some("the image is signed with another pcr.key than the one that the TPM gives the keys to".to_owned())
        }
        version if *version < lowest => Some(format!(
            "the image is below the floor: its security version is {version}, and this machine's TPM gives the keys from {lowest} on"
        )),
        version if *version > highest => Some(format!(
            "the keys were sealed for security versions up to {highest}, and the image's is {version}; `strakectl unlock --reseal` first"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Digest = Digest([1; 32]);

    fn volume(label: &str, keys: &[(Digest, u32, u32)]) -> SealedVolume {
        let keys = keys.iter().map(|(signer, lowest, highest)| SealedKey { signer: *signer, lowest: *lowest, highest: *highest });
        SealedVolume { label: label.into(), keys: keys.collect() }
    }

    #[test]
    fn an_image_opens_what_its_signer_and_security_version_allow() {
        let image = |signer: Digest, security_version| Some(Measured { signer, security_version });
        let both = [volume("STATE", &[(OURS, 3, 66)]), volume("DATA", &[(OURS, 3, 66)])];
        let either = [volume("STATE", &[(Digest([2; 32]), 1, 64), (OURS, 3, 66)])];
        for (image, volumes, expected) in [
            (image(OURS, 3), &both[..], ""),
            (image(OURS, 66), &both, ""),
            (
                image(OURS, 2),
                &both,
                "STATE, DATA would stay locked until a person opens them: the image is below the floor: its security version is 2",
            ),
            (image(OURS, 2), &both[1..], "DATA would"),
            (image(OURS, 67), &both, "up to 66"),
            (image(Digest([9; 32]), 3), &both, "another pcr.key"),
            (None, &both, "no signed measurements"),
            (None, &[], ""),
            // One key that is given is enough.
            (image(OURS, 3), &either, ""),
            (image(Digest([2; 32]), 9), &either, ""),
            (image(OURS, 2), &either, "another pcr.key than the one that the TPM gives the keys to; the image is below the floor"),
        ] {
            let told = locked(image.as_ref(), volumes).unwrap_or_default();
            assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{told:?}, not {expected:?}");
        }
    }
}
