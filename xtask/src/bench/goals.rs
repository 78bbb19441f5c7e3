//! What the figures should be, what upstream's are, and the table of both.

use std::fmt::Write;

/// Something that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: String,
}

impl Figure {
    pub fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value, unit: unit.to_owned() }
    }
}

/// What a figure is compared with, in the figure's unit. Goals are upper bounds.
struct Goal {
    name: &'static str,
    goal: Option<f64>,
    /// kube-… 1.36.2 of upstream, measured on the same kind of machine.
    upstream: Option<f64>,
}

const fn goal(name: &'static str, goal: f64) -> Goal {
    Goal { name, goal: Some(goal), upstream: None }
}

const fn both(name: &'static str, goal: f64, upstream: f64) -> Goal {
    Goal { name, goal: Some(goal), upstream: Some(upstream) }
}

const fn upstream(name: &'static str, upstream: f64) -> Goal {
    Goal { name, goal: None, upstream: Some(upstream) }
}

const GOALS: &[Goal] = &[
    both("kube-apiserver start to readyz", 400.0, 2400.0),
    both("kube-apiserver RSS", 50.0, 268.0),
    goal("kube-apiserver RssAnon", 25.0),
    both("kube-controller-manager RSS", 25.0, 135.0),
    both("kube-scheduler RSS", 15.0, 62.0),
    goal("cloud-controller-manager RSS", 12.0),
    goal("kubelet RSS", 30.0),
    goal("kube-proxy RSS", 10.0),
    goal("machined RSS", 20.0),
    goal("init RSS", 4.0),
    goal("image build", 90.0),
    goal("ISO", 200.0),
    goal("root", 160.0),
    goal("UKI", 16.0),
    goal("idle without Kubernetes: memory used", 60.0),
    goal("upgrade: failed requests", 0.0),
    both("kube-apiserver RSS before", 40.0, 268.0),
    both("kube-apiserver RSS after", 80.0, 405.0),
    upstream("create: rate", 1600.0),
    both("create: processor", 0.16, 0.59),
    upstream("get: rate", 4800.0),
    both("get: processor", 0.05, 0.29),
    upstream("list: rate", 30.0),
    both("list: processor", 7.0, 48.0),
    upstream("list by label: rate", 211.0),
    both("list by label: processor", 1.2, 7.0),
    upstream("paged list: rate", 20.0),
    upstream("paged list: processor", 48.0),
    upstream("watch: rate", 44_000.0),
    goal("watch: processor", 8.0),
    goal("watch burst: processor", 3.0),
    upstream("merge patch: rate", 1100.0),
    goal("many pods: RSS with protobuf", 300.0),
    goal("many pods: RSS with JSON", 450.0),
    goal("many pods: slow readers add", 64.0),
    both("merge patch: processor", 0.20, 0.75),
    upstream("apply: rate", 1560.0),
    both("apply: processor", 0.22, 0.70),
    upstream("delete: rate", 1540.0),
    both("delete: processor", 0.17, 0.50),
];

/// A table, a line a figure: the value, its goal and whether it is met, upstream's and the ratio of ours to it. A figure of one of several
/// machines (`worker-1: kubelet RSS`) is compared as the figure itself.
pub fn render(figures: &[Figure]) -> String {
    let mut out = String::new();
    let header = format!("{:<44} {:>12} {:<4} {:>10} {:<6} {:>10} {:>7}", "measure", "here", "", "goal", "", "upstream", "ratio");
    out.push_str(header.trim_end());
    out.push('\n');
    for Figure { name, value, unit } in figures {
        let known = GOALS.iter().find(|goal| goal.name == name || name.split_once(": ").is_some_and(|(_, rest)| rest == goal.name));
        let bound = known.and_then(|known| known.goal);
        let upstream = known.and_then(|known| known.upstream);
        let met = bound.map_or("", |bound| if *value <= bound { "met" } else { "missed" });
        let bound = bound.map_or_else(String::new, |bound| format!("≤ {}", short(bound)));
        let ratio = upstream.map_or_else(String::new, |upstream| format!("×{:.2}", value / upstream));
        let upstream = upstream.map_or_else(String::new, short);
        let line = format!("{name:<44} {:>12} {unit:<4} {bound:>10} {met:<6} {upstream:>10} {ratio:>7}", short(*value));
        // Writing to a string never fails.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_their_goals_and_upstream() {
        let figures = [
            Figure::new("kube-apiserver RSS", 26.8, "MiB"),
            Figure::new("cp-1: machined RSS", 20.5, "MiB"),
            Figure::new("get: rate", 2400.0, "/s"),
            Figure::new("etcd RSS", 41.0, "MiB"),
        ];
        let table = render(&figures);
        let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["measure", "here", "goal", "upstream", "ratio"]);
        assert_eq!(words[1], ["kube-apiserver", "RSS", "26.8", "MiB", "≤", "50.0", "met", "268", "×0.10"]);
        assert_eq!(words[2], ["cp-1:", "machined", "RSS", "20.5", "MiB", "≤", "20.0", "missed"]);
        assert_eq!(words[3], ["get:", "rate", "2400", "/s", "4800", "×0.50"]);
        assert_eq!(words[4], ["etcd", "RSS", "41.0", "MiB"]);
    }

    #[test]
    fn every_goal_is_named_once() {
        for (index, one) in GOALS.iter().enumerate() {
            assert!(GOALS[index + 1..].iter().all(|other| other.name != one.name), "{}", one.name);
        }
    }
}
