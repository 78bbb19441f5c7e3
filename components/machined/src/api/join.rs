//! JoinService: gives machines that know the join token their certificates. The names and addresses in them are decided
//! here: the name must be free or already this address's, the address is where the request came from. The requester
//! contributes a public key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use machine_api::SERVER_NAME;
use machine_api::v1alpha1::join_service_server::JoinService;
use machine_api::v1alpha1::{JoinRequest, JoinResponse, LeaveRequest, LeaveResponse};
use machine_config::CertificateAuthority;
use pki::{Authority, LeafSpec};
use tonic::{Request, Response, Status};

use super::authorize::Caller;
use crate::joined::Joined;
use crate::machine::{Loaded, Machine};
use crate::serving;

pub struct Handler(pub Arc<Machine>);

/// A guess costs this long; guesses are answered one after the other.
const WRONG_TOKEN_DELAY: Duration = Duration::from_secs(1);

static WRONG_TOKENS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tonic::async_trait]
impl JoinService for Handler {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let mut caller = Caller::of(&request)?;
        let JoinRequest { token, hostname, machine_csr, kube_proxy_csr } = request.into_inner();
        let loaded = self.admit(&mut caller, "join", &token, &hostname).await?;
        let refuse = |why: String| {
            caller.refused("join", &why);
            Status::permission_denied(why)
        };
        let address = address(&caller)?;
        check_name(&hostname, &self.0.hostname()).map_err(refuse)?;

        let _changing = self.0.changing.lock().await;
        let mut joined = Joined::load(&self.0.state).map_err(|error| super::internal(&error))?;
        let known = joined.claim(&hostname, address).map_err(refuse)?;

        let now = Timestamp::now();
        let (machine, kube_proxy) = specs(&hostname, address);
        let authorities = &loaded.config.secrets.authorities;
        let response = JoinResponse {
            machine_certificate: sign(&authorities.machine, &machine_csr, &machine, now)?,
            kube_proxy_certificate: sign(&authorities.cluster, &kube_proxy_csr, &kube_proxy, now)?,
        };
        if !known {
            joined.save(&self.0.state).map_err(|error| super::internal(&error))?;
        }
        caller.did(format_args!("issue certificates to {hostname} at {address}"));
        Ok(Response::new(response))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let mut caller = Caller::of(&request)?;
        let LeaveRequest { token, hostname } = request.into_inner();
        self.admit(&mut caller, "leave", &token, &hostname).await?;
        let address = address(&caller)?;
        let _changing = self.0.changing.lock().await;
        let mut joined = Joined::load(&self.0.state).map_err(|error| super::internal(&error))?;
        let released = joined.release(&hostname, address).map_err(|why| {
            caller.refused("leave", &why);
            Status::permission_denied(why)
        })?;
        if released {
            joined.save(&self.0.state).map_err(|error| super::internal(&error))?;
            caller.did(format_args!("release the name {hostname}"));
        }
        Ok(Response::new(LeaveResponse {}))
    }
}

impl Handler {
    /// Lets in who knows the token. From then on the log knows the caller by the name it gives itself.
    async fn admit(&self, caller: &mut Caller, what: &str, token: &str, hostname: &str) -> Result<Arc<Loaded>, Status> {
        for (field, text) in [("the token", token), ("the hostname", hostname)] {
            super::bounded(field, text)?;
        }
        let loaded = self.0.loaded().ok_or_else(|| Status::failed_precondition("the machine has no config yet"))?;
        if !loaded.config.is_control_plane() {
            return Err(Status::failed_precondition("this machine is a worker: join through a control plane"));
        }
        caller.name = format!("join token for {hostname:?}");
        if same(token.as_bytes(), loaded.config.secrets.join_token.reveal().as_bytes()) {
            return Ok(loaded);
        }
        let _one_at_a_time = WRONG_TOKENS.lock().await;
        tokio::time::sleep(WRONG_TOKEN_DELAY).await;
        caller.refused(what, "the token is wrong");
        Err(Status::unauthenticated("the join token is wrong"))
    }
}

fn address(caller: &Caller) -> Result<IpAddr, Status> {
    caller.peer.map(|peer| peer.ip().to_canonical()).ok_or_else(|| Status::internal("the peer has no address"))
}

/// Compares without an early exit.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b))) == 0
}

/// A name must be one, and not that of a control plane.
fn check_name(hostname: &str, own: &str) -> Result<(), String> {
    machine_config::values::check_dns_name(hostname)?;
    if hostname.len() > 63 || [own, SERVER_NAME, "localhost"].contains(&hostname) {
        return Err(format!("a machine can't join under the name {hostname}"));
    }
    Ok(())
}

/// What is issued: the machine API's serving certificate, and kube-proxy's client certificate.
fn specs(hostname: &str, address: IpAddr) -> (LeafSpec, LeafSpec) {
    let kube_proxy = LeafSpec {
        common_name: "system:kube-proxy".to_owned(),
        organization: Some("system:node-proxier".to_owned()),
        dns_names: Vec::new(),
        addresses: Vec::new(),
        server: false,
        client: true,
        lifetime: serving::LIFETIME,
    };
    (serving::spec(hostname, &[address], &[]), kube_proxy)
}

fn sign(authority: &CertificateAuthority, csr: &str, spec: &LeafSpec, now: Timestamp) -> Result<String, Status> {
    if csr.len() > 64 << 10 {
        return Err(Status::invalid_argument("the certificate request is too long"));
    }
    let key = authority.key.as_ref().ok_or_else(|| Status::failed_precondition("this machine holds no CA key"))?;
    let request = pki::Request::from_pem(csr).map_err(|error| Status::invalid_argument(super::chain(&error)))?;
    let issuer = Authority::from_pem(authority.cert.as_str(), key.reveal()).map_err(|error| super::internal(&error))?;
    issuer.sign(&request, spec, now).map_err(|error| super::internal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_control_planes_are_not_given_away() {
        for name in ["cp-1", "strake-machine", "localhost", "Worker", "a_b", "", "-"] {
            assert!(check_name(name, "cp-1").is_err(), "{name}");
        }
        assert!(check_name("worker-1", "cp-1").is_ok());
    }

    #[test]
    fn certificates_name_the_machine_and_nothing_else() {
        let (machine, kube_proxy) = specs("worker-1", "10.5.0.21".parse().unwrap());
        assert_eq!(machine.dns_names, ["strake-machine", "worker-1", "localhost"]);
        assert_eq!(machine.addresses.len(), 3);
        assert!(machine.server && !machine.client && machine.organization.is_none());
        assert!(kube_proxy.client && !kube_proxy.server);
    }
}
