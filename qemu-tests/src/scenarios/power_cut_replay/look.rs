//! Every state once: what the checker says of it, and whether that may be.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use super::phases::{Expected, operation};
use crate::power::checker::{Checker, LoaderVariables, Outcome};
use crate::power::contents::Left;
use crate::power::replay::{At, Chance, Visitor, number_of};

/// The most bad outcomes that are told one by one.
const TOLD: usize = 12;

/// A state by what is in it, and the mark before it.
pub type Identity = (String, [u8; 32]);

/// A number for what the loader reads in a variable store; the last ones are remembered, for the store changes byte by byte.
#[derive(Debug, Default)]
pub struct Stores(RefCell<Option<(Vec<u8>, u128)>>);

impl Stores {
    /// The number.
    pub fn number(&self, store: &[u8]) -> u128 {
        if let Some((known, number)) = &*self.0.borrow()
            && known == store
        {
            return *number;
        }
        let number = match LoaderVariables::read(store) {
            Ok(read) => number_of(format!("{read:?}").as_bytes()),
            Err(why) => number_of(why.as_bytes()),
        };
        *self.0.borrow_mut() = Some((store.to_vec(), number));
        number
    }
}

/// The visitor that checks.
pub struct Look<'a> {
    checker: &'a Checker,
    expected: &'a Expected,
    stores: Stores,
    mark: String,
    seen: HashSet<Identity>,
    metadata: HashSet<[u8; 32]>,
    /// Of each operation: its distinct metadata, and its outcomes.
    operations: Vec<Operation>,
    bad: usize,
    told: Vec<String>,
}

/// What was seen of an operation.
#[derive(Clone, Debug, Default)]
pub struct Operation {
    name: String,
    metadata: HashSet<[u8; 32]>,
    outcomes: BTreeMap<Outcome, Vec<Identity>>,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Found {
    /// Distinct states of metadata.
    pub distinct: usize,
    /// States that must not be.
    pub bad: usize,
    operations: Vec<Operation>,
}

impl<'a> Look<'a> {
    /// Looks with this checker, and compares with what may be.
    pub fn new(checker: &'a Checker, expected: &'a Expected) -> Self {
        let (seen, metadata, operations) = (HashSet::new(), HashSet::new(), Vec::new());
        Self { checker, expected, stores: Stores::default(), mark: String::new(), seen, metadata, operations, bad: 0, told: Vec::new() }
    }

    /// What was found, and lines for people.
    pub fn result(self) -> (Found, Vec<String>) {
        let mut lines = self.told;
        for operation in &self.operations {
            lines.push(format!("{}: {} distinct states", operation.name, operation.metadata.len()));
            lines.extend(operation.outcomes.iter().map(|(outcome, states)| format!("    {:>6}  {outcome}", states.len())));
        }
        (Found { distinct: self.metadata.len(), bad: self.bad, operations: self.operations }, lines)
    }
}

impl Visitor for Look<'_> {
    fn visit(&mut self, at: At, left: &Left<'_>) -> io::Result<()> {
        let variables = self.stores.number(left.variables);
        let identity = (self.mark.clone(), left.identity(variables));
        if self.mark.is_empty() || !self.seen.insert(identity.clone()) {
            return Ok(());
        }
        let outcome = self.checker.predict(left, left.variables)?;
        if !self.expected.allows(&self.mark, &outcome) {
            self.bad += 1;
            if self.told.len() < TOLD {
                self.told.push(format!("BAD after event {} ({:?}), {}: {outcome}", at.event, at.how, self.mark));
            }
        }
        let metadata = left.metadata(variables);
        self.metadata.insert(metadata);
        if let Some(operation) = self.operations.last_mut() {
            operation.metadata.insert(metadata);
            operation.outcomes.entry(outcome).or_default().push(identity);
        }
        Ok(())
    }

    fn mark(&mut self, text: &str) {
        if self.mark.is_empty() || operation(&self.mark) != operation(text) {
            self.operations.push(Operation { name: operation(text).to_owned(), ..Operation::default() });
        }
        // Behind the last one nothing happens any more.
        self.mark = if text == "end" { String::new() } else { text.to_owned() };
    }

    fn variables(&self, store: &[u8]) -> u128 {
        self.stores.number(store)
    }
}

impl Found {
    /// So many states of each operation, of each of its outcomes some, with what the checker said.
    pub fn choose(&self, seed: u64, of_each: usize) -> HashMap<Identity, (String, Outcome)> {
        let mut chance = Chance::new(seed);
        let mut chosen = HashMap::new();
        for operation in &self.operations {
            let mut left: Vec<(&Outcome, Vec<&Identity>)> =
                operation.outcomes.iter().map(|(outcome, states)| (outcome, states.iter().collect())).collect();
            let mut count = 0;
            while count < of_each && left.iter().any(|(_, states)| !states.is_empty()) {
                for (outcome, states) in left.iter_mut().filter(|(_, states)| !states.is_empty()) {
                    if count < of_each {
                        let identity = states.swap_remove(chance.below(states.len()));
                        chosen.insert(identity.clone(), (operation.name.clone(), (*outcome).clone()));
                        count += 1;
                    }
                }
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_outcome_some_states_are_chosen() {
        let identity = |number: u8| ("upgrade".to_owned(), [number; 32]);
        let (one, two) = (Outcome::Never("one".into()), Outcome::Never("two".into()));
        let outcomes = BTreeMap::from([(one.clone(), (0..50).map(identity).collect()), (two.clone(), vec![identity(99)])]);
        let operation = Operation { name: "upgrade".into(), metadata: HashSet::new(), outcomes };
        let found = Found { distinct: 51, bad: 0, operations: vec![operation] };
        let chosen = found.choose(3, 4);
        let of = |wanted: &Outcome| chosen.values().filter(|(_, outcome)| outcome == wanted).count();
        assert_eq!((of(&one), of(&two)), (3, 1));
        assert_eq!(found.choose(3, 100).len(), 51);
        assert!(found.choose(3, 0).is_empty());
    }
}
