//! Who may call what: the method table against the caller's certificate, or against the pairing code in maintenance
//! mode. Refusals are logged; handlers log what state-changing calls did, through [`Caller::did`].

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use machine_api::PAIRING_HEADER;
use machine_api::methods::{Access, Role, method};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use crate::pairing::{Gate, Verdict};

/// By which rule calls are admitted.
#[derive(Clone, Debug)]
pub enum Policy {
    /// The machine is in a cluster: client certificates and roles.
    Roles,
    /// Maintenance mode: the pairing code, and few methods.
    Pairing(Arc<Gate>),
}

/// Who makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The common name of the certificate, or what stands for it.
    pub name: String,
    /// What the certificate's organizations say.
    pub roles: Vec<Role>,
    /// Where the call comes from.
    pub peer: Option<SocketAddr>,
}

impl Caller {
    /// The caller of a request that the layer let through.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
        request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("the call was not authorized"))
    }

    /// Writes what a call does to the machine into the audit log.
    pub fn did(&self, what: impl fmt::Display) {
        tracing::info!(target: "machined::audit", who = %self, what = %what, "state-changing call");
    }

    /// Writes what a call was refused for into the audit log.
    pub fn refused(&self, what: impl fmt::Display, why: impl fmt::Display) {
        tracing::warn!(target: "machined::audit", who = %self, what = %what, why = %why, "refused");
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        for role in &self.roles {
            write!(f, "/{}", role.organization())?;
        }
        match self.peer {
            Some(peer) => write!(f, " from {peer}"),
            None => Ok(()),
        }
    }
}

/// What a connection proves about its other end.
#[derive(Clone, Debug, Default)]
struct Peer {
    address: Option<SocketAddr>,
    /// Name and organizations of a certificate that TLS has verified.
    identity: Option<(String, Vec<String>)>,
}

impl Policy {
    fn decide(&self, path: &str, pairing: Option<&str>, peer: Peer) -> Result<Caller, Status> {
        let mut caller = Caller { name: "anonymous".to_owned(), roles: Vec::new(), peer: peer.address };
        let Some(method) = method(path) else {
            return Err(Status::unimplemented(format!("this machine has no method {path}")));
        };
        let refuse = |caller: &Caller, status: Status| {
            caller.refused(path, status.message());
            Err(status)
        };
        match self {
            Policy::Pairing(gate) => {
                caller.name = "pairing".to_owned();
                if !method.maintenance {
                    return refuse(
                        &caller,
                        Status::failed_precondition(
                            "the machine is in maintenance mode and serves version, disks, links, volumes, stats, apply-config and unlock only",
                        ),
                    );
                }
                let Some(code) = pairing else {
                    return refuse(
                        &caller,
                        Status::unauthenticated(
                            "the machine is in maintenance mode: pass the pairing string of its console with --pairing",
                        ),
                    );
                };
                match gate.check(code) {
                    Verdict::Accepted => Ok(caller),
                    Verdict::Wrong { left } => {
                        refuse(&caller, Status::unauthenticated(format!("the pairing code is wrong; {left} tries until it changes")))
                    }
                    Verdict::Changed => {
                        refuse(&caller, Status::unauthenticated("the pairing code is wrong; the console shows a new one now"))
                    }
                }
            }
            Policy::Roles => {
                if let Some((name, organizations)) = peer.identity {
                    caller.name = name;
                    caller.roles = organizations.iter().filter_map(|organization| Role::from_organization(organization)).collect();
                }
                match method.access {
                    Access::JoinToken => Ok(caller),
                    Access::Never => refuse(&caller, Status::failed_precondition("only a machine in maintenance mode can be installed")),
                    Access::Roles(_) if caller.name == "anonymous" && caller.roles.is_empty() => {
                        refuse(&caller, Status::unauthenticated("this call needs a client certificate of the cluster's machine CA"))
                    }
                    Access::Roles(roles) if !caller.roles.iter().any(|role| roles.contains(role)) => {
                        let needed: Vec<_> = roles.iter().map(|role| role.organization()).collect();
                        let text = format!("{} may not call {path}: it needs the role {}", caller.name, needed.join(" or "));
                        refuse(&caller, Status::permission_denied(text))
                    }
                    Access::Roles(_) => Ok(caller),
                }
            }
        }
    }
}

