//! Certificate requests (PKCS#10).

use std::net::IpAddr;

use rcgen::{CertificateSigningRequestParams, PublicKey};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;

use crate::authority::{alternative_names, subject, usages};
use crate::{LeafSpec, PkiError, PrivateKey};

/// Largest request that is read.
const MAX_BYTES: usize = 16 << 10;

/// A request whose signature was checked: the requester holds the key. Nothing else in it is proven.
pub struct Request {
    /// The common name it asks for.
    pub common_name: String,
    /// The organizations it asks for.
    pub organizations: Vec<String>,
    /// The DNS names it asks for.
    pub dns_names: Vec<String>,
    /// The addresses it asks for.
    pub addresses: Vec<IpAddr>,
    /// How many alternative names of other kinds it asks for.
    pub other_names: usize,
    pub(crate) public_key: PublicKey,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { common_name, organizations, dns_names, addresses, .. } = self;
        write!(f, "Request({common_name:?}, {organizations:?}, {dns_names:?}, {addresses:?})")
    }
}

impl Request {
    /// Reads a request in PEM and checks its signature.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let bad = |e: String| PkiError::ParseRequest(e);
        if text.len() > MAX_BYTES {
            return Err(bad(format!("it has more than {MAX_BYTES} bytes")));
        }
        let der =
            CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_| bad("there is no request in PEM".to_owned()))?;
        let params = CertificateSigningRequestParams::from_der(&der).map_err(|e| bad(e.to_string()))?;
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|e| bad(e.to_string()))?;
        let (common_name, organizations) = crate::certificate::names(&parsed.certification_request_info.subject);
        let (mut dns_names, mut addresses, mut other_names) = (Vec::new(), Vec::new(), 0);
        for extension in parsed.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(san) = extension {
                other_names += crate::certificate::alternative_names(&san.general_names, &mut dns_names, &mut addresses);
            }
        }
        Ok(Self { common_name, organizations, dns_names, addresses, other_names, public_key: params.public_key })
    }
}

/// Writes a request in PEM for a key. The lifetime of the spec is left to the issuer.
pub fn create_request(key: &PrivateKey, spec: &LeafSpec) -> Result<String, PkiError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = subject(&spec.common_name, spec.organization.as_deref());
    params.subject_alt_names = alternative_names(&spec.dns_names, &spec.addresses)?;
    params.extended_key_usages = usages(spec.server, spec.client);
    let request = params.serialize_request(&key.0).map_err(|e| PkiError::Sign(spec.common_name.clone(), e))?;
    Ok(crate::pem::encode("CERTIFICATE REQUEST", request.der()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[ -~\\n]{0,300}") {
            let _ = Request::from_pem(&crate::pem::encode("CERTIFICATE REQUEST", &bytes));
            let _ = Request::from_pem(&text);
            let _ = crate::Certificate::from_der(&bytes);
            let _ = crate::Certificate::from_pem(&text);
            let _ = PrivateKey::from_pem(&crate::pem::encode("PRIVATE KEY", &bytes));
        }

        #[test]
        fn no_damaged_request_is_taken(at in 0usize..200, bit in 0u8..8) {
            let spec = LeafSpec { common_name: "system:node:a".into(), dns_names: vec!["a".into()], ..LeafSpec::default() };
            let key = PrivateKey::generate().expect("key");
            let text = create_request(&key, &spec).expect("request");
            let mut der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).expect("PEM").to_vec();
            let at = at % der.len();
            der[at] ^= 1 << bit;
            // A flipped bit may only go unnoticed where it changes nothing that is signed, and then the request says the same.
            if let Ok(request) = Request::from_pem(&crate::pem::encode("CERTIFICATE REQUEST", &der)) {
                prop_assert_eq!(request.common_name, "system:node:a");
                prop_assert_eq!(request.dns_names, vec!["a".to_owned()]);
            }
        }
    }
}
