//! What drivers have: pools of devices, slice by slice.

use std::convert::Infallible;

use k8s_schema::{Doc, Quantity, Ref};

use super::{GENERATION, Strategy, dra, pod_spec};
use crate::handlers::write::now;
use crate::validation::{ErrorList, FieldError, child, index, key, names};

pub const RESOURCE_SLICE: Strategy = Strategy {
    returns_deleted: true,
    prepare_create: prepare,
    prepare_update: |_, new, _| prepare(new),
    validate_create: |d, e| slice(d, None, e),
    validate_update: |_, new, old, e| slice(new, Some(old), e),
    ..GENERATION
};

/// Devices in a slice, and in one whose devices have taints or consume counters.
const MAX_DEVICES: (usize, usize) = (128, 64);
const MAX_COUNTER_SETS: usize = 8;
/// Counters of a set, and of a device's consumption of one.
const MAX_COUNTERS: usize = 32;
const MAX_CONSUMPTIONS: usize = 2;
const MAX_ATTRIBUTES: usize = 32;
const MAX_TAINTS: usize = 16;
const MAX_TEXT: usize = 64;
const MAX_OPTIONS: usize = 10;
const MAX_CONDITIONS: usize = 4;

/// Taints count from when they came; what needs features that are off by default is not stored.
fn prepare(d: &mut Doc) {
    let done = d.for_each("spec.devices", |mut device| {
        device.remove("nodeAllocatableResourceMappings");
        device.for_each_entry("attributes", |_, mut a| {
            for list in ["ints", "bools", "strings", "versions"] {
                a.remove(list);
            }
            Ok::<_, Infallible>(())
        })?;
        device.for_each("taints", |mut t| {
            // A field of the type: this cannot fail.
            let _ = t.set_default("timeAdded", now());
            Ok::<_, Infallible>(())
        })
    });
    // Nothing in there fails.
    let _ = done;
}

