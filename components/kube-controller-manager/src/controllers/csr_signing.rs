//! Signs approved certificate requests with the cluster's CA, for upstream's built-in signers.
//!
//! What the certificate says comes from the request's subject and names and from `spec.usages`; its lifetime is never longer than asked for,
//! than `--cluster-signing-duration`, or than the CA's own.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use k8s_client::{Action, Change, Client, Error, ObjectKey, Time, WorkQueue, resources::CERTIFICATE_SIGNING_REQUESTS, run_workers};
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber};
use serde_json::json;

use super::csr::{self, CsrError};
use super::csr_approving::{CLIENT_KUBELET, KUBELET_SERVING};
use crate::api::CertificateSigningRequest;
use crate::context::Context;

const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Clocks may differ by this much.
const BACKDATE: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(600);

/// A request that cannot be signed, for good.
#[derive(Debug, thiserror::Error)]
enum SignError {
    #[error(transparent)]
    Request(#[from] CsrError),
    #[error("{0}")]
    Refused(&'static str),
    #[error("usage {0:?} is not one this signer gives")]
    Usage(String),
    #[error("encoding the certificate")]
    Encode(#[source] rcgen::Error),
}

/// The CA cannot be used; trying later may help.
#[derive(Debug, thiserror::Error)]
enum CaError {
    #[error("reading {0}")]
    Read(std::path::PathBuf, #[source] std::io::Error),
    #[error("parsing {0}")]
    Parse(std::path::PathBuf, #[source] rcgen::Error),
    #[error("{0}: not a certificate")]
    Certificate(std::path::PathBuf),
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

fn load_ca(certificate: &Path, key: &Path) -> Result<Ca, CaError> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| CaError::Read(path.to_path_buf(), error));
    let (certificate_pem, key_pem) = (read(certificate)?, read(key)?);
    let pair = KeyPair::from_pem(&key_pem).map_err(|error| CaError::Parse(key.to_path_buf(), error))?;
    let bad = || CaError::Certificate(certificate.to_path_buf());
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(|_| bad())?;
    let seconds = pem.parse_x509().map_err(|_| bad())?.validity().not_after.timestamp();
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).map_err(|_| bad())?);
    let issuer = Issuer::from_ca_cert_pem(&certificate_pem, pair).map_err(|error| CaError::Parse(certificate.to_path_buf(), error))?;
    Ok(Ca { issuer, not_after })
}

/// The signers served here, with the usages each may give (api: certificates.k8s.io signer reference).
fn allowed_usages(signer: &str) -> Option<&'static [&'static str]> {
    match signer {
        API_CLIENT | CLIENT_KUBELET => Some(&["digital signature", "key encipherment", "client auth"]),
        KUBELET_SERVING => Some(&["digital signature", "key encipherment", "server auth"]),
        _ => None,
    }
}

fn is_due(request: &CertificateSigningRequest) -> bool {
    let has = |kind: &str| request.status.conditions.iter().any(|condition| condition.kind == kind);
    request.status.certificate.is_empty()
        && has("Approved")
        && !has("Denied")
        && !has("Failed")
        && allowed_usages(&request.spec.signer_name).is_some()
}

/// Start and end of the certificate's validity.
fn validity(asked: Option<i32>, longest: Duration, ca_ends: SystemTime, now: SystemTime) -> (SystemTime, SystemTime) {
    let asked = asked.and_then(|seconds| u64::try_from(seconds).ok()).map(|seconds| Duration::from_secs(seconds).max(SHORTEST));
    (now - BACKDATE, (now + asked.unwrap_or(longest).min(longest)).min(ca_ends))
}

fn sign(request: &CertificateSigningRequest, ca: &Ca, longest: Duration, now: SystemTime) -> Result<String, SignError> {
    let wanted = csr::read(&request.spec.request)?;
    let allowed = allowed_usages(&request.spec.signer_name).unwrap_or_default();
    if wanted.is_ca {
        return Err(SignError::Refused("a certificate authority cannot be requested"));
    }
    if wanted.has_odd_subject || wanted.organizations.len() > 1 {
        return Err(SignError::Refused("the subject may have one common name and at most one organization"));
    }
    if wanted.has_other_extensions {
        return Err(SignError::Refused("the request has extensions this signer does not copy"));
    }
    if matches!(request.spec.signer_name.as_str(), CLIENT_KUBELET | KUBELET_SERVING)
        && (wanted.organizations != ["system:nodes"] || !wanted.common_name.starts_with("system:node:"))
    {
        return Err(SignError::Refused("this signer certifies nodes alone"));
    }
    if request.spec.signer_name == API_CLIENT && wanted.organizations.iter().any(|organization| organization == "system:masters") {
        return Err(SignError::Refused("use of this signer with the system:masters group is not allowed"));
    }
    let mut csr = CertificateSigningRequestParams::from_der(&csr::der(&request.spec.request)?).map_err(SignError::Encode)?;
    let (not_before, not_after) = validity(request.spec.expiration_seconds, longest, ca.not_after, now);
    let params = &mut csr.params;
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages.clear();
    params.extended_key_usages.clear();
    for usage in &request.spec.usages {
        if !allowed.contains(&usage.as_str()) {
            return Err(SignError::Usage(usage.clone()));
        }
        match usage.as_str() {
            "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
            "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
            "client auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
            _ => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
        }
    }
    // RFC 5280: positive, at most 20 octets.
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    csr.signed_by(&ca.issuer).map(|certificate| certificate.pem()).map_err(SignError::Encode)
}

/// Runs until the context stops; does nothing without the CA's files.
pub async fn run(context: Context) {
    let (Some(certificate), Some(key)) =
        (context.options.cluster_signing_cert_file.clone(), context.options.cluster_signing_key_file.clone())
    else {
        tracing::info!("no --cluster-signing-cert-file and --cluster-signing-key-file: certificate requests are not signed");
        return context.stop.cancelled().await;
    };
    let longest = context.options.cluster_signing_duration;
    let client = context.client("certificate-controller");
    let requests = context.informers.signing_requests();
    let queue = WorkQueue::new("csr-signing");
    let sink = queue.clone();
    requests.add_handler(move |change: Change<'_, CertificateSigningRequest>| {
        if !matches!(change, Change::Deleted(_)) && is_due(change.object()) {
            sink.add(change.object().metadata.key());
        }
    });
    requests.wait_synced().await;
    run_workers(queue, 2, context.stop.clone(), move |name: ObjectKey| {
        let (client, requests, certificate, key) = (client.clone(), requests.clone(), certificate.clone(), key.clone());
        async move {
            let Some(request) = requests.get_key(&name).filter(|request| is_due(request)) else { return Ok(Action::Done) };
            // Read for each request: a renewed CA is used at once.
            let ca = match load_ca(&certificate, &key) {
                Ok(ca) => ca,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the signing CA cannot be used");
                    return Ok(Action::Retry);
                }
            };
            let outcome = sign(&request, &ca, longest, SystemTime::now());
            write(&client, &request, outcome).await
        }
    })
    .await;
}

