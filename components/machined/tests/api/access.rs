//! Who may do what, and that refusals are in the audit log with who and what.

use std::time::Duration;

use machine_api::v1alpha1::{JoinRequest, LeaveRequest, RebootRequest, VersionRequest};
use pki::Authority;
use tonic::Code;

use crate::world::{World, audited, spec};

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_enforced_and_strangers_are_turned_away() {
    let world = World::new().await;
    let served = world.running().await;
    let ca = served.machine_ca();
    world.strakectl(&["version", "-n", &served.address]).await.unwrap();

    let reader = served.as_role(&ca, Some("reader")).await;
    reader.machine().version(VersionRequest {}).await.unwrap();
    let status = reader.machine().reboot(RebootRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("eve") && status.message().contains("operator"), "{}", status.message());

    audited(&[
        "refused",
        "who=eve/reader from 127.0.0.1:",
        "what=/strake.machine.v1alpha1.MachineService/Reboot",
        "needs the role admin or operator",
    ])
    .await;

    let nobody = served.as_role(&ca, Some("system:masters")).await;
    assert_eq!(nobody.machine().version(VersionRequest {}).await.unwrap_err().code(), Code::PermissionDenied);

    // A certificate of another CA: TLS ends before any call.
    let stranger = Authority::generate("other", jiff::Timestamp::now(), Duration::from_secs(3600)).unwrap();
    let stranger = served.as_user(&stranger, "mallory", Some("admin")).await;
    assert!(stranger.machine().version(VersionRequest {}).await.is_err());
    audited(&[
        "refused",
        "\\\"mallory\\\", as a certificate of \\\"other\\\" says",
        "from 127.0.0.1:",
        "what=\"connect\"",
        "UnknownIssuer",
    ])
    .await;
    assert!(!world.went_down());

    // A machine of another cluster is not believed by the client.
    let elsewhere = World::new().await;
    let error = elsewhere.strakectl(&["version", "-n", &served.address]).await.unwrap_err();
    assert!(format!("{error:#}").contains("certificate"), "{error:#}");

    let operator = served.as_role(&ca, Some("operator")).await;
    operator.machine().reboot(RebootRequest {}).await.unwrap();
    audited(&["state-changing call", "who=eve/operator from 127.0.0.1:", "what=reboot"]).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(world.went_down());
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_join_by_token_under_their_own_name_only() {
    let world = World::new().await;
    let served = world.running().await;
    let loaded = served.machine.loaded().unwrap();
    // A joining machine has no certificate; the table lets it call this one method.
    let connection = served.as_role(&served.machine_ca(), None).await;
    let key = pki::PrivateKey::generate().unwrap();
    let csr = pki::create_request(&key, &spec("cp-1", Some("system:masters"), true)).unwrap();
    let join = async |token: &str, hostname: &str| {
        let request = JoinRequest { token: token.into(), hostname: hostname.into(), machine_csr: csr.clone(), kube_proxy_csr: csr.clone() };
        connection.join().join(request).await.map(tonic::Response::into_inner)
    };
    let token = loaded.config.secrets.join_token.reveal();
    let issued = join(token, "worker-1").await.unwrap();
    let certificate = pki::Certificate::from_pem(&issued.machine_certificate).unwrap();
    // What the request asked for is not what it got.
    assert_eq!((certificate.common_name.as_str(), certificate.organizations.len()), ("worker-1", 0));
    assert!(certificate.addresses.contains(&"127.0.0.1".parse().unwrap()) && !certificate.client);
    let kube_proxy = pki::Certificate::from_pem(&issued.kube_proxy_certificate).unwrap();
    assert_eq!(kube_proxy.organizations, ["system:node-proxier"]);

    assert_eq!(join("abcdef.0000000000000000", "worker-1").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(join(token, "cp-1").await.unwrap_err().code(), Code::PermissionDenied);
    audited(&["refused", "join token for \"worker-1\" from 127.0.0.1:", "what=join", "the token is wrong"]).await;
    audited(&["state-changing call", "issue certificates to worker-1 at 127.0.0.1"]).await;
    served.machine.state.write("joined.json", br#"{"worker-2":"10.9.9.9","worker-3":"127.0.0.1"}"#).unwrap();
    let status = join(token, "worker-2").await.unwrap_err();
    assert!(status.message().contains("belongs to the machine at 10.9.9.9"), "{}", status.message());
    audited(&["refused", "join token for \"worker-2\" from 127.0.0.1:", "belongs to the machine at 10.9.9.9"]).await;

    // A machine gives its own name back, and nobody else's.
    let leave = async |token: &str, hostname: &str| {
        let request = LeaveRequest { token: token.into(), hostname: hostname.into() };
        connection.join().leave(request).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(leave("abcdef.0000000000000000", "worker-3").await, Err(Code::Unauthenticated));
    assert_eq!(leave(token, "worker-2").await, Err(Code::PermissionDenied));
    leave(token, "worker-3").await.unwrap();
    let kept = served.machine.state.text("joined.json").unwrap().unwrap();
    assert!(kept.contains("worker-2") && !kept.contains("worker-3"), "{kept}");
}
