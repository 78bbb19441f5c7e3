//! The file of `--authentication-config` (`AuthenticationConfiguration`, apiserver.config.k8s.io), and the `--oidc-*` flags, which are a
//! short way to write one issuer of it.

use serde::Deserialize;

use crate::config_file::{ConfigFile, ConfigFileError, DecodeError, decode};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    File(#[from] ConfigFileError),
    #[error("read the certificates of --oidc-ca-file {path}")]
    ReadCa { path: String, source: std::io::Error },
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{path}: {why}")]
    Invalid { path: String, why: String },
}

pub fn invalid(path: impl Into<String>, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { path: path.into(), why: why.into() }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<Jwt>,
    anonymous: Option<Anonymous>,
}

impl ConfigFile for File {
    const KIND: &str = "AuthenticationConfiguration";
    const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

/// Which anonymous requests are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    #[serde(default)]
    pub enabled: bool,
    /// None: whatever path is asked for.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    pub path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Jwt {
    pub issuer: Issuer,
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimRule>,
    #[serde(default)]
    pub claim_mappings: Mappings,
    #[serde(default)]
    pub user_validation_rules: Vec<UserRule>,
    /// Set by flags alone: the algorithms that tokens may be signed with.
    #[serde(skip)]
    pub algorithms: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    #[serde(default)]
    pub url: String,
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: String,
    #[serde(default)]
    pub certificate_authority: String,
    #[serde(default)]
    pub audiences: Vec<String>,
    #[serde(default)]
    pub audience_match_policy: String,
    #[serde(default)]
    pub egress_selector_type: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimRule {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub required_value: String,
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserRule {
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mappings {
    #[serde(default)]
    pub username: Mapping,
    #[serde(default)]
    pub groups: Mapping,
    #[serde(default)]
    pub uid: Mapping,
    #[serde(default)]
    pub extra: Vec<Extra>,
}

/// A claim, with a prefix where one belongs, or an expression.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    #[serde(default)]
    pub claim: String,
    pub prefix: Option<String>,
    #[serde(default)]
    pub expression: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Extra {
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub value_expression: String,
}

/// The `--oidc-*` flags.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub issuer_url: String,
    pub client_id: String,
    pub ca_file: Option<std::path::PathBuf>,
    pub username_claim: String,
    pub username_prefix: Option<String>,
    pub groups_claim: String,
    pub groups_prefix: String,
    pub signing_algs: Vec<String>,
    /// `claim=value`
    pub required_claims: Vec<String>,
}

/// What either way of configuring comes to.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub jwt: Vec<Jwt>,
    pub anonymous: Option<Anonymous>,
}

/// Reads a file and checks everything but expressions.
pub fn parse(text: &str, own_issuers: &[String]) -> Result<Settings, ConfigError> {
    let file: File = decode(text)?;
    if file.jwt.len() > 64 {
        return Err(invalid("jwt", "there may be 64 authenticators at most"));
    }
    for (i, j) in file.jwt.iter().enumerate() {
        let at = format!("jwt[{i}]");
        check(&at, j, own_issuers)?;
        if file.jwt[..i].iter().any(|o| o.issuer.url == j.issuer.url) {
            return Err(invalid(format!("{at}.issuer.url"), format!("{:?} is there twice", j.issuer.url)));
        }
    }
    if let Some(a) = &file.anonymous
        && !a.enabled
        && !a.conditions.is_empty()
    {
        return Err(invalid("anonymous.conditions", "conditions are for anonymous requests that are enabled"));
    }
    Ok(Settings { jwt: file.jwt, anonymous: file.anonymous })
}

fn check_url(path: &str, url: &str) -> Result<(), ConfigError> {
    let uri: http::Uri = url.parse().map_err(|e| invalid(path, format!("{url:?}: {e}")))?;
    if uri.scheme_str() != Some("https") || uri.host().is_none_or(str::is_empty) {
        return Err(invalid(path, format!("{url:?}: an issuer is a URL with https and a host")));
    }
    if uri.query().is_some() || url.contains('#') || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(invalid(path, format!("{url:?}: an issuer has no user, query or fragment")));
    }
    Ok(())
}

