//! Values. Data from outside stays JSON and is looked at in place; only what expressions make is owned.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_schema::Quantity;
use serde_json::Value as Json;

use crate::{
    functions::{authorizer, format::Named, net, semver::Semver, time, url::Url},
    schema::{Decl, ListKind, Shape},
    types::Type,
};

/// Why an evaluation has no value. The texts are the language's reference implementation's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("no such key: {0}")]
    NoSuchKey(String),
    #[error("no such overload")]
    NoSuchOverload,
    #[error("no such attribute(s): {0}")]
    NoSuchAttribute(String),
    #[error("index out of bounds: {0}")]
    OutOfBounds(i64),
    #[error("division by zero")]
    DivisionByZero,
    #[error("modulus by zero")]
    ModulusByZero,
    #[error("{0} overflow")]
    Overflow(&'static str),
    #[error("operation cancelled: actual cost limit exceeded")]
    CostExceeded,
    #[error("{0}")]
    Other(String),
}

impl EvalError {
    pub fn other(text: impl Into<String>) -> Self {
        Self::Other(text.into())
    }
}

#[derive(Debug, Clone)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Text<'_> {
    pub fn as_str(&self) -> &str {
        match self {
            Text::Borrowed(s) => s,
            Text::Shared(s) => s,
        }
    }
}

#[derive(Debug, Clone)]
pub enum List<'a> {
    Json {
        items: &'a [Json],
        decl: Option<&'a Decl>,
    },
    /// Made by an expression; the declaration is that of the list it was made from, if it is of the same kind still.
    Owned {
        items: Arc<Vec<Value<'a>>>,
        decl: Option<&'a Decl>,
    },
}

#[derive(Debug, Clone)]
pub enum Map<'a> {
    Json { fields: &'a serde_json::Map<String, Json>, decl: Option<&'a Decl> },
    Owned(Arc<BTreeMap<Key, (Value<'a>, Value<'a>)>>),
}

/// What a value is found by in a map that an expression made. Numbers of all types are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Number(i128),
    Text(Arc<str>),
}

/// A value of one of the libraries.
#[derive(Debug, Clone)]
pub enum Ext {
    Quantity(Box<Quantity>),
    Url(Arc<Url>),
    Ip(std::net::IpAddr),
    Cidr(net::Cidr),
    Format(Named),
    Semver(Arc<Semver>),
    Authorizer(Box<authorizer::Check>),
    Decision(Arc<authorizer::Decision>),
}

#[derive(Debug, Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(jiff::Timestamp),
    /// In nanoseconds.
    Duration(i64),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Arc<Type>),
    Ext(Ext),
    /// What could not be had; whoever uses it fails with that.
    Failed(Arc<EvalError>),
}

pub type Result<T> = std::result::Result<T, EvalError>;

