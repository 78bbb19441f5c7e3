//! Which standard a namespace asks for: levels, versions, and the labels that name them.

use std::fmt;

use crate::validation::{ErrorList, FieldError};

/// From the laxest to the strictest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(s: &str) -> Option<Self> {
        match s {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// The minor version of Kubernetes whose rules apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Minor(u64),
    Latest,
}

impl Version {
    /// `latest`, or `v1.N` without leading zeros.
    pub fn parse(s: &str) -> Option<Self> {
        if s == "latest" {
            return Some(Self::Latest);
        }
        let minor = s.strip_prefix("v1.")?;
        let plain = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
        minor.parse::<i64>().ok().filter(|_| plain).map(|n| Self::Minor(n.unsigned_abs()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minor(n) => write!(f, "v1.{n}"),
            Self::Latest => f.write_str("latest"),
        }
    }
}

/// A standard: `restricted:latest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level.name(), self.version)
    }
}

/// What is refused, what is noted in the audit log, what clients are warned of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

impl Default for Policy {
    fn default() -> Self {
        let any = Standard { level: Level::Privileged, version: Version::Latest };
        Self { enforce: any, audit: any, warn: any }
    }
}

pub const BAD_LEVEL: &str = "must be one of privileged, baseline, restricted";
pub const BAD_VERSION: &str = "must be \"latest\" or \"v1.x\"";

/// The policy of a namespace with these labels. There always is one: what cannot be read is taken as the strictest where it is enforced,
/// and as nothing where it only informs.
pub fn of_labels<'l>(label: impl Fn(&str) -> Option<&'l str>, defaults: &Policy) -> (Policy, ErrorList) {
    let mut policy = *defaults;
    let mut errors = ErrorList::new();
    let modes: [(&str, &str, &mut Standard, Level); 3] = [
        ("pod-security.kubernetes.io/enforce", "pod-security.kubernetes.io/enforce-version", &mut policy.enforce, Level::Restricted),
        ("pod-security.kubernetes.io/audit", "pod-security.kubernetes.io/audit-version", &mut policy.audit, Level::Privileged),
        ("pod-security.kubernetes.io/warn", "pod-security.kubernetes.io/warn-version", &mut policy.warn, Level::Privileged),
    ];
    for (level, version, standard, otherwise) in modes {
        if let Some(value) = label(level) {
            standard.level = Level::parse(value).unwrap_or_else(|| {
                errors.push(FieldError::invalid(format!("metadata.labels[{level}]"), value, BAD_LEVEL));
                otherwise
            });
        }
        if let Some(value) = label(version) {
            standard.version = Version::parse(value).unwrap_or_else(|| {
                errors.push(FieldError::invalid(format!("metadata.labels[{version}]"), value, BAD_VERSION));
                Version::Latest
            });
        }
    }
    (policy, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard(level: Level, version: Version) -> Standard {
        Standard { level, version }
    }

    #[test]
    fn versions_are_latest_or_a_plain_minor() {
        for (text, want) in [
            ("latest", Some(Version::Latest)),
            ("v1.0", Some(Version::Minor(0))),
            ("v1.25", Some(Version::Minor(25))),
            ("v1.999999", Some(Version::Minor(999_999))),
            ("v1.01", None),
            ("v1.", None),
            ("v1.-1", None),
            ("v1.+1", None),
            ("v2.0", None),
            ("1.25", None),
            ("", None),
            ("v1.99999999999999999999", None),
        ] {
            assert_eq!(Version::parse(text), want, "{text:?}");
        }
        assert!(Version::Latest > Version::Minor(u64::MAX));
    }

    #[test]
    fn labels_that_cannot_be_read_enforce_the_strictest_and_inform_of_nothing() {
        let labels = [
            ("pod-security.kubernetes.io/enforce", "zzz"),
            ("pod-security.kubernetes.io/audit", "zzz"),
            ("pod-security.kubernetes.io/warn", "baseline"),
            ("pod-security.kubernetes.io/warn-version", "zzz"),
        ];
        let find = |k: &str| labels.iter().find(|(l, _)| *l == k).map(|(_, v)| *v);
        let (policy, errors) = of_labels(find, &Policy::default());
        assert_eq!(policy.enforce, standard(Level::Restricted, Version::Latest));
        assert_eq!(policy.audit, standard(Level::Privileged, Version::Latest));
        assert_eq!(policy.warn, standard(Level::Baseline, Version::Latest));
        let fields: Vec<&str> = errors.iter().map(FieldError::field).collect();
        assert_eq!(
            fields,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]",
                "metadata.labels[pod-security.kubernetes.io/audit]",
                "metadata.labels[pod-security.kubernetes.io/warn-version]"
            ]
        );
    }

    #[test]
    fn what_labels_leave_out_is_the_default() {
        let defaults = Policy { enforce: standard(Level::Baseline, Version::Minor(30)), ..Policy::default() };
        let (policy, errors) = of_labels(|k| (k == "pod-security.kubernetes.io/enforce-version").then_some("v1.35"), &defaults);
        assert!(errors.is_empty());
        assert_eq!(policy.enforce.to_string(), "baseline:v1.35");
        assert_eq!(of_labels(|_| None, &defaults).0, defaults);
    }
}
