//! Options of requests as upstream reads and checks them: list and watch, create, update and patch, delete.

use k8s_schema::selector::{FieldSelector, LabelSelector};
use serde_json::Value;

use crate::{
    http::{ApiError, Group, Query},
    validation::{ErrorList, FieldError},
};

/// How a list's resourceVersion is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Unset,
    Exact,
    NotOlderThan,
}

#[derive(Debug)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    pub limit: i64,
    pub token: String,
    /// As sent, empty when it was not.
    pub resource_version: String,
    pub match_: Match,
    pub bookmarks: bool,
    pub timeout: Option<i64>,
    /// Asked for explicitly.
    pub send_initial_events: Option<bool>,
}

const LIST_OPTIONS: Group<'static> = Group("meta.k8s.io", "ListOptions");

/// Go's `strconv.ParseInt` and its complaints.
pub fn parse_int(s: &str) -> Result<i64, ApiError> {
    s.parse::<i64>().map_err(|e| {
        use std::num::IntErrorKind as K;
        let what = if matches!(e.kind(), K::PosOverflow | K::NegOverflow) { "value out of range" } else { "invalid syntax" };
        ApiError::bad_request(format!("strconv.ParseInt: parsing {s:?}: {what}"))
    })
}

/// A resourceVersion as a number; what is none is upstream's plain 500.
pub fn parse_rv(s: &str) -> Result<i64, ApiError> {
    if s.is_empty() {
        return Ok(0);
    }
    match s.parse::<u64>() {
        Ok(v) if !s.starts_with('+') => Ok(i64::try_from(v).unwrap_or(i64::MAX)),
        r => {
            let overflow = matches!(&r, Err(e) if *e.kind() == std::num::IntErrorKind::PosOverflow);
            let what = if overflow { "value out of range" } else { "invalid syntax" };
            Err(ApiError::new(500, "", format!("resourceVersion: Invalid value: {s:?}: strconv.ParseUint: parsing {s:?}: {what}")))
        }
    }
}

