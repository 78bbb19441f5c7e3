//! A good new system in a bad world: between its writing and its trial the clock jumps past the end of every certificate that the machine holds. The trial is passed all the same, because
//! a machine renews what it needs by itself, the node is Ready, and what was acknowledged is there.
//!
//! The clients on this computer live in the present: what the machine serves is not good yet for them, so kubectl is told not to look, and strakectl is not asked.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::upgrade::{Subject, variant};
use crate::error::{Error, FileContext};
use crate::machine::MachineSpec;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "clock-jump",
    protects: "a clock that jumps past the end of the machine's certificates leads no good system back, and loses nothing",
    run,
};

const GOOD: &str = "0.2.0";
/// Longer than a machine's certificates are good, and shorter than the client's that kubectl has.
const JUMP: SignedDuration = SignedDuration::from_secs(10 * 86_400);
const KEPT: &str = "kept-over-the-jump";
/// What init says of every system that it starts, and of one whose trial is passed.
const STARTS: &str = "must match the root hash";
const PASSED: &str = "the system on trial proved good";

fn run(context: &Context) -> Result<(), Error> {
    let machine = Subject::installed(context)?;
    let clients = machine.cluster.clients();
    machine.cluster.become_cluster(&[], context)?;
    clients.kubectl(["create", "configmap", KEPT, "--from-literal=number=1"])?;
    let image = variant(context, GOOD, None)?;
    machine.upgrade(&image, &["--stage", "--drain-seconds", "0", "--deadline", "1800"])?;

    let emulated = machine.cluster.machine(&machine.node);
    emulated.pull_plug()?;
    let later = Timestamp::now() + JUMP;
    let jumped = MachineSpec { clock: Some(later.strftime("%Y-%m-%dT%H:%M:%S").to_string()), ..emulated.spec().clone() };
    let start = emulated.console().position();
    let running = context.start(&jumped)?;
    emulated.wait_text(start, "ROOT-B (", context.patience(60))?;
    context.say(&format!("the new system is on trial, and the clock {} days ahead", JUMP.as_hours() / 24));
    emulated.wait_text(start, PASSED, context.patience(300))?;
    let starts = emulated.console().text_from(start)?.matches(STARTS).count();
    if starts != 1 {
        return Err(unexpected("one start", format!("{starts} of them:\n{}", emulated.console().tail(20))));
    }
    context.say("it proved good, without another start");

    let blind = context.dir.join("kubeconfig-blind");
    let text = std::fs::read_to_string(clients.kubeconfig()).on("read", clients.kubeconfig())?;
    std::fs::write(&blind, without_authority(&text)).on("write", &blind)?;
    kept(context, &machine, &blind)?;

    // Once more: it is the one that is started.
    drop(running);
    let start = emulated.console().position();
    let _running = context.start(&jumped)?;
    emulated.wait_text(start, "ROOT-B (", context.patience(60))?;
    kept(context, &machine, &blind)
}

/// The node is Ready with the new system, and the object is there.
fn kept(context: &Context, machine: &Subject<'_>, kubeconfig: &Path) -> Result<(), Error> {
    let clients = machine.cluster.clients();
    let file = kubeconfig.to_string_lossy();
    let get = |what: &[&str]| clients.get(&[&["--kubeconfig", &file], what].concat());
    context.eventually("a Ready node with the new system", context.patience(240), || {
        let Ok(node) = get(&["node", &machine.node.name]) else { return Ok(None) };
        Ok((is_ready(&node) && node["status"]["nodeInfo"]["osImage"].as_str().is_some_and(|os| os.contains(GOOD))).then_some(()))
    })?;
    let kept = get(&["configmap", KEPT])?;
    if kept["data"]["number"] != "1" {
        return Err(unexpected("the object from before", kept.to_string()));
    }
    context.say("its node is Ready, and what was acknowledged is there");
    Ok(())
}

/// Of a node that the new system reported, which its osImage tells: what the old one said stands there until then.
fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.clone().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A kubeconfig that believes whoever answers.
fn without_authority(kubeconfig: &str) -> String {
    let line = |line: &str| match line.trim_start().starts_with("certificate-authority-data:") {
        true => format!("{}insecure-skip-tls-verify: true\n", &line[..line.len() - line.trim_start().len()]),
        false => format!("{line}\n"),
    };
    kubeconfig.lines().map(line).collect()
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_without_an_authority_says_so_in_its_place() {
        let text = "clusters:\n- cluster:\n    certificate-authority-data: LS0t\n    server: https://a\n";
        assert_eq!(without_authority(text), "clusters:\n- cluster:\n    insecure-skip-tls-verify: true\n    server: https://a\n");
    }
}
