//! From the claims of a token to a user: rules that the claims must fulfil, mappings, rules that the user must fulfil.

use std::sync::LazyLock;

use cel::{
    Env, Program, Type, Value, Variables,
    schema::{Decl, ListKind},
};
use serde_json::{Value as Json, json};

use super::config::{ConfigError, Jwt, Mapping, invalid};
use crate::authn::User;

/// One expression may cost this much.
const LIMIT: u64 = 1_000_000;

#[derive(Debug)]
struct Expression {
    source: String,
    program: Box<Program>,
}

#[derive(Debug)]
enum Source {
    Nothing,
    Claim { name: String, prefix: String },
    Expression(Expression),
}

#[derive(Debug)]
enum Rule {
    Claim { name: String, value: String },
    Expression { expression: Expression, message: String },
}

/// What is done with the claims of one issuer's tokens.
#[derive(Debug)]
pub struct Claims {
    rules: Vec<Rule>,
    username: Source,
    groups: Source,
    uid: Source,
    extra: Vec<(String, Expression)>,
    user_rules: Vec<(Expression, String)>,
}

/// The user, as rules see it.
fn user_decl() -> &'static Decl {
    static DECL: LazyLock<Decl> = LazyLock::new(|| {
        let text = || Decl::simple(Type::String, 2, 3 << 20);
        let list = || Decl::list(text(), None, ListKind::Atomic);
        let fields = [("username", text()), ("uid", text()), ("groups", list()), ("extra", Decl::map(list(), None))];
        Decl::plain_object("kubernetes.UserInfo", fields.into_iter().map(|(n, d)| (n.to_owned(), d, false)))
    });
    &DECL
}

/// Compiles an expression that gives one of `wanted`.
fn compile(path: String, source: &str, env: &Env, wanted: &[Type]) -> Result<Expression, ConfigError> {
    let checked = cel::compile(source, env).map_err(|e| invalid(&path, format!("compilation failed: {e}")))?;
    let result = checked.result();
    if *result != Type::Dyn && !wanted.contains(result) {
        return Err(invalid(path, format!("the expression gives {result}, which is none of {wanted:?}")));
    }
    Ok(Expression { source: source.to_owned(), program: Box::new(Program::new(checked)) })
}

impl Expression {
    fn run(&self, name: &'static str, value: Value<'_>) -> Result<Json, String> {
        let variables: Variables<'_> = [(name, value)].into_iter().collect();
        let out = self.program.run(&variables, LIMIT).value;
        let value = out.map_err(|e| format!("expression '{}' resulted in error: {e}", self.source.trim()))?;
        value.to_json().ok_or_else(|| format!("expression '{}' gives something that is no JSON", self.source.trim()))
    }
}

