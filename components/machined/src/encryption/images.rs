//! What can be said of an image before it is started: what its signed measurements say, and what the volumes' keys in the TPM are sealed for. Whether it
//! opens the volumes is decided in `slots::sealed`, and in the end by the TPM.

use std::io::{self, Read, Seek, SeekFrom};

use slots::kernel_image::{HEAD, Section, sections};
use slots::sealed::{Measured, SealedKey, SealedVolume};
use tpm::policy;
use verity::Digest;

use super::metadata::Token;
use super::sealed::{self, MOST, SealError};
use super::volume::VOLUMES;
use super::{is_encrypted, luks};
use crate::api::chain;
use crate::machine::Disks;
use crate::paths::Paths;

/// What a kernel image's signed measurements say; nothing when it has none that can be read.
pub fn measured_of<R: Read + Seek + ?Sized>(image: &mut R) -> io::Result<Option<Measured>> {
    let mut head = Vec::new();
    image.take(HEAD as u64).read_to_end(&mut head)?;
    let sections = sections(&head).unwrap_or_default();
    let mut content = |name: &str| -> io::Result<Option<Vec<u8>>> {
        let Some(Section { start, size, .. }) = sections.iter().find(|section| section.name == name) else { return Ok(None) };
        let mut content = Vec::new();
        image.seek(SeekFrom::Start(*start))?;
        image.take((*size).min(MOST)).read_to_end(&mut content)?;
        Ok(Some(content))
    };
    let (Some(key), Some(signatures)) = (content(".pcrpkey")?, content(".pcrsig")?) else { return Ok(None) };
    // The key's text ends where the section's padding begins.
    let key = String::from_utf8_lossy(&key).trim_end_matches('\0').to_owned();
    let signatures = String::from_utf8_lossy(&signatures).trim_end_matches('\0').to_owned();
    let Some(found) = sealed::Measured::parse(&key, signatures.as_bytes()) else { return Ok(None) };
    let signer = Digest(policy::hash(&[&found.signer]));
    Ok(found.version().map(|security_version| Measured { signer, security_version }))
}

/// The volumes that only keys in the TPM open without a person; nothing when there are none, or why they are not known. `user`: the partitions' names of
/// volumes on other disks, of which those that are plugged in count. Blocks.
pub fn sealed_volumes(paths: &Paths, disks: &dyn Disks, user: &[String]) -> Option<Result<Vec<SealedVolume>, String>> {
    let mut headers = Vec::new();
    for label in VOLUMES.into_iter().chain(user.iter().map(String::as_str)) {
        let header = || {
            let found = match VOLUMES.contains(&label) {
                true => disks.system_partition(label).map(|found| found.map(|(device, _)| device)),
                false => disks.labelled(label).map(|found| found.into_iter().next().map(|(_, device)| device)),
            };
            let Some(device) = found.map_err(|error| chain(&error))? else { return Ok(None) };
            if !is_encrypted(&device).map_err(|error| chain(&error))? {
                return Ok(None);
            }
            luks::metadata(&device).map(|header| Some(header.tokens())).map_err(|error| chain(&error))
        };
        match header() {
            Ok(None) => {}
            Ok(Some(tokens)) => headers.push((label, tokens.into_iter().map(|(_, token)| token).collect())),
            Err(reason) => return Some(Err(format!("{label}: {reason}"))),
        }
    }
    let counter = || {
        let found = sealed::machine_tpm(paths).and_then(|mut tpm| Ok(tpm.read_counter(tpm::floor::COUNTER)?));
        found.and_then(|counter| counter.ok_or(SealError::NoCounter)).map_err(|error| chain(&error))
    };
    sealed_in(&headers, counter)
}

