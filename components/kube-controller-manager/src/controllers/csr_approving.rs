//! Approves certificate requests of kubelets, and nothing else.
//!
//! Client certificates (`kubernetes.io/kube-apiserver-client-kubelet`): as upstream, when authorization lets the requester ask for a node's
//! certificate. Serving certificates (`kubernetes.io/kubelet-serving`): only a kubelet's own, for the names and addresses its Node object has.
//! What is not approved is left for a person; nothing is denied.

use std::net::IpAddr;
use std::time::Duration;

use k8s_client::{
    Action, Change, Client, Error, Informer, ObjectKey, Request, Time, WorkQueue,
    resources::{CERTIFICATE_SIGNING_REQUESTS, SUBJECT_ACCESS_REVIEWS},
    run_workers,
};
use serde::Deserialize;
use serde_json::json;

use super::csr::{self, Wanted};
use crate::api::{CertificateSigningRequest, Node};
use crate::context::Context;

pub const CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODE_USER: &str = "system:node:";
const NODE_GROUP: &str = "system:nodes";

/// What to do about a request.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// Not ours, or already decided.
    Ignore,
    /// Approve if the requester may `create` this subresource of certificatesigningrequests.
    IfAllowed {
        permission: &'static str,
        message: &'static str,
    },
    Approve {
        message: &'static str,
    },
    /// The node is not there yet, or lacks the address.
    Wait {
        reason: String,
    },
    Leave {
        reason: String,
    },
}

fn judge(request: &CertificateSigningRequest, node: impl Fn(&str) -> Option<NodeNames>) -> Verdict {
    let decided =
        !request.status.certificate.is_empty() || request.status.conditions.iter().any(|c| c.kind == "Approved" || c.kind == "Denied");
    let signer = request.spec.signer_name.as_str();
    if decided || !matches!(signer, CLIENT_KUBELET | KUBELET_SERVING) {
        return Verdict::Ignore;
    }
    let leave = |reason: &str| Verdict::Leave { reason: reason.to_string() };
    let wanted = match csr::read(&request.spec.request) {
        Ok(wanted) => wanted,
        Err(error) => return Verdict::Leave { reason: error.to_string() },
    };
    let Some(name) = wanted.common_name.strip_prefix(NODE_USER).filter(|name| !name.is_empty()) else {
        return leave("the common name is not system:node:<name>");
    };
    if wanted.organizations != [NODE_GROUP]
        || wanted.has_odd_subject
        || wanted.has_other_names
        || wanted.has_other_extensions
        || wanted.is_ca
    {
        return leave("the request asks for more than a kubelet's certificate has");
    }
    if signer == CLIENT_KUBELET {
        return judge_client(request, &wanted);
    }
    if !usages_are(&request.spec.usages, "server auth") {
        return leave("the usages are not those of a serving certificate");
    }
    if request.spec.username != wanted.common_name || !request.spec.groups.iter().any(|group| group == NODE_GROUP) {
        return leave("a serving certificate is only for the kubelet that asks");
    }
    if wanted.dns_names.is_empty() && wanted.ip_addresses.is_empty() {
        return leave("a serving certificate needs a name or an address");
    }
    let Some(known) = node(name) else { return Verdict::Wait { reason: format!("node {name} does not exist yet") } };
    if let Some(dns) = wanted.dns_names.iter().find(|dns| !known.names.contains(dns)) {
        return Verdict::Wait { reason: format!("{dns} is not a name of node {name}") };
    }
    if let Some(ip) = wanted.ip_addresses.iter().find(|ip| !known.addresses.contains(ip)) {
        return Verdict::Wait { reason: format!("{ip} is not an address of node {name}") };
    }
    Verdict::Approve { message: "Auto approving kubelet serving certificate for the node's own names and addresses." }
}

