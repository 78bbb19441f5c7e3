//! Tokens that a webhook knows: each is sent to it in a TokenReview, and its answers are remembered for a while.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Rejected, User, memo};
use crate::webhook::Configured;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers remembered, at most.
const MAX: usize = 4096;

type Verdict = Result<(User, Vec<String>), Rejected>;

pub struct TokenWebhook {
    hook: Configured,
    version: String,
    ttl: Duration,
    known: Mutex<HashMap<memo::Key, (Instant, Verdict)>>,
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
}

/// What a review's status says of a token that is to be for one of `audiences`.
fn verdict(status: &Value, audiences: &[String]) -> Verdict {
    if status["authenticated"] != true {
        return Err(Rejected(format!("the webhook does not know the token: {}", status["error"].as_str().unwrap_or(""))));
    }
    // A webhook that says nothing of audiences answers for this server.
    let theirs = strings(&status["audiences"]);
    let meant: Vec<String> =
        if theirs.is_empty() { audiences.to_vec() } else { audiences.iter().filter(|a| theirs.contains(a)).cloned().collect() };
    if meant.is_empty() {
        return Err(Rejected("another audience".into()));
    }
    let user = &status["user"];
    let text = |f: &str| user[f].as_str().unwrap_or("").to_owned();
    let mut extra: Vec<(String, Vec<String>)> =
        user["extra"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), strings(v))).collect();
    extra.sort();
    Ok((User { name: text("username"), uid: text("uid"), groups: strings(&user["groups"]), extra }, meant))
}

impl TokenWebhook {
    pub fn new(hook: Configured, version: String, ttl: Duration) -> Self {
        Self { hook, version, ttl, known: Mutex::default() }
    }

    pub async fn authenticate(&self, token: &str, audiences: &[String]) -> Verdict {
        let key = memo::key(std::iter::once(token.as_bytes()).chain(audiences.iter().map(String::as_bytes)));
        if let Some((at, v)) = self.known.lock().get(&key)
            && at.elapsed() < self.ttl
        {
            return v.clone();
        }
        let review = json!({"apiVersion": format!("authentication.k8s.io/{}", self.version), "kind": "TokenReview", "metadata": {},
            "spec": {"token": token, "audiences": audiences}});
        // A webhook that cannot be reached has said nothing that could be remembered.
        let answer = self.hook.post(&review, TIMEOUT).await.map_err(Rejected)?;
        let v = verdict(&answer["status"], audiences);
        let mut known = self.known.lock();
        if known.len() >= MAX {
            known.retain(|_, (at, _)| at.elapsed() < self.ttl);
        }
        if known.len() < MAX {
            known.insert(key, (Instant::now(), v.clone()));
        }
        v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_for_the_audiences_that_were_asked_for() {
        let own = ["api".to_owned()];
        let user = json!({"username": "jane", "groups": ["a"], "extra": {"k": ["v"]}});
        let say = |audiences: Value| verdict(&json!({"authenticated": true, "user": user, "audiences": audiences}), &own);
        assert_eq!(say(Value::Null).unwrap().1, own);
        assert_eq!(say(json!(["x", "api"])).unwrap().1, own);
        assert!(say(json!(["x"])).is_err());
        assert_eq!(say(Value::Null).unwrap().0.extra, [("k".to_owned(), vec!["v".to_owned()])]);
        assert!(verdict(&json!({"authenticated": false, "user": user}), &own).is_err());
        assert!(verdict(&Value::Null, &own).is_err());
    }
}
