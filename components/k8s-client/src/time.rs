//! Kubernetes' two time formats: RFC 3339 in whole seconds (`Time`) and with six fractional digits (`MicroTime`).

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// meta/v1 `Time`: written in whole seconds, UTC. Reading accepts any RFC 3339 timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Timestamp);

/// meta/v1 `MicroTime`: written with exactly six fractional digits, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroTime(pub Timestamp);

impl Time {
    /// The wall clock, cut to whole seconds. Planners take the time as an argument instead of calling this.
    pub fn now() -> Self {
        Self(whole_seconds(Timestamp::now()))
    }

    /// How long ago this was, zero when it lies in the future.
    pub fn age(self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.0)).unwrap_or(Duration::ZERO)
    }

    /// This time moved forward; saturates at the end of time.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.checked_add(jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX)).unwrap_or(Timestamp::MAX))
    }
}

impl MicroTime {
    /// The wall clock.
    pub fn now() -> Self {
        Self(Timestamp::now())
    }
}

fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", whole_seconds(self.0))
    }
}

impl fmt::Display for MicroTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.0)
    }
}

fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = Timestamp;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an RFC 3339 timestamp")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
            text.parse().map_err(|error| E::custom(format_args!("bad timestamp {text:?}: {error}")))
        }
    }
    deserializer.deserialize_str(Visitor)
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for MicroTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer).map(Self)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for MicroTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_the_way_upstream_writes_them() {
        let at: Timestamp = "2026-11-22T20:31:05.123456789Z".parse().unwrap();
        assert_eq!(serde_json::to_string(&Time(at)).unwrap(), "\"2026-11-22T20:31:05Z\"");
        assert_eq!(serde_json::to_string(&MicroTime(at)).unwrap(), "\"2026-11-22T20:31:05.123456Z\"");
        let whole: Timestamp = "2026-11-22T20:31:05Z".parse().unwrap();
        assert_eq!(serde_json::to_string(&MicroTime(whole)).unwrap(), "\"2026-11-22T20:31:05.000000Z\"");
        assert_eq!(serde_json::from_str::<Time>("\"2026-11-22T22:31:05+02:00\"").unwrap(), Time(whole));
        assert!(serde_json::from_str::<Time>("\"yesterday\"").is_err());
    }

    #[test]
    fn age_of_a_future_time_is_zero() {
        let at = Time("2026-01-01T00:00:10Z".parse().unwrap());
        assert_eq!(at.age("2026-01-01T00:00:00Z".parse().unwrap()), Duration::ZERO);
        assert_eq!(at.age("2026-01-01T00:01:10Z".parse().unwrap()), Duration::from_secs(60));
    }
}