impl<'a> Value<'a> {
    pub fn string(s: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(s.into()))
    }

    pub fn borrowed(s: &'a str) -> Self {
        Self::String(Text::Borrowed(s))
    }

    pub fn list(items: Vec<Self>) -> Self {
        Self::List(List::Owned { items: Arc::new(items), decl: None })
    }

    /// A map with text keys.
    pub fn map(entries: impl IntoIterator<Item = (String, Self)>) -> Self {
        let all = entries.into_iter().map(|(k, v)| {
            let k: Arc<str> = k.into();
            (Key::Text(Arc::clone(&k)), (Self::String(Text::Shared(k)), v))
        });
        Self::Map(Map::Owned(Arc::new(all.collect())))
    }

    pub fn some(v: Self) -> Self {
        Self::Optional(Some(Arc::new(v)))
    }

    /// JSON as a value, by its declaration if there is one.
    pub fn json(v: &'a Json, decl: Option<&'a Decl>) -> Self {
        match v {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => {
                let double = decl.is_some_and(|d| d.ty == Type::Double);
                match n.as_i64() {
                    Some(i) if double => Self::Double(i as f64),
                    Some(i) => Self::Int(i),
                    None => {
                        let f = n.as_f64().unwrap_or(0.0);
                        let whole = decl.is_some_and(|d| d.ty == Type::Int) && f.fract() == 0.0 && f.abs() < i64::MAX as f64;
                        if whole { Self::Int(f as i64) } else { Self::Double(f) }
                    }
                }
            }
            Json::String(s) => match decl.map(|d| &d.ty) {
                Some(Type::Timestamp) => time::parse_loose(s).map_or_else(|| Self::borrowed(s), Self::Timestamp),
                Some(Type::Duration) => time::parse_duration(s).map_or_else(|| Self::borrowed(s), Self::Duration),
                Some(Type::Bytes) => BASE64_STANDARD.decode(s).map_or_else(|_| Self::borrowed(s), |b| Self::Bytes(b.into())),
                _ => Self::borrowed(s),
            },
            Json::Array(items) => Self::List(List::Json { items, decl }),
            Json::Object(fields) => Self::Map(Map::Json { fields, decl }),
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(t) => Some(t.as_str()),
            _ => None,
        }
    }

    pub fn str(&self) -> Result<&str> {
        self.as_str().ok_or(EvalError::NoSuchOverload)
    }

    pub fn int(&self) -> Result<i64> {
        match self {
            Self::Int(i) => Ok(*i),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    pub fn as_list(&self) -> Result<&List<'a>> {
        match self {
            Self::List(l) => Ok(l),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    /// How much there is of it, as run-time costs count.
    pub fn size(&self) -> u64 {
        let n = match self {
            Self::String(t) => t.as_str().len(),
            Self::Bytes(b) => b.len(),
            Self::List(l) => l.len(),
            Self::Map(m) => m.len(),
            Self::Optional(Some(v)) => return v.size(),
            _ => 1,
        };
        n as u64
    }

    /// How many values there are in it, counted up to `cap`. What an expression made may hold the same value many times.
    pub fn weight(&self, cap: u64) -> u64 {
        let mut sum = 1;
        let mut add = |v: &Self| {
            if sum < cap {
                sum += v.weight(cap - sum);
            }
        };
        match self {
            Self::List(l) => l.iter().for_each(|v| add(&v)),
            Self::Map(m) => m.entries().iter().for_each(|(_, v)| add(v)),
            Self::Optional(Some(v)) => add(v),
            _ => {}
        }
        sum
    }

    /// Made by an expression and able to hold other values.
    fn is_made(&self) -> bool {
        matches!(self, Self::List(List::Owned { .. }) | Self::Map(Map::Owned(_)) | Self::Optional(Some(_)))
    }

    /// What looking at all of it costs, counted until it is more than `cap`.
    pub fn hidden_cost(&self, cap: u64) -> u64 {
        if self.is_made() { self.weight(cap.saturating_mul(20)) / 10 } else { 0 }
    }

    pub fn type_of(&self) -> Type {
        use crate::library;
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Timestamp(_) => Type::Timestamp,
            Self::Duration(_) => Type::Duration,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(Map::Json { decl: Some(d), .. }) if matches!(d.ty, Type::Object(_)) => d.ty.clone(),
            Self::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Type(_) => Type::Type(Arc::new(Type::Dyn)),
            Self::Failed(_) => Type::Error,
            Self::Ext(e) => Type::Opaque(match e {
                Ext::Quantity(_) => library::QUANTITY,
                Ext::Url(_) => library::URL,
                Ext::Ip(_) => library::IP,
                Ext::Cidr(_) => library::CIDR,
                Ext::Format(_) => library::FORMAT,
                Ext::Semver(_) => library::SEMVER,
                Ext::Authorizer(_) => library::AUTHORIZER,
                Ext::Decision(_) => library::DECISION,
            }),
        }
    }

    /// The value as a key of a map.
    pub fn key(&self) -> Result<Key> {
        Ok(match self {
            Self::Bool(b) => Key::Bool(*b),
            Self::Int(i) => Key::Number(i128::from(*i)),
            Self::Uint(u) => Key::Number(i128::from(*u)),
            Self::Double(d) if d.fract() == 0.0 && d.abs() < 1e18 => Key::Number(*d as i128),
            Self::String(t) => Key::Text(t.as_str().into()),
            _ => return Err(EvalError::other(format!("unsupported key type: {}", self.type_of()))),
        })
    }

    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) => a.as_str() == b.as_str(),
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.equals(b),
            (Self::Map(a), Self::Map(b)) => a.equals(b),
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Self::Type(a), Self::Type(b)) => same_type(a, b),
            (Self::Ext(a), Self::Ext(b)) => match (a, b) {
                (Ext::Quantity(a), Ext::Quantity(b)) => a == b,
                (Ext::Url(a), Ext::Url(b)) => a == b,
                (Ext::Ip(a), Ext::Ip(b)) => a == b,
                (Ext::Cidr(a), Ext::Cidr(b)) => a == b,
                (Ext::Format(a), Ext::Format(b)) => a == b,
                (Ext::Semver(a), Ext::Semver(b)) => a.compare(b) == Ordering::Equal,
                _ => false,
            },
            (a, b) => a.compare_numbers(b) == Some(Ordering::Equal),
        }
    }

    fn compare_numbers(&self, other: &Self) -> Option<Ordering> {
        let whole = |v: &Self| match v {
            Self::Int(i) => Some(i128::from(*i)),
            Self::Uint(u) => Some(i128::from(*u)),
            _ => None,
        };
        match (self, other) {
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Double(a), b) => a.partial_cmp(&(whole(b)? as f64)),
            (a, Self::Double(b)) => (whole(a)? as f64).partial_cmp(b),
            (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
        }
    }

    /// The order of two values; none where there is none (NaN).
    pub fn compare(&self, other: &Self) -> Result<Option<Ordering>> {
        Ok(match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.as_str().cmp(b.as_str())),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Double(_), b) | (b, Self::Double(_)) if matches!(b, Self::Int(_) | Self::Uint(_) | Self::Double(_)) => {
                self.compare_numbers(other)
            }
            (a, b) => Some(a.compare_numbers(b).ok_or(EvalError::NoSuchOverload)?),
        })
    }

    /// The value as JSON; none for what JSON cannot say.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(b) => Json::Bool(*b),
            Self::Int(i) => Json::from(*i),
            Self::Uint(u) => Json::from(*u),
            Self::Double(d) => serde_json::Number::from_f64(*d).map(Json::Number)?,
            Self::String(t) => Json::from(t.as_str()),
            Self::Bytes(b) => Json::from(BASE64_STANDARD.encode(b)),
            Self::Timestamp(t) => Json::from(time::format_timestamp(t)),
            Self::Duration(d) => Json::from(time::format_duration(*d)),
            Self::List(List::Json { items, .. }) => Json::Array(items.to_vec()),
            Self::List(l) => Json::Array(l.iter().map(|v| v.to_json()).collect::<Option<_>>()?),
            Self::Map(Map::Json { fields, .. }) => Json::Object((*fields).clone()),
            Self::Map(Map::Owned(m)) => {
                let mut out = serde_json::Map::new();
                for (k, (_, v)) in m.iter() {
                    let k = match k {
                        Key::Text(t) => t.to_string(),
                        Key::Number(n) => n.to_string(),
                        Key::Bool(b) => b.to_string(),
                    };
                    out.insert(k, v.to_json()?);
                }
                Json::Object(out)
            }
            Self::Optional(Some(v)) => v.to_json()?,
            Self::Optional(None) => Json::Null,
            Self::Ext(Ext::Quantity(q)) => Json::from(q.to_string()),
            Self::Ext(Ext::Ip(ip)) => Json::from(ip.to_string()),
            Self::Ext(Ext::Cidr(c)) => Json::from(c.to_string()),
            Self::Ext(Ext::Url(u)) => Json::from(u.text.as_str()),
            Self::Ext(_) | Self::Type(_) | Self::Failed(_) => return None,
        })
    }
}

