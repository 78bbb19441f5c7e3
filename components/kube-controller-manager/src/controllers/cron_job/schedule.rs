//! Cron schedules: five fields, names, lists, ranges, steps, `@daily` and its kind, and `@every` with a duration.
//!
//! Fields are read on the clocks of a time zone. An hour that clocks skip has no times; one that they show twice has them twice.

use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// A parsed schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At times of the clock.
    Clock(Clock),
    /// Again after so long, from the last time or from the beginning.
    Every(SignedDuration),
}

/// One bit per allowed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether day and weekday are both restricted: then either is enough.
    either_day: bool,
}

/// A schedule that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schedule {schedule:?}: {problem}")]
pub struct ScheduleError {
    schedule: String,
    problem: String,
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let bad = |problem: String| ScheduleError { schedule: text.chars().take(128).collect(), problem };
        if let Some(duration) = text.trim().strip_prefix("@every ") {
            return go_duration(duration).map(Self::Every).ok_or_else(|| bad(format!("{duration:?} is not a duration")));
        }
        let expanded = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => return Err(bad(format!("{other} is not known"))),
            other => other,
        };
        let fields: Vec<&str> = expanded.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(bad(format!("it has {} fields instead of 5", fields.len())));
        };
        let restricted = |field: &str| !field.starts_with(['*', '?']);
        let mut weekdays = field(weekday, 0, 7, WEEKDAYS, 0).map_err(&bad)?;
        // Both 0 and 7 are Sunday.
        weekdays = (weekdays | (weekdays >> 7)) & 0x7f;
        Ok(Self::Clock(Clock {
            minutes: field(minute, 0, 59, &[], 0).map_err(&bad)?,
            hours: field(hour, 0, 23, &[], 0).map_err(&bad)?,
            days: field(day, 1, 31, &[], 0).map_err(&bad)?,
            months: field(month, 1, 12, MONTHS, 1).map_err(&bad)?,
            weekdays,
            either_day: restricted(day) && restricted(weekday),
        }))
    }
}

/// A duration as Go writes it, such as `1h30m`; in whole seconds, and one at least.
fn go_duration(text: &str) -> Option<SignedDuration> {
    let mut seconds = 0.0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    // A hundred years are as good as never.
    (seconds > 0.0 && seconds < 3.2e9).then(|| SignedDuration::from_secs((seconds as i64).max(1)))
}

fn field(text: &str, least: u32, most: u32, names: &[&str], first_name: u32) -> Result<u64, String> {
    let number = |part: &str| -> Result<u32, String> {
        let named = names.iter().zip(first_name..).find(|(name, _)| part.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let value = named.or_else(|| part.parse().ok()).ok_or_else(|| format!("{part:?} is not a number"))?;
        if (least..=most).contains(&value) { Ok(value) } else { Err(format!("{value} is not within {least} and {most}")) }
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                (range, Some(step.parse::<u32>().ok().filter(|step| *step > 0).ok_or_else(|| format!("{step:?} is not a step"))?))
            }
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (least, most),
            Some((first, last)) => (number(first)?, number(last)?),
            // `5/10` means from five on.
            None => (number(range)?, if step.is_some() { most } else { number(range)? }),
        };
        if first > last {
            return Err(format!("{range} ends before it begins"));
        }
        for value in (first..=last).step_by(step.unwrap_or(1) as usize) {
            bits |= 1_u64 << value;
        }
    }
    Ok(bits)
}

fn has(bits: u64, value: i8) -> bool {
    bits & (1_u64 << value) != 0
}

