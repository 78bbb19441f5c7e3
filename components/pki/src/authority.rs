//! Authorities and what they issue.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};

use crate::{Certificate, PkiError, PrivateKey, Request, pem};

/// Clocks may differ by this much: certificates begin so much before now.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// What a leaf certificate is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeafSpec {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organization, in Kubernetes the group.
    pub organization: Option<String>,
    /// The DNS names it is for.
    pub dns_names: Vec<String>,
    /// The addresses it is for.
    pub addresses: Vec<IpAddr>,
    /// Whether a server may use it.
    pub server: bool,
    /// Whether a client may use it.
    pub client: bool,
    /// How long it is valid from now on; never longer than its authority.
    pub lifetime: Duration,
}

/// A certificate with its key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issued({} bytes, key redacted)", self.cert_pem.len())
    }
}

/// A certificate authority that can issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    about: Certificate,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({:?})", self.about.common_name)
    }
}

impl Authority {
    /// Makes a self-signed authority.
    pub fn generate(common_name: &str, now: Timestamp, lifetime: Duration) -> Result<Issued, PkiError> {
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, None);
        set_validity(&mut params, seconds(now, SKEW, false), seconds(now, lifetime, true));
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key.0).map_err(|e| PkiError::Sign(common_name.to_owned(), e))?;
        Ok(Issued { cert_pem: pem::encode("CERTIFICATE", certificate.der()), key_pem: key.to_pem() })
    }

    /// Reads an authority; its key must belong to its certificate.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = PrivateKey::from_pem(key_pem)?;
        let about = Certificate::from_pem(cert_pem)?;
        if !about.authority {
            return Err(PkiError::NotAnAuthority(about.common_name));
        }
        if about.public_key != key.public_der() {
            return Err(PkiError::KeyMismatch(about.common_name));
        }
        let chain = pem::certificates(cert_pem)?;
        let der = chain.first().ok_or_else(|| PkiError::ParseCertificate("empty".to_owned()))?;
        let issuer = Issuer::from_ca_cert_der(der, key.0).map_err(|e| PkiError::ParseCertificate(e.to_string()))?;
        Ok(Self { issuer, cert_pem: cert_pem.to_owned(), about })
    }

    /// Its certificate in PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// What its certificate says.
    pub fn certificate(&self) -> &Certificate {
        &self.about
    }

    /// Issues a certificate with a new key.
    pub fn issue(&self, spec: &LeafSpec, now: Timestamp) -> Result<Issued, PkiError> {
        let key = PrivateKey::generate()?;
        let cert_pem = self.certify(&key.0, spec, now)?;
        Ok(Issued { cert_pem, key_pem: key.to_pem() })
    }

    /// Issues a certificate for a request's key. Only the key is the requester's; everything else is what `spec` says.
    pub fn sign(&self, request: &Request, spec: &LeafSpec, now: Timestamp) -> Result<String, PkiError> {
        self.certify(&request.public_key, spec, now)
    }

    fn certify(&self, key: &impl PublicKeyData, spec: &LeafSpec, now: Timestamp) -> Result<String, PkiError> {
        if !self.about.valid_at(now) {
            return Err(PkiError::AuthorityNotValid {
                name: self.about.common_name.clone(),
                from: self.about.not_before,
                to: self.about.not_after,
                now,
            });
        }
        let params = leaf_params(spec, now, self.about.not_before, self.about.not_after)?;
        let certificate = params.signed_by(key, &self.issuer).map_err(|e| PkiError::Sign(spec.common_name.clone(), e))?;
        Ok(pem::encode("CERTIFICATE", certificate.der()))
    }
}

/// Makes a certificate that its own key signs, for a server that nobody can vouch for yet.
pub(crate) fn self_signed(spec: &LeafSpec, now: Timestamp) -> Result<Issued, PkiError> {
    let key = PrivateKey::generate()?;
    let params = leaf_params(spec, now, Timestamp::UNIX_EPOCH, Timestamp::MAX)?;
    let certificate = params.self_signed(&key.0).map_err(|e| PkiError::Sign(spec.common_name.clone(), e))?;
    Ok(Issued { cert_pem: pem::encode("CERTIFICATE", certificate.der()), key_pem: key.to_pem() })
}

impl Issued {
    /// A self-signed leaf.
    pub fn self_signed(spec: &LeafSpec, now: Timestamp) -> Result<Self, PkiError> {
        self_signed(spec, now)
    }