impl ListOptions {
    pub fn parse(q: &Query, watch: bool, name: &str) -> Result<Self, ApiError> {
        let int = |k: &str| q.get(k).filter(|v| !v.is_empty()).map(parse_int).transpose();
        let labels = q.get("labelSelector").unwrap_or("");
        let labels = LabelSelector::parse(labels).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(q.get("fieldSelector").unwrap_or("")).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let _ = name;
        let limit = int("limit")?.unwrap_or(0);
        let timeout = int("timeoutSeconds")?;
        let token = q.get("continue").unwrap_or("").to_owned();
        let rv = q.get("resourceVersion").unwrap_or("").to_owned();
        let m = q.get("resourceVersionMatch").unwrap_or("");
        let mut sie = q.get("sendInitialEvents").map(|_| q.flag("sendInitialEvents"));
        let mut bookmarks = q.flag("allowWatchBookmarks");
        let mut errors = ErrorList::new();
        let path = "resourceVersionMatch";
        if watch {
            if sie.is_some() && m != "NotOlderThan" {
                errors.push(FieldError::forbidden(path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
            }
            if !m.is_empty() {
                if sie.is_none() {
                    errors.push(FieldError::forbidden(
                        path,
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    ));
                }
                if m != "NotOlderThan" {
                    errors.push(FieldError::not_supported(path, m, &["NotOlderThan"]));
                }
            }
            if !token.is_empty() {
                errors.push(FieldError::forbidden(path, "resourceVersionMatch is forbidden when continue is provided"));
            }
        } else {
            if sie.is_some() {
                errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
            }
            if !m.is_empty() {
                if rv.is_empty() {
                    errors.push(FieldError::forbidden(path, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
                }
                if !token.is_empty() {
                    errors.push(FieldError::forbidden(path, "resourceVersionMatch is forbidden when continue is provided"));
                }
                if m != "Exact" && m != "NotOlderThan" {
                    errors.push(FieldError::not_supported(path, m, &["Exact", "NotOlderThan", ""]));
                }
                if m == "Exact" && rv == "0" {
                    errors.push(FieldError::forbidden(path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
                }
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(LIST_OPTIONS, "", &errors));
        }
        // A watch from the beginning that asks for bookmarks is one that streams the list.
        if watch && sie.is_none() && (rv.is_empty() || rv == "0") && bookmarks {
            sie = Some(true);
        }
        bookmarks &= watch;
        let match_ = match m {
            "Exact" => Match::Exact,
            "NotOlderThan" => Match::NotOlderThan,
            _ => Match::Unset,
        };
        Ok(Self { labels, fields, limit, token, resource_version: rv, match_, bookmarks, timeout, send_initial_events: sie })
    }
}

/// What to do with fields nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    Ignore,
    Warn,
    Strict,
}

/// Options of create, update and patch.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub manager: String,
    pub validation: Validation,
    pub force: Option<bool>,
}

impl WriteOptions {
    /// `kind`: CreateOptions, UpdateOptions or PatchOptions. `apply`: the patch is a server-side apply.
    pub fn parse(q: &Query, kind: &'static str, apply: bool) -> Result<Self, ApiError> {
        let mut errors = ErrorList::new();
        let manager = q.get("fieldManager").unwrap_or("").to_owned();
        let force = q.get("force").map(|_| q.flag("force"));
        if kind == "PatchOptions" {
            if apply {
                if manager.is_empty() {
                    errors.push(FieldError::required("fieldManager", "is required for apply patch"));
                }
            } else if force.is_some() {
                errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
            }
        }
        if manager.len() > 128 {
            errors.push(FieldError::too_long("fieldManager", &manager, 128));
        }
        for (i, c) in manager.char_indices() {
            if c.is_control() {
                let why = format!("invalid character U+{:04X} (at position {i})", u32::from(c));
                errors.push(FieldError::invalid("fieldManager", &manager, why));
                break;
            }
        }
        let dry = dry_run(q.all("dryRun"), &mut errors);
        let fv = q.get("fieldValidation").unwrap_or("");
        let validation = match fv {
            "Ignore" => Validation::Ignore,
            "" | "Warn" => Validation::Warn,
            "Strict" => Validation::Strict,
            other => {
                errors.push(FieldError::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]));
                Validation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid(Group("meta.k8s.io", kind), "", &errors));
        }
        Ok(Self { dry_run: dry, manager, validation, force })
    }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut ErrorList) -> bool {
    let values: Vec<&str> = values.collect();
    if values.iter().any(|v| *v != "All") {
        let shown = serde_json::to_string(&values).unwrap_or_default();
        errors.push(FieldError::not_supported_raw("dryRun", &shown, &["All"]));
    }
    !values.is_empty()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub orphan: Option<bool>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Into their JSON form.
    pub fn write(&self, v: &mut Value) {
        if let Some(seconds) = self.grace {
            v["gracePeriodSeconds"] = seconds.into();
        }
        for (field, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(value) = value {
                v["preconditions"][field] = value.as_str().into();
            }
        }
        if let Some(orphan) = self.orphan {
            v["orphanDependents"] = orphan.into();
        }
        if let Some(policy) = self.propagation {
            v["propagationPolicy"] = format!("{policy:?}").into();
        }
    }

    /// With a body the query says nothing, not even that this is a dry run: that is upstream's rule.
    pub fn parse(q: &Query, body: Option<Value>) -> Result<Self, ApiError> {
        let mut o = Self::default();
        let mut errors = ErrorList::new();
        let policy;
        match &body {
            Some(b) => {
                o.grace = b["gracePeriodSeconds"].as_i64();
                o.uid = b["preconditions"]["uid"].as_str().map(str::to_owned);
                o.resource_version = b["preconditions"]["resourceVersion"].as_str().map(str::to_owned);
                o.orphan = b["orphanDependents"].as_bool();
                policy = b["propagationPolicy"].as_str().map(str::to_owned);
                o.dry_run = dry_run(b["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str), &mut errors);
            }
            None => {
                o.grace = q.get("gracePeriodSeconds").map(parse_int).transpose()?;
                o.orphan = q.get("orphanDependents").map(|_| q.flag("orphanDependents"));
                policy = q.get("propagationPolicy").map(str::to_owned);
                o.dry_run = dry_run(q.all("dryRun"), &mut errors);
            }
        }
        if o.orphan.is_some() && policy.is_some() {
            errors.push(FieldError::invalid_raw(
                "propagationPolicy",
                &format!("{:?}", policy.as_deref().unwrap_or("")),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        o.propagation = match policy.as_deref() {
            None => None,
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                errors.push(FieldError::not_supported("propagationPolicy", other, &["Foreground", "Background", "Orphan", "nil"]));
                None
            }
        };
        if errors.is_empty() { Ok(o) } else { Err(ApiError::invalid(Group("meta.k8s.io", "DeleteOptions"), "", &errors)) }
    }
}
