//! The AdmissionReview: what a webhook is asked, and what it may answer.

use base64::{Engine, engine::general_purpose::STANDARD as B64};
use serde_json::{Value, json};

use crate::{
    authn::User,
    http::{
        ApiError,
        status::{Cause, Details},
    },
};

/// A kind or a resource: group, version, name.
pub type Gvn<'a> = (&'a str, &'a str, &'a str);

/// What is asked.
#[derive(Debug)]
pub struct Question<'a> {
    pub uid: &'a str,
    /// As the webhook named it, and as the client asked.
    pub kind: Gvn<'a>,
    pub request_kind: Gvn<'a>,
    pub resource: Gvn<'a>,
    pub request_resource: Gvn<'a>,
    pub subresource: &'a str,
    pub name: &'a str,
    pub namespace: &'a str,
    pub operation: &'a str,
    pub user: &'a User,
    pub object: Value,
    pub old_object: Value,
    pub dry_run: bool,
    pub options: Value,
}

impl Question<'_> {
    pub fn review(self, version: &str) -> Value {
        let of = |(group, version, kind): Gvn<'_>| json!({"group": group, "version": version, "kind": kind});
        let named = |(group, version, resource): Gvn<'_>| json!({"group": group, "version": version, "resource": resource});
        let mut user = json!({"username": self.user.name, "groups": self.user.groups});
        if !self.user.uid.is_empty() {
            user["uid"] = self.user.uid.as_str().into();
        }
        if !self.user.extra.is_empty() {
            user["extra"] = self.user.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<serde_json::Map<_, _>>().into();
        }
        let mut request = json!({
            "uid": self.uid, "kind": of(self.kind), "resource": named(self.resource), "requestKind": of(self.request_kind),
            "requestResource": named(self.request_resource), "operation": self.operation, "userInfo": user,
            "object": self.object, "oldObject": self.old_object, "dryRun": self.dry_run, "options": self.options,
        });
        for (field, value) in [
            ("subResource", self.subresource),
            ("requestSubResource", self.subresource),
            ("name", self.name),
            ("namespace", self.namespace),
        ] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request})
    }
}

/// What was answered.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub allowed: bool,
    /// A JSON patch.
    pub patch: Vec<u8>,
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
    /// A Status, or null.
    pub result: Value,
}

/// Reads an answer to the request `uid`. Only who may change objects may send a patch.
pub fn answer(review: &Value, version: &str, uid: &str, mutating: bool) -> Result<Answer, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let wanted = format!("admission.k8s.io/{version}");
    // The first version of the review did not have to say what it is, nor to what it answers.
    if version != "v1beta1" {
        let (got, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
        if got != wanted || kind != "AdmissionReview" {
            return Err(format!("expected webhook response of {wanted}, Kind=AdmissionReview, got {got}, Kind={kind}"));
        }
        if response["uid"] != uid {
            return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
        }
    }
    let encoded = text(&response["patch"]);
    let patch = B64.decode(&encoded).map_err(|e| format!("response.patch is no base64: {e}"))?;
    let patch_type = response["patchType"].as_str();
    if mutating && !patch.is_empty() && version != "v1beta1" && patch_type.is_none() {
        return Err("webhook returned response.patch but not response.patchType".into());
    }
    if mutating && version != "v1beta1" && patch.is_empty() && patch_type.is_some() {
        return Err("webhook returned response.patchType but not response.patch".into());
    }
    if let Some(other) = patch_type.filter(|t| mutating && *t != "JSONPatch") {
        return Err(format!("webhook returned invalid response.patchType of {other:?}"));
    }
    let warnings = response["warnings"].as_array().map(|w| w.iter().map(text).collect()).unwrap_or_default();
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect();
    Ok(Answer { allowed: response["allowed"] == true, patch, warnings, annotations, result: response["status"].clone() })
}

/// The error that a refusal becomes.
pub fn refusal(name: &str, result: &Value) -> ApiError {
    let text = |f: &str| result[f].as_str().unwrap_or("");
    let (message, reason) = (text("message"), text("reason"));
    let by = format!("admission webhook {name:?} denied the request");
    let shown = match (message, reason) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = result["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c)).unwrap_or(400);
    let mut e = ApiError::new(code, "", shown);
    e.reason = reason.to_owned().into();
    if result["details"].is_object() {
        let d = &result["details"];
        let text = |v: &Value, f: &str| v[f].as_str().unwrap_or("").to_owned();
        let causes = d["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let causes = causes.iter().map(|c| Cause { reason: text(c, "reason"), message: text(c, "message"), field: text(c, "field") });
        e.details = Some(Box::new(Details {
            name: text(d, "name"),
            group: text(d, "group"),
            kind: text(d, "kind"),
            uid: text(d, "uid"),
            causes: causes.collect(),
            retry_after: d["retryAfterSeconds"].as_u64().and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
        }));
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let review = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        let patch = B64.encode("[]");
        let got = answer(
            &review(
                json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["w"], "auditAnnotations": {"k": "v"}}),
            ),
            "v1",
            "u",
            true,
        );
        let want = Answer {
            allowed: true,
            patch: b"[]".to_vec(),
            warnings: vec!["w".into()],
            annotations: vec![("k".into(), "v".into())],
            result: Value::Null,
        };
        assert_eq!(got.unwrap(), want);
        let cases = [
            (json!({"kind": "AdmissionReview"}), "webhook response was absent"),
            (review(json!({"uid": "x", "allowed": true})), "expected response.uid=\"u\", got \"x\""),
            (review(json!({"uid": "u", "patch": patch})), "webhook returned response.patch but not response.patchType"),
            (review(json!({"uid": "u", "patchType": "JSONPatch"})), "webhook returned response.patchType but not response.patch"),
            (review(json!({"uid": "u", "patchType": "X", "patch": patch})), "webhook returned invalid response.patchType of \"X\""),
            (json!({"response": {}}), "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got , Kind="),
        ];
        for (v, want) in cases {
            assert_eq!(answer(&v, "v1", "u", true).unwrap_err(), want);
        }
        assert!(answer(&review(json!({"uid": "u", "patch": patch})), "v1", "u", false).is_ok(), "who only judges has nothing to patch");
        assert!(answer(&json!({"response": {"allowed": true}}), "v1beta1", "u", true).unwrap().allowed);
        assert!(!answer(&review(json!({"uid": "u"})), "v1", "u", true).unwrap().allowed);
    }

    #[test]
    fn a_refusal_is_an_error_that_names_the_webhook() {
        let cases = [
            (Value::Null, 400, "admission webhook \"x\" denied the request without explanation"),
            (json!({"code": 403, "message": "no"}), 403, "admission webhook \"x\" denied the request: no"),
            (json!({"code": 200, "reason": "Because"}), 400, "admission webhook \"x\" denied the request: Because"),
        ];
        for (result, code, message) in cases {
            let e = refusal("x", &result);
            assert_eq!((e.code, e.message.as_str()), (code, message));
        }
        let e = refusal("x", &json!({"reason": "Invalid", "details": {"causes": [{"field": "spec"}]}}));
        assert_eq!((&*e.reason, e.details.as_ref().unwrap().causes[0].field.as_str()), ("Invalid", "spec"));
    }
}
