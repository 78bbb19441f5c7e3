//! Deletes pods that do not tolerate their node's NoExecute taints, after the time they do tolerate them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{Action, Change, Client, Error, EventType, ObjectKey, WorkQueue, resources::PODS, run_workers};

use crate::api::{Node, Pod, Taint, Toleration};
use crate::context::Context;
use crate::ownership;

/// What to do about one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    /// Delete once this long has passed; zero is now.
    Delete(Duration),
}

/// The pod stays if it tolerates every NoExecute taint for ever; else it goes when the shortest of its patiences, counted from when that taint
/// was added, runs out.
fn judge(tolerations: &[Toleration], taints: &[Taint], now: Timestamp) -> Verdict {
    let mut shortest: Option<Duration> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|toleration| toleration.tolerates(taint)).collect();
        if matching.is_empty() {
            return Verdict::Delete(Duration::ZERO);
        }
        // Of several tolerations for one taint the most impatient counts; none with a limit means for ever.
        let Some(seconds) = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min() else { continue };
        let patience = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let elapsed = taint.time_added.map_or(Duration::ZERO, |added| added.age(now));
        let left = patience.saturating_sub(elapsed);
        shortest = Some(shortest.map_or(left, |known| known.min(left)));
    }
    shortest.map_or(Verdict::Stay, Verdict::Delete)
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("node-controller");
    let nodes = context.informers.nodes();
    let pods = context.informers.pods();
    let queue = WorkQueue::new("taint-eviction");
    let sink = queue.clone();
    pods.informer.add_handler(move |change: Change<'_, Pod>| {
        if !change.object().spec.node_name.is_empty() && !matches!(change, Change::Deleted(_)) {
            sink.add(change.object().metadata.key());
        }
    });
    let (sink, by_node) = (queue.clone(), pods.by_node.clone());
    nodes.add_handler(move |change: Change<'_, Node>| {
        let changed = match change {
            Change::Added(node) => !node.spec.taints.is_empty(),
            Change::Updated { old, new } => old.spec.taints != new.spec.taints,
            Change::Deleted(_) => false,
        };
        if changed {
            by_node.get(&change.object().metadata.name).iter().for_each(|pod| sink.add(pod.metadata.key()));
        }
    });
    nodes.wait_synced().await;
    pods.informer.wait_synced().await;
    let again = context.clone();
    run_workers(queue, 4, context.stop.clone(), move |key: ObjectKey| {
        let (client, nodes, pods, context) = (client.clone(), nodes.clone(), pods.informer.clone(), again.clone());
        async move {
            let Some(pod) = pods.get_key(&key).filter(|pod| !pod.metadata.is_deleting()) else { return Ok(Action::Done) };
            let Some(node) = nodes.get("", &pod.spec.node_name) else { return Ok(Action::Done) };
            match judge(&pod.spec.tolerations, &node.spec.taints, Timestamp::now()) {
                Verdict::Stay => Ok(Action::Done),
                Verdict::Delete(wait) if wait.is_zero() => evict(&client, &context, &pod).await,
                Verdict::Delete(wait) => Ok(Action::After(wait)),
            }
        }
    })
    .await;
}

async fn evict(client: &Client, context: &Context, pod: &Pod) -> Result<Action, Error> {
    context.event(
        &PODS,
        &pod.metadata,
        EventType::Normal,
        "TaintManagerEviction",
        format!("Marking for deletion Pod {}", pod.metadata.key()),
    );
    ownership::disrupt_pod(client, &pod.metadata, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint").await?;
    tracing::info!(pod = %pod.metadata.key(), node = pod.spec.node_name, "pod evicted: it does not tolerate its node's taints");
    Ok(Action::Done)
}

#[cfg(test)]
mod tests {
    use k8s_client::Time;

    use super::*;

    #[test]
    fn the_shortest_patience_counts_from_the_taint() {
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let taint = |key: &str, at: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(at.parse().unwrap())),
            ..Default::default()
        };
        let tolerates = |key: &str, seconds: Option<i64>| Toleration {
            key: key.into(),
            operator: "Exists".into(),
            effect: "NoExecute".into(),
            toleration_seconds: seconds,
            ..Default::default()
        };
        let at = "2026-01-01T00:09:00Z";
        let delete = |seconds| Verdict::Delete(Duration::from_secs(seconds));
        for (name, tolerations, taints, want) in [
            ("no taints", vec![], vec![], Verdict::Stay),
            (
                "other effects do not evict",
                vec![],
                vec![Taint { key: "a".into(), effect: "NoSchedule".into(), ..Default::default() }],
                Verdict::Stay,
            ),
            ("not tolerated", vec![], vec![taint("a", at)], delete(0)),
            ("for ever", vec![tolerates("a", None)], vec![taint("a", at)], Verdict::Stay),
            ("five minutes, one gone", vec![tolerates("a", Some(300))], vec![taint("a", at)], delete(240)),
            ("run out", vec![tolerates("a", Some(30))], vec![taint("a", at)], delete(0)),
            ("negative", vec![tolerates("a", Some(-5))], vec![taint("a", at)], delete(0)),
            ("two taints", vec![tolerates("a", Some(300)), tolerates("b", Some(100))], vec![taint("a", at), taint("b", at)], delete(40)),
            ("one of two not tolerated", vec![tolerates("a", None)], vec![taint("a", at), taint("b", at)], delete(0)),
            ("limited and unlimited", vec![tolerates("a", None), tolerates("", Some(90))], vec![taint("a", at)], delete(30)),
        ] {
            assert_eq!(judge(&tolerations, &taints, now), want, "{name}");
        }
    }
}