/// Types as values are told apart without what they hold.
fn same_type(a: &Type, b: &Type) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
        && match (a, b) {
            (Type::Opaque(x), Type::Opaque(y)) => x == y,
            (Type::Object(x), Type::Object(y)) => x == y,
            _ => true,
        }
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json { items, .. } => items.len(),
            Self::Owned { items, .. } => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, i: usize) -> Option<Value<'a>> {
        match self {
            Self::Json { items, decl } => items.get(i).map(|v| Value::json(v, elem(*decl))),
            Self::Owned { items, .. } => items.get(i).cloned(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    fn decl(&self) -> Option<&'a Decl> {
        match self {
            Self::Json { decl, .. } | Self::Owned { decl, .. } => *decl,
        }
    }

    fn kind(&self) -> &'a ListKind {
        match self.decl() {
            Some(Decl { shape: Shape::List { kind, .. }, .. }) => kind,
            _ => &ListKind::Atomic,
        }
    }

    fn equals(&self, other: &Self) -> bool {
        if self.len() != other.len() {
            return false;
        }
        match self.kind() {
            ListKind::Atomic => self.iter().zip(other.iter()).all(|(a, b)| a.equals(&b)),
            // Sets and keyed lists have no order.
            ListKind::Set | ListKind::Map(_) => self.iter().all(|a| other.iter().any(|b| a.equals(&b))),
        }
    }

    /// `self + other`: appended, united or merged, as the kind of the list is.
    pub fn plus(&self, other: &Self) -> Value<'a> {
        let mut out: Vec<Value<'a>> = self.iter().collect();
        match self.kind() {
            ListKind::Atomic => out.extend(other.iter()),
            ListKind::Set => {
                for v in other.iter() {
                    if !out.iter().any(|x| x.equals(&v)) {
                        out.push(v);
                    }
                }
            }
            ListKind::Map(keys) => {
                let same = |a: &Value<'a>, b: &Value<'a>| {
                    keys.iter().all(|k| match (a, b) {
                        (Value::Map(a), Value::Map(b)) => match (a.raw(k), b.raw(k)) {
                            (Some(a), Some(b)) => a.equals(&b),
                            (None, None) => true,
                            _ => false,
                        },
                        _ => false,
                    })
                };
                for v in other.iter() {
                    match out.iter_mut().find(|x| same(x, &v)) {
                        Some(x) => *x = v,
                        None => out.push(v),
                    }
                }
            }
        }
        Value::List(List::Owned { items: Arc::new(out), decl: self.decl() })
    }
}

