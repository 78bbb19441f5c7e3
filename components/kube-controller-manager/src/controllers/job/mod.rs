//! Jobs: run pods until enough of them succeeded.
//!
//! Every pod carries a finalizer until it is counted: first its uid is written to `status.uncountedTerminatedPods`, then the finalizer goes, then
//! the uid turns into a count. So no pod is lost or counted twice, whatever happens in between.

mod indexes;
mod plan;
mod policy;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_client::{
    Action, Change, Client, Error, EventType, Informer, ObjectKey, Patch, Request, WorkQueue, owner_reference,
    resources::{JOBS, PODS},
};
use serde_json::json;

use self::plan::{FINALIZER, Observed, Plan, plan};
use crate::api::{Job, Pod};
use crate::context::{Context, Pods};
use crate::expectations::Expectations;
use crate::ownership::{self, adopts, claim_all, slow_start};
use crate::reconcile::{Reconcile, follow, follow_owned, work};

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    jobs: Informer<Job>,
    pods: Pods,
    /// Pods created and deleted.
    expectations: Arc<Expectations>,
    /// Status writes: planning on an older status would count twice.
    statuses: Arc<Expectations>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("job-controller"),
        jobs: context.informers.jobs(),
        pods: context.informers.pods(),
        expectations: Arc::default(),
        statuses: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("job");
    follow(&queue, &controller.jobs);
    follow_owned(&queue, &controller.jobs, &controller.pods.informer);
    let sink = queue.clone();
    controller.pods.informer.add_handler(move |change: Change<'_, Pod>| {
        // Its job may be gone, or not want it: then nobody counts it.
        if let Some(job) = job_of_orphan(change.object()) {
            sink.add(ObjectKey::new(change.object().metadata.namespace.clone(), job.to_owned()));
        }
    });
    controller.jobs.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

/// The job by whose name a pod without an owner was counted.
fn job_of_orphan(pod: &Pod) -> Option<&str> {
    if pod.metadata.controller().is_some() || !plan::holds(pod) {
        return None;
    }
    pod.metadata.labels.get("batch.kubernetes.io/job-name").map(String::as_str)
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(job) = self.jobs.get_key(&key) else {
            self.expectations.forget(&key);
            self.statuses.forget(&key);
            // Nobody counts these pods any more.
            for pod in self.pods.informer.list_namespace(&key.namespace) {
                let ours = pod.metadata.controller().is_some_and(|owner| owner.kind == "Job" && owner.name == key.name);
                if ours || job_of_orphan(&pod) == Some(&key.name) {
                    self.release(&pod).await?;
                }
            }
            return Ok(Action::Done);
        };
        if job.spec.is_foreign() {
            return Ok(Action::Done);
        }
        if !self.statuses.met(&key, self.jobs.version(), |_| false) {
            return Ok(Action::Retry);
        }
        let pods = self.claim(&job).await?;
        let alive = |uid: &str| pods.iter().any(|pod| pod.metadata.uid == uid && !pod.metadata.is_deleting());
        let current = self.expectations.met(&key, self.pods.informer.version(), alive);
        let plan = plan(&Observed { job: &job, pods: &pods, now: k8s_client::Time::now() });
        let acted = if current { self.act(&job, &key, &plan).await } else { Ok(()) };
        if plan.status != job.status {
            // Only on top of the status that was planned on.
            let written = self
                .client
                .update(&JOBS, (&key.namespace, &key.name), &job.metadata.uid, "status", |object| {
                    object["metadata"]["resourceVersion"] = json!(job.metadata.resource_version);
                    object["status"] = json!(plan.status);
                })
                .await;
            match written {
                Ok(written) => self.statuses.wrote(&key, &written.meta().resource_version),
                Err(error) if error.is_not_found() => return Ok(Action::Done),
                Err(error) if error.is_conflict() => return Ok(Action::Retry),
                Err(error) => return Err(error),
            }
            self.tell(&job, &plan);
        }
        for pod in pods.iter().filter(|pod| plan.release.contains(&pod.metadata.uid)) {
            self.release(pod).await?;
        }
        acted?;
        Ok(plan.again.map_or(Action::Done, Action::After))
    }
}

impl Controller {
    /// The job's pods. Those that lost their owner are taken back, unless the job is over; what it does not want may go.
    async fn claim(&self, job: &Arc<Job>) -> Result<Vec<Arc<Pod>>, Error> {
        let (name, over) = (&job.metadata.name, plan::is_finished(job));
        let candidates = self.pods.informer.list_namespace(&job.metadata.namespace);
        for pod in candidates.iter().filter(|pod| job_of_orphan(pod) == Some(name)) {
            if over || !adopts(job.as_ref(), &pod.metadata) {
                self.release(pod).await?;
            }
        }
        if over {
            return Ok(self.pods.by_owner.get(&job.metadata.uid));
        }
        claim_all(&self.client, job.as_ref(), candidates, |_: &Pod| true).await
    }

    async fn act(&self, job: &Job, key: &ObjectKey, plan: &Plan) -> Result<(), Error> {
        for pod in &plan.delete {
            self.expectations.deleted(key, &pod.uid);
            if let Err(error) = ownership::ignore_missing(&self.client, &ownership::delete_pod(pod)).await {
                self.expectations.forget(key);
                return Err(error);
            }
            self.context.event(&JOBS, &job.metadata, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name));
        }
        let owner = owner_reference(&JOBS, &job.metadata);
        let create = |n: usize| {
            let body = plan::pod(job, &owner, plan.create[n], plan.create[n].and_then(|index| plan.failures.get(&index).copied()));
            async move {
                match self.client.call::<Pod>(&Request::create(&PODS, &job.metadata.namespace, &body)).await {
                    Ok(pod) => {
                        self.expectations.wrote(key, &pod.metadata.resource_version);
                        self.context.event(
                            &JOBS,
                            &job.metadata,
                            EventType::Normal,
                            "SuccessfulCreate",
                            format!("Created pod: {}", pod.metadata.name),
                        );
                        Ok(())
                    }
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    Err(error) => {
                        self.context.event(&JOBS, &job.metadata, EventType::Warning, "FailedCreate", format!("Error creating: {error}"));
                        Err(error)
                    }
                }
            }
        };
        slow_start(plan.create.len(), create).await.1
    }

    /// Lets a counted pod go.
    async fn release(&self, pod: &Pod) -> Result<(), Error> {
        if !plan::holds(pod) {
            return Ok(());
        }
        // Finalizers merge as a set, so others stay.
        let body = json!({"metadata": {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        let request = Request::patch(&PODS, &pod.metadata.namespace, &pod.metadata.name, &Patch::strategic(&body));
        ownership::ignore_missing(&self.client, &request).await
    }

    fn tell(&self, job: &Job, plan: &Plan) {
        for condition in &plan.status.conditions {
            let known = job.status.conditions.iter().any(|old| old.kind == condition.kind && old.status == condition.status);
            let (kind, reason, message) = match (condition.kind.as_str(), condition.status.as_str()) {
                _ if known => continue,
                ("Complete", "True") => (EventType::Normal, "Completed", "Job completed".to_string()),
                ("Failed", "True") => (EventType::Warning, condition.reason.as_str(), condition.message.clone()),
                ("Suspended", "True") => (EventType::Normal, "Suspended", "Job suspended".into()),
                ("Suspended", "False") => (EventType::Normal, "Resumed", "Job resumed".into()),
                _ => continue,
            };
            self.context.event(&JOBS, &job.metadata, kind, reason, message);
        }
    }
}
