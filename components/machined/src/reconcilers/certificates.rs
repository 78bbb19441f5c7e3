//! The machine API's serving certificate, and a worker's kube-proxy certificate. A control plane issues its own; a worker
//! asks a control plane with the join token. Both are renewed after two thirds of their life, and kept in STATE so that a
//! machine whose control plane is away still serves its API.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use machine_config::Config;
use pki::{Authority, Certificate, LeafSpec, PrivateKey, Renewal, renewal};
use serde_json::json;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::join::{self, JoinAnswer};
use crate::serving;
use crate::state::StateDir;

pub struct Certificates;

/// How often the certificates are looked at.
const AGAIN: Duration = Duration::from_secs(60);
/// Where a machine's API certificate is kept in STATE.
pub const MACHINE: (&str, &str) = ("pki/machine.crt", "pki/machine.key");
/// Where a worker's kube-proxy certificate is kept in STATE.
pub const KUBE_PROXY: (&str, &str) = ("pki/kube-proxy.crt", "pki/kube-proxy.key");

#[tonic::async_trait]
impl Reconciler for Certificates {
    fn name(&self) -> &'static str {
        "certificates"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["hostname", "network", "time"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let now = Timestamp::now();
        let (config, addresses) = (cx.config(), cx.addresses());
        let wanted = wanted(config, &cx.hostname(), &addresses);
        let current = load(&cx.machine.state, MACHINE)?;
        let due = current.as_ref().is_none_or(|current| is_due(&current.0, &wanted, config, now));
        let kube_proxy = load(&cx.machine.state, KUBE_PROXY)?;
        if config.is_control_plane() {
            if due {
                let authority = &config.secrets.authorities.machine;
                let key = authority.key.as_ref().ok_or("the config holds no key of the machine CA")?;
                let issued = Authority::from_pem(authority.cert.as_str(), key.reveal())?.issue(&wanted, now)?;
                store(cx, MACHINE, &issued.cert_pem, &issued.key_pem)?;
            }
        } else if due || kube_proxy.as_ref().is_none_or(|current| lifetime_is_over(&current.0, now)) {
            let (machine_key, proxy_key) = (PrivateKey::generate()?, PrivateKey::generate()?);
            let JoinAnswer { machine_certificate, kube_proxy_certificate } =
                join::join(config, &cx.hostname(), &wanted, &machine_key, &proxy_key).await?;
            store(cx, KUBE_PROXY, &kube_proxy_certificate, &proxy_key.to_pem())?;
            store(cx, MACHINE, &machine_certificate, &machine_key.to_pem())?;
        }
        let (certificate, cert_pem, key_pem) = load(&cx.machine.state, MACHINE)?.ok_or("the machine API's certificate is not there")?;
        cx.serving.replace(&cert_pem, &key_pem)?;
        let spec = json!({"subject": certificate.common_name, "expires": certificate.not_after.to_string(),
            "names": certificate.dns_names, "addresses": certificate.addresses});
        cx.machine.store.set("certificates", "machine", spec);
        if let Some((certificate, ..)) = load(&cx.machine.state, KUBE_PROXY)? {
            let spec = json!({"subject": certificate.common_name, "expires": certificate.not_after.to_string()});
            cx.machine.store.set("certificates", "kube-proxy", spec);
        }
        Ok(Outcome::ready(format!("good until {}", certificate.not_after), AGAIN))
    }
}

/// What the machine API's certificate should say. On a worker the control plane decides; this is what is compared.
fn wanted(config: &Config, hostname: &str, addresses: &[IpAddr]) -> LeafSpec {
    let (names, mut more) = serving::config_sans(config);
    if config.is_control_plane() {
        more.extend(addresses);
        serving::spec(hostname, &more, &names)
    } else {
        serving::spec(hostname, &[], &[])
    }
}

/// Whether a certificate must be replaced: it is old, of another CA, or does not say what it should.
fn is_due(current: &Certificate, wanted: &LeafSpec, config: &Config, now: Timestamp) -> bool {
    let ca_is_another = match Certificate::from_pem(config.secrets.authorities.machine.cert.as_str()) {
        Ok(ca) => ca.common_name != current.issuer && !current.issuer.contains(&ca.common_name),
        Err(_) => false,
    };
    lifetime_is_over(current, now)
        || ca_is_another
        || wanted.dns_names.iter().any(|name| !current.dns_names.contains(name))
        || wanted.addresses.iter().any(|address| !current.addresses.contains(address))
}

fn lifetime_is_over(current: &Certificate, now: Timestamp) -> bool {
    !matches!(renewal(now, current.not_before, current.not_after), Renewal::Keep { .. })
}

/// The machine API's certificate and key of the last boot, as PEM, when they fit together.
pub fn kept_certificate(state: &StateDir) -> Option<(String, String)> {
    // What can't be read now is reported by the reconciler, which reads it again.
    load(state, MACHINE).ok().flatten().map(|(_, cert, key)| (cert, key))
}