fn slice(d: &Doc, old: Option<&Doc>, e: &mut ErrorList) {
    let spec = d.at("spec");
    dra::driver(spec.get("driver").str(), "spec.driver", e);
    let pool = spec.get("pool");
    dra::pool(pool.get("name").str(), "spec.pool.name", e);
    let (count, generation) = (pool.get("resourceSliceCount").int(), pool.get("generation").int());
    if count <= 0 {
        e.push(FieldError::invalid("spec.pool.resourceSliceCount", count, "must be greater than zero"));
    }
    if generation < 0 {
        e.push(FieldError::invalid("spec.pool.generation", generation, "must be greater than or equal to zero"));
    }
    for path in ["spec.pool.name", "spec.driver", "spec.nodeName"] {
        if old.is_some_and(|o| !o.at(path).semantic_eq(d.at(path))) {
            e.push(FieldError::invalid(path, d.at(path).to_value(), "field is immutable"));
        }
    }
    nodes(spec, e);

    let (devices, shared) = (spec.get("devices"), spec.get("sharedCounters"));
    if devices.exists() && shared.exists() {
        e.push(FieldError::invalid("spec", "", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let special = devices.iter().any(|d| !d.get("taints").is_empty() || !d.get("consumesCounters").is_empty());
    let max = if special { MAX_DEVICES.1 } else { MAX_DEVICES.0 };
    let per_device = spec.get("perDeviceNodeSelection").bool();
    named(devices, "name", max, "spec.devices", e, |device, at, e| {
        let before = old.map(|o| o.at("spec.devices").find("name", device.get("name").str()));
        self::device(device, before, per_device, at, e);
    });
    named(shared, "name", MAX_COUNTER_SETS, "spec.sharedCounters", e, |set, at, e| {
        counters(set, "name", at, e);
    });
}

/// A list whose elements have names of their own.
fn named(list: Ref<'_>, field: &str, max: usize, path: &str, e: &mut ErrorList, mut each: impl FnMut(Ref<'_>, &str, &mut ErrorList)) {
    if list.len() > max {
        return e.push(FieldError::too_many(path, list.len(), max));
    }
    for (i, one) in list.iter().enumerate() {
        each(one, &index(path, i), e);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, one) in list.iter().enumerate() {
        let name = one.get(field).str();
        if seen.contains(&name) {
            e.push(FieldError::duplicate(index(path, i), name));
        }
        seen.push(name);
    }
}

/// The one field that says from which nodes something is reached, and its own rules.
fn placed(r: Ref<'_>, flags: &[&str], empty: &str, path: &str, e: &mut ErrorList) -> Vec<String> {
    let mut given = Vec::new();
    if let Some(name) = r.get("nodeName").as_str() {
        if name.is_empty() {
            e.push(FieldError::invalid(child(path, "nodeName"), name, empty));
        } else {
            given.push("`nodeName`".to_owned());
            e.all_invalid(&child(path, "nodeName"), name, names::dns1123_subdomain(name));
        }
    }
    if r.get("nodeSelector").exists() {
        given.push("`nodeSelector`".to_owned());
        pod_spec::node_selector(r.get("nodeSelector"), &child(path, "nodeSelector"), e);
    }
    for flag in flags {
        match r.get(flag).as_bool() {
            Some(true) => given.push(format!("`{flag}`")),
            Some(false) => e.push(FieldError::invalid(child(path, flag), false, "must be either unset or set to true")),
            None => {}
        }
    }
    given
}

fn nodes(spec: Ref<'_>, e: &mut ErrorList) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let flags = ["allNodes", "perDeviceNodeSelection"];
    let given = placed(spec, &flags, "must be either unset or set to a non-empty string", "spec", e);
    let terms = spec.at("nodeSelector.nodeSelectorTerms");
    if spec.get("nodeSelector").exists() && terms.len() != 1 {
        e.push(FieldError::invalid("spec.nodeSelector.nodeSelectorTerms", terms.to_value(), "must have exactly one node selector term"));
    }
    match given.len() {
        0 => e.push(FieldError::required("spec", ONE)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", given.join(", "));
            e.push(FieldError::invalid("spec", shown, format!("{ONE}, but multiple fields are set")));
        }
    }
}

fn device(d: Ref<'_>, before: Option<Ref<'_>>, per_device: bool, path: &str, e: &mut ErrorList) {
    let name = d.get("name").str();
    e.all_invalid(&child(path, "name"), name, names::dns1123_label(name));
    let (attributes, capacity) = (d.get("attributes"), d.get("capacity"));
    let both = attributes.len() + capacity.len();
    if both > MAX_ATTRIBUTES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        e.push(FieldError::invalid(path, both as i64, why));
    }
    for (name, a) in attributes.entries() {
        let at = key(&child(path, "attributes"), &shortened(name, 63 + 1 + 32));
        dra::qualified(name, &at, e);
        attribute(a, &at, e);
    }
    let several = d.get("allowMultipleAllocations").bool();
    for (name, c) in capacity.entries() {
        let at = key(&child(path, "capacity"), &shortened(name, 63 + 1 + 32));
        dra::qualified(name, &at, e);
        let (policy, at) = (c.get("requestPolicy"), child(&at, "requestPolicy"));
        if policy.exists() && !several {
            e.push(FieldError::forbidden(at, "allowMultipleAllocations must be true"));
        } else if let (true, Some(whole)) = (policy.exists(), c.get("value").quantity()) {
            request_policy(policy, &whole, &at, e);
        }
    }
    let (list, at) = (d.get("taints"), child(path, "taints"));
    if before.is_none_or(|b| !b.get("taints").semantic_eq(list)) {
        if list.len() > MAX_TAINTS {
            e.push(FieldError::too_many(at, list.len(), MAX_TAINTS));
        } else {
            list.iter().enumerate().for_each(|(i, t)| taint(t, &index(&at, i), e));
        }
    }
    named(d.get("consumesCounters"), "counterSet", MAX_CONSUMPTIONS, &child(path, "consumesCounters"), e, |c, at, e| {
        counters(c, "counterSet", at, e);
    });
    device_nodes(d, per_device, path, e);
    binding(d, path, e);
}

fn device_nodes(d: Ref<'_>, per_device: bool, path: &str, e: &mut ErrorList) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    if per_device {
        let given = placed(d, &["allNodes"], "must not be empty", path, e);
        match given.len() {
            0 => e.push(FieldError::required(path, ONE)),
            1 => {}
            _ => e.push(FieldError::invalid(path, format!("{{{}}}", given.join(", ")), ONE)),
        }
    } else if ["nodeName", "nodeSelector", "allNodes"].iter().any(|f| d.get(f).exists()) {
        let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        e.push(FieldError::invalid(path, serde_json::Value::Null, why));
    }
}