fn check(at: &str, j: &Jwt, own_issuers: &[String]) -> Result<(), ConfigError> {
    let issuer = &j.issuer;
    let path = |p: &str| format!("{at}.{p}");
    check_url(&path("issuer.url"), &issuer.url)?;
    if own_issuers.contains(&issuer.url) {
        return Err(invalid(path("issuer.url"), "that is the issuer of this server's service account tokens"));
    }
    if !issuer.discovery_url.is_empty() {
        check_url(&path("issuer.discoveryURL"), &issuer.discovery_url)?;
        if issuer.discovery_url.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
            return Err(invalid(path("issuer.discoveryURL"), "it must be another URL than the issuer's"));
        }
    }
    if !issuer.egress_selector_type.is_empty() {
        return Err(invalid(path("issuer.egressSelectorType"), "this server has no egress selectors"));
    }
    match (issuer.audiences.as_slice(), issuer.audience_match_policy.as_str()) {
        ([], _) => return Err(invalid(path("issuer.audiences"), "at least one audience is required")),
        (a, _) if a.iter().any(String::is_empty) => return Err(invalid(path("issuer.audiences"), "an audience is not empty")),
        ([_], "" | "MatchAny") | (_, "MatchAny") => {}
        _ => return Err(invalid(path("issuer.audienceMatchPolicy"), "it must be MatchAny when there are several audiences")),
    }
    for (i, r) in j.claim_validation_rules.iter().enumerate() {
        let at = path(&format!("claimValidationRules[{i}]"));
        match (r.claim.is_empty(), r.expression.is_empty()) {
            (false, false) => return Err(invalid(at, "claim and expression cannot both be set")),
            (true, true) => return Err(invalid(at, "claim or expression is required")),
            (false, true) if !r.message.is_empty() => return Err(invalid(at, "a message is for an expression")),
            (true, false) if !r.required_value.is_empty() => return Err(invalid(at, "a requiredValue is for a claim")),
            _ => {}
        }
    }
    for (i, r) in j.user_validation_rules.iter().enumerate() {
        if r.expression.is_empty() {
            return Err(invalid(path(&format!("userValidationRules[{i}].expression")), "an expression is required"));
        }
    }
    let m = &j.claim_mappings;
    for (name, m, required) in [("username", &m.username, true), ("groups", &m.groups, false), ("uid", &m.uid, false)] {
        let at = path(&format!("claimMappings.{name}"));
        match (m.claim.is_empty(), m.expression.is_empty()) {
            (false, false) => return Err(invalid(at, "claim and expression cannot both be set")),
            (true, true) if required => return Err(invalid(at, "claim or expression is required")),
            (true, _) if m.prefix.as_ref().is_some_and(|p| !p.is_empty()) => return Err(invalid(at, "a prefix is for a claim")),
            (false, true) if m.prefix.is_none() && name != "uid" => {
                return Err(invalid(format!("{at}.prefix"), "a prefix is required when a claim is set; it may be empty"));
            }
            _ => {}
        }
    }
    if !m.username.expression.is_empty() && mentions(&m.username.expression, "claims.email") {
        let checked = |e: &str| e.contains("claims.email_verified");
        let rules = j.claim_validation_rules.iter().any(|r| checked(&r.expression));
        if !checked(&m.username.expression) && !rules && !m.extra.iter().any(|e| checked(&e.value_expression)) {
            let why = "claims.email_verified must be looked at by an expression when claims.email is the username";
            return Err(invalid(path("claimMappings.username.expression"), why));
        }
    }
    for (i, e) in m.extra.iter().enumerate() {
        let at = path(&format!("claimMappings.extra[{i}]"));
        let domain = e.key.split_once('/').filter(|(d, p)| !d.is_empty() && !p.is_empty() && d.contains('.'));
        if domain.is_none() || e.key.chars().any(char::is_uppercase) {
            return Err(invalid(format!("{at}.key"), format!("{:?} must be a domain and a path of lower case", e.key)));
        }
        let own = domain.is_some_and(|(d, _)| ["k8s.io", "kubernetes.io"].iter().any(|k| d == *k || d.ends_with(&format!(".{k}"))));
        if own {
            return Err(invalid(format!("{at}.key"), format!("{:?} is a name of Kubernetes' own", e.key)));
        }
        if e.value_expression.is_empty() {
            return Err(invalid(format!("{at}.valueExpression"), "an expression is required"));
        }
        if m.extra[..i].iter().any(|o| o.key == e.key) {
            return Err(invalid(format!("{at}.key"), format!("{:?} is there twice", e.key)));
        }
    }
    Ok(())
}

/// Whether an expression names something, and not only something that begins so.
fn mentions(expression: &str, name: &str) -> bool {
    expression.match_indices(name).any(|(i, _)| {
        let next = expression[i + name.len()..].chars().next();
        next.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_')
    })
}

