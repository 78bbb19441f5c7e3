//! kubeconfigs. They name certificate files, so that a renewal needs neither a new kubeconfig nor a restart.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machine_config::to_yaml;
use serde_json::{Value, json};

/// How a client proves who it is.
#[derive(Clone, Debug)]
pub enum Credentials<'a> {
    /// A certificate and key in files.
    Files {
        /// The certificate's path.
        cert: &'a str,
        /// The key's path.
        key: &'a str,
    },
    /// A bearer token.
    Token(&'a str),
    /// A certificate and key, PEM, inside the kubeconfig: for people to take away.
    Inline {
        /// The certificate.
        cert: &'a str,
        /// The key.
        key: &'a str,
    },
}

/// Where the server is and which authority vouches for it.
#[derive(Clone, Copy, Debug)]
pub enum ServerAuthority<'a> {
    /// In a file.
    File(&'a str),
    /// PEM, inside the kubeconfig.
    Inline(&'a str),
}

/// Writes a kubeconfig with one cluster, user and context.
pub fn render(cluster: &str, server: &str, authority: ServerAuthority<'_>, user: &str, credentials: &Credentials<'_>) -> String {
    let credentials: Value = match credentials {
        Credentials::Files { cert, key } => json!({"client-certificate": cert, "client-key": key}),
        Credentials::Token(token) => json!({"token": token}),
        Credentials::Inline { cert, key } => {
            json!({"client-certificate-data": STANDARD.encode(cert), "client-key-data": STANDARD.encode(key)})
        }
    };
    let cluster_data = match authority {
        ServerAuthority::File(path) => json!({"server": server, "certificate-authority": path}),
        ServerAuthority::Inline(pem) => json!({"server": server, "certificate-authority-data": STANDARD.encode(pem)}),
    };
    let context = format!("{user}@{cluster}");
    to_yaml(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": cluster_data}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
        "current-context": context,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_s_kubeconfig_names_files() {
        let files = Credentials::Files { cert: "/c.crt", key: "/c.key" };
        let text = render("test", "https://127.0.0.1:6443", ServerAuthority::File("/ca.crt"), "system:kube-scheduler", &files);
        assert_eq!(
            text,
            "apiVersion: v1\nkind: Config\nclusters:\n- name: test\n  cluster:\n    server: https://127.0.0.1:6443\n    certificate-authority: /ca.crt\n\
             users:\n- name: system:kube-scheduler\n  user:\n    client-certificate: /c.crt\n    client-key: /c.key\n\
             contexts:\n- name: system:kube-scheduler@test\n  context:\n    cluster: test\n    user: system:kube-scheduler\n\
             current-context: system:kube-scheduler@test\n"
        );
    }
}
