//! Finds the Debian mirror that the builder's own machine uses, so that no address is written into the project.

use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext};

/// Base addresses of the two archives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The archive with the suites themselves.
    pub debian: String,
    /// The archive with the security updates.
    pub security: String,
}

/// One source of the host's apt configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
}

const SUITES: &[&str] = &["bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable"];

/// Reads the host's apt sources below `etc` (normally `/etc/apt`).
pub fn from_host(etc: &Path) -> Result<Mirror, Error> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if parts.is_dir() {
        for entry in std::fs::read_dir(&parts).on("list", &parts)? {
            files.push(entry.on("list", &parts)?.path());
        }
    }
    files[1..].sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = std::fs::read_to_string(file).on("read", file)?;
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            Some("list") => sources.extend(parse_list(&text)),
            _ => {}
        }
    }
    choose(&sources).ok_or_else(|| Error::Missing {
        what: "a Debian mirror".into(),
        hint: format!("no source of a Debian suite with component main in {}", etc.display()),
    })
}

/// The keyring that verifies Debian's archives.
pub fn keyring() -> Result<PathBuf, Error> {
    const PLACES: &[&str] = &["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];
    PLACES
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Missing { what: "Debian's archive keyring".into(), hint: "apt-get install debian-archive-keyring".into() })
}

fn parse_list(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default().trim();
            let rest = line.strip_prefix("deb")?;
            if !rest.starts_with([' ', '\t']) {
                return None;
            }
            let rest = rest.trim_start();
            let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
            let mut words = rest.split_whitespace().map(str::to_owned);
            Some(Source { uri: words.next()?, suites: vec![words.next()?], components: words.collect() })
        })
        .collect()
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Vec<Source> {
    let words = |name: &str| -> Vec<String> {
        let value = fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str()).unwrap_or_default();
        value.split_whitespace().map(str::to_owned).collect()
    };
    let disabled = words("enabled").first().is_some_and(|word| word.eq_ignore_ascii_case("no"));
    if disabled || !words("types").iter().any(|word| word == "deb") {
        return Vec::new();
    }
    words("uris").into_iter().map(|uri| Source { uri, suites: words("suites"), components: words("components") }).collect()
}

fn choose(sources: &[Source]) -> Option<Mirror> {
    let usable = |source: &&Source| source.components.iter().any(|part| part == "main") && source.uri.contains("://");
    let is_main = |suite: &String| SUITES.contains(&suite.as_str());
    let is_security = |suite: &String| {
        suite.strip_suffix("-security").or_else(|| suite.strip_suffix("/updates")).is_some_and(|base| SUITES.contains(&base))
    };
    let find = |wanted: &dyn Fn(&String) -> bool| {
        let found = sources.iter().filter(usable).find(|source| source.suites.iter().any(wanted));
        found.map(|source| source.uri.trim_end_matches('/').to_owned())
    };
    let debian = find(&is_main)?;
    // A host that follows testing or sid has no security source; the security archive lies beside the main one.
    let security = find(&is_security).unwrap_or_else(|| format!("{debian}-security"));
    Some(Mirror { debian, security })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mirror(debian: &str, security: &str) -> Option<Mirror> {
        Some(Mirror { debian: debian.into(), security: security.into() })
    }

    #[test]
    fn the_hosts_mirror_is_found_in_both_formats() {
        let deb822 = "Types: deb\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                      Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main contrib\n";
        let list = "# deb http://off.example/debian trixie main\ndeb-src http://src.example/debian trixie main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian trixie main contrib\n\
                    deb http://two.example/sec trixie-security main # inline\n";
        let foreign = "deb http://other.example/apt nodistro main\ndeb http://third.example cloud-sdk main\n";
        let disabled = "Types: deb\nEnabled: no\nURIs: http://a/debian\nSuites: sid\nComponents: main\n";
        let folded = "Types: deb\nURIs:\n http://b/debian\nSuites: sid\nComponents:\n main\n";
        for (sources, expected) in [
            (parse_deb822(deb822), mirror("http://mirror.example/debian", "http://mirror.example/security")),
            (parse_list(list), mirror("http://one.example/debian", "http://two.example/sec")),
            (parse_list(foreign), None),
            (parse_deb822(disabled), None),
            (parse_deb822(folded), mirror("http://b/debian", "http://b/debian-security")),
        ] {
            assert_eq!(choose(&sources), expected);
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in "\\PC{0,200}(\n\\PC{0,80}){0,6}") {
            choose(&parse_list(&text));
            choose(&parse_deb822(&text));
        }
    }
}
