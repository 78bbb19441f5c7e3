//! How the server's seats are shared among levels: by nominal shares, moved every few seconds to where there is demand.

/// What a level may have, and what it wants, in seats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Class {
    pub min: f64,
    pub max: f64,
    pub target: f64,
}

/// Shares `total` so that everybody gets the same fraction of what they want, within their bounds.
pub fn share(total: f64, classes: &[Class]) -> Vec<f64> {
    let given = |f: f64| classes.iter().map(move |c| (c.target * f).clamp(c.min, c.max.max(c.min)));
    let sum = |f: f64| given(f).sum::<f64>();
    let most = classes.iter().map(|c| if c.target > 0.0 { c.max / c.target } else { 0.0 }).fold(0.0, f64::max);
    if sum(most) <= total {
        return given(most).collect();
    }
    let (mut low, mut high) = (0.0, most);
    for _ in 0..64 {
        let mid = (low + high) / 2.0;
        if sum(mid) > total { high = mid } else { low = mid }
    }
    given(low).collect()
}

/// Nominal seats: a share of all, rounded up.
pub fn nominal(total: u64, shares: u64, all: u64) -> u64 {
    if all == 0 { 0 } else { (total * shares).div_ceil(all) }
}

/// The demand for seats over a period: its mean, how far it swings, its peak.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demand {
    now: f64,
    since: f64,
    began: f64,
    sum: f64,
    squares: f64,
    peak: f64,
}

/// What a period showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Period {
    pub mean: f64,
    pub deviation: f64,
    pub peak: f64,
}

impl Demand {
    /// The demand is this from `at` on.
    pub fn set(&mut self, at: f64, seats: f64) {
        let past = (at - self.since).max(0.0);
        self.sum += past * self.now;
        self.squares += past * self.now * self.now;
        self.since = self.since.max(at);
        self.now = seats;
        self.peak = self.peak.max(seats);
    }

    /// Ends the period and begins the next.
    pub fn take(&mut self, at: f64) -> Period {
        self.set(at, self.now);
        let length = self.since - self.began;
        let period = if length <= 0.0 {
            Period { mean: self.now, deviation: 0.0, peak: self.peak }
        } else {
            let mean = self.sum / length;
            Period { mean, deviation: (self.squares / length - mean * mean).max(0.0).sqrt(), peak: self.peak }
        };
        *self = Self { now: self.now, since: self.since, began: self.since, sum: 0.0, squares: 0.0, peak: self.now };
        period
    }
}

/// How much of the past stays in the smoothed demand after a period.
const MEMORY: f64 = 0.977;

/// Demand that rises at once and falls slowly.
pub fn smooth(before: f64, p: &Period) -> f64 {
    let envelope = p.mean + p.deviation;
    envelope.max(MEMORY * before + (1.0 - MEMORY) * envelope)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_follow_demand_within_bounds() {
        let class = |min, max, target| Class { min, max, target };
        assert_eq!(
            share(100.0, &[class(10.0, 200.0, 10.0), class(10.0, 200.0, 30.0)]).iter().map(|s| s.round()).collect::<Vec<_>>(),
            [25.0, 75.0]
        );
        assert_eq!(
            share(100.0, &[class(40.0, 200.0, 10.0), class(10.0, 200.0, 90.0)]).iter().map(|s| s.round()).collect::<Vec<_>>(),
            [40.0, 60.0]
        );
        assert_eq!(share(100.0, &[class(0.0, 20.0, 10.0), class(0.0, 30.0, 10.0)]), [20.0, 30.0]);
        assert!(share(10.0, &[]).is_empty());
        assert_eq!((nominal(600, 30, 245), nominal(600, 0, 245), nominal(1, 1, 0)), (74, 0, 0));
    }

    #[test]
    fn demand_is_weighed_by_time() {
        let mut d = Demand::default();
        d.set(0.0, 10.0);
        d.set(5.0, 0.0);
        let p = d.take(10.0);
        assert_eq!((p.mean, p.deviation, p.peak), (5.0, 5.0, 10.0));
        assert_eq!(d.take(20.0), Period { mean: 0.0, deviation: 0.0, peak: 0.0 });
        assert!(smooth(100.0, &Period { mean: 0.0, deviation: 0.0, peak: 0.0 }) > 97.0);
        assert_eq!(smooth(0.0, &p), 10.0);
    }

    proptest! {
        #[test]
        fn nobody_gets_less_than_the_least_and_all_together_not_more_than_there_is(
            classes in proptest::collection::vec((0u32..50, 0u32..400, 1u32..300), 1..12), spare in 0u32..500
        ) {
            let classes: Vec<Class> = classes.iter().map(|(min, more, target)| Class { min: f64::from(*min), max: f64::from(min + more), target: f64::from(*target) }).collect();
            let total = classes.iter().map(|c| c.min).sum::<f64>() + f64::from(spare);
            let given = share(total, &classes);
            prop_assert!(given.iter().sum::<f64>() <= total + 1e-6);
            for (g, c) in given.iter().zip(&classes) {
                prop_assert!(*g >= c.min && *g <= c.max + 1e-9);
            }
            // Nothing is left over while somebody could have more.
            let left = total - given.iter().sum::<f64>();
            prop_assert!(left < 1e-3 || given.iter().zip(&classes).all(|(g, c)| c.max - g < 1e-3), "{left} left");
        }
    }
}
