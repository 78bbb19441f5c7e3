//! What a kernel image measures, and its signature: systemd-stub extends PCR 11 by the name and the content of each section it uses, before the
//! kernel runs (the UAPI group's Unified Kernel Image specification, "PCR measurements"). Whoever has the key of these signatures decides what a machine's TPM gives the keys of
//! its disks to. ukify makes the same, but only by systemd-measure with a TPM library that is not needed for it, and only for the phases that systemd
//! itself extends the PCR by; here it is what stands there when init starts.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use slots::kernel_image;
use tpm::floor::reference;
use tpm::policy::{self, Digest, EMPTY};

/// The sections that are measured, in the order in which they are. `.pcrsig` cannot be, for it is made of the others.
const SECTIONS: &[&str] = &[
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto", ".hwids",
];

/// What PCR 11 holds after this image was started.
pub fn pcr(image: &[u8]) -> Result<Digest, String> {
    const NONE: &str = "it is not an image that the firmware starts";
    let sections = kernel_image::sections(image).ok_or(NONE)?;
    let mut pcr = EMPTY;
    for name in SECTIONS {
        let Some(section) = sections.iter().find(|section| section.name == *name) else { continue };
        let content = content(image, section).ok_or(NONE)?;
        let terminated = [name.as_bytes(), &[0]].concat();
        for event in [&terminated[..], content] {
            pcr = policy::extend(&pcr, &policy::hash(&[event]));
        }
    }
    Ok(pcr)
}

fn content<'a>(image: &'a [u8], section: &kernel_image::Section) -> Option<&'a [u8]> {
    let start = usize::try_from(section.start).ok()?;
    image.get(start..start.checked_add(usize::try_from(section.size).ok()?)?)
}

/// The content of `.pcrsig`, in systemd's form. `pol` is the policy that is signed, `pkfp` the hash of the public key. The signature is for one security
/// version, which is what a TPM compares its floor with ([`tpm::floor`]).
pub fn signatures(pcr: &Digest, security_version: u32, public: &[u8], private: &[u8]) -> Result<String, String> {
    if tpm::PublicKey::from_spki(public).is_none() {
        return Err("pcr.pub is not a key of ECDSA on P-256".to_owned());
    }
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private)
        .map_err(|problem| format!("it is not a key of ECDSA on P-256: {problem}"))?;
    let approved = policy::pcr(&EMPTY, &[tpm::PCR_SYSTEM], &[*pcr]);
    let signature = key
        .sign(&SystemRandom::new(), &policy::to_sign(&approved, &reference(security_version)))
        .map_err(|_| "the key does not sign".to_owned())?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let entry = json!({
        "pcrs": [tpm::PCR_SYSTEM], "pkfp": hex(&policy::hash(&[public])), "pol": hex(&approved), "sig": STANDARD.encode(signature.as_ref()),
        "securityVersion": security_version,
    });
    Ok(json!({"sha256": [entry]}).to_string())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use proptest::prelude::*;

    use super::*;

    /// A file with these sections.
    fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[0x3c] = 0x40;
        file.extend(b"PE\0\0\x64\x86");
        file.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
        file.extend([0; 16]);
        let mut start = file.len() + sections.len() * 40;
        let mut contents = Vec::new();
        for (name, content) in sections {
            let mut header = [0; 40];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let padded = content.len().next_multiple_of(16);
            header[8..12].copy_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
            header[16..20].copy_from_slice(&u32::try_from(padded).unwrap().to_le_bytes());
            header[20..24].copy_from_slice(&u32::try_from(start).unwrap().to_le_bytes());
            file.extend(header);
            contents.extend(*content);
            contents.resize(contents.len().next_multiple_of(16), 0xff);
            start += padded;
        }
        file.extend(contents);
        file
    }

    #[test]
    fn pcr_11_is_what_systemd_measure_computes() {
        // `systemd-measure calculate --linux= --osrel= --phase= --bank=sha256` of version 257, with these contents.
        let file = image(&[(".osrel", b"os\n"), (".text", b"code"), (".linux", b"hi\n"), (".pcrsig", b"not measured")]);
        let hex: String = pcr(&file).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "835d46c53288b8df9d595cc136568bdf716782d00d46190f6cb7c012b6db1679");
    }

    #[test]
    fn a_signature_names_its_key_and_its_policy() {
        let key = pki::PrivateKey::generate().unwrap();
        let (public, private) = (pki::pem::public_key(&key.public_pem()).unwrap(), pki::pem::private_key(&key.to_pem()).unwrap());
        let text = signatures(&[7; 32], 3, &public, private.secret_der()).unwrap();
        let entry: serde_json::Value = serde_json::from_str::<serde_json::Value>(&text).unwrap()["sha256"][0].clone();
        assert_eq!((&entry["pcrs"], &entry["securityVersion"]), (&json!([11]), &json!(3)));
        assert_eq!((entry["pol"].as_str().unwrap().len(), entry["pkfp"].as_str().unwrap().len()), (64, 64));
        let signature = STANDARD.decode(entry["sig"].as_str().unwrap()).unwrap();
        let approved = policy::pcr(&EMPTY, &[tpm::PCR_SYSTEM], &[[7; 32]]);
        let verified = |version: u32| {
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &public[26..]);
            key.verify(&policy::to_sign(&approved, &reference(version)), &signature).is_ok()
        };
        assert_eq!([2, 3, 4].map(verified), [false, true, false], "for one security version");
        assert!(signatures(&[7; 32], 3, &public[1..], private.secret_der()).is_err());
    }

    proptest! {
        #[test]
        fn a_file_of_anything_is_refused_or_measured(mut file in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = pcr(&file);
            if file.len() > 0x44 {
                file[0x3c..0x44].copy_from_slice(b"\x40\0\0\0PE\0\0");
                let _ = pcr(&file);
            }
        }
    }
}
