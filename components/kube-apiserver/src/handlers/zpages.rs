//! `/statusz` and `/flagz`: what a person who looks for a fault wants to know first, as text.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Ctx, discovery::KUBERNETES};
use crate::http::{Answer, ApiError, body};

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

/// What the pages tell of.
#[derive(Debug)]
pub struct Started {
    pub at: Timestamp,
    pub since: Instant,
    /// As they were given, without the dashes, sorted.
    pub flags: Vec<String>,
}

impl Started {
    /// `arguments`: the command line without the program's name.
    pub fn now(arguments: impl IntoIterator<Item = String>) -> Self {
        let mut flags: Vec<String> = Vec::new();
        // The argument before this one was a flag without a value.
        let mut open = false;
        for a in arguments {
            if let Some(flag) = a.strip_prefix("--") {
                open = !flag.contains('=');
                flags.push(flag.to_owned());
                continue;
            }
            if let Some(last) = flags.last_mut().filter(|_| open && !a.starts_with('-')) {
                *last = format!("{last}={a}");
            }
            open = false;
        }
        flags.sort();
        Self { at: Timestamp::now(), since: Instant::now(), flags }
    }
}

fn up(d: Duration) -> String {
    let s = d.as_secs();
    format!("{} hr {:02} min {:02} sec", s / 3600, s / 60 % 60, s % 60)
}

/// Whoever asks for another form than text is told that there is none.
fn text(ctx: &Ctx, page: &str, content: &str) -> Result<Answer, ApiError> {
    let accept = ctx.headers.get("accept").and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    let takes = |t: &str| matches!(t.split(';').next().unwrap_or("").trim(), "text/plain" | "text/*" | "*/*");
    if !accept.split(',').any(takes) {
        return Err(ApiError::new(406, "NotAcceptable", "only the following media types are accepted: text/plain"));
    }
    Ok(body::text(200, format!("\nkube-apiserver {page}\n{WARNING}\n\n{content}")))
}

pub fn statusz(ctx: &Ctx) -> Result<Answer, ApiError> {
    let s = &ctx.server.started;
    let lines = [
        ("Started", s.at.strftime("%a %b %d %H:%M:%S UTC %Y").to_string()),
        ("Up", up(s.since.elapsed())),
        ("Binary version", KUBERNETES.trim_start_matches('v').to_owned()),
        ("Emulation version", "1.36".to_owned()),
        ("Paths", "/flagz /healthz /livez /metrics /readyz /statusz /version".to_owned()),
    ];
    let content: String = lines.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    text(ctx, "statusz", &content)
}

pub fn flagz(ctx: &Ctx) -> Result<Answer, ApiError> {
    let content: String = ctx.server.started.flags.iter().map(|f| format!("{f}\n")).collect();
    text(ctx, "flagz", &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_as_they_were_given() {
        let args = ["--v=2", "--etcd-servers", "http://x", "--anonymous-auth", "-v", "3"].map(str::to_owned);
        assert_eq!(Started::now(args).flags, ["anonymous-auth", "etcd-servers=http://x", "v=2"]);
        assert_eq!(up(Duration::from_secs(3725)), "1 hr 02 min 05 sec");
    }
}
