//! Types, how they are written, and which may stand for which.

use std::{collections::BTreeMap, fmt, sync::Arc};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// Checking failed below; anything goes, so that one mistake is told once.
    Error,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    Object(Arc<ObjectType>),
    /// A type of a library, such as `kubernetes.URL`.
    Opaque(&'static str),
    Type(Arc<Type>),
    /// Stands for any type; numbered by the checker.
    Param(usize),
}

/// A structure with known fields.
#[derive(Debug, Clone)]
pub struct ObjectType {
    pub name: String,
    pub fields: BTreeMap<String, Type>,
    /// Fields that are not named may be anything, instead of nothing.
    pub open: bool,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for ObjectType {}

impl Type {
    pub fn list(of: Self) -> Self {
        Self::List(Arc::new(of))
    }

    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(of: Self) -> Self {
        Self::Optional(Arc::new(of))
    }

    pub fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// Values of these are all of one size.
    pub fn is_scalar(&self) -> bool {
        matches!(self, Self::Null | Self::Bool | Self::Int | Self::Uint | Self::Double | Self::Timestamp | Self::Duration)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("!error!"),
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(t) => write!(f, "list({t})"),
            Self::Map(k, v) => write!(f, "map({k}, {v})"),
            Self::Optional(t) => write!(f, "optional_type({t})"),
            Self::Object(o) => f.write_str(&o.name),
            Self::Opaque(name) => f.write_str(name),
            Self::Type(t) => write!(f, "type({t})"),
            Self::Param(_) => f.write_str("dyn"),
        }
    }
}

/// What type parameters were found to be.
#[derive(Debug, Default, Clone)]
pub struct Bindings {
    bound: Vec<Option<Type>>,
    /// What was bound before, since the assignment that is tried now began.
    trail: Vec<(usize, Option<Type>)>,
}

/// Types nest at most this deep; what is deeper is dynamic.
const MAX_DEPTH: usize = 64;

impl Bindings {
    pub fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Param(self.bound.len() - 1)
    }

    /// The type without parameters that are known.
    pub fn resolve(&self, t: &Type) -> Type {
        self.resolved(t, 0, false)
    }

    /// The type without parameters at all.
    pub fn settle(&self, t: &Type) -> Type {
        self.resolved(t, 0, true)
    }

    fn resolved(&self, t: &Type, depth: usize, finally: bool) -> Type {
        if depth > MAX_DEPTH {
            return Type::Dyn;
        }
        let inner = |t: &Type| self.resolved(t, depth + 1, finally);
        match t {
            Type::Param(i) => match self.bound.get(*i) {
                Some(Some(b)) => inner(b),
                _ if finally => Type::Dyn,
                _ => t.clone(),
            },
            Type::List(e) => Type::list(inner(e)),
            Type::Map(k, v) => Type::map(inner(k), inner(v)),
            Type::Optional(e) => Type::optional(inner(e)),
            Type::Type(e) => Type::Type(Arc::new(inner(e))),
            t => t.clone(),
        }
    }

    fn occurs(&self, param: usize, t: &Type) -> bool {
        match t {
            Type::Param(i) => *i == param || matches!(self.bound.get(*i), Some(Some(b)) if self.occurs(param, b)),
            Type::List(e) | Type::Optional(e) | Type::Type(e) => self.occurs(param, e),
            Type::Map(k, v) => self.occurs(param, k) || self.occurs(param, v),
            _ => false,
        }
    }

    /// Whether a value of type `from` may stand where `to` is wanted. Parameters are bound only when it may.
    pub fn assign(&mut self, from: &Type, to: &Type) -> bool {
        let ok = self.fits(from, to);
        self.keep_if(ok)
    }

    fn keep_if(&mut self, ok: bool) -> bool {
        while let Some((param, before)) = self.trail.pop() {
            if !ok {
                self.bound[param] = before;
            }
        }
        ok
    }

    fn set(&mut self, param: usize, t: Type) {
        let before = self.bound[param].replace(t);
        self.trail.push((param, before));
    }

    /// All of them, or nothing is bound.
    pub fn assign_all(&mut self, from: &[Type], to: &[Type]) -> bool {
        let ok = from.len() == to.len() && from.iter().zip(to).all(|(f, t)| self.fits(f, t));
        self.keep_if(ok)
    }

    fn bind(&mut self, param: usize, other: &Type) -> bool {
        let other = self.resolve(other);
        if other == Type::Param(param) {
            return true;
        }
        match self.bound.get(param).cloned().flatten() {
            Some(bound) => {
                if self.fits(&bound, &other) {
                    // The more general of the two is kept.
                    if other.is_dyn() {
                        self.set(param, Type::Dyn);
                    }
                    return true;
                }
                self.fits(&other, &bound)
            }
            None if self.occurs(param, &other) => false,
            None => {
                self.set(param, other);
                true
            }
        }
    }

    fn fits(&mut self, from: &Type, to: &Type) -> bool {
        match (from, to) {
            (_, Type::Param(i)) => self.bind(*i, from),
            (Type::Param(i), _) => self.bind(*i, to),
            (Type::Dyn | Type::Error, _) | (_, Type::Dyn | Type::Error) => true,
            (Type::Null, Type::Object(_) | Type::Timestamp | Type::Duration | Type::Opaque(_) | Type::Optional(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.fits(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.fits(ak, bk) && self.fits(av, bv),
            (Type::Type(_), Type::Type(_)) => true,
            (a, b) => a == b,
        }
    }

    /// The type of what may be one or the other; none where they differ.
    pub fn join(&mut self, a: &Type, b: &Type) -> Option<Type> {
        if self.assign(b, a) {
            return Some(if b.is_dyn() { Type::Dyn } else { a.clone() });
        }
        self.assign(a, b).then(|| b.clone())
    }
}