async fn write(client: &Client, request: &CertificateSigningRequest, outcome: Result<String, SignError>) -> Result<Action, Error> {
    let name = request.metadata.name.as_str();
    match &outcome {
        Ok(_) => tracing::info!(request = name, signer = request.spec.signer_name, "certificate signed"),
        Err(error) => tracing::warn!(request = name, error = error as &dyn std::error::Error, "certificate request cannot be signed"),
    }
    let now = Time::now();
    client
        .update(&CERTIFICATE_SIGNING_REQUESTS, ("", name), &request.metadata.uid, "status", |object| match &outcome {
            Ok(pem) => object["status"]["certificate"] = json!(base64::engine::general_purpose::STANDARD.encode(pem)),
            Err(error) => {
                let failed = json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": error.to_string(), "lastUpdateTime": now, "lastTransitionTime": now});
                match object["status"]["conditions"].as_array_mut() {
                    Some(conditions) => conditions.push(failed),
                    None => object["status"]["conditions"] = json!([failed]),
                }
            }
        })
        .await?;
    Ok(Action::Done)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn ca(directory: &Path) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        for (name, text) in [("ca.crt", certificate.pem()), ("ca.key", key.serialize_pem())] {
            std::fs::File::create(directory.join(name)).unwrap().write_all(text.as_bytes()).unwrap();
        }
        load_ca(&directory.join("ca.crt"), &directory.join("ca.key")).unwrap()
    }

    fn request(signer: &str, usages: &[&str], csr: String) -> CertificateSigningRequest {
        serde_json::from_value(
            json!({"metadata": {"name": "c"}, "spec": {"request": csr, "signerName": signer, "usages": usages, "expirationSeconds": 3600},
            "status": {"conditions": [{"type": "Approved", "status": "True"}]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_signed_certificate_says_what_was_approved() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let request = request(
            KUBELET_SERVING,
            &["digital signature", "server auth"],
            csr::make("system:node:n1", &["system:nodes"], &["n1", "10.0.0.1"]),
        );
        assert!(is_due(&request));
        let pem = sign(&request, &ca, Duration::from_secs(86400), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:n1");
        assert_eq!(certificate.validity().not_before.timestamp(), 1_790_000_000 - 300);
        assert_eq!(certificate.validity().not_after.timestamp(), 1_790_000_000 + 3600);
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        assert!(!certificate.is_ca());
        let issuer = std::fs::read(directory.path().join("ca.crt")).unwrap();
        let (_, issuer) = x509_parser::pem::parse_x509_pem(&issuer).unwrap();
        assert!(certificate.verify_signature(Some(issuer.parse_x509().unwrap().public_key())).is_ok());
    }

    #[test]
    fn signers_refuse_what_is_not_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        for (signer, usages, csr) in [
            (CLIENT_KUBELET, &["client auth"][..], csr::make("admin", &["system:nodes"], &[])),
            (CLIENT_KUBELET, &["server auth"], csr::make("system:node:a", &["system:nodes"], &[])),
            (API_CLIENT, &["client auth"], csr::make("me", &["system:masters"], &[])),
            (API_CLIENT, &["cert sign"], csr::make("me", &["dev"], &[])),
        ] {
            assert!(sign(&request(signer, usages, csr), &ca, Duration::from_secs(60), now).is_err(), "{signer} {usages:?}");
        }
        assert!(sign(&request(API_CLIENT, &["client auth"], csr::make("me", &["dev"], &[])), &ca, Duration::from_secs(60), now).is_ok());
        assert!(!is_due(&request("example.com/other", &[], String::new())));
    }

    #[test]
    fn lifetimes_are_bounded_by_request_flag_and_ca() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let far = now + Duration::from_secs(10_000_000);
        let day = Duration::from_secs(86400);
        for (asked, ca_ends, want) in [
            (None, far, 86400),
            (Some(3600), far, 3600),
            (Some(1), far, 600),
            (Some(999_999), far, 86400),
            (None, now + Duration::from_secs(50), 50),
        ] {
            let (_, end) = validity(asked, day, ca_ends, now);
            assert_eq!(end.duration_since(now).unwrap().as_secs(), want, "{asked:?}");
        }
    }
}
