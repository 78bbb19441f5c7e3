//! Tells kubelets how long they may cache Secrets and ConfigMaps: the larger the cluster, the longer, so that they do not flood the API.

use std::sync::Arc;

use k8s_client::{Action, Change, Client, Error, Informer, ObjectKey, Patch, Request, WorkQueue, resources::NODES};
use parking_lot::Mutex;
use serde_json::json;

use crate::api::Node;
use crate::context::Context;
use crate::ownership::ignore_missing;
use crate::reconcile::{Reconcile, work};

const TTL: &str = "node.alpha.kubernetes.io/ttl";
/// Fewest and most nodes of a step, and its seconds. Steps overlap, so that a cluster at a boundary does not swing between two.
const STEPS: [(usize, usize, u32); 5] = [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The step for this many nodes, coming from `step`.
fn plan(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

#[derive(Clone)]
struct Controller {
    client: Client,
    nodes: Informer<Node>,
    step: Arc<Mutex<usize>>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller { client: context.client("ttl-controller"), nodes: context.informers.nodes(), step: Arc::default() };
    let queue = WorkQueue::new("ttl");
    let sink = queue.clone();
    controller.nodes.wait_synced().await;
    let (nodes, step) = (controller.nodes.clone(), controller.step.clone());
    *step.lock() = plan(0, nodes.len());
    let every = nodes.clone();
    nodes.add_handler(move |change: Change<'_, Node>| {
        let counted = !matches!(change, Change::Updated { .. });
        let mut step = step.lock();
        let next = if counted { plan(*step, every.len()) } else { *step };
        if next != *step {
            *step = next;
            every.list().iter().for_each(|node| sink.add(node.metadata.key()));
        }
        sink.add(change.object().metadata.key());
    });
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(node) = self.nodes.get_key(&key) else { return Ok(Action::Done) };
        let seconds = STEPS[*self.step.lock()].2.to_string();
        if node.metadata.annotations.get(TTL) != Some(&seconds) {
            let patch = Patch::strategic(&json!({"metadata": {"annotations": {TTL: seconds}}}));
            ignore_missing(&self.client, &Request::patch(&NODES, "", &key.name, &patch)).await?;
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_rise_at_their_top_and_fall_below_their_bottom() {
        for (step, nodes, seconds) in [
            (0, 1, 0),
            (0, 100, 0),
            (0, 101, 15),
            (1, 95, 15),
            (1, 89, 0),
            (0, 3000, 300),
            (4, 1799, 60),
            (4, 0, 0),
            (1, 500, 15),
            (1, 501, 30),
        ] {
            assert_eq!(STEPS[plan(step, nodes)].2, seconds, "{nodes} nodes from step {step}");
        }
    }
}