fn judge_client(request: &CertificateSigningRequest, wanted: &Wanted) -> Verdict {
    if !wanted.dns_names.is_empty() || !wanted.ip_addresses.is_empty() {
        return Verdict::Leave { reason: "a client certificate has no alternative names".into() };
    }
    if !usages_are(&request.spec.usages, "client auth") {
        return Verdict::Leave { reason: "the usages are not those of a client certificate".into() };
    }
    if request.spec.username == wanted.common_name {
        let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
        return Verdict::IfAllowed { permission: "selfnodeclient", message };
    }
    let message = "Auto approving kubelet client certificate after SubjectAccessReview.";
    Verdict::IfAllowed { permission: "nodeclient", message }
}

/// Exactly digital signature and this purpose, with or without key encipherment (which only RSA keys can use).
fn usages_are(usages: &[String], purpose: &str) -> bool {
    let mut have: Vec<&str> = usages.iter().map(String::as_str).filter(|usage| *usage != "key encipherment").collect();
    have.sort_unstable();
    let mut want = ["digital signature", purpose];
    want.sort_unstable();
    have == want
}

/// Names and addresses a node has.
#[derive(Clone, Debug, Default, PartialEq)]
struct NodeNames {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

fn names_of(node: &Node) -> NodeNames {
    let mut known = NodeNames { names: vec![node.metadata.name.clone()], addresses: Vec::new() };
    for address in &node.status.addresses {
        match address.kind.as_str() {
            "Hostname" | "InternalDNS" => known.names.push(address.address.clone()),
            "InternalIP" => known.addresses.extend(address.address.parse::<IpAddr>()),
            _ => {}
        }
    }
    known
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: ReviewStatus,
}

#[derive(Default, Deserialize)]
struct ReviewStatus {
    #[serde(default)]
    allowed: bool,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("certificate-controller");
    let requests = context.informers.signing_requests();
    let nodes = context.informers.nodes();
    let queue = WorkQueue::new("csr-approving");
    let sink = queue.clone();
    requests.add_handler(move |change: Change<'_, CertificateSigningRequest>| {
        if !matches!(change, Change::Deleted(_)) {
            sink.add(change.object().metadata.key());
        }
    });
    // A request that waits for its node, or for an address of it, goes on when the node changes.
    let (sink, waiting) = (queue.clone(), requests.clone());
    nodes.add_handler(move |change: Change<'_, Node>| {
        let user = format!("{NODE_USER}{}", change.object().metadata.name);
        let addressed = match change {
            Change::Updated { old, new } => old.status.addresses != new.status.addresses,
            _ => true,
        };
        if addressed {
            waiting.list().iter().filter(|request| request.spec.username == user).for_each(|request| sink.add(request.metadata.key()));
        }
    });
    requests.wait_synced().await;
    nodes.wait_synced().await;
    run_workers(queue, 2, context.stop.clone(), move |key: ObjectKey| {
        let (client, requests, nodes) = (client.clone(), requests.clone(), nodes.clone());
        async move {
            match requests.get_key(&key) {
                Some(request) => sync(&client, &nodes, &request).await,
                None => Ok(Action::Done),
            }
        }
    })
    .await;
}

