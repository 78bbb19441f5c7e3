//! CEL rules of definitions (`x-kubernetes-validations`): checked when a definition is written, kept by objects ever after.
//!
//! `declare` makes declarations of schemas, `rules` compiles what a schema says, `definition` judges the rules of a definition,
//! `enforce` the objects.

mod declare;
pub mod definition;
mod enforce;
mod field_path;
mod rules;

pub use declare::declare;
pub use enforce::validate;
pub use rules::Rules;

/// A rule may be estimated to cost this much, with all the times it can run for one object.
const RULE_LIMIT: u64 = 10_000_000;
/// All rules of a schema may.
const SCHEMA_LIMIT: u64 = 100_000_000;
/// One run of one rule stops here.
const CALL_LIMIT: u64 = 1_000_000;
/// What all rules may cost for one object.
const OBJECT_BUDGET: u64 = 10_000_000;
