//! A transaction: everything in it takes effect at once, or nothing does.

use crate::attribute::Attributes;
use crate::expr::Verdict;
use crate::{BaseChain, Element, Family, Field, Rule, Set};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
const DATA_VERDICT: u32 = 0xffff_ff00;

/// Elements per message: an attribute's length is 16 bits, and an element with a verdict is at most about 350 bytes.
const ELEMENTS_PER_MESSAGE: usize = 150;

/// Messages of one transaction, with what each does, for errors.
#[derive(Debug)]
pub struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// Operation of each message by sequence number.
    pub(crate) operations: Vec<String>,
    last_header: usize,
    next_set_id: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Self {
        let mut batch = Self { bytes: vec![], operations: vec![], last_header: 0, next_set_id: 1 };
        batch.raw(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[], "begin".into());
        batch
    }

    /// Nothing but the frame.
    pub fn is_empty(&self) -> bool {
        self.operations.len() <= 1
    }

    /// How many messages.
    pub fn len(&self) -> usize {
        self.operations.len() - 1
    }

    fn raw(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8], operation: String) {
        self.last_header = self.bytes.len();
        let len = (16 + 4 + body.len()) as u32;
        let sequence = self.operations.len() as u32;
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
        self.operations.push(operation);
    }

    fn message(&mut self, kind: u16, flags: u16, family: Family, operation: String, fill: impl FnOnce(&mut Attributes)) {
        let mut body = Attributes::default();
        fill(&mut body);
        self.raw((SUBSYSTEM << 8) | kind, flags, family.number(), 0, &body.0, operation);
    }

    /// The bytes to send; the last message before the end is acknowledged.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<String>, u32) {
        let last = self.operations.len() as u32 - 1;
        let flags = self.last_header + 6;
        let value = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&value.to_ne_bytes());
        self.raw(BATCH_END, 0, 0, SUBSYSTEM, &[], "commit".into());
        (self.bytes, self.operations, last)
    }

    /// Makes a table if it is not there.
    pub fn add_table(&mut self, family: Family, table: &str) {
        self.message(NEWTABLE, CREATE, family, format!("add table {table}"), |a| {
            a.string(1, table).u32(2, 0);
        });
    }

    /// Removes a table and all in it; it must exist, so add it in the same transaction first.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        self.message(DELTABLE, 0, family, format!("delete table {table}"), |a| {
            a.string(1, table);
        });
    }

    /// Makes a chain if it is not there.
    pub fn add_chain(&mut self, family: Family, table: &str, chain: &str, base: Option<BaseChain>) {
        self.message(NEWCHAIN, CREATE, family, format!("add chain {table} {chain}"), |a| {
            a.string(1, table).string(3, chain);
            if let Some(base) = base {
                a.nest(4, |h| {
                    h.u32(1, base.hook as u32).bytes(2, &base.priority.to_be_bytes());
                });
                a.string(7, base.kind);
            }
        });
    }

    /// Removes an empty chain that nothing jumps to.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.message(DELCHAIN, 0, family, format!("delete chain {table} {chain}"), |a| {
            a.string(1, table).string(3, chain);
        });
    }

    /// Removes the rules of a chain.
    pub fn flush_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.message(DELRULE, 0, family, format!("flush chain {table} {chain}"), |a| {
            a.string(1, table).string(2, chain);
        });
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, table: &str, chain: &str, rule: &Rule) {
        let family = rule.family;
        let mut id = 0;
        if let Some(elements) = &rule.anonymous {
            id = self.next_set_id;
            self.next_set_id += 1;
            self.message(NEWSET, CREATE, family, format!("add map of rule {rule}"), |a| {
                a.string(1, table).string(2, "__map%d").u32(3, SET_ANONYMOUS | SET_CONSTANT | SET_MAP).u32(4, 4).u32(5, 4);
                a.u32(6, DATA_VERDICT).u32(7, 16).u32(10, id);
                a.nest(9, |d| {
                    d.u32(1, elements.len() as u32);
                });
            });
            for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
                self.elements(NEWSETELEM, CREATE, family, table, "__map%d", Some(id), chunk, format!("add elements of rule {rule}"));
            }
        }
        self.message(NEWRULE, CREATE | APPEND, family, format!("add rule {table} {chain} {rule}"), |a| {
            a.string(1, table).string(2, chain).nest(4, |list| {
                for expr in &rule.exprs {
                    match expr {
                        crate::Expr::AnonymousVmap { reg, .. } => crate::Expr::AnonymousVmap { id, reg: *reg }.encode(list),
                        other => other.encode(list),
                    }
                }
            });
        });
    }

    /// Makes a set or map if it is not there.
    pub fn add_set(&mut self, family: Family, table: &str, set: &Set) {
        let id = self.next_set_id;
        self.next_set_id += 1;
        let kinds: Vec<_> = set.key.iter().map(|p| p.kind(family)).collect();
        // A concatenation's type is its parts' numbers, six bits each; its parts are padded to registers.
        let key_type = kinds.iter().fold(0, |t, (number, _)| (t << 6) | number);
        let concatenated = kinds.len() > 1;
        let key_len: usize =
            if concatenated { kinds.iter().map(|(_, len)| len.next_multiple_of(4)).sum() } else { kinds.iter().map(|(_, len)| *len).sum() };
        let mut flags = 0;
        flags |= if set.verdicts { SET_MAP } else { 0 };
        flags |= if set.timeout_ms.is_some() { SET_TIMEOUT | SET_EVAL } else { 0 };
        flags |= if concatenated { SET_CONCAT } else { 0 };
        self.message(NEWSET, CREATE, family, format!("add set {table} {}", set.name), |a| {
            a.string(1, table).string(2, &set.name).u32(3, flags).u32(4, key_type).u32(5, key_len as u32);
            if set.verdicts {
                a.u32(6, DATA_VERDICT).u32(7, 16);
            }
            a.u32(10, id);
            if let Some(timeout) = set.timeout_ms {
                a.u64(11, timeout);
            }
            if concatenated {
                a.nest(9, |d| {
                    d.nest(2, |list| {
                        for (_, len) in &kinds {
                            list.nest(1, |f| {
                                f.u32(1, *len as u32);
                            });
                        }
                    });
                });
            }
        });
    }

    /// Removes a set nothing refers to.
    pub fn delete_set(&mut self, family: Family, table: &str, set: &str) {
        self.message(DELSET, 0, family, format!("delete set {table} {set}"), |a| {
            a.string(1, table).string(2, set);
        });
    }

    /// Adds elements.
    pub fn add_elements(&mut self, family: Family, table: &str, set: &str, elements: &[Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.elements(
                NEWSETELEM,
                CREATE,
                family,
                table,
                set,
                None,
                chunk,
                format!("add elements {table} {set} ({})", first_and_count(chunk)),
            );
        }
    }

    /// Removes elements; each must exist.
    pub fn delete_elements(&mut self, family: Family, table: &str, set: &str, elements: &[Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let keys: Vec<_> = chunk.iter().map(|e| Element { key: e.key.clone(), verdict: None }).collect();
            self.elements(
                DELSETELEM,
                0,
                family,
                table,
                set,
                None,
                &keys,
                format!("delete elements {table} {set} ({})", first_and_count(chunk)),
            );
        }
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        table: &str,
        set: &str,
        id: Option<u32>,
        elements: &[Element],
        operation: String,
    ) {
        self.message(kind, flags, family, operation, |a| {
            a.string(1, table).string(2, set);
            if let Some(id) = id {
                a.u32(4, id);
            }
            a.nest(3, |list| {
                for element in elements {
                    list.nest(1, |e| {
                        e.nest(1, |key| {
                            key.bytes(1, &concatenate(&element.key));
                        });
                        if let Some(verdict) = &element.verdict {
                            e.nest(2, |d| Verdict::encode(verdict, d));
                        }
                    });
                }
            });
        });
    }
}