fn load(state: &StateDir, (cert, key): (&str, &str)) -> Result<Option<(Certificate, String, String)>, ReconcileError> {
    let (Some(cert), Some(key)) = (state.text(cert)?, state.text(key)?) else { return Ok(None) };
    // What can't be read, or is of different makes after a crash, is replaced like what is missing.
    let fits = pki::tls::certified_key(&cert, &key).is_ok();
    Ok(Certificate::from_pem(&cert).ok().filter(|_| fits).map(|certificate| (certificate, cert, key)))
}

fn store(cx: &Context, (cert, key): (&str, &str), cert_pem: &str, key_pem: &str) -> Result<(), ReconcileError> {
    // A crash in between leaves a pair that does not fit, which counts as none.
    cx.machine.state.write(key, key_pem.as_bytes())?;
    cx.machine.state.write(cert, cert_pem.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::authorize::Policy;
    use crate::api::tls::{self, ServingCertificate};
    use crate::machine::Loaded;
    use machine_api::v1alpha1::VersionRequest;
    use std::sync::Arc;
    use strakectl::client::{Connection, Trust};
    use strakectl::context::Credentials;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    /// The certificate that a new handshake is shown, which must be one of this authority.
    async fn shown(address: &str, ca: &str) -> Certificate {
        let config = rustls::ClientConfig::builder_with_provider(pki::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(pki::tls::roots(ca).unwrap())
            .with_no_client_auth();
        let socket = TcpStream::connect(address).await.unwrap();
        let name = machine_api::SERVER_NAME.try_into().unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
        Certificate::from_der(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap()
    }

    #[tokio::test]
    async fn a_short_lived_certificate_is_renewed_while_connections_are_open() {
        let dir = tempfile::tempdir().unwrap();
        let day = 86_400;
        let made = Timestamp::now() - jiff::SignedDuration::from_secs(day);
        let ca = Authority::generate("machines", made, Duration::from_secs(7 * 86_400)).unwrap();
        let mut config = crate::kubernetes::testing::control_plane_config();
        config.secrets.authorities.machine.cert = ca.cert_pem.parse().unwrap();
        config.secrets.authorities.machine.key = Some(ca.key_pem.parse().unwrap());
        let machine = crate::testing::machine(dir.path(), Loaded { text: config.render(), config });
        let authority = Authority::from_pem(&ca.cert_pem, &ca.key_pem).unwrap();

        // Made for an hour, three quarters of an hour ago.
        let now = Timestamp::now();
        let (hour, began) = (Duration::from_secs(3600), now - jiff::SignedDuration::from_secs(2700));
        let wanted = wanted(&machine.loaded().unwrap().config, &machine.hostname(), &machine.addresses());
        let old = authority.issue(&LeafSpec { lifetime: hour, ..wanted.clone() }, began).unwrap();
        machine.state.write(MACHINE.0, old.cert_pem.as_bytes()).unwrap();
        machine.state.write(MACHINE.1, old.key_pem.as_bytes()).unwrap();
        let mut cx = crate::testing::context(&machine);
        cx.serving = ServingCertificate::new(&old.cert_pem, &old.key_pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tls::with_client_ca(cx.serving.clone(), &ca.cert_pem).unwrap();
        tokio::spawn(crate::api::serve(machine.clone(), Policy::Roles, server, listener, CancellationToken::new()));

        let person = LeafSpec {
            common_name: "anna".into(),
            organization: Some("reader".into()),
            client: true,
            lifetime: hour,
            ..LeafSpec::default()
        };
        let person = authority.issue(&person, now).unwrap();
        let credentials = Credentials { ca: ca.cert_pem.clone(), certificate: person.cert_pem, key: person.key_pem };
        let open = Connection::open(&address, &Trust::Cluster(credentials), Duration::from_secs(10)).await.unwrap();
        open.machine().version(VersionRequest {}).await.unwrap();
        let before = shown(&address, &ca.cert_pem).await;
        assert_eq!(before.fingerprint, Certificate::from_pem(&old.cert_pem).unwrap().fingerprint);

        assert!(matches!(Certificates.reconcile(&cx).await, Ok(Outcome::Ready { .. })));
        let after = shown(&address, &ca.cert_pem).await;
        assert!(after.not_after > before.not_after && after.fingerprint != before.fingerprint, "new handshakes get the new one");
        open.machine().version(VersionRequest {}).await.expect("the connection of before lives on");
        assert_eq!(
            kept_certificate(&machine.state).map(|(cert, _)| Certificate::from_pem(&cert).unwrap().fingerprint),
            Some(after.fingerprint.clone())
        );

        // Nothing is due now.
        Certificates.reconcile(&cx).await.unwrap();
        assert_eq!(shown(&address, &ca.cert_pem).await.fingerprint, after.fingerprint);

        // One that expired while the machine was off.
        let expired = authority.issue(&LeafSpec { lifetime: hour, ..wanted }, now - jiff::SignedDuration::from_secs(7200)).unwrap();
        machine.state.write(MACHINE.0, expired.cert_pem.as_bytes()).unwrap();
        machine.state.write(MACHINE.1, expired.key_pem.as_bytes()).unwrap();
        cx.serving.replace(&expired.cert_pem, &expired.key_pem).unwrap();
        Certificates.reconcile(&cx).await.unwrap();
        assert!(shown(&address, &ca.cert_pem).await.not_after > now);
    }
}