fn elem(decl: Option<&Decl>) -> Option<&Decl> {
    match &decl?.shape {
        Shape::List { elem, .. } => Some(elem),
        _ => None,
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json { fields, .. } => fields.len(),
            Self::Owned(m) => m.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A field by the name it has in the data.
    fn raw(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Json { fields, decl } => {
                let value = fields.get(name)?;
                let decl = decl.and_then(|d| match &d.shape {
                    Shape::Map { value } => Some(&**value),
                    Shape::Object { fields } => fields.values().find(|m| m.name == name).map(|m| &*m.decl),
                    _ => None,
                });
                Some(Value::json(value, decl))
            }
            Self::Owned(m) => m.get(&Key::Text(name.into())).map(|(_, v)| v.clone()),
        }
    }

    /// A field by the name that expressions give it.
    pub fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Json { fields, decl: Some(Decl { shape: Shape::Object { fields: members }, .. }) } => {
                let member = members.get(name)?;
                fields.get(&member.name).map(|v| Value::json(v, Some(&member.decl)))
            }
            _ => self.raw(name),
        }
    }

    pub fn get(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match (self, key) {
            (_, Value::String(t)) => self.field(t.as_str()),
            (Self::Owned(m), k) => m.get(&k.key().ok()?).map(|(_, v)| v.clone()),
            _ => None,
        }
    }

    pub fn entries(&self) -> Vec<(Value<'a>, Value<'a>)> {
        match self {
            Self::Json { fields, .. } => fields.iter().map(|(k, _)| (Value::borrowed(k), self.raw(k).unwrap_or(Value::Null))).collect(),
            Self::Owned(m) => m.values().cloned().collect(),
        }
    }

    fn equals(&self, other: &Self) -> bool {
        let same_type = |a: &Option<&Decl>, b: &Option<&Decl>| match (a, b) {
            (Some(a), Some(b)) => !matches!((&a.ty, &b.ty), (Type::Object(x), Type::Object(y)) if x != y),
            _ => true,
        };
        if let (Self::Json { decl: a, .. }, Self::Json { decl: b, .. }) = (self, other)
            && !same_type(a, b)
        {
            return false;
        }
        self.len() == other.len()
            && self.entries().iter().all(|(k, v)| {
                match (k, other) {
                    (Value::String(t), o) => o.raw(t.as_str()),
                    (k, o) => o.get(k),
                }
                .is_some_and(|o| v.equals(&o))
            })
    }
}
