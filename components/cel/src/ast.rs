//! The syntax tree. Every node has a number, by which the position in the source, the type and the overloads are found.

use std::sync::Arc;

/// The number of a node in its tree.
pub type Id = usize;

#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    pub id: Id,
    /// How deep the tree below is; trees deeper than [`crate::parser::MAX_DEPTH`] are not built.
    pub depth: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Literal(Literal),
    Ident(String),
    /// `operand.field`, or with `test` what `has(operand.field)` asks.
    Select {
        operand: Box<Expr>,
        field: String,
        test: bool,
    },
    /// A function, or a method when there is a target. Operators are functions with names such as `_+_`.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    List(Vec<Item>),
    Map(Vec<Entry>),
    /// `Name{field: value}`
    Struct {
        name: String,
        fields: Vec<Field>,
    },
    Fold(Box<Fold>),
}

/// An element of a list; an optional one (`?e`) is left out when it has no value.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub value: Expr,
    pub optional: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub id: Id,
    pub name: String,
    pub value: Expr,
    pub optional: bool,
}

/// What the comprehension macros become: `accu` starts as `init` and becomes `step` for each element of `range` while `condition` holds;
/// `result` is the value of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Fold {
    pub range: Expr,
    pub var: String,
    pub var2: Option<String>,
    pub accu: String,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// The name of the accumulator that macros make; no source can say it.
pub const ACCU: &str = "@result";

impl Kind {
    /// How deep the deepest child is.
    pub fn depth(&self) -> usize {
        let most = |it: &mut dyn Iterator<Item = &Expr>| it.map(|e| e.depth).max().unwrap_or(0);
        match self {
            Self::Literal(_) | Self::Ident(_) => 0,
            Self::Select { operand, .. } => operand.depth,
            Self::Call { target, args, .. } => most(&mut target.iter().map(|t| &**t).chain(args)),
            Self::List(items) => most(&mut items.iter().map(|i| &i.value)),
            Self::Map(entries) => most(&mut entries.iter().flat_map(|e| [&e.key, &e.value])),
            Self::Struct { fields, .. } => most(&mut fields.iter().map(|f| &f.value)),
            Self::Fold(f) => most(&mut [&f.range, &f.init, &f.condition, &f.step, &f.result].into_iter()),
        }
    }
}

impl Expr {
    /// `a.b.c` as a name, if that is all it is.
    pub fn qualified(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select { operand, field, test: false } => Some(format!("{}.{field}", operand.qualified()?)),
            _ => None,
        }
    }

    /// Whether a variable is named anywhere below that no macro introduced there.
    pub fn mentions(&self, variable: &str) -> bool {
        match &self.kind {
            Kind::Literal(_) => false,
            Kind::Ident(name) => name == variable,
            Kind::Select { operand, .. } => operand.mentions(variable),
            Kind::Call { target, args, .. } => target.iter().map(|t| &**t).chain(args).any(|e| e.mentions(variable)),
            Kind::List(items) => items.iter().any(|i| i.value.mentions(variable)),
            Kind::Map(entries) => entries.iter().any(|e| e.key.mentions(variable) || e.value.mentions(variable)),
            Kind::Struct { fields, .. } => fields.iter().any(|f| f.value.mentions(variable)),
            Kind::Fold(f) => {
                f.range.mentions(variable)
                    || f.init.mentions(variable)
                    || f.var != variable
                        && f.accu != variable
                        && f.var2.as_deref() != Some(variable)
                        && [&f.condition, &f.step].iter().any(|e| e.mentions(variable))
                    || f.accu != variable && f.result.mentions(variable)
            }
        }
    }
}
