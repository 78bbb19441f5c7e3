//! ResourceService: the store over the wire.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use machine_api::v1alpha1::resource_event::Type;
use machine_api::v1alpha1::resource_service_server::ResourceService;
use machine_api::v1alpha1::{
    Resource, ResourceEvent, ResourceGetRequest, ResourceGetResponse, ResourceKindsRequest, ResourceKindsResponse, ResourceWatchRequest,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::machine::{Machine, Mode};
use crate::resources::{Change, KINDS};

pub struct Handler(pub Arc<Machine>);

/// What someone with the pairing string may see.
const MAINTENANCE_KINDS: &[&str] = &["disks", "links", "addresses", "status", "volumes", "security"];

#[tonic::async_trait]
impl ResourceService for Handler {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<ResourceEvent, Status>> + Send>>;

    async fn kinds(&self, _request: Request<ResourceKindsRequest>) -> Result<Response<ResourceKindsResponse>, Status> {
        Ok(Response::new(ResourceKindsResponse { kinds: self.kinds().iter().map(|&kind| kind.to_owned()).collect() }))
    }

    async fn get(&self, request: Request<ResourceGetRequest>) -> Result<Response<ResourceGetResponse>, Status> {
        let ResourceGetRequest { kind, id } = request.into_inner();
        self.check(&kind, &id)?;
        let resources = self.0.store.get(&kind, (!id.is_empty()).then_some(id.as_str()));
        if resources.is_empty() && !id.is_empty() {
            return Err(Status::not_found(format!("there is no {kind} named {id}")));
        }
        Ok(Response::new(ResourceGetResponse { resources: resources.iter().map(wire).collect() }))
    }

    async fn watch(&self, request: Request<ResourceWatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let ResourceWatchRequest { kind, id } = request.into_inner();
        self.check(&kind, &id)?;
        let wanted = (!id.is_empty()).then_some(id);
        let (existing, mut changes) = self.0.store.watch(&kind, wanted.as_deref());
        let (events, stream) = mpsc::channel(64);
        tokio::spawn(async move {
            for resource in &existing {
                if events.send(Ok(event(Type::Set, Some(wire(resource))))).await.is_err() {
                    return;
                }
            }
            let mut next = Some(Ok(event(Type::Synced, None)));
            loop {
                if let Some(message) = next.take() {
                    let last = message.is_err();
                    if events.send(message).await.is_err() || last {
                        return;
                    }
                }
                let change = tokio::select! {
                    change = changes.recv() => change,
                    () = events.closed() => return,
                };
                next = match change {
                    Ok(change) if change.resource().kind == kind && wanted.as_ref().is_none_or(|id| *id == change.resource().id) => {
                        Some(Ok(match &change {
                            Change::Set(resource) => event(Type::Set, Some(wire(resource))),
                            Change::Deleted(resource) => event(Type::Deleted, Some(wire(resource))),
                        }))
                    }
                    Ok(_) => None,
                    Err(RecvError::Lagged(_)) => Some(Err(Status::aborted("the watcher was too slow and missed changes; watch again"))),
                    Err(RecvError::Closed) => return,
                };
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Handler {
    fn kinds(&self) -> &'static [&'static str] {
        match self.0.mode {
            Mode::Maintenance => MAINTENANCE_KINDS,
            Mode::Running => KINDS,
        }
    }

    fn check(&self, kind: &str, id: &str) -> Result<(), Status> {
        super::bounded("the kind", kind)?;
        super::bounded("the id", id)?;
        if self.kinds().contains(&kind) {
            return Ok(());
        }
        Err(Status::not_found(format!("this machine has no resources of kind {kind}; it has {}", self.kinds().join(", "))))
    }
}

fn event(kind: Type, resource: Option<Resource>) -> ResourceEvent {
    ResourceEvent { r#type: kind.into(), resource }
}

fn wire(resource: &crate::resources::Resource) -> Resource {
    Resource { kind: resource.kind.clone(), id: resource.id.clone(), version: resource.version, spec: resource.spec.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcilers::show_locked;
    use crate::resources::Store;

    #[test]
    fn a_machine_in_maintenance_says_why_its_volumes_are_locked() {
        let store = Store::default();
        show_locked(&store, "STATE", "it takes the recovery key");
        let shown: Vec<Resource> = store.get("volumes", None).iter().map(wire).collect();
        assert_eq!((shown.len(), shown[0].id.as_str()), (1, "STATE"));
        assert!(shown[0].spec.contains(r#""problem":"locked: it takes the recovery key""#), "{}", shown[0].spec);
        assert!(MAINTENANCE_KINDS.contains(&"volumes"));
    }
}
