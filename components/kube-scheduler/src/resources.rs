//! Amounts of resources: what pods request and nodes offer.
//!
//! CPU is counted in thousandths, everything else in whole units, both rounded up, as upstream does; sums saturate.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::types::{Pod, ResourceRequirements};

/// CPU request assumed for scoring when a container states none, in millicores.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// Memory request assumed for scoring when a container states none, in bytes.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// A quantity in thousandths of its unit, rounded up and saturating.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    milli: i128,
}

impl Quantity {
    /// Thousandths.
    pub fn milli(self) -> i64 {
        i64::try_from(self.milli).unwrap_or(if self.milli < 0 { i64::MIN } else { i64::MAX })
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        let whole = self.milli.div_euclid(1000) + i128::from(self.milli.rem_euclid(1000) != 0);
        i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
    }

    /// Parses `<sign><digits>[.<digits>]<suffix>` (API reference, Quantity). `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 20 {
            return None;
        }
        let (multiplier, divisor) = suffix_scale(suffix)?;
        let mut milli = 0i128;
        if !whole.is_empty() {
            milli = whole.parse::<i128>().ok()?.saturating_mul(1000).saturating_mul(multiplier);
        }
        // Digits beyond nano matter to nobody; upstream rounds up, so a rest counts as one unit of the last place.
        let shown = &fraction[..fraction.len().min(9)];
        if !shown.is_empty() {
            let scale = 10i128.pow(shown.len() as u32);
            let scaled = shown.parse::<i128>().ok()?.saturating_mul(1000).saturating_mul(multiplier);
            milli = milli.saturating_add(scaled / scale + i128::from(scaled % scale != 0));
        }
        milli = milli / divisor + i128::from(milli % divisor != 0);
        Some(Self { milli: if negative { -milli } else { milli } })
    }
}

fn suffix_scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok().filter(|e| e.abs() <= 18)?;
            let power = 10i128.pow(exponent.unsigned_abs());
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Wire {
            Text(String),
            Whole(i64),
            Real(f64),
        }
        let text = match Wire::deserialize(d)? {
            Wire::Text(t) => t,
            Wire::Whole(n) => n.to_string(),
            Wire::Real(n) => n.to_string(),
        };
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a quantity")))
    }
}

/// Amounts by resource name: `cpu` in millicores, all others in units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    /// From the API's map.
    pub fn from_map(map: &BTreeMap<String, Quantity>) -> Self {
        Self(map.iter().map(|(name, q)| (name.clone(), if name == "cpu" { q.milli() } else { q.value() })).collect())
    }

    /// Amount of one resource, zero when absent.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Sets one amount.
    pub fn set(&mut self, name: &str, amount: i64) {
        self.0.insert(name.to_string(), amount);
    }

    /// All amounts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(k, v)| (k.as_str(), *v))
    }

    /// Adds, saturating.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let slot = self.0.entry(name.clone()).or_default();
            *slot = slot.saturating_add(*amount);
        }
    }

    /// Takes away, saturating.
    pub fn sub(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let slot = self.0.entry(name.clone()).or_default();
            *slot = slot.saturating_sub(*amount);
        }
    }

    /// The larger of each.
    pub fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let slot = self.0.entry(name.clone()).or_insert(*amount);
            *slot = (*slot).max(*amount);
        }
    }
}

fn requested(requirements: &ResourceRequirements, assume_defaults: bool) -> Resources {
    let mut r = Resources::from_map(&requirements.requests);
    if assume_defaults {
        if !requirements.requests.contains_key("cpu") {
            r.set("cpu", DEFAULT_MILLI_CPU);
        }
        if !requirements.requests.contains_key("memory") {
            r.set("memory", DEFAULT_MEMORY);
        }
    }
    r
}

/// What a pod requests of a node: the sum of its containers and sidecars, or what an init container needs beside the sidecars started before it,
/// whichever is more, plus overhead; pod-level requests take the place of the sum (KEP-753, KEP-2837).
pub fn pod_requests(pod: &Pod, assume_defaults: bool) -> Resources {
    let mut total = Resources::default();
    for c in &pod.spec.containers {
        total.add(&requested(&c.resources, assume_defaults));
    }
    let (mut sidecars, mut init_peak) = (Resources::default(), Resources::default());
    for c in &pod.spec.init_containers {
        let request = requested(&c.resources, assume_defaults);
        let mut with_sidecars = sidecars.clone();
        with_sidecars.add(&request);
        init_peak.max(&with_sidecars);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&request);
        }
    }
    total.add(&sidecars);
    total.max(&init_peak);
    if let Some(pod_level) = &pod.spec.resources {
        for (name, amount) in Resources::from_map(&pod_level.requests).iter() {
            total.set(name, amount);
        }
    }
    total.add(&Resources::from_map(&pod.spec.overhead));
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_parse_and_round_up() {
        let table = [
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("1Ki", 1_024_000, 1024),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("2e3", 2_000_000, 2000),
            ("1n", 1, 1),
            ("-1", -1000, -1),
            (".5", 500, 1),
        ];
        for (text, milli, value) in table {
            let q = Quantity::parse(text).unwrap();
            assert_eq!((q.milli(), q.value()), (milli, value), "{text}");
        }
        for text in ["", "-", "1.2.3", "1X", "Mi", "e3", "1e99"] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn requests_count_init_containers_sidecars_and_overhead() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"resources": {"requests": {"cpu": "100m", "memory": "10"}}}, {"resources": {"requests": {"cpu": "200m"}}}],
            "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"resources": {"requests": {"cpu": "500m"}}}],
            "overhead": {"cpu": "10m"}}}))
        .unwrap();
        let r = pod_requests(&pod, false);
        assert_eq!((r.get("cpu"), r.get("memory")), (560, 10));
        // One container states 10 bytes; the other and the sidecar assume the default.
        assert_eq!(pod_requests(&pod, true).get("memory"), 10 + 2 * DEFAULT_MEMORY);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn whole_numbers_survive(n in -1_000_000_000_000i64..1_000_000_000_000) {
            prop_assert_eq!(Quantity::parse(&n.to_string()).unwrap().value(), n);
        }
    }
}
