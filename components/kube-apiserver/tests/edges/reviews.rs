//! Webhooks that know tokens and that judge requests.

use std::sync::Mutex;

use hyper::{Method, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::{oidc::nobody, *};

/// A webhook that answers reviews, and what it was asked.
pub struct Hook {
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    /// Writes the file by which the server finds it.
    pub async fn start(file: &std::path::Path, answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let Listener { port, ca, tcp, tls } = listen("localhost", None).await;
        let ca_file = file.with_extension("crt");
        std::fs::write(&ca_file, ca).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: w\nclusters: [{{name: w, cluster: {{server: 'https://127.0.0.1:{port}/review', \
             certificate-authority: {}}}}}]\nusers: [{{name: w, user: {{token: secret}}}}]\ncontexts: [{{name: w, context: {{cluster: w, user: w}}}}]\n",
            ca_file.display()
        );
        std::fs::write(file, text).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = tcp.accept().await {
                let (tls, log, answer) = (tls.clone(), Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                        async move {
                            assert_eq!(
                                (request.uri().path(), &request.headers()["authorization"]),
                                ("/review", &"Bearer secret".parse().unwrap())
                            );
                            let review: Value = serde_json::from_slice(&request.into_body().collect().await?.to_bytes()).unwrap();
                            let text =
                                json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "status": answer(&review["spec"])});
                            log.lock().unwrap().push(review);
                            Ok::<_, hyper::Error>(Response::new(http_body_util::Full::new(Bytes::from(text.to_string()))))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { asked }
    }

    pub fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_know_tokens_and_judge_requests() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    let tokens = Hook::start(&path("tokens"), |spec| match spec["token"].as_str() {
        Some("good") => json!({"authenticated": true, "user": {"username": "jane", "groups": ["dev"], "extra": {"k": ["v"]}}}),
        Some("elsewhere") => json!({"authenticated": true, "user": {"username": "jane"}, "audiences": ["other"]}),
        _ => json!({"authenticated": false, "error": "unknown"}),
    })
    .await;
    let judge = Hook::start(&path("judge"), |spec| match spec["resourceAttributes"]["name"].as_str() {
        Some("allowed") => json!({"allowed": true, "reason": "so be it"}),
        Some("denied") => json!({"allowed": false, "denied": true, "reason": "never"}),
        _ => json!({"allowed": false}),
    })
    .await;
    let config = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- type: Webhook\n  name: judge\n  webhook:\n    \
         timeout: 3s\n    subjectAccessReviewVersion: v1\n    matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: Deny\n    \
         connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}\n    matchConditions:\n    \
         - expression: has(request.resourceAttributes) && request.resourceAttributes.resource == 'configmaps'\n- {{type: Node, name: node}}\n- {{type: RBAC, name: rbac}}\n",
        path("judge").display()
    );
    std::fs::write(path("authorization"), config).unwrap();
    let flags = [
        format!("--authentication-token-webhook-config-file={}", path("tokens").display()),
        "--authentication-token-webhook-version=v1".into(),
        format!("--authorization-config={}", path("authorization").display()),
    ];
    let cluster = start(&dir, flags.to_vec()).await;
    let client = nobody(&cluster).await;
    let good = [("authorization", "Bearer good")];

    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let a = send(&client, Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &good, &review).await;
    let user = json!({"username": "jane", "groups": ["dev", "system:authenticated"], "extra": {"k": ["v"]}});
    assert_eq!((a.code, &a.json()["status"]["userInfo"]), (201, &user));
    for bad in ["bad", "elsewhere"] {
        let bearer = format!("Bearer {bad}");
        assert_eq!(get(&client, MAPS, &[("authorization", &bearer)]).await.code, 401, "{bad}");
    }
    let asked = tokens.asked();
    assert_eq!((asked.len(), &asked[0]["spec"]["audiences"]), (3, &json!(["https://kubernetes.default.svc"])));

    let admin = super::client(&cluster, "admin").await;
    for name in ["allowed", "denied", "other"] {
        done(&admin, Method::POST, MAPS, json!({"metadata": {"name": name}})).await;
    }
    assert!(judge.asked().is_empty(), "administrators are asked nothing about");
    let code = async |path: &str| get(&client, path, &good).await.code;
    assert_eq!(code(&format!("{MAPS}/allowed")).await, 200);
    let a = get(&client, &format!("{MAPS}/denied"), &good).await;
    assert_eq!(a.code, 403);
    assert!(a.json()["message"].as_str().unwrap().ends_with(": never"), "{}", a.json());
    assert_eq!(code(&format!("{MAPS}/other")).await, 403);
    assert_eq!(code("/api/v1/namespaces/default/secrets").await, 403);
    let asked = judge.asked();
    assert_eq!(asked.len(), 3, "no condition holds for secrets");
    assert_eq!(asked[0]["apiVersion"], "authorization.k8s.io/v1");
    let attributes = json!({"namespace": "default", "verb": "get", "group": "", "version": "v1", "resource": "configmaps", "subresource": "", "name": "allowed"});
    assert_eq!((&asked[0]["spec"]["resourceAttributes"], &asked[0]["spec"]["user"]), (&attributes, &json!("jane")));
    assert_eq!(code(&format!("{MAPS}/allowed")).await, 200);
    assert!(judge.asked().is_empty(), "the answer is remembered");

    // What RBAC allows is allowed where the webhook has no opinion, and not where it says no.
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]);
    let role = json!({"metadata": {"name": "maps"}, "rules": rules});
    done(&admin, Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({"metadata": {"name": "jane"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maps"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]});
    done(&admin, Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    until("the binding", async || (code(&format!("{MAPS}/other")).await == 200).then_some(())).await;
    assert_eq!(code(&format!("{MAPS}/denied")).await, 403);
    let sar = |name: &str| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "jane",
            "resourceAttributes": {"verb": "get", "version": "v1", "resource": "configmaps", "namespace": "default", "name": name}}})
    };
    let status = async |name: &str| {
        done(&admin, Method::POST, "/apis/authorization.k8s.io/v1/subjectaccessreviews", sar(name)).await["status"].take()
    };
    assert_eq!(status("denied").await, json!({"allowed": false, "denied": true, "reason": "never"}));
    assert_eq!(status("allowed").await, json!({"allowed": true, "reason": "so be it"}));
}
