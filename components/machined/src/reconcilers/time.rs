//! The clock. Nothing issues a certificate or joins before the time is sane: not before this system was built, nor before
//! the config's floor. With time servers it is kept right; without, the hardware's clock is believed.

use std::net::SocketAddr;
use std::time::Duration;

use host::clock::{Clock, LinuxClock, WallTime, is_sane};
use machine_config::values::Host;
use serde_json::json;

use super::{Context, Outcome, ReconcileError, Reconciler};

/// How long a server may take.
const QUERY: Duration = Duration::from_secs(3);
/// How often the clock is compared.
const AGAIN: Duration = Duration::from_secs(600);

/// Keeps the clock.
#[derive(Default)]
pub struct Time {
    /// Whether it was ever compared with a server.
    compared: bool,
}

#[tonic::async_trait]
impl Reconciler for Time {
    fn name(&self) -> &'static str {
        "time"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["network"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let config = cx.config().time.as_ref();
        let enabled = config.is_none_or(|config| config.enabled);
        let servers = config.map(|config| config.servers.as_slice()).unwrap_or_default();
        let mut problem = None;
        if enabled {
            match compare(servers).await {
                Ok(Some(said)) => {
                    self.compared = true;
                    cx.machine.store.set("time", "clock", json!({"synchronized": true, "detail": said}));
                }
                Ok(None) => {}
                Err(error) => problem = Some(error),
            }
        }
        let floor = floor(cx);
        if !is_sane(LinuxClock.wall(), WallTime(floor)) {
            let why = problem.unwrap_or_else(|| "no time server is configured".to_owned());
            return Err(format!("the clock shows a time before this system was built, and can't be corrected: {why}").into());
        }
        if !self.compared {
            let said = problem.clone().unwrap_or_else(|| "no time server is configured; the hardware clock is used".to_owned());
            cx.machine.store.set("time", "clock", json!({"synchronized": false, "detail": said}));
        }
        Ok(match problem {
            // A clock that is sane but can't be compared now is good enough to go on, and is said.
            Some(problem) => Outcome::ready(format!("not synchronized: {problem}"), Duration::from_secs(30)),
            None if self.compared => Outcome::ready("synchronized", AGAIN),
            None => Outcome::ready("from the hardware clock", AGAIN),
        })
    }
}

/// Asks the servers in order until one answers, and corrects the clock. Nothing when there are none.
async fn compare(servers: &[Host]) -> Result<Option<String>, String> {
    let mut problems = Vec::new();
    for server in servers {
        match ask(server).await {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => problems.push(format!("{server}: {}", crate::api::chain(error.as_ref()))),
        }
    }
    if problems.is_empty() { Ok(None) } else { Err(problems.join("; ")) }
}

async fn ask(server: &Host) -> Result<String, ReconcileError> {
    let address = match server {
        Host::Address(address) => SocketAddr::new(*address, host::sntp::PORT),
        Host::Name(name) => {
            let found = tokio::time::timeout(QUERY, tokio::net::lookup_host((name.as_str(), host::sntp::PORT))).await;
            found.map_err(|_| "the name is not answered")??.next().ok_or("the name has no address")?
        }
    };
    let answer = host::sntp::query(address, QUERY).await?;
    let correction = LinuxClock.correct(answer.offset)?;
    Ok(format!("{server}: off by {:?}, {correction:?}", answer.offset.magnitude))
}

/// The config's floor, or when the image was made: the date that its files carry.
fn floor(cx: &Context) -> Duration {
    let built = std::fs::metadata(cx.machine.paths.release()).and_then(|metadata| metadata.modified()).ok();
    let built = built.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    let configured = cx.config().time.as_ref().and_then(|time| time.floor.as_ref()).map(|floor| floor.0.as_second());
    let configured = configured.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs).unwrap_or_default();
    built.max(configured)
}
