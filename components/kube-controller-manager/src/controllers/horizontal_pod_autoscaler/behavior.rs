//! How fast the number of replicas may change: stabilisation windows, policies per period, the bounds of the autoscaler. Pure.

use std::time::Duration;

use k8s_client::Time;

use crate::api::{HorizontalPodAutoscaler, ScalingRules};

/// What is remembered of one autoscaler between two looks. Bounded by the longest window of its rules over the sync period.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Numbers that the metrics asked for.
    pub recommendations: Vec<(Time, i32)>,
    /// By how much it scaled up.
    pub ups: Vec<(Time, i32)>,
    /// By how much it scaled down.
    pub downs: Vec<(Time, i32)>,
}

/// A condition in short: whether it holds, why, in words.
pub type Said = (bool, &'static str, &'static str);

/// The number to scale to, and what the conditions `AbleToScale` and `ScalingLimited` say.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub replicas: i32,
    pub able: Said,
    pub limited: Said,
}

const SETTLED: Said = (true, "ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Said =
    (true, "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation");
const UP_STABILIZED: Said =
    (true, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation");
const IN_RANGE: Said = (false, "DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Said = (true, "TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Said = (true, "TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: Said = (true, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Said = (true, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// No rule looks further back.
const LONGEST: Duration = Duration::from_secs(3600);

/// Decides from what the metrics ask for, and remembers it.
pub fn decide(
    autoscaler: &HorizontalPodAutoscaler,
    history: &mut History,
    current: i32,
    desired: i32,
    downscale_stabilization: Duration,
    now: Time,
) -> Decision {
    for list in [&mut history.recommendations, &mut history.ups, &mut history.downs] {
        list.retain(|(at, _)| at.age(now.0) <= LONGEST.max(downscale_stabilization));
    }
    if history.recommendations.is_empty() {
        history.recommendations.push((now, current));
    }
    let spec = &autoscaler.spec;
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let none = ScalingRules::default();
    let rules = spec.behavior.as_ref();
    let up = rules.and_then(|rules| rules.scale_up.as_ref()).unwrap_or(&none);
    let down = rules.and_then(|rules| rules.scale_down.as_ref()).unwrap_or(&none);
    let window = |rules: &ScalingRules, default: Duration| rules.stabilization_window_seconds.map_or(default, Duration::from_secs);
    let within = |window: Duration| history.recommendations.iter().filter(move |(at, _)| at.age(now.0) < window).map(|(_, count)| *count);
    let lowest = within(window(up, Duration::ZERO)).chain([desired]).min().unwrap_or(desired);
    let highest = within(window(down, downscale_stabilization)).chain([desired]).max().unwrap_or(desired);
    // Up no further than the lowest of one window, down no further than the highest of the other. Without rules nothing holds back going up.
    let stable = if rules.is_none() { highest } else { current.max(lowest).min(highest) };
    let able = if stable == desired {
        SETTLED
    } else if stable < desired {
        UP_STABILIZED
    } else {
        DOWN_STABILIZED
    };
    history.recommendations.push((now, desired));
    let (replicas, limited) = if rules.is_none() {
        plainly_bounded(current, stable, least, most)
    } else {
        bounded(history, current, stable, (least, most), (up, down), now)
    };
    Decision { replicas, able, limited }
}

/// Without rules: at most double, or four.
fn plainly_bounded(current: i32, desired: i32, least: i32, most: i32) -> (i32, Said) {
    let fast = current.saturating_mul(2).max(4);
    let (ceiling, over) = if most > fast { (fast, UP_LIMIT) } else { (most, TOO_MANY) };
    match desired {
        _ if desired < least => (least, TOO_FEW),
        _ if desired > ceiling => (ceiling, over),
        _ => (desired, IN_RANGE),
    }
}

fn bounded(
    history: &History,
    current: i32,
    desired: i32,
    (least, most): (i32, i32),
    (up, down): (&ScalingRules, &ScalingRules),
    now: Time,
) -> (i32, Said) {
    if desired > current {
        let fast = up_limit(history, current, up, now).max(current);
        let (ceiling, over) = if most > fast { (fast, UP_LIMIT) } else { (most, TOO_MANY) };
        if desired > ceiling {
            return (ceiling, over);
        }
    } else if desired < current {
        let fast = down_limit(history, current, down, now).min(current);
        let (floor, under) = if least < fast { (fast, DOWN_LIMIT) } else { (least, TOO_FEW) };
        if desired < floor {
            return (floor, under);
        }
    }
    (desired, IN_RANGE)
}

fn sum(events: &[(Time, i32)], period: u64, now: Time) -> i32 {
    let recent = events.iter().filter(|(at, _)| at.age(now.0) < Duration::from_secs(period));
    recent.fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

fn up_limit(history: &History, current: i32, rules: &ScalingRules, now: Time) -> i32 {
    let proposals = rules.policies.iter().map(|policy| {
        let changed = sum(&history.ups, policy.period_seconds, now).saturating_sub(sum(&history.downs, policy.period_seconds, now));
        let start = current.saturating_sub(changed);
        match policy.kind.as_str() {
            "Percent" => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
            _ => start.saturating_add(policy.value),
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => proposals.min().unwrap_or(i32::MAX),
        _ => proposals.max().unwrap_or(i32::MAX),
    }
}

fn down_limit(history: &History, current: i32, rules: &ScalingRules, now: Time) -> i32 {
    let proposals = rules.policies.iter().map(|policy| {
        let changed = sum(&history.downs, policy.period_seconds, now).saturating_sub(sum(&history.ups, policy.period_seconds, now));
        let start = current.saturating_add(changed);
        match policy.kind.as_str() {
            "Percent" => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
            _ => start.saturating_sub(policy.value),
        }
    });
    // The policy that changes least is the one that leaves most.
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => proposals.max().unwrap_or(0),
        _ => proposals.min().unwrap_or(0),
    }
}
