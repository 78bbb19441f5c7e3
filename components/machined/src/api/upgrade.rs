//! MachineService's Upgrade and Rollback: what comes over the wire to what [`crate::upgrade`] does, and its progress back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use machine_api::limits;
use machine_api::v1alpha1::upgrade_request::Part;
use machine_api::v1alpha1::{UpgradeCheck, UpgradeOptions, UpgradeProgress, UpgradeRequest, UpgradeVerdict};
use slots::checks::Verdict;
use slots::manifest::Allow;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::authorize::Caller;
use super::machine::{FAREWELL, busy};
use crate::encryption;
use crate::install::Progress;
use crate::machine::Machine;
use crate::upgrade::{self, Options, Told, UpgradeError};

pub type ProgressStream = Pin<Box<dyn Stream<Item = Result<UpgradeProgress, Status>> + Send>>;

/// Pieces of the file that wait to be written; the caller waits when there are so many.
const WAITING: usize = 8;
/// Messages of progress that wait to be sent; more are dropped.
const MESSAGES: usize = 64;
/// How long the caller may be silent between two pieces.
const SILENCE: Duration = Duration::from_secs(120);

/// Starts an upgrade, which runs to its end whether or not the caller stays to hear of it.
pub async fn upgrade(machine: &Arc<Machine>, request: Request<Streaming<UpgradeRequest>>) -> Result<Response<ProgressStream>, Status> {
    let caller = Caller::of(&request)?;
    let mut requests = request.into_inner();
    let Some(UpgradeRequest { part: Some(Part::Options(wanted)) }) = next(&mut requests).await? else {
        return Err(Status::invalid_argument("an upgrade begins with its options"));
    };
    let changing = machine.changing.clone().try_lock_owned().map_err(|_| busy())?;
    let options = options(&wanted);
    if !options.dry_run {
        caller.did(format_args!("upgrade ({options:?})"));
    }
    let (pieces, received) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        // The reader sees an early end as a file that is cut off.
        while let Ok(Some(UpgradeRequest { part: Some(Part::Data(data)) })) = next(&mut requests).await {
            if data.len() > limits::CHUNK_BYTES || pieces.send(data).await.is_err() {
                return;
            }
        }
    });
    let (steps, mut progress) = mpsc::channel::<Told>(MESSAGES);
    let (messages, stream) = mpsc::channel(MESSAGES);
    let forward = messages.clone();
    tokio::spawn(async move {
        while let Some(told) = progress.recv().await {
            // A caller who does not read misses progress, nothing else.
            let _ = forward.try_send(Ok(message(told)));
        }
    });
    let machine = machine.clone();
    tokio::spawn(async move {
        let _changing = changing;
        let (detail, restart) = match upgrade::begin(&machine, options, received, steps).await {
            Ok(done) => done,
            Err(error) => {
                caller.refused("upgrade", super::chain(&error));
                let _ = messages.send(Err(status(&error))).await;
                return;
            }
        };
        caller.did(format_args!("upgrade: {detail}"));
        let _ = messages.send(Ok(UpgradeProgress { stage: "done".to_owned(), complete: true, detail, ..UpgradeProgress::default() })).await;
        drop(messages);
        if restart {
            tokio::time::sleep(FAREWELL).await;
            if let Err(error) = machine.init.reboot(&format!("upgrade by {}", caller.name)).await {
                tracing::error!(error = %super::chain(&error), "reboot for the upgrade");
            }
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}

fn message(told: Told) -> UpgradeProgress {
    match told {
        Told::Progress(Progress { stage, done, total, detail }) => {
            UpgradeProgress { stage: stage.to_owned(), done, total, detail, ..UpgradeProgress::default() }
        }
        Told::Checks(table) => {
            let checks = table.into_iter().map(|check| UpgradeCheck {
                name: check.name.to_owned(),
                verdict: match check.verdict {
                    Verdict::Good => UpgradeVerdict::Good,
                    Verdict::Notice => UpgradeVerdict::Notice,
                    Verdict::Elsewhere => UpgradeVerdict::Elsewhere,
                    Verdict::Refused => UpgradeVerdict::Refused,
                }
                .into(),
                detail: check.detail,
            });
            UpgradeProgress { stage: "check".to_owned(), checks: checks.collect(), ..UpgradeProgress::default() }
        }
    }
}

async fn next(requests: &mut Streaming<UpgradeRequest>) -> Result<Option<UpgradeRequest>, Status> {
    match tokio::time::timeout(SILENCE, requests.next()).await {
        Ok(Some(request)) => request.map(Some),
        Ok(None) => Ok(None),
        Err(_) => Err(Status::deadline_exceeded(format!("nothing came for {} s", SILENCE.as_secs()))),
    }
}

fn options(wanted: &UpgradeOptions) -> Options {
    Options {
        dry_run: wanted.dry_run,
        stage: wanted.stage,
        allow: Allow {
            downgrade: wanted.allow_downgrade,
            quorum_loss: wanted.allow_quorum_loss,
            locked_volumes: wanted.allow_locked_volumes,
        },
        deadline: (wanted.deadline_seconds > 0).then(|| Duration::from_secs(wanted.deadline_seconds.into())),
        drain: Duration::from_secs(wanted.drain_seconds.into()),
    }
}

/// Goes back; the machine is to restart afterwards.
pub async fn roll_back(machine: &Arc<Machine>, caller: &Caller, allow: Allow) -> Result<String, Status> {
    let (machine, who) = (machine.clone(), caller.name.clone());
    let work = move || {
        let sealed = encryption::sealed_volumes(&machine.paths, &*machine.disks, &machine.user_volumes());
        upgrade::roll_back(&machine, &who, allow, sealed.as_ref())
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| super::internal(&error))?;
    match done {
        Ok(outcome) => {
            caller.did(format_args!("roll back: {outcome}"));
            Ok(outcome)
        }
        Err(error) => {
            caller.refused("roll back", super::chain(&error));
            Err(status(&error))
        }
    }
}

fn status(error: &UpgradeError) -> Status {
    let text = super::chain(error);
    match error {
        UpgradeError::Same(_) => Status::already_exists(text),
        error if error.is_refusal() => Status::failed_precondition(text),
        _ => Status::internal(text),
    }
}
