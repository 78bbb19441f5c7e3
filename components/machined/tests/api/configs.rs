//! Configs: refused with the path and the reason, shown, applied, tried.

use crate::world::{GIB, World, first_bytes};

#[tokio::test(flavor = "multi_thread")]
async fn configs_that_do_not_fit_the_machine_are_refused_with_the_reason() {
    let world = World::new().await;
    world.put_media();
    let (a, b) = (world.disk("vda", 16 * GIB), world.disk("vdb", 16 * GIB));
    let nodes = [a.node.clone(), b.node.clone()];
    let (served, gate) = world.maintenance(vec![a, b]).await;
    let shown = gate.shown().borrow().to_string();
    let good = std::fs::read_to_string(world.file("worker.yaml")).unwrap();
    let selector = good.lines().find(|line| line.contains(">= 9GB")).unwrap().to_owned();
    let with_disk = |value: &str| good.replace(&selector, &format!("    {value}"));
    let network = "network: {podSubnets: [10.244.0.0/16], serviceSubnets: ";
    let with_network = |services: &str| good.replace("kind: ClusterConfig\n", &format!("kind: ClusterConfig\n{network}{services}}}\n"));
    let cases = [
        ("ambiguous", good.clone(), "install.disk matches 2 disks (vda, vdb)"),
        ("none", with_disk("size: '>= 900GB'"), "install.disk matches no disk (vda: its size is"),
        ("gone", with_disk("serial: NOSUCH"), "install.disk matches no disk (vda: its serial is"),
        (
            "unknown",
            good.clone() + "\n---\napiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: a\nhostnam: b\n",
            "HostnameConfig: hostnam: unknown field (did you mean \"hostname\"?)",
        ),
        ("twice", good.replace("role: worker\n", "role: worker\nrole: worker\n"), "MachineConfig: role: the key appears twice"),
        ("cidr", with_network("[10.96.0.0/33]"), "network.serviceSubnets[0]: \"10.96.0.0/33\" is not a CIDR"),
        ("overlap", with_network("[10.244.0.0/20]"), "network.serviceSubnets[0]: 10.244.0.0/20 overlaps the pod range 10.244.0.0/16"),
        ("half", good.split("\n---\n").next().unwrap().to_owned(), "a machine needs a ClusterConfig document"),
    ];
    for (name, text, reason) in cases {
        assert!(name == "ambiguous" || text != good, "{name}");
        let path = world.file(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        let error = world.strakectl(&["apply-config", "-n", &served.address, "--pairing", &shown, "-f", &path]).await.unwrap_err();
        assert!(format!("{error:#}").contains(reason), "{name}: {error:#}");
    }
    assert!(nodes.iter().all(|node| first_bytes(node) == [0; 1024]), "nothing was written");
    assert!(!world.went_down());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_is_shown_applied_or_refused() {
    let world = World::new().await;
    let served = world.running().await;
    let (config, hostname) = (world.file("controlplane.yaml"), world.file("hostname.yaml"));
    let stored = || served.machine.state.config().unwrap().unwrap();
    let before = stored();
    let with = async |extra: &str, flags: &[&str]| {
        let path = world.file("extra.yaml");
        std::fs::write(&path, extra).unwrap();
        let mut arguments = vec!["apply-config", "-n", &served.address, "-f", &config, "-f", &hostname, "-f", &path];
        arguments.extend(flags);
        world.strakectl(&arguments).await
    };
    let resolver = "apiVersion: strake.dev/v1alpha1\nkind: ResolverConfig\nnameservers: [10.5.0.3]\n";
    with(resolver, &["--dry-run"]).await.unwrap();
    assert_eq!(stored(), before, "a dry run changes nothing");
    let error = with("apiVersion: strake.dev/v1alpha1\nkind: ResolverConfig\nnameserver: [10.5.0.3]\n", &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("nameserver"), "{error:#}");
    assert_eq!(stored(), before);

    let mut changed = served.machine.config.subscribe();
    with(resolver, &[]).await.unwrap();
    assert!(changed.has_changed().unwrap());
    assert!(changed.borrow_and_update().as_ref().unwrap().config.resolver.is_some());
    assert!(stored().contains("10.5.0.3"));

    // A worker's config for a control plane.
    let error = world.strakectl(&["apply-config", "-n", &served.address, "-f", &world.file("worker.yaml")]).await.unwrap_err();
    assert!(format!("{error:#}").contains("only a new installation can change this"), "{error:#}");
    assert!(stored().contains("10.5.0.3"), "what was refused changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_is_tried_and_kept_when_it_is_confirmed() {
    let world = World::new().await;
    let served = world.running().await;
    let (config, hostname, extra) = (world.file("controlplane.yaml"), world.file("hostname.yaml"), world.file("extra.yaml"));
    let stored = || served.machine.state.config().unwrap().unwrap();
    let in_force = || served.machine.loaded().unwrap().config.clone();
    let before = stored();
    let apply = async |document: &str, mode: &str| {
        std::fs::write(&extra, format!("apiVersion: strake.dev/v1alpha1\n{document}")).unwrap();
        world.strakectl(&["apply-config", "-n", &served.address, "-f", &config, "-f", &hostname, "-f", &extra, "--mode", mode]).await
    };
    let confirm = async || world.strakectl(&["confirm-config", "-n", &served.address]).await;
    assert!(format!("{:#}", confirm().await.unwrap_err()).contains("no config is being tried"));

    apply("kind: ResolverConfig\nnameservers: [10.5.0.3]\n", "try").await.unwrap();
    assert!(in_force().resolver.is_some());
    assert_eq!(stored(), before, "a power cut brings the one before back");
    confirm().await.unwrap();
    assert!(stored().contains("10.5.0.3"));
    assert!(confirm().await.is_err());

    // Changed links are on trial in every mode, and strakectl confirms by reaching the machine again.
    apply("kind: LinkConfig\nname: eth9\naddresses: [10.7.0.1/24]\n", "no-reboot").await.unwrap();
    assert_eq!(in_force().links.len(), 1);
    assert!(stored().contains("10.7.0.1/24") && !served.machine.trials.under_way());

    // Applying what is on trial keeps it.
    apply("kind: ResolverConfig\nnameservers: [10.5.0.4]\n", "try").await.unwrap();
    assert!(served.machine.trials.under_way());
    apply("kind: ResolverConfig\nnameservers: [10.5.0.4]\n", "auto").await.unwrap();
    assert!(stored().contains("10.5.0.4") && !served.machine.trials.under_way());

    // What needs a reboot: refused, or done with one.
    std::fs::write(&hostname, "apiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: cp-9\n").unwrap();
    for mode in ["no-reboot", "try"] {
        let error = apply("kind: ResolverConfig\nnameservers: [10.5.0.4]\n", mode).await.unwrap_err();
        assert!(format!("{error:#}").contains("reboot") && format!("{error:#}").contains("HostnameConfig"), "{error:#}");
    }
    assert!(!world.went_down() && !stored().contains("cp-9"));
    apply("kind: ResolverConfig\nnameservers: [10.5.0.4]\n", "auto").await.unwrap();
    assert!(stored().contains("cp-9"));
    for _ in 0..100 {
        if world.went_down() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the machine does not reboot");
}
