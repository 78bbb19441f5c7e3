//! CronJob.

use k8s_schema::Doc;

use super::{Action, SPEC_AND_STATUS, Strategy, batch};
use crate::validation::{ErrorList, FieldError, names};

pub const CRON_JOB: Strategy = Strategy {
    validate_create: validate,
    validate_update: |a, n, _, e| {
        if a == Action::Main {
            validate(n, e);
        }
    },
    ..SPEC_AND_STATUS
};

fn validate(d: &Doc, e: &mut ErrorList) {
    let schedule = d.at("spec.schedule").str();
    if schedule.is_empty() {
        e.push(FieldError::required("spec.schedule", ""));
    } else if let Some(m) = schedule_error(schedule) {
        e.push(FieldError::invalid("spec.schedule", schedule, m));
    }
    let zone = d.at("spec.timeZone");
    if let Some(name) = zone.as_str()
        && let Some(why) = zone_error(name)
    {
        e.push(FieldError::invalid("spec.timeZone", name, why));
    }
    let policy = d.at("spec.concurrencyPolicy").str();
    if policy.is_empty() {
        e.push(FieldError::required("spec.concurrencyPolicy", ""));
    } else if !matches!(policy, "Allow" | "Forbid" | "Replace") {
        e.push(FieldError::not_supported("spec.concurrencyPolicy", policy, &["Allow", "Forbid", "Replace"]));
    }
    for f in ["spec.startingDeadlineSeconds", "spec.successfulJobsHistoryLimit", "spec.failedJobsHistoryLimit"] {
        if let Some(v) = d.at(f).as_i64() {
            crate::validation::values::non_negative(v, f, e);
        }
    }
    let selector = d.at("spec.jobTemplate.spec.selector");
    if selector.exists() {
        e.push(FieldError::invalid("spec.jobTemplate.spec.selector", selector.to_value(), "`selector` will be auto-generated"));
    }
    if d.at("spec.jobTemplate.spec.manualSelector").bool() {
        e.push(FieldError::not_supported("spec.jobTemplate.spec.manualSelector", true, &["nil", "false"]));
    }
    if d.at("spec.jobTemplate.spec.completionMode").exists() || d.at("spec.jobTemplate.spec.template").exists() {
        template(d, e);
    }
    let name = d.at("metadata.name").str();
    if name.len() > 52 {
        e.push(FieldError::invalid("metadata.name", name, names::max_len(52)));
    }
}

fn template(d: &Doc, e: &mut ErrorList) {
    let mut own = ErrorList::new();
    batch::spec(d, "spec.jobTemplate.spec", &mut own);
    for x in own.iter() {
        // A template of a job says nothing about its completion mode until the job is made.
        if !x.field().ends_with("completionMode") {
            e.push(x.clone());
        }
    }
}

/// What is wrong with the name of a time zone. Names are those of the tz database, as they are written there.
fn zone_error(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("timeZone must be nil or non-empty string".into());
    }
    if name.eq_ignore_ascii_case("local") {
        return Some("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".into());
    }
    let known = jiff::tz::db().get(name).ok().and_then(|tz| tz.iana_name().map(|n| n == name));
    (known != Some(true)).then(|| format!("unknown time zone {name}"))
}

/// Whether Go would read a text as a duration; what it says when not.
fn go_duration(s: &str) -> Result<(), String> {
    let invalid = || format!("time: invalid duration {s:?}");
    let mut rest = s.strip_prefix(['+', '-']).unwrap_or(s);
    if rest == "0" {
        return Ok(());
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (digits, after) = rest.split_at(number);
        if digits.parse::<f64>().is_err() {
            return Err(invalid());
        }
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        match unit {
            "" => return Err(format!("time: missing unit in duration {s:?}")),
            "ns" | "us" | "µs" | "ms" | "s" | "m" | "h" => rest = after,
            other => return Err(format!("time: unknown unit {other:?} in duration {s:?}")),
        }
    }
    Ok(())
}

/// What is wrong with a schedule of five fields, or a name like `@hourly`.
fn schedule_error(s: &str) -> Option<String> {
    if s.starts_with("TZ=") || s.starts_with("CRON_TZ=") {
        return Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".into());
    }
    if let Some(name) = s.strip_prefix('@') {
        if let Some(duration) = name.strip_prefix("every ") {
            return go_duration(duration).err().map(|why| format!("failed to parse duration {s}: {why}"));
        }
        let known = matches!(name, "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly");
        return (!known).then(|| format!("unrecognized descriptor: {s}"));
    }
    let fields: Vec<&str> = s.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let ranges = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
    const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    for (i, (f, (low, high))) in fields.iter().zip(ranges).enumerate() {
        for part in f.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
            if let Some(step) = step {
                match step.parse::<u32>() {
                    Ok(0) => return Some(format!("step of range should be a positive number: {part}")),
                    Ok(_) => {}
                    Err(_) => return Some(format!("failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax")),
                }
            }
            if matches!(range, "*" | "?") {
                continue;
            }
            let (a, b) = range.split_once('-').unwrap_or((range, range));
            let number = |t: &str| -> Result<u32, String> {
                let lower = t.to_lowercase();
                let named = match i {
                    3 => MONTHS.iter().position(|m| *m == lower).map(|p| p as u32 + 1),
                    4 => DAYS.iter().position(|m| *m == lower).map(|p| p as u32),
                    _ => None,
                };
                named.map_or_else(
                    || t.parse().map_err(|_| format!("failed to parse int from {t}: strconv.Atoi: parsing {t:?}: invalid syntax")),
                    Ok,
                )
            };
            match (number(a), number(b)) {
                (Err(e), _) | (_, Err(e)) => return Some(e),
                (Ok(a), Ok(b)) => {
                    if a < low {
                        return Some(format!("beginning of range ({a}) below minimum ({low}): {part}"));
                    }
                    if b > high {
                        return Some(format!("end of range ({b}) above maximum ({high}): {part}"));
                    }
                    if a > b {
                        return Some(format!("beginning of range ({a}) beyond end of range ({b}): {part}"));
                    }
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::schedule_error;

    #[test]
    fn schedules_are_five_fields_in_range() {
        for good in ["*/5 * * * *", "0 0 1 jan sun", "@hourly", "@every 1h30m", "1-5,10 2 * * 1-5"] {
            assert_eq!(schedule_error(good), None, "{good}");
        }
        for bad in [
            "@every",
            "@every x",
            "@every 1",
            "",
            "* * * *",
            "60 * * * *",
            "*/0 * * * *",
            "a * * * *",
            "5-1 * * * *",
            "@never",
            "TZ=UTC * * * * *",
        ] {
            assert!(schedule_error(bad).is_some(), "{bad}");
        }
    }
}
