//! Tokens of another issuer: found by discovery, believed by its keys, mapped by a configuration that can change.

use std::{path::Path, sync::Mutex};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use hyper::{Method, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use kube_client::config::AuthInfo;
use serde_json::json;

use super::*;

/// A key of an issuer.
enum Key {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Key {
    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Ec(k) => {
                let (x, y) = k.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": B64.encode(x), "y": B64.encode(y)})
            }
            Self::Rsa(k) => {
                let (n, e) = (k.public_key().modulus(), k.public_key().exponent());
                json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": kid, "n": B64.encode(n.big_endian_without_leading_zero()),
                    "e": B64.encode(e.big_endian_without_leading_zero())})
            }
        }
    }

    fn sign(&self, kid: &str, claims: &Value) -> String {
        let alg = if matches!(self, Self::Ec(_)) { "ES256" } else { "RS256" };
        let signed = format!("{}.{}", B64.encode(json!({"alg": alg, "kid": kid}).to_string()), B64.encode(claims.to_string()));
        let rng = SystemRandom::new();
        let signature = match self {
            Self::Ec(k) => k.sign(&rng, signed.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Rsa(k) => {
                let mut out = vec![0; k.public_modulus_len()];
                k.sign(&RSA_PKCS1_SHA256, &rng, signed.as_bytes(), &mut out).unwrap();
                out
            }
        };
        format!("{signed}.{}", B64.encode(signature))
    }
}

fn ec() -> Key {
    Key::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
}

/// An issuer on loopback that shows the keys it was last given.
struct Issuer {
    url: String,
    ca: String,
    keys: Arc<Mutex<Value>>,
}

impl Issuer {
    async fn start(keys: Value) -> Self {
        let Listener { port, ca, tcp, tls } = listen("localhost", None).await;
        let url = format!("https://127.0.0.1:{port}");
        let keys = Arc::new(Mutex::new(keys));
        let (own, shown) = (url.clone(), Arc::clone(&keys));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = tcp.accept().await {
                let (tls, own, shown) = (tls.clone(), own.clone(), Arc::clone(&shown));
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let v = match request.uri().path() {
                            "/.well-known/openid-configuration" => json!({"issuer": own, "jwks_uri": format!("{own}/keys")}),
                            "/keys" => json!({"keys": *shown.lock().unwrap()}),
                            _ => json!({}),
                        };
                        async move { Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Full::new(Bytes::from(v.to_string())))) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { url, ca, keys }
    }

    fn claims(&self, sub: &str) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({"iss": self.url, "aud": ["kubernetes", "other"], "sub": sub, "exp": now + 600, "iat": now, "roles": ["dev"], "tenant": "t1"})
    }
}

/// A client that has nothing but what its headers say.
pub async fn nobody(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join("admin.kubeconfig")).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info = AuthInfo::default();
    Client::try_from(config).unwrap()
}

/// Who a token's bearer is; none: nobody.
pub async fn who(client: &Client, token: &str) -> Option<Value> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let headers = [("authorization", &*format!("Bearer {token}"))];
    let a = send(client, Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &headers, &review).await;
    assert!(matches!(a.code, 201 | 401), "{}: {}", a.code, String::from_utf8_lossy(&a.body));
    (a.code == 201).then(|| a.json()["status"]["userInfo"].take())
}

