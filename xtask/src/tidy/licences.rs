//! Licences, banned crates and doubled versions, by the policy in deny.toml. Licence expressions are SPDX's, and the older `A/B`.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use anyhow::Context;
use serde::Deserialize;

/// The policy.
#[derive(Debug, Deserialize)]
pub struct Policy {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Bans {
    deny: Vec<Banned>,
    deny_multiple_versions: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    name: String,
}

impl FromStr for Policy {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        toml::from_str(text).context("deny.toml is not a policy")
    }
}

/// Complaints about the lines `name vVERSION [(source)]<tab>licence` of `cargo tree`, which, other than `cargo metadata`, leaves out what no
/// feature asks for.
pub fn check(tree: &str, policy: &Policy) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in tree.lines().collect::<BTreeSet<_>>() {
        let Some((package, licence)) = line.split_once('\t') else { continue };
        let mut words = package.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next().map(|word| word.trim_start_matches('v'))) else { continue };
        versions.entry(name).or_default().insert(version);
        if policy.bans.deny.iter().any(|banned| banned.name == name) {
            complaints.push(format!("{name} {version} is banned by deny.toml"));
        }
        // A package that was listed in full before is marked.
        let licence = licence.trim_end_matches("(*)").trim();
        match is_allowed(licence, &policy.licenses.allow) {
            Ok(true) => {}
            Ok(false) => complaints.push(format!("{name} {version} has the licence {licence:?}, which deny.toml does not allow")),
            Err(problem) => complaints.push(format!("{name} {version} has the licence {licence:?}: {problem}")),
        }
    }
    for (name, found) in versions.iter().filter(|(name, found)| found.len() > 1 && policy.bans.deny_multiple_versions.contains(**name)) {
        let found: Vec<&str> = found.iter().copied().collect();
        complaints.push(format!("{name} is in the tree {} times: {}", found.len(), found.join(", ")));
    }
    complaints
}

/// Whether an expression can be satisfied with allowed licences.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> Result<bool, &'static str> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, at: 0, allowed };
    let answer = parser.any()?;
    if parser.at == words.len() { Ok(answer) } else { Err("the expression has too many words") }
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    allowed: &'a BTreeSet<String>,
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.words.get(self.at) == Some(&word);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<bool, &'static str> {
        let mut answer = self.all()?;
        while self.take("OR") {
            answer |= self.all()?;
        }
        Ok(answer)
    }

    fn all(&mut self) -> Result<bool, &'static str> {
        let mut answer = self.one()?;
        while self.take("AND") {
            answer &= self.one()?;
        }
        Ok(answer)
    }

    fn one(&mut self) -> Result<bool, &'static str> {
        if self.take("(") {
            let answer = self.any()?;
            return if self.take(")") { Ok(answer) } else { Err("a parenthesis is not closed") };
        }
        let name = *self.words.get(self.at).ok_or("the expression ends early")?;
        if ["AND", "OR", "WITH", ")"].contains(&name) {
            return Err("a licence is missing");
        }
        self.at += 1;
        if self.take("WITH") {
            let exception = *self.words.get(self.at).ok_or("the expression ends early")?;
            self.at += 1;
            return Ok(self.allowed.contains(name) || self.allowed.contains(&format!("{name} WITH {exception}")));
        }
        Ok(self.allowed.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let text =
            "[licenses]\nallow = [\"MIT\", \"Apache-2.0\"]\n[bans]\ndeny = [{ name = \"ring\" }]\ndeny-multiple-versions = [\"tokio\"]\n";
        text.parse().unwrap()
    }

    #[test]
    fn expressions_are_judged_as_spdx_says() {
        let policy = policy();
        for (expression, expected) in [
            ("MIT", Ok(true)),
            ("GPL-2.0", Ok(false)),
            ("MIT OR GPL-2.0", Ok(true)),
            ("MIT AND GPL-2.0", Ok(false)),
            ("MIT/GPL-2.0", Ok(true)),
            ("GPL-2.0 OR (MIT AND Apache-2.0)", Ok(true)),
            ("(GPL-2.0 OR MIT) AND ISC", Ok(false)),
            ("Apache-2.0 WITH LLVM-exception", Ok(true)),
            ("", Err("the expression ends early")),
            ("(MIT", Err("a parenthesis is not closed")),
            ("MIT MIT", Err("the expression has too many words")),
            ("MIT AND OR", Err("a licence is missing")),
        ] {
            assert_eq!(is_allowed(expression, &policy.licenses.allow), expected, "{expression}");
        }
    }

    #[test]
    fn banned_and_doubled_crates_are_named() {
        let tree =
            "ring v1.0.0\tMIT\ntokio v1.0.0\tMIT\ntokio v2.0.0 (/x)\tMIT\nsyn v1.0.0\tMIT\nsyn v2.0.0\tMIT (*)\nbad v1.0.0\tGPL-3.0\n";
        let expected = [
            "bad 1.0.0 has the licence \"GPL-3.0\", which deny.toml does not allow",
            "ring 1.0.0 is banned by deny.toml",
            "tokio is in the tree 2 times: 1.0.0, 2.0.0",
        ];
        assert_eq!(check(tree, &policy()), expected);
    }
}