async fn sync(client: &Client, nodes: &Informer<Node>, request: &CertificateSigningRequest) -> Result<Action, Error> {
    let name = request.metadata.name.as_str();
    let message = match judge(request, |name| nodes.get("", name).map(|node| names_of(&node))) {
        Verdict::Ignore => return Ok(Action::Done),
        Verdict::Leave { reason } => {
            tracing::info!(request = name, requester = request.spec.username, reason, "certificate request left for a person to decide");
            return Ok(Action::Done);
        }
        Verdict::Wait { reason } => {
            tracing::info!(request = name, reason, "certificate request waits");
            return Ok(Action::After(Duration::from_secs(60)));
        }
        Verdict::Approve { message } => message,
        Verdict::IfAllowed { permission, message } => {
            let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
                "user": request.spec.username, "uid": request.spec.uid, "groups": request.spec.groups, "extra": request.spec.extra,
                "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create", "subresource": permission, "version": "*"},
            }});
            let review: Review = client.call(&Request::create(&SUBJECT_ACCESS_REVIEWS, "", &body)).await?;
            if !review.status.allowed {
                tracing::info!(
                    request = name,
                    requester = request.spec.username,
                    permission,
                    "certificate request not approved: the requester lacks the permission"
                );
                return Ok(Action::Done);
            }
            message
        }
    };
    let now = Time::now();
    client
        .update(&CERTIFICATE_SIGNING_REQUESTS, ("", name), &request.metadata.uid, "approval", |object| {
            let approval = json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message, "lastUpdateTime": now, "lastTransitionTime": now});
            match object["status"]["conditions"].as_array_mut() {
                Some(conditions) => conditions.push(approval),
                None => object["status"]["conditions"] = json!([approval]),
            }
        })
        .await?;
    tracing::info!(request = name, requester = request.spec.username, signer = request.spec.signer_name, "certificate request approved");
    Ok(Action::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(signer: &str, user: &str, usages: &[&str], csr: String) -> CertificateSigningRequest {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"request": csr, "signerName": signer, "username": user,
            "groups": ["system:nodes", "system:authenticated"], "usages": usages}}))
        .unwrap()
    }

    fn node(name: &str) -> Option<NodeNames> {
        (name == "n1").then(|| NodeNames { names: vec!["n1".into()], addresses: vec!["10.5.0.21".parse().unwrap()] })
    }

    #[test]
    fn only_what_a_kubelet_may_have_is_approved() {
        const CLIENT: &[&str] = &["digital signature", "client auth"];
        const SERVER: &[&str] = &["digital signature", "key encipherment", "server auth"];
        let own = "system:node:n1";
        let csr = |names: &[&str]| csr::make(own, &["system:nodes"], names);
        for (name, request, want) in [
            ("bootstrap", request(CLIENT_KUBELET, "system:bootstrap:abcdef", CLIENT, csr(&[])), "if nodeclient"),
            ("renewal", request(CLIENT_KUBELET, own, CLIENT, csr(&[])), "if selfnodeclient"),
            ("client with names", request(CLIENT_KUBELET, own, CLIENT, csr(&["n1"])), "leave"),
            ("wrong usage", request(CLIENT_KUBELET, own, SERVER, csr(&[])), "leave"),
            ("other group", request(CLIENT_KUBELET, own, CLIENT, csr::make(own, &["system:masters"], &[])), "leave"),
            ("not a node", request(CLIENT_KUBELET, own, CLIENT, csr::make("admin", &["system:nodes"], &[])), "leave"),
            ("other signer", request("kubernetes.io/kube-apiserver-client", own, CLIENT, csr(&[])), "ignore"),
            ("serving", request(KUBELET_SERVING, own, SERVER, csr(&["n1", "10.5.0.21"])), "approve"),
            (
                "serving, without encipherment",
                request(KUBELET_SERVING, own, &["server auth", "digital signature"], csr(&["n1"])),
                "approve",
            ),
            ("foreign name", request(KUBELET_SERVING, own, SERVER, csr(&["n2"])), "wait"),
            ("foreign address", request(KUBELET_SERVING, own, SERVER, csr(&["10.96.0.1"])), "wait"),
            ("for another", request(KUBELET_SERVING, "system:node:n2", SERVER, csr(&["n1"])), "leave"),
            ("no names", request(KUBELET_SERVING, own, SERVER, csr(&[])), "leave"),
            (
                "unknown node",
                request(KUBELET_SERVING, "system:node:n9", SERVER, csr::make("system:node:n9", &["system:nodes"], &["n9"])),
                "wait",
            ),
            ("garbage", request(KUBELET_SERVING, own, SERVER, "eA==".into()), "leave"),
        ] {
            let got = match judge(&request, node) {
                Verdict::Ignore => "ignore".to_string(),
                Verdict::IfAllowed { permission, .. } => format!("if {permission}"),
                Verdict::Approve { .. } => "approve".into(),
                Verdict::Wait { .. } => "wait".into(),
                Verdict::Leave { .. } => "leave".into(),
            };
            assert_eq!(got, want, "{name}");
        }
        let mut decided = request(CLIENT_KUBELET, own, CLIENT, csr(&[]));
        decided.status.conditions.push(k8s_client::Condition { kind: "Denied".into(), status: "True".into(), ..Default::default() });
        assert_eq!(judge(&decided, node), Verdict::Ignore);
    }
}