fn configure(path: &Path, issuer: &Issuer, prefix: &str) {
    let ca: String = issuer.ca.lines().map(|l| format!("      {l}\n")).collect();
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {}\n    audiences: [kubernetes]\n    \
         certificateAuthority: |\n{ca}  claimMappings:\n    username: {{expression: '\"{prefix}\" + claims.sub'}}\n    \
         groups: {{claim: roles, prefix: 'oidc:'}}\n    extra: [{{key: example.com/tenant, valueExpression: claims.tenant}}]\n  \
         claimValidationRules: [{{expression: \"claims.tenant != 'banned'\", message: banned}}]\n  \
         userValidationRules: [{{expression: \"!user.username.startsWith('system:')\", message: reserved}}]\n\
         anonymous: {{enabled: true, conditions: [{{path: /livez}}]}}\n",
        issuer.url
    );
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_configured_issuer_name_users() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (ec(), ec());
    let issuer = Issuer::start(json!([one.jwk("1")])).await;
    let file = dir.path().join("authentication.yaml");
    configure(&file, &issuer, "");
    let cluster = start(&dir, vec![format!("--authentication-config={}", file.display())]).await;
    let client = nobody(&cluster).await;
    let with = |k: &str, v: Value| {
        let mut c = issuer.claims("jane");
        c[k] = v;
        one.sign("1", &c)
    };
    let good = one.sign("1", &issuer.claims("jane"));
    let user = who(&client, &good).await.expect("the token is good");
    assert_eq!(user, json!({"username": "jane", "groups": ["oidc:dev", "system:authenticated"], "extra": {"example.com/tenant": ["t1"]}}));
    for (what, bad) in [
        ("another audience", with("aud", json!("other"))),
        ("over", with("exp", json!(1_000_000))),
        ("not yet", with("nbf", json!(9_000_000_000_i64))),
        ("another issuer", with("iss", json!("https://127.0.0.1:1"))),
        ("a claim's rule", with("tenant", json!("banned"))),
        ("a user's rule", with("sub", json!("system:admin"))),
        ("a claim that is no string", with("sub", json!(["x"]))),
        ("another's signature", two.sign("1", &issuer.claims("jane"))),
        ("nonsense", format!("{good}x")),
    ] {
        assert_eq!(who(&client, &bad).await, None, "{what}");
    }
    // Anonymous requests are for what the configuration names.
    assert_eq!([get(&client, "/livez", &[]).await.code, get(&client, "/version", &[]).await.code], [200, 401]);
    // What was found is authorized as anybody else.
    let admin = super::client(&cluster, "admin").await;
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]);
    let role = json!({"metadata": {"name": "maps"}, "rules": rules});
    done(&admin, Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({"metadata": {"name": "dev"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maps"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "oidc:dev"}]});
    done(&admin, Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let bearer = format!("Bearer {good}");
    until("the binding", async || {
        let a = get(&client, "/api/v1/namespaces/default/configmaps", &[("authorization", &bearer)]).await;
        (a.code == 200).then_some(())
    })
    .await;

    // The issuer's keys change: the new one is found, the old one forgotten.
    *issuer.keys.lock().unwrap() = json!([two.jwk("2")]);
    let newer = two.sign("2", &issuer.claims("john"));
    let john = until("the new key", async || who(&client, &newer).await).await;
    assert_eq!(john["username"], "john");
    assert_eq!(who(&client, &with("sub", json!("jill"))).await, None, "its key is taken back");

    // The configuration changes while the server runs.
    configure(&file, &issuer, "corp:");
    until("the new configuration", async || (who(&client, &newer).await?["username"] == "corp:john").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_issuer_can_be_given_by_flags() {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    let unsuitable = ec();
    let issuer = Issuer::start(json!([key.jwk("r"), unsuitable.jwk("e")])).await;
    let ca = dir.path().join("issuer.crt");
    std::fs::write(&ca, &issuer.ca).unwrap();
    let flags = [
        format!("--oidc-issuer-url={}", issuer.url),
        "--oidc-client-id=kubernetes".into(),
        format!("--oidc-ca-file={}", ca.display()),
        "--oidc-groups-claim=roles".into(),
        "--oidc-groups-prefix=g:".into(),
        "--oidc-required-claim=tenant=t1".into(),
    ];
    let cluster = start(&dir, flags.to_vec()).await;
    let client = nobody(&cluster).await;
    let user = who(&client, &key.sign("r", &issuer.claims("jane"))).await.expect("the token is good");
    assert_eq!((&user["username"], &user["groups"][0]), (&json!(format!("{}#jane", issuer.url)), &json!("g:dev")));
    assert_eq!(who(&client, &unsuitable.sign("e", &issuer.claims("jane"))).await, None, "only RS256 was asked for");
    let mut other = issuer.claims("jane");
    other["tenant"] = "t2".into();
    assert_eq!(who(&client, &key.sign("r", &other)).await, None);
}
