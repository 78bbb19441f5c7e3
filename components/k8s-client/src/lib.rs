//! A Kubernetes client: requests, watches, informers, work queues, leader election and events.
//!
//! Requests are values ([`Request`]) built without I/O, so a planner can return them and a test can compare them; [`Client`] sends them.
//! Objects are narrow structs that each component writes for itself and that decode only what it uses. Such an object can be patched or
//! applied, never put: [`Request::replace`] takes only a [`FullObject`], which is what [`Client::get_full`] returns.
//!
//! This crate knows no product types: nothing here may name a Strake component.

mod client;
mod config;
mod discovery;
mod error;
mod events;
mod leader;
mod meta;
mod process;
mod quantity;
mod reflector;
mod request;
mod resource;
mod selector;
mod serve;
mod store;
mod time;
mod tls;
mod watch;
mod workqueue;

pub use client::{Client, FullObject, List, ListMeta, Response};
pub use config::{Config, Material};
pub use discovery::{ApiResource, Discovered};
pub use error::{ConfigError, Error, Status, StatusCause, StatusDetails};
pub use events::{EventRecorder, EventType, ObjectReference};
pub use leader::{LeaderConfig, LeaderElector, LeaderError, Lease, LeaseSpec, LockAction, LockView, plan_lock};
pub use meta::{
    Condition, IntOrString, LabelMap, LocalObjectReference, Named, Object, ObjectKey, ObjectMeta, OwnerReference, Partial, controller_of,
    null_default, owner_reference,
};
pub use process::{go_duration, hostname, stop_on_signals};
pub use quantity::{Quantity, QuantityError};
pub use reflector::{Change, Informer, ReflectorOptions, spawn_reflector};
pub use request::{DeleteOptions, ListOptions, Method, Patch, PatchKind, Propagation, Request, WatchOptions};
pub use resource::{Resource, resources};
pub use selector::{LabelSelector, Requirement, SelectorError, format_labels};
pub use serve::{Check, ServeConfig, ServeError, serve};
pub use store::{Index, Store};
pub use time::{MicroTime, Time};
pub use watch::{WatchEvent, WatchStream};
pub use workqueue::{Action, RateLimit, WorkQueue, run_workers};

pub use tokio_util::sync::CancellationToken;