fn attribute(a: Ref<'_>, path: &str, e: &mut ErrorList) {
    if let Some(text) = a.get("string").as_str()
        && text.len() > MAX_TEXT
    {
        e.push(FieldError::too_long(child(path, "string"), text, MAX_TEXT));
    }
    if let Some(text) = a.get("version").as_str() {
        if cel::functions::semver::parse(text).is_err() {
            e.push(FieldError::invalid(child(path, "version"), text, "must be a string compatible with semver.org spec 2.0.0"));
        }
        if text.len() > MAX_TEXT {
            e.push(FieldError::too_long(child(path, "version"), text, MAX_TEXT));
        }
    }
    match ["bool", "int", "string", "version"].iter().filter(|f| a.get(f).exists()).count() {
        1 => {}
        0 => e.push(FieldError::invalid(path, "", "exactly one value must be specified")),
        _ => e.push(FieldError::invalid(path, a.to_value(), "exactly one value must be specified")),
    }
}

/// Of how much of a capacity one may ask for.
fn request_policy(policy: Ref<'_>, whole: &Quantity, path: &str, e: &mut ErrorList) {
    let (values, range) = (policy.get("validValues"), policy.get("validRange"));
    let field = match (values.is_empty(), range.exists()) {
        (false, true) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            return e.push(FieldError::forbidden(path, why));
        }
        (true, false) => return,
        (false, false) => "validValues",
        (true, true) => "validRange",
    };
    match policy.get("default").quantity() {
        None => e.push(FieldError::required(child(path, "default"), format!("required when {field} is defined"))),
        Some(default) if field == "validValues" => options(values, &default, whole, &child(path, field), e),
        Some(default) => steps(range, &default, whole, &child(path, field), e),
    }
}

fn options(list: Ref<'_>, default: &Quantity, whole: &Quantity, path: &str, e: &mut ErrorList) {
    let all: Vec<Quantity> = list.iter().filter_map(Ref::quantity).collect();
    for (i, pair) in all.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
        e.push(FieldError::invalid(index(path, i + 1), pair[1].to_string(), "values must be sorted in ascending order"));
    }
    if all.len() > MAX_OPTIONS {
        e.push(FieldError::too_many(path, all.len(), MAX_OPTIONS));
    } else {
        for (i, q) in all.iter().enumerate().filter(|(_, q)| *q > whole) {
            e.push(FieldError::invalid(index(path, i), q.to_string(), format!("option is larger than capacity value: {whole}")));
        }
        for (i, q) in all.iter().enumerate().filter(|(i, q)| all[..*i].iter().any(|o| o.value() == q.value())) {
            e.push(FieldError::duplicate(index(path, i), q.value().to_string()));
        }
    }
    if all.len() > MAX_OPTIONS || !all.contains(default) {
        e.push(FieldError::invalid(path, default.to_string(), "default value is not valid according to the requestPolicy"));
    }
}

fn steps(range: Ref<'_>, default: &Quantity, whole: &Quantity, path: &str, e: &mut ErrorList) {
    let Some(min) = range.get("min").quantity() else {
        return e.push(FieldError::required(child(path, "min"), "required when validRange is defined"));
    };
    let mut wrong = |field: &str, q: &Quantity, why: String| e.push(FieldError::invalid(child(path, field), q.to_string(), why));
    let max = range.get("max").quantity();
    if min > *whole {
        wrong("min", &min, format!("min is larger than capacity value: {whole}"));
    }
    if *default < min {
        wrong("min", default, format!("default is less than min: {min}"));
    }
    if let Some(max) = &max {
        if min > *max {
            wrong("max", &min, format!("min is larger than max: {max}"));
        }
        if max > whole {
            wrong("max", max, format!("max is larger than capacity value: {whole}"));
        }
        if default > max {
            wrong("max", default, format!("default is more than max: {max}"));
        }
    }
    let Some(step) = range.get("step").quantity() else { return };
    let mut one = min.clone();
    one.add(&step);
    if one > *whole {
        wrong("step", &step, format!("one step {one} is larger than capacity value: {whole}"));
    }
    for q in [Some(default), max.as_ref()].into_iter().flatten() {
        if q.value().wrapping_sub(min.value()).checked_rem(step.value()) != Some(0) {
            wrong("step", q, format!("value is not a multiple of a given step ({step}) from ({min})"));
        }
    }
}

