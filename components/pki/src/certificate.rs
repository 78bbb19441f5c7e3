//! What a certificate says.

use std::net::IpAddr;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use crate::{PkiError, pem};

/// The parts of a certificate that decisions are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name, or nothing.
    pub common_name: String,
    /// The subject's organizations, in order.
    pub organizations: Vec<String>,
    /// The issuer's common name, or nothing.
    pub issuer: String,
    /// The DNS names it is for.
    pub dns_names: Vec<String>,
    /// The addresses it is for.
    pub addresses: Vec<IpAddr>,
    /// Begin of its validity.
    pub not_before: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
    /// Whether it may issue others.
    pub authority: bool,
    /// Whether a server may use it.
    pub server: bool,
    /// Whether a client may use it.
    pub client: bool,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// SHA-256 of its DER in hexadecimal.
    pub fingerprint: String,
    /// Its public key (SubjectPublicKeyInfo, DER).
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Reads the first certificate of a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        // `certificates` gives at least one.
        pem::certificates(text)?.first().map_or_else(|| Err(PkiError::ParseCertificate("empty".to_owned())), |der| Self::from_der(der))
    }

    /// Reads a certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let bad = |e: String| PkiError::ParseCertificate(e);
        let (rest, x509) = X509Certificate::from_der(der).map_err(|e| bad(e.to_string()))?;
        if !rest.is_empty() {
            return Err(bad("there are bytes after its end".to_owned()));
        }
        let (common_name, organizations) = names(x509.subject());
        let (issuer, _) = names(x509.issuer());
        let time = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).map_err(|e| bad(e.to_string()));
        let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
        if let Some(san) = x509.subject_alternative_name().map_err(|e| bad(e.to_string()))? {
            alternative_names(&san.value.general_names, &mut dns_names, &mut addresses);
        }
        let usage = x509.extended_key_usage().map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            common_name,
            organizations,
            issuer,
            dns_names,
            addresses,
            not_before: time(x509.validity().not_before)?,
            not_after: time(x509.validity().not_after)?,
            authority: x509.is_ca(),
            server: usage.as_ref().is_none_or(|u| u.value.server_auth || u.value.any),
            client: usage.as_ref().is_none_or(|u| u.value.client_auth || u.value.any),
            serial: hex(x509.raw_serial()),
            fingerprint: fingerprint(der),
            public_key: x509.public_key().raw.to_vec(),
        })
    }

    /// Whether `issuer`'s key signed the certificate in `der`. Says nothing about time or usage.
    pub fn signed_by(der: &[u8], issuer: &[u8]) -> Result<bool, PkiError> {
        let parse = |d| X509Certificate::from_der(d).map(|(_, c)| c).map_err(|e| PkiError::ParseCertificate(e.to_string()));
        let issuer = parse(issuer)?;
        Ok(parse(der)?.verify_signature(Some(issuer.public_key())).is_ok())
    }

    /// Whether it is valid at an instant.
    pub fn valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// SHA-256 of a certificate's DER in lower-case hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Common name and organizations of a distinguished name.
pub(crate) fn names(name: &X509Name<'_>) -> (String, Vec<String>) {
    let common_name = name.iter_common_name().next().and_then(|a| a.as_str().ok()).unwrap_or_default().to_owned();
    let organizations = name.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect();
    (common_name, organizations)
}

/// The DNS names and addresses among alternative names; gives how many were of another kind.
pub(crate) fn alternative_names(general: &[GeneralName<'_>], dns_names: &mut Vec<String>, addresses: &mut Vec<IpAddr>) -> usize {
    let mut others = 0;
    for name in general {
        match name {
            GeneralName::DNSName(dns) => dns_names.push((*dns).to_owned()),
            GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => addresses.push(IpAddr::from(v4)),
                (_, Ok(v6)) => addresses.push(IpAddr::from(v6)),
                _ => others += 1,
            },
            _ => others += 1,
        }
    }
    others
}
