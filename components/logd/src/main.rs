//! logd: the journal socket, the kernel log and the output of services go in; bounded logs per service come out, over a
//! socket, and on disk once machined has said where.
//!
//! Its first duty is to its writers: none of them ever waits for a disk or for a reader of logs. One thread takes what comes
//! ([`intake`]) and puts it into rings in memory ([`store`]); another one writes to disk from a bounded queue ([`disk`]), and what
//! does not fit into the queue is counted and lost; queries have threads of their own ([`query`]).

mod disk;
mod intake;
mod journal;
mod kmsg;
mod lines;
mod query;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use node_ipc::logd::SOCKET;

use crate::disk::Disk;
use crate::intake::Intake;
use crate::store::Store;

/// Where a restarted logd finds what the one before was told. On tmpfs: it does not outlive the boot.
const RUN_STATE: &str = "/run/strake/logd";

/// For what is still to be written when logd is told to end; init gives it five seconds in all.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

fn main() -> anyhow::Result<()> {
    // Before there are threads, so that none of them gets the signal instead.
    let termination = intake::termination().context("block SIGTERM")?;
    let store = Arc::new(Store::new(store::boot_id()));
    let disk = Disk::start(Arc::clone(&store), Path::new(RUN_STATE)).context("start the writer")?;
    store.write_to(disk.sender());
    disk.resume();
    query::serve(Path::new(SOCKET), Arc::clone(&store), disk.clone()).context("serve queries")?;
    Intake::open(store, termination, disk.is_persistent(), Path::new(RUN_STATE))?.run()?;
    disk.flush(FLUSH_TIMEOUT);
    Ok(())
}

/// logd's own messages: its standard error is the kernel log, one record per line.
pub fn warn(message: &str) {
    eprintln!("<4>logd: {message}");
}