fn concatenate(key: &[Field]) -> Vec<u8> {
    let mut out = vec![];
    for field in key {
        out.extend(field.bytes());
        if key.len() > 1 {
            out.resize(out.len().next_multiple_of(4), 0);
        }
    }
    out
}

fn first_and_count(elements: &[Element]) -> String {
    match elements {
        [] => "none".into(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule;

    #[test]
    fn a_batch_is_framed_numbered_and_acknowledged_once() {
        let mut batch = Batch::new();
        assert!(batch.is_empty());
        batch.add_table(Family::Ip, "t");
        batch.add_rule("t", "c", &rule(Family::Ip).random_vmap(&["a".into()]));
        let (bytes, operations, last) = batch.finish();
        assert_eq!(operations.len(), 6, "{operations:?}");
        let (mut at, mut acks, mut kinds) = (0, vec![], vec![]);
        while at < bytes.len() {
            let len = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(bytes[at + 4..at + 6].try_into().unwrap());
            let flags = u16::from_ne_bytes(bytes[at + 6..at + 8].try_into().unwrap());
            let sequence = u32::from_ne_bytes(bytes[at + 8..at + 12].try_into().unwrap());
            assert_eq!(sequence as usize, kinds.len());
            assert_eq!(len % 4, 0);
            if flags & ACK != 0 {
                acks.push(sequence);
            }
            kinds.push(kind);
            at += len;
        }
        assert_eq!(kinds, [BATCH_BEGIN, 0xa00, 0xa09, 0xa0c, 0xa06, BATCH_END]);
        assert_eq!(acks, [last]);
    }

    #[test]
    fn concatenated_keys_are_padded_to_registers() {
        let key = [Field::Address([10, 0, 0, 1].into()), Field::Protocol(6), Field::Port(80)];
        assert_eq!(concatenate(&key), [10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(concatenate(&key[2..]), [0, 80]);
    }
}
