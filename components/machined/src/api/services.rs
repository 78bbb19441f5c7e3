//! ServiceService: what init supervises.

use std::sync::Arc;

use machine_api::v1alpha1::service_service_server::ServiceService;
use machine_api::v1alpha1::{
    ProcessStats, ServiceInfo, ServiceListRequest, ServiceListResponse, ServiceRestartRequest, ServiceRestartResponse, StatsRequest,
    StatsResponse,
};
use node_ipc::init::{ErrorCode, ServiceStatus};
use tonic::{Request, Response, Status};

use super::authorize::Caller;
use crate::init::InitError;
use crate::machine::Machine;
use crate::service_words::{detail, state_name};
use crate::stats::{self, Process};

pub struct Handler(pub Arc<Machine>);

#[tonic::async_trait]
impl ServiceService for Handler {
    async fn list(&self, _request: Request<ServiceListRequest>) -> Result<Response<ServiceListResponse>, Status> {
        let services = self.0.init.services().await.map_err(|error| status(&error))?;
        let now = crate::clock::Now::read();
        let memory = |service: &ServiceStatus| service.pid.and_then(|pid| stats::memory_of_group_of(&self.0.paths, pid)).unwrap_or(0);
        let services = services.iter().map(|service| ServiceInfo { memory_bytes: memory(service), ..info(service, &now) });
        Ok(Response::new(ServiceListResponse { services: services.collect() }))
    }

    async fn stats(&self, _request: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        let services = self.0.init.services().await.map_err(|error| status(&error))?;
        let paths = self.0.paths.clone();
        // Proportional sizes make the kernel walk page tables, which is nothing for an async thread.
        let read = tokio::task::spawn_blocking(move || (stats::processes(&paths), stats::machine_memory(&paths)));
        let (processes, memory) = read.await.map_err(|error| super::internal(&error))?;
        let processes = processes.into_iter().map(|process| process_stats(process, &services)).collect();
        Ok(Response::new(StatsResponse { processes, memory_total: memory.total, memory_used: memory.used }))
    }

    async fn restart(&self, request: Request<ServiceRestartRequest>) -> Result<Response<ServiceRestartResponse>, Status> {
        let caller = Caller::of(&request)?;
        let name = request.into_inner().name;
        super::bounded("the service's name", &name)?;
        caller.did(format_args!("restart service {name}"));
        self.0.init.restart(&name).await.map_err(|error| status(&error))?;
        Ok(Response::new(ServiceRestartResponse {}))
    }
}

/// How an error of init looks to a caller.
pub fn status(error: &InitError) -> Status {
    let text = super::chain(error);
    match error {
        InitError::Refused { code: ErrorCode::UnknownService, .. } => Status::not_found(text),
        InitError::Refused { code: ErrorCode::BadRequest, .. } => Status::invalid_argument(text),
        InitError::Refused { .. } => Status::failed_precondition(text),
        _ => Status::unavailable(text),
    }
}

fn info(service: &ServiceStatus, now: &crate::clock::Now) -> ServiceInfo {
    ServiceInfo {
        name: service.name.clone(),
        state: state_name(service.state).to_owned(),
        pid: service.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        restarts: service.restarts,
        since_unix: now.unix_seconds_of(service.since_boottime_us),
        detail: detail(service),
        memory_bytes: 0,
    }
}

fn process_stats(process: Process, services: &[ServiceStatus]) -> ProcessStats {
    let service = services.iter().find(|service| service.pid == Some(process.pid));
    ProcessStats {
        name: process.name,
        pid: u32::try_from(process.pid).unwrap_or(0),
        group: process.group,
        service: service.map(|service| service.name.clone()).unwrap_or_default(),
        rss: process.rss,
        pss: process.pss,
        rss_anon: process.rss_anon,
        cpu_seconds: process.cpu_seconds,
        group_memory: process.group_memory,
        restarts: service.map_or(0, |service| service.restarts),
        threads: process.threads,
    }
}
