//! When a certificate is to be renewed.

use jiff::Timestamp;

/// What to do about a certificate now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing until then.
    Keep {
        /// When to look again.
        until: Timestamp,
    },
    /// Renew it now; it still works.
    Due,
    /// It no longer works, or the clock is before its beginning.
    Invalid,
}

/// A certificate is renewed after two thirds of its life. Upstream's kubelet renews between 70 and 90 percent, at random so that
/// many machines do not ask at once; ours are issued on the machine itself.
pub fn renewal(now: Timestamp, not_before: Timestamp, not_after: Timestamp) -> Renewal {
    if now < not_before || now > not_after {
        return Renewal::Invalid;
    }
    let (from, to) = (not_before.as_second(), not_after.as_second());
    let at = from + (to - from) / 3 * 2;
    match Timestamp::from_second(at) {
        Ok(until) if now < until => Renewal::Keep { until },
        _ => Renewal::Due,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_after_two_thirds_and_invalid_outside() {
        let t = |s: i64| Timestamp::from_second(s).expect("in range");
        let cases = [
            (99, Renewal::Invalid),
            (100, Renewal::Keep { until: t(300) }),
            (299, Renewal::Keep { until: t(300) }),
            (300, Renewal::Due),
            (400, Renewal::Due),
            (401, Renewal::Invalid),
        ];
        for (now, expected) in cases {
            assert_eq!(renewal(t(now), t(100), t(400)), expected, "{now}");
        }
    }
}
