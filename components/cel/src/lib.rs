//! The Common Expression Language as Kubernetes 1.36 uses it.
//!
//! [`compile`] parses an expression, expands its macros and checks its types; [`cost::estimate`] says what it can cost at most;
//! [`Program::run`] evaluates it with a limit. Nothing here does I/O, and everything that depends on the source is bounded: its size, its
//! depth, the time it may run.

pub mod admission;
pub mod ast;
pub mod check;
pub mod cost;
mod eval;
pub mod functions;
pub mod issue;
mod lexer;
pub mod library;
mod macros;
pub mod parser;
pub mod schema;
pub mod types;
pub mod value;

pub use check::{Checked, Env};
pub use eval::{Outcome, Program, Variables};
pub use functions::authorizer::{Authorize, Check, Decision, Question};
pub use issue::Issues;
pub use types::Type;
pub use value::{EvalError, Ext, Value};

/// Parses and checks.
pub fn compile(source: &str, env: &Env) -> Result<Checked, Issues> {
    check::check(parser::parse(source)?, env)
}
