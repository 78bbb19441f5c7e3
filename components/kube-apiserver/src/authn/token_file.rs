//! Tokens of a file, one a line: `token,user,uid,"group1,group2"`. They are read when the server starts.

use std::{collections::HashMap, path::Path};

use sha2::{Digest, Sha256};

use super::User;

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("read the token file {path}")]
    Read { path: String, source: std::io::Error },
    #[error("line {line} of the token file {path} {why}")]
    Line { path: String, line: usize, why: &'static str },
}

/// Users by the digests of their tokens: what compares them learns nothing of how much of a token was right.
#[derive(Debug, Default)]
pub struct TokenFile(HashMap<[u8; 32], User>);

/// The fields of a line; quotes may stand around one, and twice within it for one.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut out = vec![String::new()];
    let (mut quoted, mut rest) = (false, line.chars().peekable());
    while let Some(c) = rest.next() {
        let last = out.last_mut()?;
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                last.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if last.trim().is_empty() => {
                last.clear();
                quoted = true;
            }
            ',' if !quoted => out.push(String::new()),
            c => last.push(c),
        }
    }
    (!quoted).then_some(out)
}

impl TokenFile {
    pub fn load(path: &Path) -> Result<Self, TokenFileError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| TokenFileError::Read { path: shown.clone(), source })?;
        Self::parse(&text).map_err(|(line, why)| TokenFileError::Line { path: shown, line, why })
    }

    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut users = HashMap::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')) {
            let fields = fields(line).ok_or((i + 1, "has a quote that does not end"))?;
            let [token, name, uid, more @ ..] = fields.as_slice() else { return Err((i + 1, "has fewer than three fields")) };
            if token.is_empty() {
                return Err((i + 1, "has no token"));
            }
            let groups = more.first().map_or("", String::as_str).split(',').filter(|g| !g.is_empty()).map(str::to_owned).collect();
            let user = User { name: name.clone(), uid: uid.clone(), groups, ..User::default() };
            users.insert(Sha256::digest(token.as_bytes()).into(), user);
        }
        Ok(Self(users))
    }

    /// The user of a token, by its digest.
    pub fn user(&self, digest: &[u8; 32]) -> Option<&User> {
        self.0.get(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_their_tokens() {
        let f = TokenFile::parse("# who\nabc,jane,1,\"dev,ops\"\n\ndef,joe,2\nx\"\"y,q,3,one\n").unwrap();
        let user = |t: &str| f.user(&Sha256::digest(t.as_bytes()).into()).map(|u| (u.name.as_str(), u.uid.as_str(), u.groups.join(" ")));
        assert_eq!(user("abc"), Some(("jane", "1", "dev ops".into())));
        assert_eq!(user("def"), Some(("joe", "2", String::new())));
        assert!(user("ab").is_none() && user("").is_none());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        assert_eq!(TokenFile::parse("a,b,c\na,b\n").unwrap_err(), (2, "has fewer than three fields"));
        assert_eq!(TokenFile::parse(",b,c\n").unwrap_err(), (1, "has no token"));
        assert_eq!(TokenFile::parse("a,b,c,\"d\n").unwrap_err(), (1, "has a quote that does not end"));
    }
}