/// Puts [`Authorize`] before the services.
#[derive(Clone, Debug)]
pub struct AuthorizeLayer {
    policy: Arc<Policy>,
}

impl AuthorizeLayer {
    /// A layer that decides by this policy.
    pub fn new(policy: Policy) -> Self {
        AuthorizeLayer { policy: Arc::new(policy) }
    }
}

impl<S> tower::Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, policy: self.policy.clone() }
    }
}

/// Decides about every request before a service sees it.
#[derive(Clone, Debug)]
pub struct Authorize<S> {
    inner: S,
    policy: Arc<Policy>,
}

impl<S> tower::Service<http::Request<Body>> for Authorize<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let peer = peer(&request);
        let pairing = request.headers().get(PAIRING_HEADER).and_then(|value| value.to_str().ok());
        match self.policy.decide(request.uri().path(), pairing, peer) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

fn peer(request: &http::Request<Body>) -> Peer {
    let Some(connection) = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>() else {
        return Peer::default();
    };
    let certificates = connection.peer_certs();
    let identity = certificates.as_deref().and_then(|chain| chain.first()).and_then(|leaf| match pki::Certificate::from_der(leaf) {
        Ok(subject) => Some((subject.common_name, subject.organizations)),
        Err(error) => {
            tracing::warn!(error = %super::chain(&error), "a verified client certificate can't be read");
            None
        }
    });
    Peer { address: connection.get_ref().remote_addr(), identity }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine_api::methods::METHODS;
    use tonic::Code;

    fn decide(policy: &Policy, method: &str, organizations: Option<&[&str]>, pairing: Option<&str>) -> Result<Caller, Code> {
        let identity = organizations.map(|list| ("eve".to_owned(), list.iter().map(|&name| name.to_owned()).collect()));
        let path = format!("/strake.machine.v1alpha1.{method}");
        policy.decide(&path, pairing, Peer { address: None, identity }).map_err(|status| status.code())
    }

    #[test]
    fn roles_decide_in_a_cluster() {
        let cases: &[(&str, Option<&[&str]>, Option<Code>)] = &[
            ("MachineService/Reboot", Some(&["admin"]), None),
            ("MachineService/Reboot", Some(&["reader", "operator"]), None),
            ("MachineService/Reboot", Some(&["reader"]), Some(Code::PermissionDenied)),
            ("MachineService/Reboot", Some(&["system:masters"]), Some(Code::PermissionDenied)),
            ("MachineService/Reboot", None, Some(Code::Unauthenticated)),
            ("MachineService/Version", None, Some(Code::Unauthenticated)),
            ("EtcdService/Snapshot", Some(&["etcd-backup"]), None),
            ("EtcdService/Recover", Some(&["etcd-backup"]), Some(Code::PermissionDenied)),
            ("FileService/Read", Some(&["operator"]), Some(Code::PermissionDenied)),
            ("MachineService/Install", Some(&["admin"]), Some(Code::FailedPrecondition)),
            ("JoinService/Join", None, None),
            ("MachineService/Nonsense", Some(&["admin"]), Some(Code::Unimplemented)),
        ];
        for (method, organizations, refusal) in cases {
            assert_eq!(decide(&Policy::Roles, method, *organizations, None).err(), *refusal, "{method} {organizations:?}");
        }
    }

    #[test]
    fn maintenance_mode_serves_little_and_only_with_the_code() {
        let gate = Arc::new(Gate::new([1; 32]));
        let policy = Policy::Pairing(gate.clone());
        let code = gate.shown().borrow().code().to_owned();
        for method in METHODS {
            let name = method.path.trim_start_matches("/strake.machine.v1alpha1.");
            assert_eq!(decide(&policy, name, None, Some(&code)).is_ok(), method.maintenance, "{name}");
        }
        assert_eq!(decide(&policy, "MachineService/Version", None, None), Err(Code::Unauthenticated));
        assert_eq!(decide(&policy, "MachineService/Version", Some(&["admin"]), None), Err(Code::Unauthenticated));
        assert_eq!(decide(&policy, "MachineService/Version", None, Some("00000000")), Err(Code::Unauthenticated));
    }
}
