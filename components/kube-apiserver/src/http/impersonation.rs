//! Acting as someone else, for those who may (KEP-5284).

use http::HeaderMap;

use super::{ApiError, Group, request_info::percent_decode};
use crate::{
    authn::{ANONYMOUS, AUTHENTICATED, MASTERS, UNAUTHENTICATED, User},
    authz::{Attributes, Authorizer, Decision, refusal},
    validation::names,
};

const AUTHENTICATION: &str = "authentication.k8s.io";

/// Who the headers ask to be, before anybody checked whether that is allowed.
fn asked(headers: &HeaderMap) -> Option<User> {
    let get = |k: &str| headers.get(k).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let mut extra: Vec<(String, Vec<String>)> = Vec::new();
    for (k, v) in headers {
        if let (Some(k), Ok(v)) = (k.as_str().strip_prefix("impersonate-extra-"), v.to_str()) {
            let k = percent_decode(k).to_lowercase();
            match extra.iter_mut().find(|(n, _)| *n == k) {
                Some((_, l)) => l.push(v.to_owned()),
                None => extra.push((k, vec![v.to_owned()])),
            }
        }
    }
    extra.sort();
    let user = User {
        name: get("impersonate-user"),
        uid: get("impersonate-uid"),
        groups: headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect(),
        extra,
    };
    (user != User::default()).then_some(user)
}

/// As Go prints it, because clients see it.
fn go_syntax(u: &User) -> String {
    let list = |l: &[String]| l.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
    let groups = if u.groups.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", list(&u.groups)) };
    let extra = if u.extra.is_empty() {
        "(nil)".to_owned()
    } else {
        let e: Vec<_> = u.extra.iter().map(|(k, v)| format!("{k:?}:[]string{{{}}}", list(v))).collect();
        format!("{{{}}}", e.join(", "))
    };
    format!("&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:[]string{groups}, Extra:map[string][]string{extra}}}", u.name, u.uid)
}

fn service_account(name: &str) -> Option<(&str, &str)> {
    let (ns, n) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!ns.is_empty() && !n.is_empty() && !n.contains(':')).then_some((ns, n))
}

/// How somebody may act as another. The narrow modes come first: each asks whether the user may do what the request does in that mode
/// (`impersonate-on:<mode>:<verb>`), and then for every part of the other's identity (`impersonate:<mode>`). The last is the old one, which
/// asks for the parts alone (`impersonate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A service account as the node that its pod is on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Whoever is neither.
    UserInfo,
    Legacy,
}

const MODES: [Mode; 5] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];
/// From so many groups or extra values on, one question for all of them comes first.
const MANY: usize = 4;
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

fn node(name: &str) -> Option<&str> {
    name.strip_prefix("system:node:").filter(|n| names::dns1123_subdomain(n).is_empty())
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "",
        }
    }

    fn applies(self, user: &User, want: &User) -> bool {
        let only_name = want.uid.is_empty() && want.groups.is_empty() && want.extra.is_empty();
        match self {
            Self::AssociatedNode => {
                let own = user.extra.iter().find(|(k, _)| k == NODE_NAME).map(|(_, v)| v.as_slice());
                let own = if let Some([one]) = own { Some(one.as_str()) } else { None };
                only_name && service_account(&user.name).is_some() && node(&want.name).is_some_and(|n| own == Some(n))
            }
            Self::ArbitraryNode => only_name && node(&want.name).is_some(),
            Self::ServiceAccount => only_name && service_account(&want.name).is_some(),
            Self::UserInfo => node(&want.name).is_none() && service_account(&want.name).is_none(),
            Self::Legacy => true,
        }
    }
}

/// One question after the other, all of the same user in the same mode.
struct Asking<'a> {
    authz: &'a Authorizer,
    user: User,
    mode: Mode,
}