impl Schedule {
    /// The first time after `after`; nothing within five years means never. `anchor`: what a constant delay counts from.
    pub fn next(&self, anchor: Timestamp, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let clock = match self {
            Self::Clock(clock) => clock,
            Self::Every(delay) => {
                let past = after.duration_since(anchor).as_secs().max(0) / delay.as_secs();
                return anchor.checked_add(delay.checked_mul(i32::try_from(past + 1).ok()?)?).ok();
            }
        };
        let mut date = after.to_zoned(zone.clone()).date();
        for _ in 0..5 * 366 {
            if let Some(found) = clock.times(date, zone).filter(|at| *at > after).min() {
                return Some(found);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The last time that is not after `now` and is after `earliest`.
    pub fn last(&self, earliest: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let clock = match self {
            Self::Clock(clock) => clock,
            Self::Every(delay) => {
                let past = now.duration_since(earliest).as_secs().max(0) / delay.as_secs();
                let times = i32::try_from(past).ok().filter(|n| *n > 0)?;
                return earliest.checked_add(delay.checked_mul(times)?).ok();
            }
        };
        let limit = earliest.to_zoned(zone.clone()).date();
        let mut date = now.to_zoned(zone.clone()).date();
        while date >= limit {
            if let Some(found) = clock.times(date, zone).filter(|at| *at <= now).max() {
                return Some(found).filter(|at| *at > earliest);
            }
            date = date.yesterday().ok()?;
        }
        None
    }
}

impl Clock {
    fn matches_day(&self, date: Date) -> bool {
        if !has(self.months, date.month()) {
            return false;
        }
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.either_day { day || weekday } else { day && weekday }
    }

    /// All times of a day.
    fn times(&self, date: Date, zone: &TimeZone) -> impl Iterator<Item = Timestamp> {
        let hours = if self.matches_day(date) { 0..24 } else { 0..0 };
        hours
            .filter(|hour| has(self.hours, *hour))
            .flat_map(move |hour| (0..60).filter(move |minute| has(self.minutes, *minute)).map(move |minute| date.at(hour, minute, 0, 0)))
            .flat_map(move |at| {
                let offsets = match zone.to_ambiguous_timestamp(at).offset() {
                    AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
                    AmbiguousOffset::Gap { .. } => [None, None],
                    AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
                };
                offsets.into_iter().flatten().filter_map(move |offset| offset.to_timestamp(at).ok())
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn next_and_last_times() {
        // 2026-01-01 is a Thursday.
        for (schedule, at, next, last) in [
            ("* * * * *", "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z", "2026-01-01T00:00:00Z"),
            ("*/15 * * * *", "2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z", "2026-01-01T00:15:00Z"),
            ("5/20 * * * *", "2026-01-01T00:30:00Z", "2026-01-01T00:45:00Z", "2026-01-01T00:25:00Z"),
            ("0 3 * * mon-fri", "2026-01-03T00:00:00Z", "2026-01-05T03:00:00Z", "2026-01-02T03:00:00Z"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z", "2025-12-28T00:00:00Z"),
            ("0 0 13 * 5", "2026-01-03T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("30 6 29 feb *", "2026-01-01T00:00:00Z", "2028-02-29T06:30:00Z", "2024-02-29T06:30:00Z"),
            ("@hourly", "2026-01-01T00:59:59Z", "2026-01-01T01:00:00Z", "2026-01-01T00:00:00Z"),
            ("0 22 31 12 ?", "2026-01-01T00:00:00Z", "2026-12-31T22:00:00Z", "2025-12-31T22:00:00Z"),
        ] {
            let parsed: Schedule = schedule.parse().unwrap();
            let at: Timestamp = at.parse().unwrap();
            let long_ago = "2000-01-01T00:00:00Z".parse().unwrap();
            assert_eq!(parsed.next(long_ago, at, &TimeZone::UTC), Some(next.parse().unwrap()), "{schedule} after {at}");
            assert_eq!(parsed.last(long_ago, at, &TimeZone::UTC), Some(last.parse().unwrap()), "{schedule} before {at}");
        }
        let never: Schedule = "0 0 31 2 *".parse().unwrap();
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(never.next(at, at, &TimeZone::UTC), None);
    }

    #[test]
    fn times_are_those_of_the_zone() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for (schedule, from, times) in [
            ("30 3 * * *", "2026-01-01T00:00:00Z", &["2026-01-01T02:30:00Z", "2026-01-02T02:30:00Z"][..]),
            ("30 3 * * *", "2026-07-01T00:00:00Z", &["2026-07-01T01:30:00Z"]),
            // On 2026-03-29 clocks go from two to three, on 2026-10-25 from three back to two.
            ("30 2 * * *", "2026-03-28T12:00:00Z", &["2026-03-30T00:30:00Z"]),
            ("30 2 * * *", "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]),
            ("0 0 1 * *", "2026-01-31T22:59:00Z", &["2026-01-31T23:00:00Z", "2026-02-28T23:00:00Z"]),
        ] {
            let schedule: Schedule = schedule.parse().unwrap();
            let mut at: Timestamp = from.parse().unwrap();
            for want in times {
                let want: Timestamp = want.parse().unwrap();
                assert_eq!(schedule.next(at, at, &berlin), Some(want), "after {at}");
                assert_eq!(schedule.last(at, want, &berlin), Some(want), "before {want}");
                at = want;
            }
        }
    }

    #[test]
    fn a_constant_delay_counts_from_the_last_time() {
        let every: Schedule = "@every 1h30m".parse().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let from = at("2026-01-01T00:00:10Z");
        assert_eq!(every.next(from, from, &TimeZone::UTC), Some(at("2026-01-01T01:30:10Z")));
        assert_eq!(every.next(from, at("2026-01-01T04:00:00Z"), &TimeZone::UTC), Some(at("2026-01-01T04:30:10Z")));
        assert_eq!(every.last(from, at("2026-01-01T01:30:09Z"), &TimeZone::UTC), None);
        assert_eq!(every.last(from, at("2026-01-01T04:00:00Z"), &TimeZone::UTC), Some(at("2026-01-01T03:00:10Z")));
    }

    #[test]
    fn bad_schedules_are_named() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "x * * * *",
            "@often",
            "* * * * 8",
            "@every x",
            "@every 5",
            "@every -1h",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(@every )?[-*/,?@.0-9a-zµ ]{0,24}") {
            let _ = text.parse::<Schedule>();
        }

        #[test]
        fn next_and_last_agree(minute in 0..60_u32, hour in 0..24_u32, second in 0..4_000_000_000_i64) {
            let schedule: Schedule = format!("{minute} {hour} * * *").parse().unwrap();
            let at = Timestamp::from_second(second).unwrap();
            let next = schedule.next(at, at, &TimeZone::UTC).unwrap();
            prop_assert!(next > at);
            prop_assert_eq!(schedule.last(at, next, &TimeZone::UTC), Some(next));
        }
    }
}
