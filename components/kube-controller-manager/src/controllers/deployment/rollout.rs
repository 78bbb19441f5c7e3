//! How sizes move during a rollout: rolling, recreate, and proportional scaling. All numbers are upstream's.

use k8s_client::LabelMap;

use super::plan::{DESIRED, MAX, Plan, SetChange, fenceposts, max_unavailable, size, wanted};
use crate::api::{Deployment, ReplicaSet};

/// The size the new set may have now, given its size and that of all sets together.
pub fn new_size(deployment: &Deployment, new: i32, all: i32) -> i32 {
    if deployment.spec.strategy.kind == "Recreate" {
        return wanted(deployment);
    }
    let most = wanted(deployment) + fenceposts(deployment).0;
    if all >= most { new } else { new + (most - all).min(wanted(deployment) - new).max(0) }
}

/// Moves the new set towards the wanted size; true when it had to change.
pub fn scale_new(deployment: &Deployment, new: &ReplicaSet, sets: &[&ReplicaSet], plan: &mut Plan) -> bool {
    let target = match size(new).cmp(&wanted(deployment)) {
        std::cmp::Ordering::Equal => return false,
        std::cmp::Ordering::Greater => wanted(deployment),
        std::cmp::Ordering::Less => new_size(deployment, size(new), sets.iter().map(|set| size(set)).sum()),
    };
    resize(deployment, new, target, plan)
}

/// Moves old sets towards zero as far as availability allows: first what is not available anyway, then the rest.
pub fn scale_old(deployment: &Deployment, new: &ReplicaSet, old: &[&ReplicaSet], plan: &mut Plan) {
    if old.iter().all(|set| size(set) == 0) {
        return;
    }
    let all: i32 = size(new) + old.iter().map(|set| size(set)).sum::<i32>();
    let least = wanted(deployment) - max_unavailable(deployment);
    let new_unavailable = size(new) - new.status.available_replicas;
    let most = all - least - new_unavailable;
    if most <= 0 {
        return;
    }
    let mut sizes: Vec<(&ReplicaSet, i32)> = old.iter().map(|set| (*set, size(set))).collect();
    let mut cleaned = 0;
    for (set, now) in &mut sizes {
        let broken = *now - set.status.available_replicas;
        if cleaned < most && *now > 0 && broken > 0 {
            let by = broken.min(most - cleaned);
            *now -= by;
            cleaned += by;
        }
    }
    let available: i32 = new.status.available_replicas + old.iter().map(|set| set.status.available_replicas).sum::<i32>();
    let mut left = available - least;
    for (_, now) in &mut sizes {
        if left > 0 && *now > 0 {
            let by = (*now).min(left);
            *now -= by;
            left -= by;
        }
    }
    for (set, target) in sizes {
        resize(deployment, set, target, plan);
    }
}

/// Recreate: nothing of the new before everything old is gone.
pub fn recreate(deployment: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet], old_pods_running: bool, plan: &mut Plan) {
    let mut scaled = false;
    for set in old {
        scaled |= resize(deployment, set, 0, plan);
    }
    if let Some(new) = new
        && !scaled
        && !old_pods_running
    {
        resize(deployment, new, wanted(deployment), plan);
    }
}

/// A changed number of replicas in the middle of a rollout, or while paused, is spread over the sets in proportion to their sizes.
pub fn scale_proportionally(deployment: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet], plan: &mut Plan) {
    let replicas = wanted(deployment);
    let mut active: Vec<&ReplicaSet> = new.iter().copied().chain(old.iter().copied()).filter(|set| size(set) > 0).collect();
    if active.len() <= 1 {
        let only = active.first().copied().or(new).or_else(|| old.last().copied());
        if let Some(set) = only {
            resize(deployment, set, replicas, plan);
        }
        return;
    }
    let saturated = new.is_some_and(|new| {
        size(new) == replicas
            && new.status.available_replicas == replicas
            && new.metadata.annotations.get(DESIRED).is_some_and(|desired| *desired == replicas.to_string())
    });
    if saturated {
        for set in old {
            resize(deployment, set, 0, plan);
        }
        return;
    }
    if deployment.spec.strategy.kind == "Recreate" {
        return;
    }
    let total: i32 = active.iter().map(|set| size(set)).sum();
    let allowed = if replicas > 0 { replicas + fenceposts(deployment).0 } else { 0 };
    let to_add = allowed - total;
    // Larger sets first; of equal ones the newer when growing, the older when shrinking.
    active.sort_by(|a, b| {
        let age = a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp);
        size(b).cmp(&size(a)).then(if to_add > 0 { age.reverse() } else { age })
    });
    let mut added = 0;
    let mut targets: Vec<i32> = Vec::with_capacity(active.len());
    for set in &active {
        let share = if to_add == 0 { 0 } else { proportion(deployment, set, allowed, to_add, added) };
        added += share;
        targets.push(size(set) + share);
    }
    if let Some(first) = targets.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (set, target) in active.iter().zip(targets) {
        resize(deployment, set, target, plan);
    }
}

fn proportion(deployment: &Deployment, set: &ReplicaSet, allowed: i32, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set, allowed);
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet, allowed: i32) -> i32 {
    if wanted(deployment) == 0 {
        return -size(set);
    }
    let before = set.metadata.annotations.get(MAX).and_then(|text| text.parse::<i32>().ok()).unwrap_or(deployment.status.replicas);
    if before == 0 {
        return 0;
    }
    let target = f64::from(size(set)) * f64::from(allowed) / f64::from(before);
    target.round() as i32 - size(set)
}

/// Plans a set's new size with the annotations that remember what it was planned for; true when anything changes.
fn resize(deployment: &Deployment, set: &ReplicaSet, target: i32, plan: &mut Plan) -> bool {
    let mut annotations = LabelMap::new();
    let most = wanted(deployment) + fenceposts(deployment).0;
    for (name, value) in [(DESIRED, wanted(deployment).to_string()), (MAX, most.to_string())] {
        if set.metadata.annotations.get(name) != Some(&value) {
            annotations.insert(name.to_string(), value);
        }
    }
    let changed = target != size(set);
    if !changed && (annotations.is_empty() || size(set) == 0) {
        return false;
    }
    plan.sets.push(SetChange {
        name: set.metadata.name.clone(),
        uid: set.metadata.uid.clone(),
        from: size(set),
        replicas: changed.then_some(target),
        min_ready_seconds: None,
        annotations,
    });
    true
}
