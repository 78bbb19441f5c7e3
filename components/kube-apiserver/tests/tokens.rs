//! Tokens that stand in Secrets, on a real etcd: good as long as the Secret holds them.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use cluster::Cluster;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewStatus},
    core::v1::{Secret, ServiceAccount},
};
use kube_client::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

fn sign(key: &EcdsaKeyPair, claims: &Value) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "ES256"})), part(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

async fn review(client: &Client, token: &str) -> TokenReviewStatus {
    let asked: TokenReview = serde_json::from_value(json!({"metadata": {}, "spec": {"token": token}})).unwrap();
    Api::all(client.clone()).create(&PostParams::default(), &asked).await.unwrap().status.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_secret_is_good_while_the_secret_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(&path)).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join("admin.kubeconfig")).unwrap();
    let client = Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()).unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let account = serde_json::from_value(json!({"metadata": {"name": "robot"}})).unwrap();
    let uid = accounts.create(&PostParams::default(), &account).await.unwrap().metadata.uid.unwrap();

    let der = PrivatePkcs8KeyDer::from_pem_file(cluster.dir.join("sa.key")).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der()).unwrap();
    let token = sign(
        &key,
        &json!({"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:default:robot",
            "kubernetes.io/serviceaccount/namespace": "default", "kubernetes.io/serviceaccount/secret.name": "robot-token",
            "kubernetes.io/serviceaccount/service-account.name": "robot", "kubernetes.io/serviceaccount/service-account.uid": uid}),
    );
    assert_eq!(review(&client, &token).await.authenticated, None, "there is no Secret yet");

    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let secret = json!({"metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token", "data": {"token": STANDARD.encode(&token)}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    secrets.get("robot-token").await.unwrap();
    // Another token of the same account is none of the Secret's.
    let other = sign(
        &key,
        &json!({"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:default:robot", "x": 1,
        "kubernetes.io/serviceaccount/namespace": "default", "kubernetes.io/serviceaccount/secret.name": "robot-token",
        "kubernetes.io/serviceaccount/service-account.name": "robot", "kubernetes.io/serviceaccount/service-account.uid": uid}),
    );
    assert_eq!(review(&client, &other).await.authenticated, None);
    let status = review(&client, &token).await;
    assert_eq!(status.authenticated, Some(true));
    let user = status.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:robot"));
    assert!(user.groups.unwrap().contains(&"system:serviceaccounts:default".to_owned()));

    // The Secret says on which day its token was used last.
    let used = cluster::until("the day of the last use", async || {
        let labels = secrets.get("robot-token").await.unwrap().metadata.labels?;
        labels.get("kubernetes.io/legacy-token-last-used").cloned()
    })
    .await;
    assert_eq!(used.len(), "2026-01-01".len(), "{used}");

    // What was good is remembered for ten seconds, so the other token shows what a Secret that is marked means.
    let invalid = Patch::Merge(
        json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}}, "data": {"token": STANDARD.encode(&other)}}),
    );
    secrets.patch("robot-token", &PatchParams::default(), &invalid).await.unwrap();
    secrets.get("robot-token").await.unwrap();
    assert_eq!(review(&client, &other).await.authenticated, None);
    secrets.delete("robot-token", &DeleteParams::default()).await.unwrap();
}
