//! Objects at rest: etcd, the caches that follow it, and the encodings shared by readers.

mod cow_map;
mod encryption;
mod etcd;
mod reflector;
mod stored;
mod watch_cache;

pub use cow_map::CowMap;
pub use encryption::Encryption;
pub use etcd::{Etcd, EtcdConfig, RawKv, StoreError, prefix_end};
pub use reflector::{Defined, Ingest, Reflector};
pub use stored::{CUSTOM_FIELD, EncodedCache, Encoding, Interner, Stored};
pub use watch_cache::{Cursor, Event, EventKind, ResourceCache};
