//! Bad input in bulk: each answered as upstream answers it, and nothing of it stored. What a single answer says is compared with recorded ones
//! in `tests/corpus.rs`.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::Method;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;

use super::{
    oidc::{nobody, who},
    reload::replace,
    *,
};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MAP: &str = "/api/v1/namespaces/default/configmaps/target";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

struct Bad {
    what: &'static str,
    method: Method,
    path: String,
    kind: &'static str,
    body: Vec<u8>,
    code: u16,
}

fn bad(what: &'static str, method: Method, path: impl Into<String>, kind: &'static str, body: impl Into<Vec<u8>>, code: u16) -> Bad {
    Bad { what, method, path: path.into(), kind, body: body.into(), code }
}

/// A definition whose only field has this rule.
fn definition(rule: &str) -> String {
    let list = json!({"type": "array", "items": {"type": "string"}});
    let spec = json!({"type": "object", "properties": {"a": list, "b": list}, "x-kubernetes-validations": [{"rule": rule}]});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.bad.example.com"},
        "spec": {"group": "bad.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1",
            "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]}})
    .to_string()
}

/// Every sort of bad input that needs no preparation but the object that it tries to change.
fn all() -> Vec<Bad> {
    use Method as M;
    let map = |more: &str| format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"bad"}}{more}}}"#);
    let deep = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let mode = |mode: &str| format!("{MAPS}?dryRun=All&fieldValidation={mode}");
    // Each copy takes everything that is there.
    let copies: Vec<Value> = (0..24).map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/c{i}")})).collect();
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "/kind", "value": "ConfigMap"})).collect();
    let aliases: String = (1..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
        let last = vec![format!("*a{}", i - 1); 9].join(",");
        format!("{text}a{i}: &a{i} [{last}]\n")
    });
    let apply = |manager: &str| format!("{MAP}?fieldManager={manager}");
    vec![
        bad("broken", M::POST, MAPS, JSON, r#"{"metadata":"#, 400),
        bad("empty", M::POST, MAPS, JSON, "", 400),
        bad("no text at all", M::POST, MAPS, JSON, vec![0xff; 64 << 10], 400),
        bad("broken YAML", M::POST, MAPS, YAML, "a: [", 400),
        bad("YAML that grows", M::POST, MAPS, YAML, aliases, 400),
        bad("broken protobuf", M::POST, MAPS, PROTOBUF, [b"k8s\0".as_slice(), &[0xff; 4096]].concat(), 400),
        bad("oversized", M::POST, MAPS, JSON, map(&format!(r#","data":{{"a":"{}"}}"#, "x".repeat(3 << 20))), 413),
        bad("too large to keep", M::POST, MAPS, JSON, map(&format!(r#","data":{{"a":"{}"}}"#, "x".repeat(2 << 20))), 422),
        bad("deep lists", M::POST, MAPS, JSON, map(&format!(r#","x":{}"#, deep("[", "]", 10_001))), 400),
        bad("deep objects", M::POST, MAPS, JSON, map(&format!(r#","x":{}"#, deep(r#"{"a":"#, "}", 10_001).replace(":}", ":1}"))), 400),
        bad("deeper than the body is long", M::POST, MAPS, JSON, "[".repeat(1 << 20), 400),
        bad("deep YAML", M::POST, MAPS, YAML, deep("[", "]", 20_000), 400),
        bad("a wrong type", M::POST, MAPS, JSON, map(r#","data":5"#), 400),
        bad("a wrong type inside", M::POST, MAPS, JSON, map(r#","data":{"a":[1]}"#), 400),
        bad("a field twice, ignored", M::POST, mode("Ignore"), JSON, map(r#","data":{},"data":{}"#), 201),
        bad("a field twice, warned of", M::POST, mode("Warn"), JSON, map(r#","data":{},"data":{}"#), 201),
        bad("a field twice", M::POST, mode("Strict"), JSON, map(r#","data":{},"data":{}"#), 400),
        bad("an unknown field, ignored", M::POST, mode("Ignore"), JSON, map(r#","dada":{}"#), 201),
        bad("an unknown field, warned of", M::POST, mode("Warn"), JSON, map(r#","dada":{}"#), 201),
        bad("an unknown field", M::POST, mode("Strict"), JSON, map(r#","dada":{}"#), 400),
        bad("no such mode", M::POST, mode("Loose"), JSON, map(""), 422),
        bad("a label selector", M::GET, format!("{MAPS}?labelSelector=a%20in%20("), JSON, "", 400),
        bad("a long label selector", M::GET, format!("{MAPS}?labelSelector=a%20in%20({}", "x,".repeat(20_000)), JSON, "", 400),
        bad("a field selector", M::GET, format!("{MAPS}?fieldSelector=data.a%3Db"), JSON, "", 400),
        bad("a field selector of a watch", M::GET, format!("{MAPS}?watch=1&fieldSelector=a"), JSON, "", 400),
        bad("a continue token", M::GET, format!("{MAPS}?limit=1&continue=AAAA"), JSON, "", 400),
        bad("a patch of another format", M::PATCH, MAP, JSON, "{}", 415),
        bad("a broken JSON patch", M::PATCH, MAP, JSON_PATCH, r#"[{"op":"add""#, 400),
        bad("a JSON patch that is no list", M::PATCH, MAP, JSON_PATCH, r#"{"op":"add"}"#, 400),
        bad("a JSON patch of nothing", M::PATCH, MAP, JSON_PATCH, r#"[{"op":"remove","path":"/data/none"}]"#, 422),
        bad("a JSON patch that doubles", M::PATCH, MAP, JSON_PATCH, json!(copies).to_string(), 422),
        bad("too long a JSON patch", M::PATCH, MAP, JSON_PATCH, json!(many).to_string(), 413),
        bad("a merge patch that is a list", M::PATCH, MAP, MERGE, "[]", 400),
        bad(
            "a deep merge patch",
            M::PATCH,
            MAP,
            MERGE,
            format!(r#"{{"data":{}}}"#, deep(r#"{"a":"#, "}", 10_001).replace(":}", ":1}")),
            400,
        ),
        bad("a strategic patch that is a list", M::PATCH, MAP, STRATEGIC, "[]", 400),
        bad("an apply of another manager's field", M::PATCH, apply("b"), APPLY, map(r#","data":{"a":"2"}"#).replace("bad", "target"), 409),
        bad("an apply without a manager", M::PATCH, MAP, APPLY, map("").replace("bad", "target"), 422),
        bad("an apply that is broken", M::PATCH, apply("b"), APPLY, "a: [", 400),
        bad("invalid CEL", M::POST, CRDS, JSON, definition("self.a +"), 422),
        bad("CEL of wrong types", M::POST, CRDS, JSON, definition("self.a > 1"), 422),
        bad("costly CEL", M::POST, CRDS, JSON, definition("self.a.all(x, self.b.all(y, self.a.all(z, x + y + z != '')))"), 422),
        bad("deep CEL", M::POST, CRDS, JSON, definition(&deep("(", ")", 20_000)), 422),
    ]
}

async fn answer(client: &Client, bad: &Bad) -> (u16, String) {
    let request = Request::builder().method(bad.method.clone()).uri(&bad.path).header("content-type", bad.kind).header("accept", JSON);
    let response = client.send(request.body(Body::from(bad.body.clone())).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    (code, String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, Vec::new()).await;
    let admin = client(&cluster, "admin").await;
    let target = format!("{MAP}?fieldManager=a&force=true");
    let good = bad(
        "",
        Method::PATCH,
        target,
        APPLY,
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"target"},"data":{"a":"1"}}"#,
        201,
    );
    assert_eq!(answer(&admin, &good).await.0, good.code);
    // Twice: nothing that came before changes an answer.
    for bad in all().iter().chain(&all()) {
        let (code, text) = answer(&admin, bad).await;
        let said: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}: {text}", bad.what));
        assert_eq!(code, bad.code, "{}: {:.300}", bad.what, text);
        assert!(code == 201 || said["kind"] == "Status" && said["code"] == code, "{}: {text:.300}", bad.what);
    }
    let map = get(&admin, MAP, &[]).await.json();
    assert_eq!(map["data"], json!({"a": "1"}), "nothing of it was kept");
}

fn signed(key: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn signer(pem: &str) -> EcdsaKeyPair {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_forged_or_over_are_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, Vec::new()).await;
    let (admin, stranger) = (client(&cluster, "admin").await, nobody(&cluster).await);
    done(&admin, Method::POST, "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "robot"}})).await;
    let own = signer(&std::fs::read_to_string(cluster.dir.join("sa.key")).unwrap());
    let other = signer(&pki::PrivateKey::generate().unwrap().to_pem());
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let given = done(&admin, Method::POST, "/api/v1/namespaces/default/serviceaccounts/robot/token", asked).await;
    let good = given["status"]["token"].as_str().unwrap().to_owned();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(good.split('.').next().unwrap()).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(good.split('.').nth(1).unwrap()).unwrap()).unwrap();
    let with = |field: &str, value: Value| {
        let mut claims = claims.clone();
        claims[field] = value;
        claims
    };
    let now = jiff::Timestamp::now().as_second();
    let unsigned = {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        format!("{}.{}.", part(&json!({"alg": "none"})), part(&claims))
    };
    let mut cut = good.clone();
    cut.truncate(good.len() - 4);
    let swapped = {
        let parts: Vec<&str> = good.split('.').collect();
        format!(
            "{}.{}.{}",
            parts[0],
            URL_SAFE_NO_PAD.encode(with("sub", json!("system:serviceaccount:kube-system:root")).to_string()),
            parts[2]
        )
    };
    let mut gone = claims.clone();
    gone["kubernetes.io"]["serviceaccount"]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    let tokens = [
        ("of another key", signed(&other, &header, &claims)),
        ("unsigned", unsigned),
        ("cut off", cut),
        ("of another user", swapped),
        ("signed as something else", signed(&own, &json!({"alg": "HS256"}), &claims)),
        ("over", signed(&own, &header, &with("exp", json!(now - 60)))),
        ("not yet good", signed(&own, &header, &with("nbf", json!(now + 3600)))),
        ("of another issuer", signed(&own, &header, &with("iss", json!("https://elsewhere.example.com")))),
        ("for somebody else", signed(&own, &header, &with("aud", json!(["elsewhere"])))),
        ("of an account that was another", signed(&own, &header, &gone)),
        ("no token", "not.a.token".to_owned()),
        ("longer than any", "x".repeat(6 << 10)),
    ];
    assert_eq!(who(&stranger, &good).await.unwrap()["username"], "system:serviceaccount:default:robot");
    for (what, token) in &tokens {
        assert_eq!(who(&stranger, token).await, None, "{what}");
    }
    // What was good for somebody who went is good no more once it is forgotten.
    done(&admin, Method::DELETE, "/api/v1/namespaces/default/serviceaccounts/robot", Value::Null).await;
    until("the end of the account's token", async || who(&stranger, &good).await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_an_authority_vouched_for_that_is_trusted_no_more_is_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, Vec::new()).await;
    let known = client(&cluster, "admin").await;
    assert_eq!(get(&known, MAPS, &[]).await.code, 200);
    let now = jiff::Timestamp::now();
    let next = Authority::generate("next", now, Duration::from_secs(3600)).unwrap();
    replace(&cluster.dir.join("ca.crt"), &next.cert_pem);
    // The connection that is there already is no better than a new one.
    until("the old certificate to be worth nothing", async || (get(&known, MAPS, &[]).await.code == 401).then_some(())).await;
}
