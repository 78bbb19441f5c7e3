//! IP addresses and networks, read as strictly as Kubernetes does: no leading zeroes, no zones, no IPv4 in IPv6.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::{Function, NONE};
use crate::value::{EvalError, Ext, Result, Value};

/// A network as it was written: host bits stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr(IpNet);

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "ip" => |a| match a {
            [Value::String(t)] => parse_ip(t.as_str()).map(|i| Value::Ext(Ext::Ip(i))),
            [Value::Ext(Ext::Cidr(c))] => Ok(Value::Ext(Ext::Ip(c.0.addr()))),
            _ => Err(NONE),
        },
        "isIP" => |a| Ok(Value::Bool(parse_ip(a.first().ok_or(NONE)?.str()?).is_ok())),
        "ip.isCanonical" => |a| {
            let s = a.first().ok_or(NONE)?.str()?;
            Ok(Value::Bool(parse_ip(s)?.to_string() == s))
        },
        "family" => |a| Ok(Value::Int(if ip(a)?.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => |a| Ok(Value::Bool(ip(a)?.is_unspecified())),
        "isLoopback" => |a| Ok(Value::Bool(ip(a)?.is_loopback())),
        "isLinkLocalMulticast" => |a| {
            Ok(Value::Bool(match ip(a)? {
                IpAddr::V4(i) => i.octets()[..3] == [224, 0, 0],
                IpAddr::V6(i) => i.segments()[0] & 0xff0f == 0xff02,
            }))
        },
        "isLinkLocalUnicast" => |a| Ok(Value::Bool(link_local(&ip(a)?))),
        "isGlobalUnicast" => |a| {
            let i = ip(a)?;
            let broadcast = matches!(i, IpAddr::V4(i) if i.is_broadcast());
            Ok(Value::Bool(!i.is_unspecified() && !i.is_loopback() && !i.is_multicast() && !link_local(&i) && !broadcast))
        },
        "cidr" => |a| parse_cidr(a.first().ok_or(NONE)?.str()?).map(|c| Value::Ext(Ext::Cidr(c))),
        "isCIDR" => |a| Ok(Value::Bool(parse_cidr(a.first().ok_or(NONE)?.str()?).is_ok())),
        "containsIP" => |a| match a {
            [Value::Ext(Ext::Cidr(c)), Value::Ext(Ext::Ip(i))] => Ok(Value::Bool(c.0.contains(i))),
            [Value::Ext(Ext::Cidr(c)), Value::String(t)] => Ok(Value::Bool(c.0.contains(&parse_ip(t.as_str())?))),
            _ => Err(NONE),
        },
        "containsCIDR" => |a| {
            let (c, other) = match a {
                [Value::Ext(Ext::Cidr(c)), Value::Ext(Ext::Cidr(o))] => (c, *o),
                [Value::Ext(Ext::Cidr(c)), Value::String(t)] => (c, parse_cidr(t.as_str())?),
                _ => return Err(NONE),
            };
            Ok(Value::Bool(c.0.contains(&other.0.trunc())))
        },
        "prefixLength" => |a| Ok(Value::Int(cidr(a)?.0.prefix_len().into())),
        "masked" => |a| Ok(Value::Ext(Ext::Cidr(Cidr(cidr(a)?.0.trunc())))),
        _ => return None,
    })
}

fn link_local(i: &IpAddr) -> bool {
    match i {
        IpAddr::V4(i) => i.is_link_local(),
        IpAddr::V6(i) => i.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn ip(args: &[Value<'_>]) -> Result<IpAddr> {
    match args.first() {
        Some(Value::Ext(Ext::Ip(i))) => Ok(*i),
        _ => Err(NONE),
    }
}

fn cidr(args: &[Value<'_>]) -> Result<Cidr> {
    match args.first() {
        Some(Value::Ext(Ext::Cidr(c))) => Ok(*c),
        _ => Err(NONE),
    }
}

fn parse_ip(s: &str) -> Result<IpAddr> {
    let mapped = |i: &IpAddr| matches!(i, IpAddr::V6(i) if i.to_ipv4_mapped().is_some());
    match s.parse::<IpAddr>() {
        Ok(i) if mapped(&i) => Err(EvalError::other(format!("IPv4-mapped IPv6 address {s:?} is not allowed"))),
        Ok(i) => Ok(i),
        Err(_) if s.contains('%') => Err(EvalError::other(format!(
            "IP Address {s:?} parse error during conversion from string: IP address with zone value is not allowed"
        ))),
        Err(_) => Err(EvalError::other(format!(
            "IP Address {s:?} parse error during conversion from string: ParseAddr({s:?}): unable to parse IP"
        ))),
    }
}

fn parse_cidr(s: &str) -> Result<Cidr> {
    let wrong = || {
        EvalError::other(format!("network address parse error during conversion from string: netip.ParsePrefix({s:?}): no valid prefix"))
    };
    let net: IpNet = s.parse().map_err(|_| wrong())?;
    parse_ip(s.split('/').next().unwrap_or(""))?;
    Ok(Cidr(net))
}