impl Asking<'_> {
    async fn may(&self, a: &Attributes) -> Result<(), ApiError> {
        match self.authz.decide(&self.user, a).await {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(reason) | Decision::Deny(reason) => Err(self.refused(a, &reason)),
        }
    }

    fn refused(&self, a: &Attributes, reason: &str) -> ApiError {
        let group = if a.is_resource { Group(&a.group, &a.resource) } else { Group("", "") };
        ApiError::forbidden(group, &a.name, refusal(&self.user, a, reason))
    }

    fn part(&self, group: &str, resource: &str, sub: &str, namespace: &str, name: &str) -> Attributes {
        let verb = if self.mode == Mode::Legacy { "impersonate".to_owned() } else { format!("impersonate:{}", self.mode.name()) };
        Attributes {
            verb,
            is_resource: true,
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    /// Whoever the request runs as when all of it is allowed.
    async fn become_(&self, mut want: User, request: &Attributes) -> Result<User, ApiError> {
        let narrow = self.mode != Mode::Legacy;
        if narrow {
            let verb = format!("impersonate-on:{}:{}", self.mode.name(), request.verb);
            self.may(&Attributes { verb, ..request.clone() }).await?;
        }
        let group = if narrow { AUTHENTICATION } else { "" };
        let account = service_account(&want.name).map(|(ns, n)| (ns.to_owned(), n.to_owned()));
        let as_node = if narrow { node(&want.name).map(str::to_owned) } else { None };
        match (&account, &as_node) {
            (Some((ns, n)), _) => self.may(&self.part(group, "serviceaccounts", "", ns, n)).await?,
            // What is allowed for the node of one pod is allowed for those of all.
            (None, Some(n)) => {
                let n = if self.mode == Mode::AssociatedNode { "*" } else { n };
                self.may(&self.part(group, "nodes", "", "", n)).await?;
            }
            (None, None) => self.may(&self.part(group, "users", "", "", &want.name)).await?,
        }
        if !want.uid.is_empty() {
            self.may(&self.part(AUTHENTICATION, "uids", "", "", &want.uid)).await?;
        }
        self.groups(&want.groups, group, narrow).await?;
        self.extra(&want.extra, narrow).await?;
        if as_node.is_some() {
            want.groups = vec!["system:nodes".into()];
        }
        if let (Some((ns, _)), true) = (&account, want.groups.is_empty()) {
            want.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{ns}")];
        }
        if want.name == ANONYMOUS {
            if !want.in_group(UNAUTHENTICATED) {
                want.groups.push(UNAUTHENTICATED.into());
            }
        } else if !want.in_group(AUTHENTICATED) && !want.in_group(UNAUTHENTICATED) {
            want.groups.push(AUTHENTICATED.into());
        }
        Ok(want)
    }

    async fn groups(&self, groups: &[String], group: &str, narrow: bool) -> Result<(), ApiError> {
        let of = |name: &str| self.part(group, "groups", "", "", name);
        if narrow {
            if groups.iter().any(String::is_empty) {
                return Err(self.refused(&of(""), "impersonating the empty string group is not allowed"));
            }
            if groups.iter().any(|g| g == MASTERS) {
                return Err(self.refused(&of(MASTERS), "impersonating the system:masters group is not allowed"));
            }
            if groups.len() >= MANY && self.may(&of("*")).await.is_ok() {
                return Ok(());
            }
        }
        for g in groups {
            self.may(&of(g)).await?;
        }
        Ok(())
    }

    async fn extra(&self, extra: &[(String, Vec<String>)], narrow: bool) -> Result<(), ApiError> {
        let of = |key: &str, value: &str| self.part(AUTHENTICATION, "userextras", key, "", value);
        if narrow {
            if let Some(why) = extra.iter().find_map(|(k, v)| bad_extra(k, v)) {
                return Err(self.refused(&of("", ""), &why));
            }
            let values: usize = extra.iter().map(|(_, v)| v.len()).sum();
            if values >= MANY && self.may(&of("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (k, values) in extra {
            for v in values {
                self.may(&of(k, v)).await?;
            }
        }
        Ok(())
    }
}

/// What the narrow modes do not take of extra fields, which the old one does.
fn bad_extra(key: &str, values: &[String]) -> Option<String> {
    let path = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b));
    let prefixed = key.split_once('/').is_some_and(|(host, p)| names::dns1123_subdomain(host).is_empty() && path(p));
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".into());
    }
    if !prefixed {
        return Some(format!(
            "impersonating an invalid key in extra is not allowed: {key:?} is not a domain-prefixed path (such as \"acme.io/foo\")"
        ));
    }
    if values.iter().any(String::is_empty) {
        return Some("impersonating the empty string value in extra is not allowed".into());
    }
    None
}

