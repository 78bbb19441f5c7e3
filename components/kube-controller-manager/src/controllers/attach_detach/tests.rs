//! What is attached and detached when.

use serde_json::{Value, json};

use super::plan::{OUT_OF_SERVICE, PATIENCE};
use super::*;

const UNIQUE: &str = "kubernetes.io/csi/d.example.com^h";

fn of<T: serde::de::DeserializeOwned>(v: Value) -> T {
    serde_json::from_value(v).unwrap()
}

/// A node with one pod that uses a claim, whose volume is a driver's; everything else is changed by the tests.
struct World {
    node: Option<Value>,
    pod: Value,
    volume: Value,
    attachments: Vec<Value>,
    attaches: bool,
    elsewhere: bool,
    unwanted_for: Duration,
    never_by_force: bool,
}

impl Default for World {
    fn default() -> Self {
        Self {
            node: Some(json!({"metadata": {"name": "n", "annotations": {MANAGED: "true"}}, "spec": {},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}})),
            pod: json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {"phase": "Running"},
                "spec": {"nodeName": "n", "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
            volume: json!({"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOnce"], "claimRef": {"namespace": "ns", "name": "c", "uid": "u"},
                "csi": {"driver": "d.example.com", "volumeHandle": "h"}}}),
            attachments: Vec::new(),
            attaches: true,
            elsewhere: false,
            unwanted_for: Duration::ZERO,
            never_by_force: false,
        }
    }
}

