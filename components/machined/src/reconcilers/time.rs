//! The clock. Nothing issues a certificate or joins before the time is sane: not before this system was built, nor before the config's floor, nor
//! before anything else that is known to be past ([`Past`]). With time servers it is kept right; without, the hardware's clock is believed, and
//! where that is behind the past, as on a board whose battery is empty, the clock is set to the latest moment that is known to have been. So is one
//! that is decades ahead: of years in two digits the kernel takes 80 for 2080, and an empty battery may show 1980.

use std::net::SocketAddr;
use std::time::Duration;

use host::clock::{Clock, LinuxClock, Offset};
use machine_config::values::Host;
use serde_json::json;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::events::Severity;
use crate::state::StateDir;

/// How long a server may take.
const QUERY: Duration = Duration::from_secs(3);
/// How often the clock is compared.
const AGAIN: Duration = Duration::from_secs(600);

/// How long after the start time servers may take before a dead clock is set without them.
const PATIENCE: Duration = Duration::from_secs(60);

/// A clock that is further ahead of when the system and its cluster were made is taken for a dead one.
const AHEAD: Duration = Duration::from_secs(30 * 365 * 86_400);

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
        let (mut problem, mut answered) = (None, false);
        if enabled {
            match compare(servers).await {
                Ok(Some(said)) => {
                    (self.compared, answered) = (true, true);
                    cx.machine.store.set("time", "clock", json!({"synchronized": true, "detail": said}));
                }
                Ok(None) => {}
                Err(error) => problem = Some(error),
            }
        }
        let past = Past::of(cx);
        // What a time server says now counts for more than what the clock showed before.
        let past = if answered { Past { remembered: Duration::ZERO, ..past } } else { past };
        if let Some(offset) = past.contradiction(LinuxClock.wall().0) {
            if answered && !offset.negative {
                return Err("the time servers say that it is before this system or its cluster was made".into());
            }
            if !answered {
                // Those that are configured get a chance first: what is issued now is dated by the floor.
                if let Some(problem) = problem.as_ref().filter(|_| LinuxClock.monotonic().0 < PATIENCE) {
                    return Err(format!("the clock contradicts what is known to be past: {problem}").into());
                }
                LinuxClock.correct(offset)?;
                let why = problem.clone().unwrap_or_else(|| "no time server is configured".to_owned());
                let (days, side) = (offset.magnitude.as_secs() / 86_400, if offset.negative { "ahead of" } else { "behind" });
                let message = format!("the hardware clock was {days} days {side} what is known to be past, and {why}");
                cx.machine.event(Severity::Warning, "ClockSetToFloor", &message);
            }
        }
        remember(&cx.machine.state, LinuxClock.wall().0);
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

/// Moments that are known to be past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Past {
    /// When the image was made: the date that its files carry.
    built: Duration,
    /// What the config says.
    configured: Duration,
    /// When the cluster's authorities were made, which the config holds.
    authorities: Duration,
    /// When this machine was last seen to run.
    remembered: Duration,
}

impl Past {
    fn of(cx: &Context) -> Past {
        let config = cx.config();
        let built = std::fs::metadata(cx.machine.paths.release()).and_then(|metadata| metadata.modified()).ok();
        let configured = config.time.as_ref().and_then(|time| time.floor.as_ref()).map(|floor| floor.0.as_second());
        let all = &config.secrets.authorities;
        let pems = [all.cluster.cert.as_str(), all.machine.cert.as_str()];
        let made = pems.iter().filter_map(|pem| Some(pki::Certificate::from_pem(pem).ok()?.not_before.as_second()));
        Past {
            built: built.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default(),
            configured: configured.map(seconds).unwrap_or_default(),
            authorities: made.map(seconds).max().unwrap_or_default(),
            remembered: remembered(&cx.machine.state),
        }
    }

    /// When the system and its cluster were made.
    fn made(self) -> Duration {
        self.built.max(self.configured).max(self.authorities)
    }

    /// What the clock cannot go behind. What a dead clock left behind is not remembered.
    fn latest(self) -> Duration {
        self.made().max(Some(self.remembered).filter(|remembered| *remembered <= self.made() + AHEAD).unwrap_or_default())
    }

    /// How a clock that cannot be right is brought to the latest moment that is known to have been.
    fn contradiction(self, now: Duration) -> Option<Offset> {
        let floor = self.latest();
        if now < floor {
            return Some(Offset { negative: false, magnitude: floor - now });
        }
        (now > self.made() + AHEAD).then(|| Offset { negative: true, magnitude: now - floor })
    }
}

fn seconds(unix: i64) -> Duration {
    Duration::from_secs(u64::try_from(unix).unwrap_or_default())
}

/// The file in STATE with the time at which the machine was last seen to run.
const KEPT: &str = "clock";

fn remembered(state: &StateDir) -> Duration {
    let text = state.text(KEPT).ok().flatten().unwrap_or_default();
    text.trim().parse().map(Duration::from_secs).unwrap_or_default()
}

/// Keeps the time; a clock that was far ahead once is not kept for ever, because what is kept is what the clock shows now.
fn remember(state: &StateDir, now: Duration) {
    if let Err(error) = state.write(KEPT, format!("{}\n", now.as_secs()).as_bytes()) {
        tracing::warn!(error = crate::api::chain(&error), "keep the time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Loaded;

    #[test]
    fn the_latest_moment_that_is_known_to_be_past_is_the_floor() {
        let dir = tempfile::tempdir().unwrap();
        let (text, _) = crate::testing::worker_text("{disk: {name: vda}}");
        let config = machine_config::Config::parse("test", &text).unwrap();
        let machine = crate::testing::machine(dir.path(), Loaded { text, config });
        let cx = crate::testing::context(&machine);
        let past = Past::of(&cx);
        let now = LinuxClock.wall().0;
        // The authorities were made for this test.
        assert!(past.authorities <= now && past.authorities + Duration::from_secs(2 * 86_400) > now, "{past:?}");
        assert_eq!((past.configured, past.remembered, past.latest()), (Duration::ZERO, Duration::ZERO, past.authorities));
        remember(&machine.state, now + Duration::from_secs(1000));
        assert_eq!(Past::of(&cx).latest().as_secs(), now.as_secs() + 1000);
        machine.state.write(KEPT, b"nonsense").unwrap();
        assert_eq!(Past::of(&cx).remembered, Duration::ZERO);
    }

    #[test]
    fn a_clock_before_the_past_or_decades_after_it_is_dead() {
        let years = |years: u64| Duration::from_secs(years * 365 * 86_400);
        let past = Past { built: years(56), authorities: years(57), remembered: years(58), ..Past::default() };
        let offset = |negative, magnitude| Some(Offset { negative, magnitude: years(magnitude) });
        assert_eq!(past.contradiction(years(10)), offset(false, 48));
        assert_eq!(past.contradiction(years(58)), None);
        assert_eq!(past.contradiction(years(87)), None);
        // What an empty battery shows as 1980.
        assert_eq!(past.contradiction(years(110)), offset(true, 52));
        // It was remembered before anybody noticed.
        let fooled = Past { remembered: years(110), ..past };
        assert_eq!(fooled.contradiction(years(110)), offset(true, 53));
        assert_eq!(fooled.contradiction(years(58)), None);
    }
}