impl Flags {
    pub fn settings(&self, own_issuers: &[String]) -> Result<Settings, ConfigError> {
        let ca = match &self.ca_file {
            Some(p) => std::fs::read_to_string(p).map_err(|source| ConfigError::ReadCa { path: p.display().to_string(), source })?,
            None => String::new(),
        };
        // A claim that is no address of mail is no name but together with who says it.
        let prefix = match self.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(p) if !p.is_empty() => p.to_owned(),
            _ if self.username_claim == "email" => String::new(),
            _ => format!("{}#", self.issuer_url),
        };
        let mapping = |claim: &str, prefix: String| Mapping { claim: claim.to_owned(), prefix: Some(prefix), expression: String::new() };
        let mut rules = Vec::new();
        for r in &self.required_claims {
            let (claim, value) = r.split_once('=').ok_or_else(|| invalid("--oidc-required-claim", format!("{r:?} is not claim=value")))?;
            rules.push(ClaimRule { claim: claim.to_owned(), required_value: value.to_owned(), ..ClaimRule::default() });
        }
        if let Some(bad) = self.signing_algs.iter().find(|a| !super::jwk::known(a)) {
            return Err(invalid("--oidc-signing-algs", format!("{bad:?} is not known")));
        }
        let jwt = Jwt {
            issuer: Issuer {
                url: self.issuer_url.clone(),
                certificate_authority: ca,
                audiences: vec![self.client_id.clone()],
                ..Issuer::default()
            },
            claim_validation_rules: rules,
            claim_mappings: Mappings {
                username: mapping(&self.username_claim, prefix),
                groups: if self.groups_claim.is_empty() {
                    Mapping::default()
                } else {
                    mapping(&self.groups_claim, self.groups_prefix.clone())
                },
                ..Mappings::default()
            },
            user_validation_rules: Vec::new(),
            algorithms: self.signing_algs.clone(),
        };
        check("--oidc", &jwt, own_issuers)?;
        Ok(Settings { jwt: vec![jwt], anonymous: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(jwt: &str) -> String {
        format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n{jwt}")
    }

    fn one(issuer: &str, mappings: &str, more: &str) -> String {
        file(&format!("- issuer: {{{issuer}}}\n  claimMappings: {{{mappings}}}\n{more}"))
    }

    const ISSUER: &str = "url: 'https://issuer.example.com', audiences: [a]";
    const NAME: &str = "username: {claim: sub, prefix: ''}";

    #[test]
    fn a_configuration_is_read() {
        let more = "  claimValidationRules: [{claim: hd, requiredValue: example.com}, {expression: 'claims.x == 1', message: m}]\n\
                    anonymous: {enabled: true, conditions: [{path: /livez}]}\n";
        let s =
            parse(&one(ISSUER, "username: {expression: claims.sub}, extra: [{key: example.com/t, valueExpression: claims.t}]", more), &[])
                .unwrap();
        assert_eq!((s.jwt[0].claim_validation_rules.len(), s.jwt[0].claim_mappings.extra.len()), (2, 1));
        assert_eq!(s.anonymous, Some(Anonymous { enabled: true, conditions: vec![Condition { path: "/livez".into() }] }));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let own = ["https://kubernetes.default.svc".to_owned()];
        for (text, named) in [
            (one("url: 'http://issuer.example.com', audiences: [a]", NAME, ""), "jwt[0].issuer.url"),
            (one("url: 'https://issuer.example.com?x', audiences: [a]", NAME, ""), "no user, query"),
            (one("url: 'https://kubernetes.default.svc', audiences: [a]", NAME, ""), "service account tokens"),
            (one("url: 'https://issuer.example.com'", NAME, ""), "audience is required"),
            (one("url: 'https://issuer.example.com', audiences: [a, b]", NAME, ""), "audienceMatchPolicy"),
            (one(ISSUER, "", ""), "claimMappings.username"),
            (one(ISSUER, "username: {claim: sub}", ""), "username.prefix"),
            (one(ISSUER, "username: {claim: sub, prefix: '', expression: x}", ""), "cannot both"),
            (one(ISSUER, "username: {expression: claims.email}", ""), "email_verified"),
            (one(ISSUER, &format!("{NAME}, extra: [{{key: x, valueExpression: claims.t}}]"), ""), "extra[0].key"),
            (one(ISSUER, &format!("{NAME}, extra: [{{key: a.k8s.io/x, valueExpression: claims.t}}]"), ""), "Kubernetes' own"),
            (one(ISSUER, NAME, "  claimValidationRules: [{}]\n"), "claimValidationRules[0]"),
            (one(ISSUER, NAME, "  nonsense: 1\n"), "unknown field `nonsense`"),
            (one(ISSUER, NAME, "anonymous: {enabled: false, conditions: [{path: /x}]}\n"), "anonymous.conditions"),
            ("apiVersion: v1\nkind: AuthenticationConfiguration\n".to_owned(), "is not apiserver.config.k8s.io/v1"),
        ] {
            let e = parse(&text, &own).unwrap_err().to_string();
            assert!(e.contains(named), "{text}\n{e}");
        }
        let fine = "username: {expression: \"claims.email_verified ? claims.email : ''\"}";
        assert!(parse(&one(ISSUER, fine, ""), &own).is_ok());
    }

    #[test]
    fn flags_are_one_issuer() {
        let f = Flags {
            issuer_url: "https://issuer.example.com".into(),
            client_id: "kubernetes".into(),
            username_claim: "sub".into(),
            required_claims: vec!["hd=example.com".into()],
            ..Flags::default()
        };
        let prefix = |f: &Flags| f.settings(&[]).unwrap().jwt[0].claim_mappings.username.prefix.clone().unwrap();
        assert_eq!(prefix(&f), "https://issuer.example.com#");
        assert_eq!(prefix(&Flags { username_prefix: Some("-".into()), ..f.clone() }), "");
        assert_eq!(prefix(&Flags { username_prefix: Some("oidc:".into()), ..f.clone() }), "oidc:");
        assert_eq!(prefix(&Flags { username_claim: "email".into(), ..f.clone() }), "");
        assert!(Flags { signing_algs: vec!["HS256".into()], ..f.clone() }.settings(&[]).is_err());
        assert!(Flags { required_claims: vec!["x".into()], ..f }.settings(&[]).is_err());
    }
}
