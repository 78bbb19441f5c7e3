//! Writes to a variable of the firmware that carry their own permission (UEFI 2.10, section 8.2.2, `EFI_VARIABLE_AUTHENTICATION_2`): a time, a
//! signature (a PKCS#7 SignedData without the content, RFC 2315) over name, owner, attributes, time and content, and the content.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::{Uuid, uuid};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Kept without power, reachable before and after the firmware has handed over, and changed only by a newer signed write.
const ATTRIBUTES: u32 = 0x01 | 0x02 | 0x04 | 0x20;
/// The signature is PKCS#7.
const PKCS7: Uuid = uuid!("4aafd29d-68df-49ee-8aa9-347d375665a7");
const REVISION: u16 = 0x0200;
const EFI_GUID: u16 = 0x0ef1;

const SHA256: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const NULL: &[u8] = &[0x05, 0x00];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const CONTEXT_0: u8 = 0xa0;

/// Which variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whose it is.
    pub vendor: Uuid,
    /// What it becomes.
    pub content: &'a [u8],
}

/// Who permits the write: a certificate in DER and its RSA key as PKCS#8 in DER.
#[derive(Clone, Copy)]
pub struct Signer<'a> {
    /// The certificate.
    pub certificate: &'a [u8],
    /// The key.
    pub key: &'a [u8],
}

/// The bytes of the write.
pub fn write(variable: &Variable<'_>, signer: &Signer<'_>, now: Timestamp) -> Result<Vec<u8>, String> {
    let time = efi_time(now);
    let mut message: Vec<u8> = variable.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    message.extend(variable.vendor.to_bytes_le());
    message.extend(ATTRIBUTES.to_le_bytes());
    message.extend(time);
    message.extend(variable.content);
    let signature = signed_data(&message, signer)?;

    let mut out = time.to_vec();
    let length = u32::try_from(4 + 2 + 2 + 16 + signature.len()).map_err(|_| "the signature is too long".to_owned())?;
    out.extend(length.to_le_bytes());
    out.extend(REVISION.to_le_bytes());
    out.extend(EFI_GUID.to_le_bytes());
    out.extend(PKCS7.to_bytes_le());
    out.extend(signature);
    out.extend(variable.content);
    Ok(out)
}

/// `EFI_TIME` in UTC: to the second, everything else zero.
fn efi_time(now: Timestamp) -> [u8; 16] {
    let now = now.to_zoned(TimeZone::UTC);
    let mut time = [0; 16];
    time[..2].copy_from_slice(&now.year().to_le_bytes());
    for (place, value) in time[2..].iter_mut().zip([now.month(), now.day(), now.hour(), now.minute(), now.second()]) {
        *place = value.unsigned_abs();
    }
    time
}

/// One signer, SHA-256 with RSA, no attributes.
fn signed_data(message: &[u8], signer: &Signer<'_>) -> Result<Vec<u8>, String> {
    let (_, certificate) = X509Certificate::from_der(signer.certificate).map_err(|problem| problem.to_string())?;
    let key = RsaKeyPair::from_pkcs8(signer.key).map_err(|problem| format!("it is not an RSA key: {problem}"))?;
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map_err(|_| "the key does not sign".to_owned())?;

    let digest = tlv(SEQUENCE, &[SHA256, NULL]);
    let issuer = tlv(SEQUENCE, &[certificate.issuer().as_raw(), &tlv(INTEGER, &[certificate.raw_serial()])]);
    let version = tlv(INTEGER, &[&[1]]);
    let info = tlv(SEQUENCE, &[&version, &issuer, &digest, &tlv(SEQUENCE, &[RSA, NULL]), &tlv(OCTETS, &[&signature])]);
    let (digests, certificates) = (tlv(SET, &[&digest]), tlv(CONTEXT_0, &[signer.certificate]));
    Ok(tlv(SEQUENCE, &[&version, &digests, &tlv(SEQUENCE, &[DATA]), &certificates, &tlv(SET, &[&info])]))
}

/// Tag, length and value in DER.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = vec![tag];
    if let Some(short) = u8::try_from(length).ok().filter(|length| *length < 0x80) {
        out.push(short);
    } else {
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    parts.iter().for_each(|part| out.extend(*part));
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lengths_are_short_or_long_as_der_has_them() {
        for (length, head) in
            [(0, &[4, 0][..]), (127, &[4, 127]), (128, &[4, 0x81, 128]), (256, &[4, 0x82, 1, 0]), (70_000, &[4, 0x83, 1, 0x11, 0x70])]
        {
            let found = tlv(4, &[&vec![7; length]]);
            assert_eq!((&found[..head.len()], found.len()), (head, head.len() + length));
        }
    }

    #[test]
    fn openssl_verifies_what_the_firmware_will() {
        let now: Timestamp = "2026-11-23T11:12:13Z".parse().unwrap();
        let made = pki::Issued::for_firmware("test", now, Duration::from_secs(86400)).unwrap();
        let certificate = pki::pem::certificates(&made.cert_pem).unwrap().remove(0);
        let key = pki::pem::private_key(&made.key_pem).unwrap();
        let vendor = uuid!("8be4df61-93ca-11d2-aa0d-00e098032b8c");
        let variable = Variable { name: "PK", vendor, content: b"content" };
        let out = write(&variable, &Signer { certificate: &certificate, key: key.secret_der() }, now).unwrap();
        assert_eq!(out[..16], [0xea, 7, 11, 23, 11, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let length = u32::from_le_bytes(out[16..20].try_into().unwrap()) as usize;
        assert_eq!(&out[16 + length..], b"content");

        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // The firmware takes it bare, openssl with its type in front.
        let kind = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
        std::fs::write(at("p7"), tlv(SEQUENCE, &[&kind, &tlv(CONTEXT_0, &[&out[40..16 + length]])])).unwrap();
        std::fs::write(at("pem"), &made.cert_pem).unwrap();
        let verify = |attributes: u32| {
            let mut message = [&b"P\0K\0"[..], &vendor.to_bytes_le(), &attributes.to_le_bytes(), &out[..16]].concat();
            message.extend(b"content");
            std::fs::write(at("message"), message).unwrap();
            let mut command = std::process::Command::new("openssl");
            command.args(["smime", "-verify", "-binary", "-inform", "DER", "-partial_chain", "-purpose", "any", "-no_check_time", "-in"]);
            command.arg(at("p7")).arg("-content").arg(at("message")).arg("-CAfile").arg(at("pem")).output().unwrap()
        };
        let (right, wrong) = (verify(0x27), verify(0x07));
        assert!(right.status.success(), "{}", String::from_utf8_lossy(&right.stderr));
        assert!(!wrong.status.success());
    }
}