impl World {
    fn plan(&self) -> Plan {
        let node: Option<Node> = self.node.clone().map(of);
        let attachments: Vec<Arc<VolumeAttachment>> = self.attachments.iter().cloned().map(of).collect();
        let volume: Arc<PersistentVolume> = Arc::new(of(self.volume.clone()));
        let claim: Arc<PersistentVolumeClaim> = Arc::new(of(json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"},
            "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}})));
        plan(&Seen {
            name: "n",
            node: node.as_ref(),
            pods: &[Arc::new(of(self.pod.clone()))],
            attachments: &attachments,
            claim: &|namespace, name| (namespace == "ns" && name == "c").then(|| Arc::clone(&claim)),
            volume: &|name| (name == "pv").then(|| Arc::clone(&volume)),
            attaches: &|_| self.attaches,
            elsewhere: &|_| self.elsewhere.then(|| "other".to_string()),
            unwanted_for: &|_| self.unwanted_for,
            never_by_force: self.never_by_force,
        })
    }

    /// As after the driver answered.
    fn attached(mut self, status: Value) -> Self {
        let name = World::default().plan().attach[0].attachment.clone();
        self.attachments = vec![json!({"metadata": {"name": name, "uid": "a"}, "status": status,
            "spec": {"attacher": "d.example.com", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}})];
        self
    }

    /// With what the node says of itself.
    fn node(mut self, field: &str, value: Value) -> Self {
        self.node.as_mut().unwrap()["status"][field] = value;
        self
    }

    fn over(mut self) -> Self {
        self.pod["status"]["phase"] = "Succeeded".into();
        self
    }
}

#[test]
fn a_volume_of_a_pod_is_attached_once_and_then_told() {
    let first = World::default().plan();
    assert_eq!((first.attach.len(), &first.report, &first.detach), (1, &None, &vec![]));
    let want = &first.attach[0];
    // The name by which a driver's attacher finds it.
    assert_eq!(want.attachment, "csi-".to_string() + &hex("hd.example.comn"));
    assert_eq!((want.volume.as_str(), want.driver.as_str(), want.pods.len()), ("pv", "d.example.com", 1));

    assert_eq!(World::default().attached(json!({"attached": false})).plan(), Plan::default(), "the driver is at work");
    let done = World::default().attached(json!({"attached": true})).plan();
    assert_eq!((done.report, done.attached.len(), done.attach.len()), (Some(vec![UNIQUE.to_string()]), 1, 0));
    let told =
        World::default().attached(json!({"attached": true})).node("volumesAttached", json!([{"name": UNIQUE, "devicePath": ""}])).plan();
    assert_eq!(told, Plan::default());
    let failed = World::default().attached(json!({"attached": false, "attachError": {"message": "no room"}})).plan();
    assert_eq!(failed.failed[0].1, "AttachVolume.Attach failed for volume \"pv\" : no room");
}

fn hex(text: &str) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn what_is_not_for_this_controller_is_left_alone() {
    let unmanaged = World { node: Some(json!({"metadata": {"name": "n"}})), ..World::default() };
    let never_attached = World { attaches: false, ..World::default() };
    let mut of_host = World::default();
    of_host.volume["spec"] = json!({"hostPath": {"path": "/x"}, "claimRef": {"namespace": "ns", "name": "c", "uid": "u"}});
    let mut of_another_claim = World::default();
    of_another_claim.volume["spec"]["claimRef"]["uid"] = "another".into();
    let gone = World { node: None, ..World::default() };
    for (what, world) in [
        ("unmanaged", unmanaged),
        ("driver", never_attached),
        ("host", of_host),
        ("claim", of_another_claim),
        ("gone", gone),
        ("over", World::default().over()),
    ] {
        assert_eq!(world.plan(), Plan::default(), "{what}");
    }
}

#[test]
fn a_volume_for_one_node_is_not_given_to_a_second() {
    let world = World { elsewhere: true, ..World::default() };
    let plan = world.plan();
    assert!(plan.attach.is_empty() && plan.failed[0].1.starts_with("Multi-Attach error for volume \"pv\""), "{plan:?}");
    for modes in [json!(["ReadWriteMany"]), json!(["ReadOnlyMany", "ReadWriteOnce"]), json!([])] {
        let mut world = World { elsewhere: true, ..World::default() };
        world.volume["spec"]["accessModes"] = modes;
        assert_eq!(world.plan().attach.len(), 1);
    }
}

#[test]
fn a_volume_goes_when_the_node_does_not_use_it_or_cannot_be_waited_for() {
    let told = json!([{"name": UNIQUE, "devicePath": ""}]);
    let base = || World::default().over().attached(json!({"attached": true})).node("volumesAttached", told.clone());
    let used = || base().node("volumesInUse", json!([UNIQUE]));
    let silent = || used().node("conditions", json!([{"type": "Ready", "status": "Unknown"}]));
    let goes = |world: World| {
        let plan = world.plan();
        assert_eq!(plan.detach.len() + plan.waiting.len(), 1, "{plan:?}");
        // The node is told first that it goes, and that it stays while it stays.
        assert_eq!(plan.report.is_some(), plan.detach.len() == 1 && world.node.is_some(), "{plan:?}");
        plan.detach.len() == 1
    };
    assert!(goes(base()));
    assert!(!goes(used()));
    assert!(!goes(World { unwanted_for: PATIENCE * 2, ..used() }), "a ready node is waited for");
    assert!(!goes(silent()));
    assert!(goes(World { unwanted_for: PATIENCE, ..silent() }));
    assert!(!goes(World { unwanted_for: PATIENCE, never_by_force: true, ..silent() }));
    let mut out = used();
    out.node.as_mut().unwrap()["spec"]["taints"] = json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]);
    assert!(goes(out));
    assert!(!goes(World { node: None, ..base() }));
    assert!(goes(World { node: None, unwanted_for: PATIENCE, ..base() }));
    let mut ending = base();
    ending.pod = json!({"metadata": {"name": "p", "namespace": "ns", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "n", "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": 0, "state": {"running": {}}}]}});
    assert_eq!(ending.plan(), Plan::default(), "its containers still run");
    ending.pod["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 0}});
    assert!(goes(ending));
}

#[test]
fn an_attachment_that_is_going_is_not_taken_for_one_that_is_there() {
    let mut world =
        World::default().attached(json!({"attached": true})).node("volumesAttached", json!([{"name": UNIQUE, "devicePath": ""}]));
    world.attachments[0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let plan = world.plan();
    assert_eq!((plan.report, plan.attach.len(), plan.detach.len()), (Some(vec![]), 0, 0));
}

#[test]
fn what_others_attached_stays_told() {
    let plan = World::default()
        .attached(json!({"attached": true}))
        .node("volumesAttached", json!([{"name": "kubernetes.io/other/x", "devicePath": ""}]))
        .plan();
    assert_eq!(plan.report, Some(vec![UNIQUE.to_string(), "kubernetes.io/other/x".to_string()]));
}
