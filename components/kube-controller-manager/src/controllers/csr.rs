//! Reading a certificate signing request: who it is for and which names it asks for.

use std::net::IpAddr;

use base64::Engine as _;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

/// What a request asks to have certified.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
    /// E-mail addresses, URIs and other names nobody here asks for.
    pub has_other_names: bool,
    /// Extensions beyond alternative names, usages and constraints.
    pub has_other_extensions: bool,
    /// Asks to become a CA.
    pub is_ca: bool,
    /// The subject has an attribute twice, or one that is neither CN nor O.
    pub has_odd_subject: bool,
}

/// Why a request cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("spec.request is not base64 of PEM")]
    Encoding,
    #[error("the PEM block is not a certificate request")]
    Parse,
    #[error("the request is not signed by its own key")]
    Signature,
}

/// The DER in `spec.request`.
pub fn der(request: &str) -> Result<CertificateSigningRequestDer<'static>, CsrError> {
    let pem = base64::engine::general_purpose::STANDARD.decode(request.trim()).map_err(|_| CsrError::Encoding)?;
    CertificateSigningRequestDer::from_pem_slice(&pem).map_err(|_| CsrError::Encoding)
}

/// Reads and verifies a request.
pub fn read(request: &str) -> Result<Wanted, CsrError> {
    let der = der(request)?;
    let (_, csr) = X509CertificationRequest::from_der(der.as_ref()).map_err(|_| CsrError::Parse)?;
    csr.verify_signature().map_err(|_| CsrError::Signature)?;
    let subject = &csr.certification_request_info.subject;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().map(str::to_string).map_err(|_| CsrError::Parse);
    let mut wanted = Wanted::default();
    let names = subject.iter_common_name().map(text).collect::<Result<Vec<_>, _>>()?;
    wanted.organizations = subject.iter_organization().map(text).collect::<Result<_, _>>()?;
    wanted.has_odd_subject = names.len() > 1 || subject.iter_attributes().count() != names.len() + wanted.organizations.len();
    wanted.common_name = names.into_iter().next().unwrap_or_default();
    for extension in csr.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) => wanted.dns_names.push((*name).to_string()),
                        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                            (Ok(v4), _) => wanted.ip_addresses.push(v4.into()),
                            (_, Ok(v6)) => wanted.ip_addresses.push(v6.into()),
                            _ => return Err(CsrError::Parse),
                        },
                        _ => wanted.has_other_names = true,
                    }
                }
            }
            ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
            ParsedExtension::BasicConstraints(constraints) => wanted.is_ca |= constraints.ca,
            _ => wanted.has_other_extensions = true,
        }
    }
    Ok(wanted)
}

/// `spec.request` of a new key, for tests.
#[cfg(test)]
pub fn make(common_name: &str, organizations: &[&str], names: &[&str]) -> String {
    let mut params = rcgen::CertificateParams::new(names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for organization in organizations {
        params.distinguished_name.push(rcgen::DnType::OrganizationName, *organization);
    }
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    let key = rcgen::KeyPair::generate().unwrap();
    base64::engine::general_purpose::STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_whole() {
        let wanted = read(&make("system:node:n1", &["system:nodes"], &["n1", "10.5.0.21", "fd00::1"])).unwrap();
        assert_eq!(
            wanted,
            Wanted {
                common_name: "system:node:n1".into(),
                organizations: vec!["system:nodes".into()],
                dns_names: vec!["n1".into()],
                ip_addresses: vec!["10.5.0.21".parse().unwrap(), "fd00::1".parse().unwrap()],
                ..Default::default()
            }
        );
        assert_eq!(read("!!"), Err(CsrError::Encoding));
        assert_eq!(read("aGVsbG8="), Err(CsrError::Encoding));
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let text = make("a", &[], &[]);
        let pem = base64::engine::general_purpose::STANDARD.decode(&text).unwrap();
        let mut der = CertificateSigningRequestDer::from_pem_slice(&pem).unwrap().as_ref().to_vec();
        let at = der.iter().position(|b| *b == b'a').unwrap();
        der[at] = b'b';
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::engine::general_purpose::STANDARD.encode(&der)
        );
        let outcome = read(&base64::engine::general_purpose::STANDARD.encode(pem));
        assert!(matches!(outcome, Err(CsrError::Signature | CsrError::Parse)), "{outcome:?}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", base64::engine::general_purpose::STANDARD.encode(&bytes));
            let _ = read(&base64::engine::general_purpose::STANDARD.encode(pem));
        }
    }
}
