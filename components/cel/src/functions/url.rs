//! URLs as Go's `url.ParseRequestURI` reads them: absolute, or a path.

use std::sync::Arc;

use super::{Function, NONE};
use crate::value::{EvalError, Ext, Result, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "url" => |a| {
            let s = a.first().ok_or(NONE)?.str()?;
            let u =
                parse(s).map_err(|why| EvalError::other(format!("URL parse error during conversion from string: parse {s:?}: {why}")))?;
            Ok(Value::Ext(Ext::Url(Arc::new(u))))
        },
        "isURL" => |a| Ok(Value::Bool(parse(a.first().ok_or(NONE)?.str()?).is_ok())),
        "getScheme" => |a| Ok(Value::string(url(a)?.scheme.as_str())),
        "getHost" => |a| Ok(Value::string(url(a)?.host.as_str())),
        "getHostname" => |a| Ok(Value::string(hostport(&url(a)?.host).0)),
        "getPort" => |a| Ok(Value::string(hostport(&url(a)?.host).1)),
        "getEscapedPath" => |a| Ok(Value::string(url(a)?.path.as_str())),
        "getQuery" => |a| {
            let mut out: Vec<(String, Vec<Value<'_>>)> = Vec::new();
            for pair in url(a)?.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
                let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
                let (Some(k), Some(v)) = (unescaped(k), unescaped(v)) else { continue };
                match out.iter_mut().find(|(n, _)| *n == k) {
                    Some((_, all)) => all.push(Value::string(v)),
                    None => out.push((k, vec![Value::string(v)])),
                }
            }
            Ok(Value::map(out.into_iter().map(|(k, v)| (k, Value::list(v)))))
        },
        _ => return None,
    })
}

fn url<'x>(args: &'x [Value<'_>]) -> Result<&'x Url> {
    match args.first() {
        Some(Value::Ext(Ext::Url(u))) => Ok(u),
        _ => Err(NONE),
    }
}

fn unescaped(s: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let (a, b) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
                u8::try_from(a * 16 + b).ok()?
            }
            b => b,
        });
    }
    String::from_utf8(out).ok()
}

fn hostport(host: &str) -> (&str, &str) {
    if let Some(rest) = host.strip_prefix('[')
        && let Some((name, port)) = rest.split_once(']')
    {
        return (name, port.strip_prefix(':').unwrap_or(""));
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

fn parse(s: &str) -> std::result::Result<Url, &'static str> {
    if s.is_empty() {
        return Err("empty url");
    }
    if s.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL");
    }
    let scheme_end = s.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).filter(|i| s[*i..].starts_with(':'));
    let (scheme, rest) = match scheme_end {
        Some(0) => return Err("missing protocol scheme"),
        Some(i) if s.as_bytes()[0].is_ascii_alphabetic() => (s[..i].to_ascii_lowercase(), &s[i + 1..]),
        Some(_) | None => (String::new(), s),
    };
    if !rest.starts_with('/') && (scheme.is_empty() || rest.is_empty()) {
        return Err("invalid URI for request");
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !rest.starts_with('/') {
        // An opaque one, such as mailto:a@b, is no request.
        return Err("invalid URI for request");
    }
    let (host, path) = match rest.strip_prefix("//") {
        Some(after) if !scheme.is_empty() || !rest.starts_with("///") => {
            let end = after.find('/').unwrap_or(after.len());
            (&after[..end], &after[end..])
        }
        _ => ("", rest),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, h)| h);
    if host.contains([' ', '<', '>', '"', '\\', '^', '`', '{']) {
        return Err("invalid character in host name");
    }
    let after = host.rfind(']').map_or(host, |i| &host[i + 1..]);
    if host.starts_with('[') && !host.contains(']') {
        return Err("missing ']' in host");
    }
    if let Some((_, port)) = after.rsplit_once(':')
        && !port.bytes().all(|b| b.is_ascii_digit())
    {
        return Err("invalid port after host");
    }
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' && !(bytes.next().is_some_and(|b| b.is_ascii_hexdigit()) && bytes.next().is_some_and(|b| b.is_ascii_hexdigit())) {
            return Err("invalid URL escape");
        }
    }
    Ok(Url { text: s.to_owned(), scheme, host: host.to_owned(), path: path.replace(' ', "%20"), query: query.to_owned() })
}
