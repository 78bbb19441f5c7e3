//! Acting as someone else, for those who may.

use http::HeaderMap;

use super::{ApiError, Group, request_info::percent_decode};
use crate::{
    authn::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User},
    authz::{Attributes, Authorizer, Decision, refusal},
};

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

/// One thing that has to be allowed before somebody acts as another.
async fn may(authz: &Authorizer, user: &User, group: &str, resource: &str, sub: &str, (ns, name): (&str, &str)) -> Result<(), ApiError> {
    let a = Attributes {
        verb: "impersonate".into(),
        is_resource: true,
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: sub.into(),
        namespace: ns.into(),
        name: name.into(),
        ..Attributes::default()
    };
    match authz.decide(user, &a).await {
        Decision::Allow(_) => Ok(()),
        Decision::NoOpinion(reason) | Decision::Deny(reason) => {
            Err(ApiError::forbidden(Group(group, resource), name, refusal(user, &a, &reason)))
        }
    }
}

/// The user that the request runs as.
pub async fn impersonate(authz: &Authorizer, user: User, headers: &HeaderMap) -> Result<User, ApiError> {
    let Some(mut want) = asked(headers) else { return Ok(user) };
    if want.name.is_empty() {
        return Err(ApiError::bad_request(format!("requested {} without impersonating a user name", go_syntax(&want))));
    }
    let account = service_account(&want.name).map(|(ns, n)| (ns.to_owned(), n.to_owned()));
    match &account {
        Some((ns, n)) => may(authz, &user, "", "serviceaccounts", "", (ns, n)).await?,
        None => may(authz, &user, "", "users", "", ("", &want.name)).await?,
    }
    for g in &want.groups {
        may(authz, &user, "", "groups", "", ("", g)).await?;
    }
    for (k, values) in &want.extra {
        for v in values {
            may(authz, &user, "authentication.k8s.io", "userextras", k, ("", v)).await?;
        }
    }
    if !want.uid.is_empty() {
        may(authz, &user, "authentication.k8s.io", "uids", "", ("", &want.uid)).await?;
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
