//! A good new system in a bad world: every machine of a cluster loses its power while one of them is in the trial of an upgrade. The old system starts, since nobody could tell a
//! power cut from a system that hangs; it finds that the trial was cut off and begins it once more, the new system proves good, and everything that was acknowledged is there.

use super::upgrade::{Subject, variant};
use crate::error::Error;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "power-gate",
    protects: "a power cut in the trial of a good system costs a restart and not the upgrade, and loses nothing",
    run,
};

const GOOD: &str = "0.2.0";
/// Objects written right before the upgrade, and right before the cut: few, since a trial may be short.
const OBJECTS: usize = 3;

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.ready_cluster()?;
    let machine = Subject { context, node: cluster.plan().control_plane().clone(), cluster };
    let (cluster, clients) = (&machine.cluster, machine.cluster.clients());
    write(&machine, "before")?;
    let image = variant(context, GOOD, None)?;
    let before = machine.boot_id()?;
    let emulated = cluster.machine(&machine.node);
    let start = emulated.console().position();
    machine.upgrade(&image, &["--drain-seconds", "0", "--deadline", "1800"])?;
    machine.wait_other_boot(&before)?;
    // Its machined watches: from here on it says what it waits for.
    context.eventually("the new system to be on trial", context.patience(120), || {
        Ok(machine.last().ok().filter(|last| last["state"] == "trying" && !last["reason"].as_str().unwrap_or_default().is_empty()))
    })?;
    // Whether the API answers in the middle of a trial is not sure; what it takes is kept.
    let taken = write(&machine, "during").is_ok();
    for node in &cluster.plan().nodes {
        cluster.machine(node).pull_plug()?;
    }
    if emulated.console().text_from(start)?.contains("the system on trial proved good") {
        return Err(unexpected("a cut in the trial", "a system that had proved good before".to_owned()));
    }
    context.say("the plug of every machine was pulled in the trial");

    let cut = emulated.console().position();
    for node in &cluster.plan().nodes {
        cluster.start_installed(node, context.accelerator)?;
    }
    emulated.wait_text(cut, "ROOT-A (", context.patience(60))?;
    let old = emulated.console().position();
    emulated.wait_text(old, "ROOT-B (", context.patience(180))?;
    context.say("the old system started, and began the trial once more");
    machine.wait_state("good", GOOD)?;
    machine.runs("ROOT-B", GOOD)?;
    cluster.wait_nodes(context)?;
    context.say("the new system proved good, and every node is Ready");
    for name in ["before", "during"].into_iter().filter(|name| *name == "before" || taken) {
        for number in 0..OBJECTS {
            let kept = clients.get(&["configmap", &format!("{name}-{number}")])?;
            if kept["data"]["number"].as_str() != Some(number.to_string().as_str()) {
                return Err(unexpected(&format!("{name}-{number}"), kept.to_string()));
            }
        }
    }
    context.say(&format!(
        "every acknowledged object is there, those of the trial {}",
        if taken { "too" } else { "aside: the API did not take them" }
    ));
    Ok(())
}

fn write(machine: &Subject<'_>, name: &str) -> Result<(), Error> {
    let clients = machine.cluster.clients();
    (0..OBJECTS).try_for_each(|number| {
        let (name, literal) = (format!("{name}-{number}"), format!("--from-literal=number={number}"));
        clients.kubectl(["create", "configmap", &name, &literal, "--request-timeout=5s"]).map(drop)
    })
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}