fn strings(v: &Json) -> Option<Vec<String>> {
    match v {
        Json::Null => Some(Vec::new()),
        Json::String(s) if s.is_empty() => Some(Vec::new()),
        Json::String(s) => Some(vec![s.clone()]),
        Json::Array(a) => a.iter().map(|s| s.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

impl Claims {
    pub fn compile(at: &str, j: &Jwt) -> Result<Self, ConfigError> {
        let claims = Env::new([("claims", Type::map(Type::String, Type::Dyn))]);
        let user = Env::new([("user", user_decl().ty.clone())]);
        let text = [Type::String];
        let texts = [Type::String, Type::list(Type::String), Type::list(Type::Dyn), Type::Null];
        let source = |name: &str, m: &Mapping, wanted: &[Type]| {
            if !m.expression.is_empty() {
                return compile(format!("{at}.claimMappings.{name}.expression"), &m.expression, &claims, wanted).map(Source::Expression);
            }
            Ok(match m.claim.as_str() {
                "" => Source::Nothing,
                claim => Source::Claim { name: claim.to_owned(), prefix: m.prefix.clone().unwrap_or_default() },
            })
        };
        let mut rules = Vec::new();
        for (i, r) in j.claim_validation_rules.iter().enumerate() {
            rules.push(match r.expression.is_empty() {
                true => Rule::Claim { name: r.claim.clone(), value: r.required_value.clone() },
                false => {
                    let path = format!("{at}.claimValidationRules[{i}].expression");
                    Rule::Expression { expression: compile(path, &r.expression, &claims, &[Type::Bool])?, message: r.message.clone() }
                }
            });
        }
        let m = &j.claim_mappings;
        let mut extra = Vec::new();
        for (i, e) in m.extra.iter().enumerate() {
            let path = format!("{at}.claimMappings.extra[{i}].valueExpression");
            extra.push((e.key.clone(), compile(path, &e.value_expression, &claims, &texts)?));
        }
        let mut user_rules = Vec::new();
        for (i, r) in j.user_validation_rules.iter().enumerate() {
            let path = format!("{at}.userValidationRules[{i}].expression");
            user_rules.push((compile(path, &r.expression, &user, &[Type::Bool])?, r.message.clone()));
        }
        Ok(Self {
            rules,
            username: source("username", &m.username, &text)?,
            groups: source("groups", &m.groups, &texts)?,
            uid: source("uid", &m.uid, &text)?,
            extra,
            user_rules,
        })
    }

    /// The user of claims that are already known to be the issuer's.
    pub fn user(&self, claims: &Json) -> Result<User, String> {
        let run = |e: &Expression| e.run("claims", Value::json(claims, None));
        for r in &self.rules {
            match r {
                Rule::Claim { name, value } => match claims.get(name) {
                    None => return Err(format!("required claim {name} not present in ID token")),
                    Some(v) if v.as_str() != Some(value) => return Err(format!("required claim {name} value does not match")),
                    Some(_) => {}
                },
                Rule::Expression { expression, message } => {
                    if run(expression)? != Json::Bool(true) {
                        return Err(format!("claim validation rule '{}' failed: {message}", expression.source));
                    }
                }
            }
        }
        let one = |what: &str, source: &Source| -> Result<String, String> {
            match source {
                Source::Nothing => Ok(String::new()),
                Source::Claim { name, prefix } => {
                    let v = claims.get(name).ok_or_else(|| format!("claim not present: {name}"))?;
                    let v = v.as_str().ok_or_else(|| format!("claim {name} is not a string"))?;
                    if name == "email" && what == "username" && claims.get("email_verified").is_some_and(|v| *v != Json::Bool(true)) {
                        return Err("email not verified".into());
                    }
                    Ok(format!("{prefix}{v}"))
                }
                Source::Expression(e) => {
                    let v = run(e)?;
                    v.as_str().map(str::to_owned).ok_or_else(|| format!("expression '{}' does not give a string", e.source))
                }
            }
        };
        let name = one("username", &self.username)?;
        if name.is_empty() {
            return Err("the username is empty".into());
        }
        let groups = match &self.groups {
            Source::Nothing => Vec::new(),
            Source::Claim { name, prefix } => {
                let v = claims.get(name).unwrap_or(&Json::Null);
                let all = strings(v).ok_or_else(|| format!("claim {name} is neither a string nor a list of strings"))?;
                all.into_iter().map(|g| format!("{prefix}{g}")).collect()
            }
            Source::Expression(e) => strings(&run(e)?).ok_or_else(|| format!("expression '{}' does not give strings", e.source))?,
        };
        let mut extra = Vec::new();
        for (key, e) in &self.extra {
            let values = strings(&run(e)?).ok_or_else(|| format!("expression '{}' does not give strings", e.source))?;
            // What is empty is as if it were not there.
            let values: Vec<String> = values.into_iter().filter(|v| !v.is_empty()).collect();
            if !values.is_empty() {
                extra.push((key.clone(), values));
            }
        }
        let user = User { name, uid: one("uid", &self.uid)?, groups, extra };
        let shown: serde_json::Map<String, Json> = user.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": shown});
        for (e, message) in &self.user_rules {
            if e.run("user", Value::json(&shown, Some(user_decl())))? != Json::Bool(true) {
                return Err(format!("user validation rule '{}' failed: {message}", e.source));
            }
        }
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::config, *};

    fn claims(body: &str) -> Claims {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://i.io', audiences: [a]}}\n{body}"
        );
        Claims::compile("jwt[0]", &config::parse(&text, &[]).unwrap().jwt[0]).unwrap()
    }

    #[test]
    fn claims_become_a_user() {
        let c = claims(
            "  claimValidationRules: [{claim: hd, requiredValue: example.com}, {expression: 'claims.exp - claims.nbf <= 86400', message: too long}]\n  \
             claimMappings:\n    username: {expression: 'claims.sub + \":v1\"'}\n    groups: {claim: roles, prefix: 'r:'}\n    uid: {claim: id}\n    \
             extra: [{key: example.com/tenant, valueExpression: claims.tenant}, {key: example.com/none, valueExpression: \"''\"}]\n  \
             userValidationRules: [{expression: \"!user.username.startsWith('system:')\", message: reserved}]\n",
        );
        let good = json!({"sub": "jane", "hd": "example.com", "exp": 100, "nbf": 50, "roles": ["a", "b"], "id": "7", "tenant": "t"});
        let user = c.user(&good).unwrap();
        assert_eq!(
            user,
            User {
                name: "jane:v1".into(),
                uid: "7".into(),
                groups: vec!["r:a".into(), "r:b".into()],
                extra: vec![("example.com/tenant".into(), vec!["t".into()])]
            }
        );
        let with = |k: &str, v: Json| {
            let mut x = good.clone();
            x[k] = v;
            c.user(&x)
        };
        for (k, v, named) in [
            ("hd", json!("other.com"), "hd"),
            ("exp", json!(1_000_000), "too long"),
            ("sub", json!("system:x"), "reserved"),
            ("sub", json!(7), "error"),
            ("roles", json!([1]), "roles"),
            ("id", json!(7), "id"),
        ] {
            let e = with(k, v).unwrap_err();
            assert!(e.contains(named), "{e}");
        }
        assert_eq!(with("roles", json!("one")).unwrap().groups, ["r:one"]);
    }

    #[test]
    fn an_address_of_mail_must_be_verified_when_it_is_said_whether_it_is() {
        let c = claims("  claimMappings: {username: {claim: email, prefix: ''}}\n");
        assert_eq!(c.user(&json!({"email": "a@b"})).unwrap().name, "a@b");
        assert!(c.user(&json!({"email": "a@b", "email_verified": true})).is_ok());
        assert!(c.user(&json!({"email": "a@b", "email_verified": false})).is_err());
        assert!(c.user(&json!({"sub": "x"})).is_err());
    }

    #[test]
    fn expressions_that_cannot_be_are_refused_when_they_are_read() {
        for (mappings, named) in [
            ("username: {expression: 'claims.'}", "username"),
            ("username: {expression: '1'}", "username"),
            ("username: {expression: nothing}", "undeclared"),
        ] {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://i.io', audiences: [a]}}\n  claimMappings: {{{mappings}}}\n"
            );
            let e = Claims::compile("jwt[0]", &config::parse(&text, &[]).unwrap().jwt[0]).unwrap_err().to_string();
            assert!(e.contains(named), "{e}");
        }
    }
}
