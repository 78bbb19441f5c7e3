//! `MachineSecrets`: what makes a machine a member of its cluster. Kept in a document of its own so that all others can live in git.

use crate::model::{Check, Decoder};
use crate::object;
use crate::path::FieldPath;
use crate::values::{CertificatePem, JoinToken, KeyPem};

object! {
    /// What makes a machine a member of its cluster. Control-plane machines hold the keys of the authorities; workers hold certificates and the join token alone.
    pub struct MachineSecrets {
        /// The cluster's identity, given once by `gen cluster`.
        cluster_id ("clusterID"): String,
        /// The token a worker joins with; also a Kubernetes bootstrap token.
        join_token ("joinToken"): JoinToken,
        /// The authorities.
        authorities ("certificateAuthorities"): CertificateAuthorities,
        /// The key that signs service-account tokens; control plane only.
        service_account_key ("serviceAccountKey"): Option<KeyPem>,
    }
}

object! {
    /// The cluster's certificate authorities.
    pub struct CertificateAuthorities {
        /// Kubernetes: API server, kubelets, every client of the API.
        cluster ("cluster"): CertificateAuthority,
        /// The machine API.
        machine ("machine"): CertificateAuthority,
        /// etcd; control plane only.
        etcd ("etcd"): Option<CertificateAuthority>,
        /// Aggregated API servers; control plane only.
        front_proxy ("frontProxy"): Option<CertificateAuthority>,
    }
}

object! {
    /// A certificate authority.
    pub struct CertificateAuthority {
        /// The certificate in PEM.
        cert ("cert"): CertificatePem,
        /// The private key in PEM; control plane only.
        key ("key"): Option<KeyPem>,
    }
}

impl MachineSecrets {
    /// What a worker may know: no keys, and no authority it has no use for.
    pub fn for_worker(&self) -> Self {
        let without_key = |ca: &CertificateAuthority| CertificateAuthority { cert: ca.cert.clone(), key: None };
        Self {
            cluster_id: self.cluster_id.clone(),
            join_token: self.join_token.clone(),
            authorities: CertificateAuthorities {
                cluster: without_key(&self.authorities.cluster),
                machine: without_key(&self.authorities.machine),
                etcd: None,
                front_proxy: None,
            },
            service_account_key: None,
        }
    }

    /// Every key that is there, with the path it stands at.
    pub(crate) fn keys_present(&self) -> Vec<(&'static str, bool)> {
        let a = &self.authorities;
        let optional = |ca: &Option<CertificateAuthority>| ca.as_ref().is_some_and(|ca| ca.key.is_some());
        vec![
            ("certificateAuthorities.cluster.key", a.cluster.key.is_some()),
            ("certificateAuthorities.machine.key", a.machine.key.is_some()),
            ("certificateAuthorities.etcd.key", optional(&a.etcd)),
            ("certificateAuthorities.frontProxy.key", optional(&a.front_proxy)),
            ("serviceAccountKey", self.service_account_key.is_some()),
        ]
    }
}

impl Check for MachineSecrets {
    fn check(&self, d: &mut Decoder) {
        let fits = (8..=64).contains(&self.cluster_id.len()) && self.cluster_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fits {
            d.report_at(&FieldPath::fields("clusterID"), "must be 8 to 64 letters, digits and '-'");
        }
    }
}
impl Check for CertificateAuthorities {}
impl Check for CertificateAuthority {}