/// Of these volumes' tokens. The TPM is asked only when something depends on it.
fn sealed_in(headers: &[(&str, Vec<Token>)], counter: impl FnOnce() -> Result<u64, String>) -> Option<Result<Vec<SealedVolume>, String>> {
    let only_by_tpm = |tokens: &[Token]| {
        let has = |wanted: fn(&Token) -> bool| tokens.iter().any(wanted);
        has(|token| matches!(token, Token::Tpm2(_))) && !has(|token| matches!(token, Token::KeyFile { .. }))
    };
    let volumes: Vec<_> = headers.iter().filter(|(_, tokens)| only_by_tpm(tokens)).collect();
    if volumes.is_empty() {
        return None;
    }
    let counter = match counter() {
        Ok(counter) => counter,
        Err(reason) => return Some(Err(reason)),
    };
    let key = |token: &Token| {
        let Token::Tpm2(token) = token else { return None };
        let highest = token.version.saturating_add(tpm::floor::SPAN - 1);
        Some(SealedKey { signer: Digest(policy::hash(&[&token.signer])), lowest: token.floor().lowest(counter), highest })
    };
    let volume =
        |(label, tokens): &&(&str, Vec<Token>)| SealedVolume { label: (*label).to_owned(), keys: tokens.iter().filter_map(key).collect() };
    Some(Ok(volumes.iter().map(volume).collect()))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::metadata::TpmToken;
    use super::*;
    use crate::testing::kernel_image;

    #[test]
    fn an_image_says_who_signed_it_as_which_security_version() {
        let key = pki::PrivateKey::generate().unwrap().public_pem();
        let signer = policy::hash(&[&pki::pem::public_key(&key).unwrap()]);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let signature = |signer: &[u8], version: u32| {
            let (pkfp, pol, sig) = (hex(signer), hex(&[1; 32]), "A".repeat(86) + "==");
            format!(
                "{{\"sha256\":[{{\"pcrs\":[11],\"pkfp\":\"{pkfp}\",\"pol\":\"{pol}\",\"sig\":\"{sig}\",\"securityVersion\":{version}}}]}}"
            )
        };
        let (ours, others) = (signature(&signer, 7), signature(&[9; 32], 7));
        let kernel = (".linux", &[5; 5000][..]);
        for (sections, expected) in [
            (vec![kernel, (".pcrpkey", key.as_bytes()), (".pcrsig", ours.as_bytes())], Some(7)),
            (vec![(".pcrsig", ours.as_bytes()), (".pcrpkey", key.as_bytes())], Some(7)),
            // A signature that is not of the key that the image carries.
            (vec![(".pcrpkey", key.as_bytes()), (".pcrsig", others.as_bytes())], None),
            (vec![kernel, (".pcrpkey", key.as_bytes())], None),
            (vec![kernel], None),
        ] {
            let found = measured_of(&mut Cursor::new(kernel_image(&sections))).unwrap();
            assert_eq!(found, expected.map(|security_version| Measured { signer: Digest(signer), security_version }), "{sections:?}");
        }
        assert_eq!(measured_of(&mut Cursor::new(b"no kernel image")).unwrap(), None);
    }

    #[test]
    fn what_opens_without_the_tpm_does_not_depend_on_the_image() {
        let keyslots = vec!["0".to_owned()];
        let sealed = |version| {
            let (keyslots, pcrs) = (keyslots.clone(), vec![7]);
            Token::Tpm2(TpmToken { keyslots, private: vec![], public: vec![], pcrs, signer: vec![4], counter: 90, version })
        };
        let (keyslots, volume, path) = (keyslots.clone(), "KEYS".to_owned(), "key".to_owned());
        let (recovery, file) = (Token::Recovery { keyslots: keyslots.clone() }, Token::KeyFile { keyslots, volume, path });
        let never = || -> Result<u64, String> { panic!("nobody asks the TPM") };
        assert_eq!(sealed_in(&[], never), None);
        assert_eq!(sealed_in(&[("STATE", vec![recovery.clone()]), ("DATA", vec![sealed(2), file.clone()])], never), None);

        let headers = [("STATE", vec![recovery, sealed(2)]), ("DATA", vec![sealed(2), file])];
        let key = SealedKey { signer: Digest(policy::hash(&[&[4]])), lowest: 5, highest: 65 };
        assert_eq!(sealed_in(&headers, || Ok(93)), Some(Ok(vec![SealedVolume { label: "STATE".into(), keys: vec![key] }])));
        assert_eq!(sealed_in(&headers, || Err("no TPM".to_owned())), Some(Err("no TPM".to_owned())));
    }
}
