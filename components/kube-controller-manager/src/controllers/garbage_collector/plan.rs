//! What to do about one object, from its owners' and dependents' states.

use k8s_client::{ObjectMeta, Propagation};

use super::propagation_for;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// The live state of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// There, and staying.
    Solid,
    /// Not there, or another object of the same name.
    Gone,
    /// Being deleted in the foreground: it waits for us.
    Waiting,
}

/// Something that names the object as its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    pub uid: String,
    /// `blockOwnerDeletion`: foreground deletion of the owner waits for it.
    pub blocks: bool,
    pub is_deleting: bool,
    /// It is being deleted in the foreground: it waits for its own dependents.
    pub waits: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Remove the references to these owners; others keep the object.
    Drop(Vec<String>),
    Delete(Propagation),
    /// No owner is to wait for the object any more: it waits for one of them itself.
    Unblock,
    /// Free the dependents, then let the object go.
    Orphan,
    /// The object waits for these dependents; each is looked at in turn.
    AwaitDependents(Vec<String>),
    /// No dependent blocks any more.
    FinishForeground,
}

/// The step for an object whose owners, in order of its references, are in these states.
pub fn plan(object: &ObjectMeta, owners: &[OwnerState], dependents: &[Dependent]) -> Step {
    let has = |finalizer: &str| object.finalizers.iter().any(|name| name == finalizer);
    if object.is_deleting() {
        if has(ORPHAN) {
            return Step::Orphan;
        }
        if has(FOREGROUND) {
            let blocking = dependents.iter().any(|dependent| dependent.blocks);
            if !blocking {
                return Step::FinishForeground;
            }
            return Step::AwaitDependents(dependents.iter().filter(|d| !d.is_deleting).map(|d| d.uid.clone()).collect());
        }
        return Step::Nothing;
    }
    if owners.is_empty() {
        return Step::Nothing;
    }
    let solid = owners.contains(&OwnerState::Solid);
    if solid {
        let gone: Vec<String> = object
            .owner_references
            .iter()
            .zip(owners)
            .filter(|(_, state)| **state != OwnerState::Solid)
            .map(|(owner, _)| owner.uid.clone())
            .collect();
        return if gone.is_empty() { Step::Nothing } else { Step::Drop(gone) };
    }
    if owners.contains(&OwnerState::Waiting) && !dependents.is_empty() {
        // The owner waits for us, and we for our own. When one of these waits too, owners may form a circle, in which each would wait for ever.
        let blocks = object.owner_references.iter().any(|owner| owner.block_owner_deletion == Some(true));
        if blocks && dependents.iter().any(|dependent| dependent.waits) {
            return Step::Unblock;
        }
        return Step::Delete(Propagation::Foreground);
    }
    Step::Delete(propagation_for(object))
}

#[cfg(test)]
mod tests {
    use k8s_client::{OwnerReference, Time};

    use super::OwnerState::{Gone, Solid, Waiting};
    use super::*;

    fn blocking(mut object: ObjectMeta) -> ObjectMeta {
        object.owner_references.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(true));
        object
    }

    fn object(owners: usize, finalizers: &[&str], deleting: bool) -> ObjectMeta {
        ObjectMeta {
            owner_references: (0..owners).map(|n| OwnerReference { uid: format!("o{n}"), ..Default::default() }).collect(),
            finalizers: finalizers.iter().map(|f| f.to_string()).collect(),
            deletion_timestamp: deleting.then(Time::now),
            ..Default::default()
        }
    }

    fn dependent(blocks: bool, is_deleting: bool) -> Dependent {
        Dependent { uid: "d".into(), blocks, is_deleting, waits: false }
    }

    #[test]
    fn each_case_of_upstreams_rules() {
        let waits = Dependent { waits: true, ..dependent(true, true) };
        let await_d = Step::AwaitDependents(vec!["d".into()]);
        for (name, object, owners, dependents, want) in [
            ("no owners", object(0, &[], false), &[][..], vec![], Step::Nothing),
            ("solid owner", object(1, &[], false), &[Solid], vec![], Step::Nothing),
            ("owner gone", object(1, &[], false), &[Gone], vec![], Step::Delete(Propagation::Background)),
            ("all owners gone", object(2, &[], false), &[Gone, Gone], vec![], Step::Delete(Propagation::Background)),
            ("one of two gone", object(2, &[], false), &[Gone, Solid], vec![], Step::Drop(vec!["o0".into()])),
            ("one waits, one stays", object(2, &[], false), &[Waiting, Solid], vec![], Step::Drop(vec!["o0".into()])),
            ("owner waits", object(1, &[], false), &[Waiting], vec![], Step::Delete(Propagation::Background)),
            (
                "owner waits, has dependents",
                object(1, &[], false),
                &[Waiting],
                vec![dependent(true, false)],
                Step::Delete(Propagation::Foreground),
            ),
            ("in a circle", blocking(object(1, &[], false)), &[Waiting], vec![waits.clone()], Step::Unblock),
            ("unblocked in a circle", object(1, &[], false), &[Waiting], vec![waits], Step::Delete(Propagation::Foreground)),
            ("keeps its way of deletion", object(1, &[ORPHAN], false), &[Gone], vec![], Step::Delete(Propagation::Orphan)),
            ("already being deleted", object(1, &["other"], true), &[Gone], vec![], Step::Nothing),
            ("orphaning", object(0, &[ORPHAN], true), &[], vec![dependent(true, false)], Step::Orphan),
            ("foreground, waits", object(0, &[FOREGROUND], true), &[], vec![dependent(true, false)], await_d),
            (
                "foreground, being deleted already",
                object(0, &[FOREGROUND], true),
                &[],
                vec![dependent(true, true)],
                Step::AwaitDependents(vec![]),
            ),
            ("foreground, no blocker", object(0, &[FOREGROUND], true), &[], vec![dependent(false, false)], Step::FinishForeground),
            ("foreground, nothing left", object(0, &[FOREGROUND], true), &[], vec![], Step::FinishForeground),
        ] {
            assert_eq!(plan(&object, owners, &dependents), want, "{name}");
        }
    }
}
