//! Cron schedules: five fields, names, lists, ranges, steps, and `@daily` and its kind. All times are UTC.

use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

/// A parsed schedule: one bit per allowed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
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
        Ok(Self {
            minutes: field(minute, 0, 59, &[], 0).map_err(&bad)?,
            hours: field(hour, 0, 23, &[], 0).map_err(&bad)?,
            days: field(day, 1, 31, &[], 0).map_err(&bad)?,
            months: field(month, 1, 12, MONTHS, 1).map_err(&bad)?,
            weekdays,
            either_day: restricted(day) && restricted(weekday),
        })
    }
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
    fn matches_day(&self, date: Date) -> bool {
        if !has(self.months, date.month()) {
            return false;
        }
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.either_day { day || weekday } else { day && weekday }
    }

    /// The first time after `after`; nothing within five years means never.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let start = utc(after).checked_add(1.minute()).ok()?;
        let mut date = start.date();
        for offset in 0..5 * 366 {
            if self.matches_day(date) {
                let first_hour = if offset == 0 { start.hour() } else { 0 };
                for hour in (first_hour..24).filter(|hour| has(self.hours, *hour)) {
                    let first_minute = if offset == 0 && hour == start.hour() { start.minute() } else { 0 };
                    if let Some(minute) = (first_minute..60).find(|minute| has(self.minutes, *minute)) {
                        return timestamp(date, hour, minute);
                    }
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The last time that is not after `now` and is after `earliest`.
    pub fn last(&self, earliest: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let end = utc(now);
        let limit = utc(earliest).date();
        let mut date = end.date();
        while date >= limit {
            if self.matches_day(date) {
                let today = date == end.date();
                let last_hour = if today { end.hour() } else { 23 };
                for hour in (0..=last_hour).rev().filter(|hour| has(self.hours, *hour)) {
                    let last_minute = if today && hour == end.hour() { end.minute() } else { 59 };
                    if let Some(minute) = (0..=last_minute).rev().find(|minute| has(self.minutes, *minute)) {
                        return timestamp(date, hour, minute).filter(|at| *at > earliest);
                    }
                }
            }
            date = date.yesterday().ok()?;
        }
        None
    }
}

fn utc(at: Timestamp) -> DateTime {
    at.to_zoned(TimeZone::UTC).datetime()
}

fn timestamp(date: Date, hour: i8, minute: i8) -> Option<Timestamp> {
    date.at(hour, minute, 0, 0).to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
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
            assert_eq!(parsed.next(at), Some(next.parse().unwrap()), "{schedule} after {at}");
            assert_eq!(parsed.last("2000-01-01T00:00:00Z".parse().unwrap(), at), Some(last.parse().unwrap()), "{schedule} before {at}");
        }
        let never: Schedule = "0 0 31 2 *".parse().unwrap();
        assert_eq!(never.next("2026-01-01T00:00:00Z".parse().unwrap()), None);
    }

    #[test]
    fn bad_schedules_are_named() {
        for text in
            ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "x * * * *", "@often", "* * * * 8"]
        {
            assert!(text.parse::<Schedule>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[-*/,?@0-9a-z ]{0,24}") {
            let _ = text.parse::<Schedule>();
        }

        #[test]
        fn next_and_last_agree(minute in 0..60_u32, hour in 0..24_u32, second in 0..4_000_000_000_i64) {
            let schedule: Schedule = format!("{minute} {hour} * * *").parse().unwrap();
            let at = Timestamp::from_second(second).unwrap();
            let next = schedule.next(at).unwrap();
            prop_assert!(next > at);
            prop_assert_eq!(schedule.last(at, next), Some(next));
        }
    }
}