    /// A self-signed certificate for signing programs and variables of the firmware, with an RSA key.
    pub fn for_firmware(common_name: &str, now: Timestamp, lifetime: Duration) -> Result<Self, PkiError> {
        let key = PrivateKey::generate_rsa()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, None);
        set_validity(&mut params, seconds(now, SKEW, false), seconds(now, lifetime, true));
        params.serial_number = Some(serial()?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key.0).map_err(|e| PkiError::Sign(common_name.to_owned(), e))?;
        Ok(Self { cert_pem: pem::encode("CERTIFICATE", certificate.der()), key_pem: key.to_pem() })
    }
}

pub(crate) fn leaf_params(spec: &LeafSpec, now: Timestamp, earliest: Timestamp, latest: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&spec.common_name, spec.organization.as_deref());
    params.subject_alt_names = alternative_names(&spec.dns_names, &spec.addresses)?;
    let from = seconds(now, SKEW, false).max(seconds(earliest, Duration::ZERO, true));
    let to = seconds(now, spec.lifetime, true).min(seconds(latest, Duration::ZERO, true));
    set_validity(&mut params, from, to);
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages(spec.server, spec.client);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(crate) fn usages(server: bool, client: bool) -> Vec<ExtendedKeyUsagePurpose> {
    let mut usages = Vec::new();
    if server {
        usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if client {
        usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    usages
}

pub(crate) fn subject(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

pub(crate) fn alternative_names(dns_names: &[String], addresses: &[IpAddr]) -> Result<Vec<SanType>, PkiError> {
    let dns = dns_names.iter().map(|name| name.as_str().try_into().map(SanType::DnsName).map_err(|_| PkiError::BadName(name.clone())));
    dns.chain(addresses.iter().map(|a| Ok(SanType::IpAddress(*a)))).collect()
}

/// Seconds since 1970 of an instant some time after (or before) another.
fn seconds(at: Timestamp, by: Duration, later: bool) -> u64 {
    let seconds = u64::try_from(at.as_second()).unwrap_or(0);
    if later { seconds.saturating_add(by.as_secs()) } else { seconds.saturating_sub(by.as_secs()) }
}

/// Sets the validity. X.509 times have whole seconds and end with the year 9999.
fn set_validity(params: &mut CertificateParams, from: u64, to: u64) {
    const END: u64 = 253_402_300_799;
    let date = |seconds: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.min(END));
    params.not_before = date(from);
    params.not_after = date(to);
}

fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PkiError::GenerateKey(rcgen::Error::RingUnspecified))?;
    // Positive, and never shorter than it looks.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{create_request, tls};

    const DAY: Duration = Duration::from_secs(86400);

    fn now() -> Timestamp {
        "2026-11-22T20:00:00Z".parse().expect("timestamp")
    }

    fn authority() -> Authority {
        let made = Authority::generate("test CA", now(), 10 * DAY).expect("generate");
        Authority::from_pem(&made.cert_pem, &made.key_pem).expect("read")
    }

    fn spec() -> LeafSpec {
        LeafSpec {
            common_name: "system:node:cp-1".into(),
            organization: Some("system:nodes".into()),
            dns_names: vec!["cp-1".into()],
            addresses: vec![[10, 5, 0, 11].into()],
            server: true,
            client: false,
            lifetime: DAY,
        }
    }

    #[test]
    fn a_leaf_says_what_was_asked_and_chains_to_its_authority() {
        let ca = authority();
        let issued = ca.issue(&spec(), now()).expect("issue");
        let leaf = Certificate::from_pem(&issued.cert_pem).expect("parse");
        assert_eq!(
            (leaf.common_name.as_str(), leaf.organizations.as_slice()),
            ("system:node:cp-1", ["system:nodes".to_owned()].as_slice())
        );
        assert_eq!((leaf.dns_names, leaf.addresses), (spec().dns_names, spec().addresses));
        assert_eq!((leaf.server, leaf.client, leaf.authority), (true, false, false));
        assert_eq!(leaf.not_before.as_second(), now().as_second() - 300);
        assert_eq!(leaf.not_after.as_second(), now().as_second() + 86400);
        assert_eq!(leaf.issuer, "test CA");
        let der = pem::certificates(&issued.cert_pem).expect("pem").remove(0);
        let root = pem::certificates(ca.cert_pem()).expect("pem").remove(0);
        assert!(Certificate::signed_by(&der, &root).expect("verify"));
        let other = authority();
        let other = pem::certificates(other.cert_pem()).expect("pem").remove(0);
        assert!(!Certificate::signed_by(&der, &other).expect("verify"));
        assert!(tls::certified_key(&issued.cert_pem, &issued.key_pem).is_ok());
    }

    #[test]
    fn a_leaf_never_outlives_its_authority_and_an_expired_authority_issues_nothing() {
        let ca = authority();
        let issued = ca.issue(&LeafSpec { lifetime: 100 * DAY, ..spec() }, now()).expect("issue");
        assert_eq!(Certificate::from_pem(&issued.cert_pem).expect("parse").not_after, ca.certificate().not_after);
        let late = now() + 11 * DAY;
        assert!(matches!(ca.issue(&spec(), late), Err(PkiError::AuthorityNotValid { .. })));
    }

    #[test]
    fn a_request_decides_nothing_but_the_key() {
        let ca = authority();
        let key = PrivateKey::generate().expect("key");
        let greedy = LeafSpec {
            common_name: "admin".into(),
            organization: Some("system:masters".into()),
            dns_names: vec!["kubernetes".into()],
            client: true,
            ..spec()
        };
        let text = create_request(&key, &greedy).expect("request");
        let request = Request::from_pem(&text).expect("parse");
        assert_eq!((request.common_name.as_str(), request.dns_names.as_slice()), ("admin", ["kubernetes".to_owned()].as_slice()));
        let signed = Certificate::from_pem(&ca.sign(&request, &spec(), now()).expect("sign")).expect("parse");
        assert_eq!(
            (signed.common_name.as_str(), signed.dns_names.as_slice(), signed.client),
            ("system:node:cp-1", ["cp-1".to_owned()].as_slice(), false)
        );
        assert_eq!(signed.public_key, key.public_der());
    }

    #[test]
    fn a_key_for_the_firmware_is_rsa_and_no_authority() {
        let made = Issued::for_firmware("db of test", now(), 10 * DAY).expect("generate");
        let certificate = Certificate::from_pem(&made.cert_pem).expect("parse");
        assert_eq!((certificate.common_name.as_str(), certificate.authority), ("db of test", false));
        let key = PrivateKey::from_pem(&made.key_pem).expect("key");
        assert_eq!(certificate.public_key, key.public_der());
        // A SubjectPublicKeyInfo with a modulus of 2048 bits has 294 bytes.
        assert_eq!(key.public_der().len(), 294);
    }

    #[test]
    fn a_request_whose_signature_is_wrong_is_refused() {
        let key = PrivateKey::generate().expect("key");
        let text = create_request(&key, &spec()).expect("request");
        let body: String = text.lines().filter(|l| !l.starts_with('-')).collect();
        use base64::Engine as _;
        let mut der = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(Request::from_pem(&pem::encode("CERTIFICATE REQUEST", &der)).is_err());
    }

    #[test]
    fn another_authoritys_key_and_leaves_are_refused_as_authorities() {
        let (a, b) = (Authority::generate("a", now(), DAY).expect("a"), Authority::generate("b", now(), DAY).expect("b"));
        assert!(matches!(Authority::from_pem(&a.cert_pem, &b.key_pem), Err(PkiError::KeyMismatch(_))));
        let leaf = authority().issue(&spec(), now()).expect("issue");
        assert!(matches!(Authority::from_pem(&leaf.cert_pem, &leaf.key_pem), Err(PkiError::NotAnAuthority(_))));
    }

    #[test]
    fn names_that_cannot_stand_in_a_certificate_are_refused() {
        let bad = LeafSpec { dns_names: vec!["grüße".into()], ..spec() };
        assert!(matches!(authority().issue(&bad, now()), Err(PkiError::BadName(_))));
    }

    #[test]
    fn files_are_read_again_when_they_change_and_a_broken_pair_is_not_used() {
        use crate::reload::KeyPairFiles;
        let dir = tempfile::tempdir().expect("tempdir");
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let ca = authority();
        let write = |issued: &Issued| {
            std::fs::write(&cert, &issued.cert_pem).expect("write");
            std::fs::write(&key, &issued.key_pem).expect("write");
        };
        let (first, second) = (ca.issue(&spec(), now()).expect("issue"), ca.issue(&spec(), now()).expect("issue"));
        write(&first);
        let files = KeyPairFiles::open_every(&cert, &key, Duration::ZERO).expect("open");
        let before = files.current().cert[0].clone();
        std::fs::write(&cert, format!("{}\n", second.cert_pem)).expect("write");
        assert_eq!(files.current().cert[0], before);
        std::fs::write(&key, format!("{}\n", second.key_pem)).expect("write");
        assert_ne!(files.current().cert[0], before);
    }
}