fn taint(t: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (key, value, effect) = (t.get("key").str(), t.get("value").str(), t.get("effect").str());
    e.all_invalid(&child(path, "key"), key, names::qualified_name(key));
    e.all_invalid(&child(path, "value"), value, names::label_value(value));
    if effect.is_empty() {
        e.push(FieldError::required(child(path, "effect"), ""));
    } else if !dra::EFFECTS.contains(&effect) {
        e.push(FieldError::not_supported(child(path, "effect"), effect, &dra::EFFECTS));
    }
}

/// Counters of a set, or what a device consumes of one, which `field` names.
fn counters(set: Ref<'_>, field: &str, path: &str, e: &mut ErrorList) {
    let (name, counters, at) = (set.get(field).str(), set.get("counters"), child(path, "counters"));
    if name.is_empty() {
        e.push(FieldError::required(child(path, field), ""));
    } else {
        e.all_invalid(&child(path, field), name, names::dns1123_label(name));
    }
    if counters.is_empty() {
        e.push(FieldError::required(at, ""));
    } else if counters.len() > MAX_COUNTERS {
        e.push(FieldError::too_many(at, counters.len(), MAX_COUNTERS));
    } else {
        for (name, _) in counters.entries() {
            e.all_invalid(&key(&at, &shortened(name, 63)), name, names::dns1123_label(name));
        }
    }
}

/// Conditions to wait for before a pod is bound, and those that say it was in vain.
fn binding(d: Ref<'_>, path: &str, e: &mut ErrorList) {
    let lists = ["bindingConditions", "bindingFailureConditions"].map(|f| (f, d.get(f), child(path, f)));
    for (_, list, at) in &lists {
        if list.len() > MAX_CONDITIONS {
            e.push(FieldError::too_many(at.clone(), list.len(), MAX_CONDITIONS));
            continue;
        }
        list.strings().enumerate().for_each(|(i, c)| e.all_invalid(&index(at, i), c, names::qualified_name(c)));
    }
    for (field, list, at) in &lists {
        for (i, c) in list.strings().enumerate() {
            if list.strings().take(i).any(|o| o == c) {
                e.push(FieldError::duplicate(index(at, i), c));
            }
            if *field == "bindingFailureConditions" && lists[0].1.contains_str(c) {
                e.push(FieldError::invalid(index(at, i), c, "bindingFailureConditions must not overlap with bindingConditions"));
            }
        }
    }
    let [wait, fail] = &lists;
    for ((missing, list, at), (given, other, _)) in [(wait, fail), (fail, wait)] {
        if list.is_empty() && !other.is_empty() {
            e.push(FieldError::invalid(at.clone(), list.to_value(), format!("{missing} are required to use {given}")));
        }
    }
}

