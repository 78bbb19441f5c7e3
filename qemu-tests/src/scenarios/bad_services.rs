//! New systems whose services are wrong, on the machines of a cluster: a kubelet that never answers, a containerd that runs and serves nothing, an
//! etcd that ends. Each leads back to the old slot, and the node is Ready again. A good new system stays, although the control plane is
//! away while it is tried.

use super::upgrade::{Bad, Subject, variant};
use crate::error::Error;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "bad-services",
    protects: "a new system whose kubelet, containerd or static pods fail leads back to the old one, and one that is tried while the control plane is away stays",
    run,
};

const OF_WORKER: &[Bad] = &[
    Bad { what: "a kubelet that never answers", version: "0.1.5", program: "kube", instead: "pause", reason: "kubelet" },
    Bad { what: "a containerd that serves nothing", version: "0.1.6", program: "containerd", instead: "pause", reason: "containerd" },
];
const OF_CONTROL_PLANE: &Bad =
    &Bad { what: "an etcd that ends", version: "0.1.7", program: "etcd", instead: "strakectl", reason: "pod etcd" };
const GOOD: &str = "0.2.0";
/// Enough for a boot on a slow host, after which the reason is known.
const DEADLINE: &str = "180";

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.ready_cluster()?;
    let nodes = cluster.plan().nodes.clone();
    let mut machine = Subject { context, node: nodes.last().unwrap_or(&nodes[0]).clone(), cluster };
    for bad in OF_WORKER {
        undoes(&machine, bad)?;
    }

    let image = variant(context, GOOD, None)?;
    let first = machine.cluster.machine(&nodes[0]);
    first.pull_plug()?;
    context.say("the control plane is away");
    machine.upgrade(&image, &["--drain-seconds", "0", "--deadline", "1200"])?;
    machine.wait_state("good", GOOD)?;
    machine.runs("ROOT-B", GOOD)?;
    context.say("a good system proved itself without it");
    machine.cluster.start_installed(&nodes[0], context.accelerator)?;
    machine.cluster.wait_nodes(context)?;

    machine.node = nodes[0].clone();
    undoes(&machine, OF_CONTROL_PLANE)
}

fn undoes(machine: &Subject<'_>, bad: &Bad) -> Result<(), Error> {
    let image = variant(machine.context, bad.version, Some((bad.program, bad.instead)))?;
    let before = machine.boot_id()?;
    machine.upgrade(&image, &["--drain-seconds", "0", "--deadline", DEADLINE])?;
    machine.undone(bad, &before)?;
    machine.cluster.wait_nodes(machine.context)
}
