//! Looking into a machine.

use machine_api::v1alpha1::{LogsRequest, ResourceGetRequest, ResourceWatchRequest, StatsRequest};
use tokio_stream::StreamExt;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn people_look_into_a_machine() {
    let world = World::new().await;
    world.serve_logs(&[
        r#"{"kind":"entry","time_us":1,"boot":"b","priority":6,"message":"hello","fields":{"REASON":"x","CODE_LINE":"7"}}"#,
        r#"{"kind":"lost","count":3}"#,
        r#"{"kind":"end"}"#,
    ]);
    let served = world.running().await;
    let admin = served.as_role(&served.machine_ca(), Some("admin")).await;
    let request = LogsRequest { service: "kubelet".into(), ..LogsRequest::default() };
    let lines: Vec<_> = admin.logs().logs(request).await.unwrap().into_inner().map(|line| line.unwrap().message).collect().await;
    assert_eq!(lines, ["hello reason=x", "(3 lines were lost)"]);

    served.machine.store.set("links", "eth0", serde_json::json!({"state": "up"}));
    let request = ResourceWatchRequest { kind: "links".into(), id: String::new() };
    let mut events = admin.resources().watch(request).await.unwrap().into_inner();
    let mut next = async || {
        let event = events.next().await.unwrap().unwrap();
        let name = event.resource.map(|resource| resource.id).unwrap_or_default();
        (machine_api::v1alpha1::resource_event::Type::try_from(event.r#type).unwrap().as_str_name(), name)
    };
    assert_eq!(next().await, ("TYPE_SET", "eth0".into()));
    assert_eq!(next().await, ("TYPE_SYNCED", String::new()));
    served.machine.store.remove("links", "eth0");
    assert_eq!(next().await, ("TYPE_DELETED", "eth0".into()));

    std::fs::create_dir_all(world.root("etc")).unwrap();
    std::fs::write(world.root("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    world.strakectl(&["ls", "-n", &served.address, "/etc"]).await.unwrap();
    let error = world.strakectl(&["read", "-n", &served.address, "/etc/nothing"]).await.unwrap_err();
    assert!(format!("{error:#}").contains("No such file"), "{error:#}");
    assert!(world.strakectl(&["read", "-n", &served.address, "/etc"]).await.is_err(), "a directory is not read");
    assert!(world.strakectl(&["get", "-n", &served.address, "nonsense"]).await.is_err());
    // One machine that answers and one that does not: both are told.
    let both = format!("{},127.0.0.1:1", served.address);
    let error = world.strakectl(&["get", "links", "-n", &both]).await.unwrap_err();
    assert!(format!("{error:#}").contains("127.0.0.1:1: "), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_and_milestones_are_shown() {
    let world = World::new().await;
    let served = world.running().await;
    // This machine's own processes; a machine without cgroups shows them with no group's memory.
    std::os::unix::fs::symlink("/proc", world.root("proc")).unwrap();
    let reader = served.as_role(&served.machine_ca(), Some("reader")).await;
    let processes = reader.services().stats(StatsRequest {}).await.unwrap().into_inner().processes;
    let own = processes.iter().find(|process| process.pid == std::process::id()).unwrap();
    assert!(own.rss > own.rss_anon && own.rss_anon > 0 && own.pss > 0 && own.threads > 1, "{own:?}");
    world.strakectl(&["stats", "-n", &served.address, &own.name, "--sort", "pss"]).await.unwrap();

    served.machine.milestones.reach("machine-api");
    let request = ResourceGetRequest { kind: "boot".into(), id: "machine-api".into() };
    let resource = reader.resources().get(request).await.unwrap().into_inner().resources.remove(0);
    let spec: serde_json::Value = serde_json::from_str(&resource.spec).unwrap();
    assert!(spec["seconds"].as_f64().unwrap() > 0.0, "{spec}");
    world.strakectl(&["get", "boot", "-n", &served.address, "-o", "json"]).await.unwrap();
    // Two machines at once, here the same twice.
    let both = format!("{0},{0}", served.address);
    world.strakectl(&["stats", "-n", &both, "-o", "yaml"]).await.unwrap();
}
