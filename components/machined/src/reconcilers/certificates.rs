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
