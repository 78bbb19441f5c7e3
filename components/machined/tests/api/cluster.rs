//! The first boot of a cluster and its administration.

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_bootstrapped_once_and_administered() {
    let world = World::new().await;
    let served = world.running().await;
    world.strakectl(&["bootstrap", "-n", &served.address]).await.unwrap();
    assert!(served.machine.state.cluster_id().unwrap().is_some());
    let error = world.strakectl(&["bootstrap", "-n", &served.address]).await.unwrap_err();
    assert!(format!("{error:#}").contains("already belongs to cluster"), "{error:#}");

    let kubeconfig = world.file("kubeconfig");
    world.strakectl(&["kubeconfig", "-n", &served.address, "--server", "https://127.0.0.1:7443", &kubeconfig]).await.unwrap();
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    assert!(text.contains("https://127.0.0.1:7443") && text.contains("client-certificate-data"), "{text}");
    assert!(world.strakectl(&["kubeconfig", "-n", &served.address, "--user", "system:kube-scheduler", "-"]).await.is_err());
    let error = world.strakectl(&["reset", "-n", &served.address]).await.unwrap_err();
    assert!(format!("{error:#}").contains("--yes"), "{error:#}");
    assert!(!served.machine.state.reset_requested());
}