/// A key of a map as errors show it: its middle is left out when it is longer than any good one.
fn shortened(text: &str, max: usize) -> String {
    let all: Vec<char> = text.chars().collect();
    if text.len() <= max || all.len() <= max {
        return text.to_owned();
    }
    let left = max - 3;
    let (head, tail) = (&all[..left.div_ceil(2)], &all[all.len() - left / 2..]);
    head.iter().chain(&['.'; 3]).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let schema = k8s_schema::Schema::builtin();
        let mut d = Doc::of_kind(&schema, "resource.k8s.io", "v1", "ResourceSlice").unwrap();
        let mut whole = json!({"driver": "d.example.com", "pool": {"name": "p/q", "generation": 1, "resourceSliceCount": 1}});
        if spec["perDeviceNodeSelection"].is_null() {
            whole["nodeName"] = "n".into();
        }
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        d.set("spec", whole).unwrap();
        let mut e = ErrorList::new();
        slice(&d, None, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    fn of_device(device: Value) -> Vec<String> {
        let mut whole = json!({"name": "gpu-0"});
        whole.as_object_mut().unwrap().extend(device.as_object().unwrap().clone());
        errors(json!({"devices": [whole]})).into_iter().map(|e| e.replace("spec.devices[0].", "")).collect()
    }

    #[test]
    fn a_slice_is_of_one_pool_and_reached_in_one_way() {
        assert!(errors(json!({"devices": [{"name": "a"}, {"name": "b"}]})).is_empty());
        const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
        assert_eq!(errors(json!({"nodeName": null})), [format!("spec: Required value: {ONE}")]);
        assert_eq!(
            errors(json!({"allNodes": true})),
            [format!("spec: Invalid value: \"{{`nodeName`, `allNodes`}}\": {ONE}, but multiple fields are set")]
        );
        assert_eq!(
            errors(json!({"pool": {"name": "", "generation": -1}})),
            [
                "spec.pool.name: Required value",
                "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
                "spec.pool.generation: Invalid value: -1: must be greater than or equal to zero"
            ]
        );
        assert_eq!(errors(json!({"devices": [{"name": "a"}, {"name": "a"}]})), ["spec.devices[1]: Duplicate value: \"a\""]);
        let tainted = json!([{"key": "k", "effect": "None"}]);
        let many: Vec<Value> =
            (0..65).map(|i| json!({"name": format!("d-{i}"), "taints": if i == 0 { tainted.clone() } else { json!([]) }})).collect();
        assert_eq!(errors(json!({"devices": many})), ["spec.devices: Too many: 65: must have at most 64 items"]);
    }

    #[test]
    fn devices_say_what_they_are_in_bounds() {
        for (device, want) in [
            (json!({"attributes": {"model": {"string": "x"}, "d.io/version": {"version": "1.2.3"}}}), None),
            (json!({"attributes": {"a": {}}}), Some("attributes[a]: Invalid value: \"\": exactly one value must be specified")),
            (
                json!({"attributes": {"a": {"version": "1.2"}}}),
                Some("attributes[a].version: Invalid value: \"1.2\": must be a string compatible with semver.org spec 2.0.0"),
            ),
            (json!({"attributes": {"/a": {"int": 1}}}), Some("attributes[/a]: Invalid value: \"\": the domain must not be empty")),
            (json!({"taints": [{"key": "k", "effect": "NoExecute"}]}), None),
            (json!({"taints": [{"key": "k"}]}), Some("taints[0].effect: Required value")),
            (
                json!({"taints": [{"key": "k", "effect": "Go"}]}),
                Some("taints[0].effect: Unsupported value: \"Go\": supported values: \"NoExecute\", \"NoSchedule\", \"None\""),
            ),
            (
                json!({"capacity": {"m": {"value": "4", "requestPolicy": {"default": "1"}}}}),
                Some("capacity[m].requestPolicy: Forbidden: allowMultipleAllocations must be true"),
            ),
            (
                json!({"allowMultipleAllocations": true, "capacity": {"m": {"value": "4", "requestPolicy": {"default": "2", "validRange": {"min": "1", "step": "0"}}}}}),
                Some(
                    "capacity[m].requestPolicy.validRange.step: Invalid value: \"2\": value is not a multiple of a given step (0) from (1)",
                ),
            ),
            (
                json!({"allowMultipleAllocations": true, "capacity": {"m": {"value": "4", "requestPolicy": {"default": "3", "validValues": ["1", "2"]}}}}),
                Some(
                    "capacity[m].requestPolicy.validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy",
                ),
            ),
            (json!({"consumesCounters": [{"counterSet": "c"}]}), Some("consumesCounters[0].counters: Required value")),
            (
                json!({"bindingConditions": ["a"]}),
                Some("bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions"),
            ),
        ] {
            assert_eq!(of_device(device.clone()), want.into_iter().collect::<Vec<_>>(), "{device}");
        }
    }

    #[test]
    fn taints_count_from_when_they_came_and_what_is_off_is_dropped() {
        let schema = k8s_schema::Schema::builtin();
        let mut d = Doc::of_kind(&schema, "resource.k8s.io", "v1", "ResourceSlice").unwrap();
        let device = json!({"name": "a", "attributes": {"x": {"ints": [1], "int": 1}}, "taints": [{"key": "k", "effect": "NoExecute"},
            {"key": "l", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]});
        d.set("spec.devices", json!([device])).unwrap();
        prepare(&mut d);
        let device = d.at("spec.devices").index(0);
        assert!(device.get("taints").index(0).get("timeAdded").time_seconds().is_some());
        assert_eq!(device.get("taints").index(1).get("timeAdded").to_value(), json!("2026-01-01T00:00:00Z"));
        assert!(!device.at("attributes[x].ints").exists() && device.at("attributes[x].int").int() == 1);
    }
}