/// The user that the request runs as, and the narrow mode that allowed it, by the verb that was asked for.
pub async fn impersonate(
    authz: &Authorizer,
    user: User,
    headers: &HeaderMap,
    request: &Attributes,
) -> Result<(User, Option<String>), ApiError> {
    let Some(want) = asked(headers) else { return Ok((user, None)) };
    if want.name.is_empty() {
        return Err(ApiError::bad_request(format!("requested {} without impersonating a user name", go_syntax(&want))));
    }
    let mut first = None;
    for mode in MODES.into_iter().filter(|m| m.applies(&user, &want)) {
        let mut user = user.clone();
        if mode == Mode::AssociatedNode {
            // What is asked must not depend on the pod, only on what is known of pods like it.
            let mut keys: Vec<String> = user.extra.iter().map(|(k, _)| k.clone()).collect();
            keys.sort();
            user.extra = vec![("authentication.kubernetes.io/associated-node-keys".into(), keys)];
        }
        match (Asking { authz, user, mode }).become_(want.clone(), request).await {
            Ok(other) => return Ok((other, (mode != Mode::Legacy).then(|| format!("impersonate:{}", mode.name())))),
            Err(e) => first = first.or(Some(e)),
        }
    }
    // The old mode always applies.
    Err(first.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User { name: name.into(), ..User::default() }
    }

    fn modes(by: &User, want: &User) -> Vec<Mode> {
        MODES.into_iter().filter(|m| m.applies(by, want)).collect()
    }

    #[test]
    fn the_modes_follow_from_who_is_asked_for() {
        let jane = user("jane");
        assert_eq!(modes(&jane, &user("bob")), [Mode::UserInfo, Mode::Legacy]);
        assert_eq!(modes(&jane, &user("system:node:n1")), [Mode::ArbitraryNode, Mode::Legacy]);
        assert_eq!(modes(&jane, &user("system:serviceaccount:a:b")), [Mode::ServiceAccount, Mode::Legacy]);
        let more = User { groups: vec!["g".into()], ..user("system:node:n1") };
        assert_eq!(modes(&jane, &more), [Mode::Legacy], "of nodes only the name may be given");
        let agent = User { extra: vec![(NODE_NAME.into(), vec!["n1".into()])], ..user("system:serviceaccount:a:agent") };
        assert_eq!(modes(&agent, &user("system:node:n1")), [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::Legacy]);
        assert_eq!(modes(&agent, &user("system:node:n2")), [Mode::ArbitraryNode, Mode::Legacy]);
        let jane = User { extra: agent.extra.clone(), ..jane };
        assert_eq!(modes(&jane, &user("system:node:n1")), [Mode::ArbitraryNode, Mode::Legacy], "only accounts are on nodes");
    }

    #[test]
    fn extra_fields_of_the_narrow_modes_have_domains() {
        assert_eq!(bad_extra("acme.io/scopes", &["x".into()]), None);
        for (key, value) in [("", "x"), ("scopes", "x"), ("acme.io/", "x"), ("acme.io/a", "")] {
            assert!(bad_extra(key, &[value.into()]).is_some(), "{key} {value}");
        }
    }
}
