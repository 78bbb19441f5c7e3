//! EtcdService: the member on this machine.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;

use etcd_client::Client;
use futures_util::Stream;
use machine_api::limits;
use machine_api::v1alpha1::etcd_service_server::EtcdService;
use machine_api::v1alpha1::{
    Chunk, EtcdListSnapshotsRequest, EtcdListSnapshotsResponse, EtcdMember, EtcdMembersRequest, EtcdMembersResponse, EtcdRecoverResponse,
    EtcdSnapshotInfo, EtcdSnapshotRequest, EtcdStatusRequest, EtcdStatusResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::authorize::Caller;
use super::images::Upload;
use crate::etcd::{self, EtcdError};
use crate::events::Severity;
use crate::kubernetes::etcd::EtcdLifeError;
use crate::machine::Machine;

pub struct Handler(pub Arc<Machine>);

#[tonic::async_trait]
impl EtcdService for Handler {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn status(&self, _request: Request<EtcdStatusRequest>) -> Result<Response<EtcdStatusResponse>, Status> {
        let status = self.connect().await?.status().await.map_err(call)?;
        let (member_id, revision) = status.header().map(|header| (header.member_id(), header.revision())).unwrap_or_default();
        Ok(Response::new(EtcdStatusResponse {
            version: status.version().to_owned(),
            member_id,
            leader_id: status.leader(),
            db_size: status.db_size(),
            db_size_in_use: status.raft_used_db_size(),
            revision,
            raft_index: status.raft_index(),
            raft_term: status.raft_term(),
            learner: status.is_learner(),
            errors: status.errors().to_vec(),
        }))
    }

    async fn members(&self, _request: Request<EtcdMembersRequest>) -> Result<Response<EtcdMembersResponse>, Status> {
        let list = self.connect().await?.member_list().await.map_err(call)?;
        let members = list.members().iter().map(|member| EtcdMember {
            id: member.id(),
            name: member.name().to_owned(),
            peer_urls: member.peer_urls().to_vec(),
            client_urls: member.client_urls().to_vec(),
            learner: member.is_learner(),
        });
        Ok(Response::new(EtcdMembersResponse { members: members.collect() }))
    }

    async fn snapshot(&self, request: Request<EtcdSnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let caller = Caller::of(&request)?;
        let name = request.into_inner().name;
        super::bounded("the snapshot's name", &name)?;
        let directory = self.0.paths.snapshots();
        let path = if name.is_empty() {
            self.control_plane()?;
            let most = self.0.loaded().map_or(usize::MAX, |loaded| usize::from(loaded.config.cluster.etcd.snapshots.keep));
            let taken = etcd::keep(&self.0.paths, limits::SNAPSHOT_BYTES, most.max(1)).await.map_err(|error| {
                let text = format!("asked for by {}: {}", caller.name, super::chain(&error));
                self.0.event(Severity::Warning, etcd::SNAPSHOT_FAILED, &text);
                self.failure(&error)
            })?;
            caller.did(format_args!("take etcd snapshot {}", taken.0));
            directory.join(taken.0)
        } else {
            // Only names that are in the list, so no path leads elsewhere.
            let kept = etcd::kept(&directory).map_err(|error| super::internal(&error))?;
            if !kept.iter().any(|(known, _)| *known == name) {
                return Err(Status::not_found(format!("there is no snapshot {name}")));
            }
            directory.join(name)
        };
        let file = File::open(&path).map_err(|error| super::internal(&error))?;
        Ok(Response::new(Box::pin(super::files::send(file, limits::SNAPSHOT_BYTES))))
    }

    async fn list_snapshots(&self, _request: Request<EtcdListSnapshotsRequest>) -> Result<Response<EtcdListSnapshotsResponse>, Status> {
        let kept = etcd::kept(&self.0.paths.snapshots()).map_err(|error| super::internal(&error))?;
        let snapshots = kept.into_iter().map(|(name, info)| EtcdSnapshotInfo {
            name,
            size: info.size,
            taken_unix: info.taken_unix,
            revision: info.revision,
            sha256: info.sha256,
            keys: info.keys,
        });
        Ok(Response::new(EtcdListSnapshotsResponse { snapshots: snapshots.collect() }))
    }

    async fn recover(&self, request: Request<Streaming<Chunk>>) -> Result<Response<EtcdRecoverResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.control_plane()?;
        let uploads = self.0.paths.at("/var/lib/strake/uploads");
        let upload = Upload::receive(uploads, request.into_inner(), limits::SNAPSHOT_BYTES).await?;
        if let Err(error) = etcd::check(&upload.path) {
            caller.refused("recover etcd", &error);
            // The upload's own name means nothing to anyone.
            let text = super::chain(&error).replace(&upload.path.display().to_string(), "that was sent");
            self.0.event(Severity::Warning, "EtcdRecoverRefused", &text);
            return Err(Status::invalid_argument(text));
        }
        let loaded = self.0.loaded().ok_or_else(|| Status::failed_precondition("the machine has no config yet"))?;
        let addresses = self.0.addresses();
        let facts = crate::kubernetes::NodeFacts::new(&self.0.hostname(), &loaded.config, &addresses)
            .ok_or_else(|| Status::failed_precondition("the machine has no address yet"))?;
        let _changing = self.0.changing.lock().await;
        caller.did("recover etcd from a snapshot");
        let recovered = crate::kubernetes::etcd::recover(&self.0.paths, &loaded.config, &facts, &upload.path).await;
        let recovered = recovered.map_err(|error| {
            caller.refused("recover etcd", &error);
            self.0.event(Severity::Warning, "EtcdRecoverFailed", &super::chain(&error));
            match error {
                EtcdLifeError::Snapshot(_) | EtcdLifeError::Tool { operation: "snapshot status", .. } => {
                    Status::invalid_argument(super::chain(&error))
                }
                other => super::internal(&other),
            }
        })?;
        let message = format!("etcd's data was replaced by a snapshot of revision {} with {} keys", recovered.revision, recovered.keys);
        self.0.event(Severity::Normal, "EtcdRecovered", &message);
        self.0.wake();
        Ok(Response::new(EtcdRecoverResponse { revision: recovered.revision }))
    }
}

impl Handler {
    fn control_plane(&self) -> Result<(), Status> {
        match self.0.loaded() {
            Some(loaded) if loaded.config.is_control_plane() => Ok(()),
            _ => Err(Status::failed_precondition("this machine is no control plane and has no etcd")),
        }
    }

    async fn connect(&self) -> Result<Client, Status> {
        self.control_plane()?;
        if let Some(reason) = crate::kubernetes::etcd::halted(&self.0.paths) {
            return Err(halted(&reason));
        }
        etcd::connect(&self.0.paths).await.map_err(|error| status(&error))
    }

    /// A halted etcd does not answer, and that it is halted says more than that.
    fn failure(&self, error: &EtcdError) -> Status {
        match crate::kubernetes::etcd::halted(&self.0.paths) {
            Some(reason) => halted(&reason),
            None => status(error),
        }
    }
}

fn halted(reason: &str) -> Status {
    Status::failed_precondition(format!("etcd is halted: {reason}"))
}

fn call(error: etcd_client::Error) -> Status {
    Status::unavailable(super::chain(&error))
}

fn status(error: &EtcdError) -> Status {
    let text = super::chain(error);
    match error {
        EtcdError::Credentials { .. } | EtcdError::Call { .. } => Status::unavailable(text),
        EtcdError::Damaged { .. } | EtcdError::Unreadable(_) | EtcdError::Stale { .. } => Status::data_loss(text),
        _ => Status::internal(text),
    }
}
