//! Whose upgrade files this machine takes: those signed with a key that the running image was built with. The keys are part of the verified
//! root. An image without keys takes files without a signature, and looks at none.

use std::io::ErrorKind;
use std::path::Path;

use pki::VerifyingKey;

use super::UpgradeError;

/// The keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    keys: Vec<VerifyingKey>,
}

impl Trust {
    /// Those of the image. A file that is there and cannot be understood is an error: it never means that anything is taken.
    pub fn read(file: &Path) -> Result<Trust, UpgradeError> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Trust::default()),
            Err(error) => return Err(UpgradeError::ReadKeys(error)),
        };
        Ok(Trust { keys: VerifyingKey::all_from_pem(&text)? })
    }

    /// The keys' fingerprints.
    pub fn fingerprints(&self) -> Vec<String> {
        self.keys.iter().map(VerifyingKey::fingerprint).collect()
    }

    /// Who is believed, in words.
    pub fn words(&self) -> String {
        match self.keys.is_empty() {
            true => "not looked at: this image was built without keys and takes any file".to_owned(),
            false => format!("by a key of this image ({})", self.fingerprints().join(", ")),
        }
    }

    /// Whether a manifest, as its bytes are, is to be believed.
    pub fn check(&self, manifest: &[u8], signature: Option<&[u8]>) -> Result<(), UpgradeError> {
        match (self.keys.is_empty(), signature) {
            (true, _) => Ok(()),
            (false, None) => Err(UpgradeError::Unsigned(self.fingerprints().join(", "))),
            (false, Some(signature)) if self.keys.iter().any(|key| key.verifies(manifest, signature)) => Ok(()),
            (false, Some(_)) => Err(UpgradeError::WrongSignature(self.fingerprints().join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use pki::SigningKey;

    use super::*;

    #[test]
    fn an_image_with_keys_takes_what_they_signed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.pem");
        assert!(Trust::read(&file).unwrap().check(b"m", None).is_ok(), "an image without keys");
        let (old, new, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        std::fs::write(&file, format!("{}{}", old.public_pem(), new.public_pem())).unwrap();
        let trust = Trust::read(&file).unwrap();
        assert_eq!(trust.fingerprints().len(), 2);
        for key in [&old, &new] {
            assert!(trust.check(b"m", Some(&key.sign(b"m"))).is_ok());
        }
        let told = |signature: Option<&[u8]>| trust.check(b"m", signature).unwrap_err().to_string();
        assert!(told(None).contains("is not signed"));
        for bad in [other.sign(b"m"), old.sign(b"n"), old.sign(b"m")[1..].to_vec(), Vec::new()] {
            assert!(told(Some(&bad)).contains("no key of this image"), "{bad:?}");
        }
    }

    #[test]
    fn a_key_file_that_is_none_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.pem");
        std::fs::write(&file, "").unwrap();
        assert!(Trust::read(&file).is_err());
        assert!(Trust::read(dir.path()).is_err());
    }
}
