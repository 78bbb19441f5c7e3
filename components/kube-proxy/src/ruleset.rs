//! A table as a value, and the transaction that leads from one such value to another. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use nftables::{BaseChain, Batch, Element, Family, Rule, Set};

/// A chain: where it is hooked, if it is, and its rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Hook, for base chains.
    pub base: Option<BaseChain>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Everything in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// Sets and maps by name, with their elements (none for those that rules fill).
    pub sets: BTreeMap<String, (Set, BTreeSet<Element>)>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(base) = &self.base {
            writeln!(f, "\t\ttype {} hook {} priority {}", base.kind, format!("{:?}", base.hook).to_lowercase(), base.priority)?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))
    }
}

impl Ruleset {
    /// Adds a set or map.
    pub fn set(&mut self, set: Set, elements: impl IntoIterator<Item = Element>) {
        self.sets.insert(set.name.clone(), (set, elements.into_iter().collect()));
    }

    /// Adds a chain that others jump to.
    pub fn chain(&mut self, name: impl Into<String>, rules: Vec<Rule>) {
        self.chains.insert(name.into(), Chain { base: None, rules });
    }

    /// Adds a base chain.
    pub fn base_chain(&mut self, name: &str, base: BaseChain, rules: Vec<Rule>) {
        self.chains.insert(name.into(), Chain { base: Some(base), rules });
    }
}

/// The whole table made anew, whatever is there.
pub fn replace(family: Family, table: &str, wanted: &Ruleset) -> Batch {
    let mut batch = Batch::new();
    batch.add_table(family, table);
    batch.delete_table(family, table);
    batch.add_table(family, table);
    change(&mut batch, family, table, &Ruleset::default(), wanted);
    batch
}

/// Only what differs between what is applied and what is wanted.
pub fn update(family: Family, table: &str, applied: &Ruleset, wanted: &Ruleset) -> Batch {
    let mut batch = Batch::new();
    change(&mut batch, family, table, applied, wanted);
    batch
}

/// Sets before the rules that use them, chains before what jumps there, removals after everything let go of them.
fn change(batch: &mut Batch, family: Family, table: &str, applied: &Ruleset, wanted: &Ruleset) {
    for (name, (set, _)) in &wanted.sets {
        if !applied.sets.contains_key(name) {
            batch.add_set(family, table, set);
        }
    }
    for (name, chain) in &wanted.chains {
        if !applied.chains.contains_key(name) {
            batch.add_chain(family, table, name, chain.base);
        }
    }
    for (name, chain) in &wanted.chains {
        let old = applied.chains.get(name);
        if old.is_some_and(|old| old.rules == chain.rules) {
            continue;
        }
        if old.is_some_and(|old| !old.rules.is_empty()) {
            batch.flush_chain(family, table, name);
        }
        for rule in &chain.rules {
            batch.add_rule(table, name, rule);
        }
    }
    let gone: Vec<_> = applied.chains.iter().filter(|(name, _)| !wanted.chains.contains_key(*name)).collect();
    for (name, chain) in &gone {
        if !chain.rules.is_empty() {
            batch.flush_chain(family, table, name);
        }
    }
    let none = BTreeSet::new();
    for (name, (_, old)) in &applied.sets {
        let new = wanted.sets.get(name).map_or(&none, |(_, elements)| elements);
        let removed: Vec<_> = old.iter().filter(|e| !new.contains(*e)).cloned().collect();
        if !removed.is_empty() {
            batch.delete_elements(family, table, name, &removed);
        }
    }
    for (name, (_, new)) in &wanted.sets {
        let old = applied.sets.get(name).map_or(&none, |(_, elements)| elements);
        let added: Vec<_> = new.iter().filter(|e| !old.contains(*e)).cloned().collect();
        if !added.is_empty() {
            batch.add_elements(family, table, name, &added);
        }
    }
    for (name, _) in &gone {
        batch.delete_chain(family, table, name);
    }
    for name in applied.sets.keys().filter(|name| !wanted.sets.contains_key(*name)) {
        batch.delete_set(family, table, name);
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, (set, elements)) in &self.sets {
            writeln!(f, "\t{} {name} {{", if set.verdicts { "map" } else { "set" })?;
            let texts: BTreeSet<_> = elements.iter().map(ToString::to_string).collect();
            for text in texts {
                writeln!(f, "\t\t{text}")?;
            }
            writeln!(f, "\t}}")?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "\tchain {name} {{\n{chain}\t}}")?;
        }
        Ok(())
    }
}
