//! Users whom a proxy names in headers, and what extension servers learn of whom to trust.

use hyper::Method;
use serde_json::json;

use super::*;

const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

#[tokio::test(flavor = "multi_thread")]
async fn only_a_known_proxy_speaks_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, vec!["--requestheader-uid-headers=X-Remote-Uid".into()]).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let jane = [
        ("x-remote-user", "jane"),
        ("x-remote-uid", "42"),
        ("x-remote-group", "system:masters"),
        ("x-remote-group", "staff"),
        ("x-remote-extra-acme.com%2fproject", "apollo"),
    ];
    let proxy = client(&cluster, "front-proxy-client").await;
    let a = send(&proxy, Method::POST, REVIEW, &jane, &review).await;
    let user = &a.json()["status"]["userInfo"];
    assert_eq!(
        (a.code, user),
        (
            201,
            &json!({"username": "jane", "uid": "42", "groups": ["system:masters", "staff", "system:authenticated"],
            "extra": {"acme.com/project": ["apollo"]}})
        )
    );
    // The proxy is nobody itself, and another certificate of the same authority is no proxy.
    assert_eq!(send(&proxy, Method::POST, REVIEW, &[], &review).await.code, 401);
    let stranger = client(&cluster, "front-proxy-stranger").await;
    assert_eq!(send(&stranger, Method::POST, REVIEW, &jane, &review).await.code, 401);
    // Who has a good certificate of their own is themselves, whatever they say of others.
    let admin = client(&cluster, "admin").await;
    let a = send(&admin, Method::POST, REVIEW, &jane, &review).await;
    assert_eq!((a.code, &a.json()["status"]["userInfo"]["username"]), (201, &json!("admin")));

    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let map = until("the ConfigMap", async || {
        let a = get(&admin, path, &[]).await;
        (a.code == 200).then(|| a.json())
    })
    .await;
    let read = |n: &str| std::fs::read_to_string(cluster.dir.join(n)).unwrap();
    let data = &map["data"];
    let certificate = |v: &Value| v.as_str().unwrap().replace('\n', "");
    assert_eq!(certificate(&data["client-ca-file"]), read("ca.crt").replace('\n', ""));
    assert_eq!(certificate(&data["requestheader-client-ca-file"]), read("front-proxy-ca.crt").replace('\n', ""));
    assert_eq!(
        (&data["requestheader-allowed-names"], &data["requestheader-username-headers"], &data["requestheader-uid-headers"]),
        (&json!("[\"front-proxy-client\"]"), &json!("[\"X-Remote-User\"]"), &json!("[\"X-Remote-Uid\"]"))
    );
    // Who is bound to the role may read it.
    let binding = json!({"metadata": {"name": "reader", "namespace": "kube-system"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "extension-apiserver-authentication-reader"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "reader"}]});
    done(&admin, Method::POST, "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings", binding).await;
    let reader = [("x-remote-user", "reader")];
    until("the binding", async || (get(&proxy, path, &reader).await.code == 200).then_some(())).await;
    assert_eq!(get(&proxy, "/api/v1/namespaces/kube-system/configmaps/other", &reader).await.code, 403);
}
