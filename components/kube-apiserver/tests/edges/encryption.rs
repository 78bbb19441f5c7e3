//! Values in etcd are sealed as the configuration says, read whatever key sealed them, and move to a new key as they are written.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use etcd_client::Client as Etcd;
use hyper::Method;
use serde_json::json;

use super::*;

fn configure(path: &Path, providers: &str) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets, things.example.com]\n  providers: {providers}\n- resources: ['*.apps']\n  providers: [{{aescbc: {{keys: [{}]}}}}]\n",
        key("apps", 1)
    );
    // A reader sees the old text or the new.
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn key(name: &str, n: u8) -> String {
    format!("{{name: {name}, secret: {}}}", STANDARD.encode([n; 32]))
}

async fn raw(etcd: &Etcd, key: &str) -> Vec<u8> {
    let r = etcd.kv_client().get(format!("/registry/{key}"), None).await.unwrap();
    r.kvs()[0].value().to_vec()
}

fn starts(value: &[u8], with: &str) {
    assert!(value.starts_with(with.as_bytes()), "{:?}", String::from_utf8_lossy(&value[..value.len().min(60)]));
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

#[tokio::test(flavor = "multi_thread")]
async fn values_are_sealed_and_move_to_the_first_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("encryption.yaml");
    configure(&file, &format!("[{{secretbox: {{keys: [{}]}}}}, {{identity: {{}}}}]", key("one", 2)));
    let flags =
        vec![format!("--encryption-provider-config={}", file.display()), "--encryption-provider-config-automatic-reload=true".into()];
    let cluster = start(&dir, flags).await;
    let client = client(&cluster, "admin").await;
    let etcd = Etcd::connect([cluster.etcd_url.as_str()], None).await.unwrap();

    let secret = |name: &str| json!({"metadata": {"name": name}, "data": {"password": STANDARD.encode("hunter2")}});
    done(&client, Method::POST, SECRETS, secret("a")).await;
    let sealed = raw(&etcd, "secrets/default/a").await;
    starts(&sealed, "k8s:enc:secretbox:v1:one:");
    assert!(!sealed.windows(7).any(|w| w == b"hunter2") && !sealed.windows(8).any(|w| w == b"password"));
    let read = done(&client, Method::GET, &format!("{SECRETS}/a"), Value::Null).await;
    assert_eq!(read["data"]["password"], STANDARD.encode("hunter2"));
    let list = done(&client, Method::GET, &format!("{SECRETS}?resourceVersion=0"), Value::Null).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    // At an older revision the list is read from etcd.
    let rv = read["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    done(&client, Method::POST, SECRETS, secret("b")).await;
    let old = done(&client, Method::GET, &format!("{SECRETS}?resourceVersionMatch=Exact&resourceVersion={rv}"), Value::Null).await;
    assert_eq!(old["items"][0]["data"]["password"], STANDARD.encode("hunter2"));

    // By wildcard, of a definition, and what nothing is said of.
    let labels = json!({"matchLabels": {"a": "b"}});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let web = json!({"metadata": {"name": "web"}, "spec": {"selector": labels, "template": template}});
    done(&client, Method::POST, "/apis/apps/v1/namespaces/default/deployments", web).await;
    starts(&raw(&etcd, "deployments/default/web").await, "k8s:enc:aescbc:v1:apps:");
    done(&client, Method::POST, "/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "plain"}})).await;
    starts(&raw(&etcd, "configmaps/default/plain").await, "k8s\0");
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let crd = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    done(&client, Method::POST, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd).await;
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"x": 1}});
    until("the definition", async || {
        let a = send(&client, Method::POST, "/apis/example.com/v1/namespaces/default/things", &[], &thing).await;
        (a.code == 201).then_some(())
    })
    .await;
    starts(&raw(&etcd, "example.com/things/default/t").await, "k8s:enc:secretbox:v1:one:");

    let watched = format!("{SECRETS}?watch=true&fieldSelector=metadata.name%3Da&resourceVersion={rv}");
    let request = Request::builder().uri(watched).body(Body::empty()).unwrap();
    let watch = client.send(request).await.unwrap().into_body();

    // A new key comes first: it is used as soon as the file is read, and by every update, though nothing else changes.
    configure(&file, &format!("[{{aesgcm: {{keys: [{}]}}}}, {{secretbox: {{keys: [{}]}}}}]", key("two", 3), key("one", 2)));
    let mut n = 0;
    until("the new key", async || {
        n += 1;
        let name = format!("new-{n}");
        done(&client, Method::POST, SECRETS, secret(&name)).await;
        raw(&etcd, &format!("secrets/default/{name}")).await.starts_with(b"k8s:enc:aesgcm:v1:two:").then_some(())
    })
    .await;
    let a = done(&client, Method::GET, &format!("{SECRETS}/a"), Value::Null).await;
    starts(&raw(&etcd, "secrets/default/a").await, "k8s:enc:secretbox:v1:one:");
    let written = done(&client, Method::PUT, &format!("{SECRETS}/a"), a.clone()).await;
    assert_eq!((&written["data"], written["metadata"]["resourceVersion"] == a["metadata"]["resourceVersion"]), (&a["data"], false));
    starts(&raw(&etcd, "secrets/default/a").await, "k8s:enc:aesgcm:v1:two:");
    let again = done(&client, Method::PUT, &format!("{SECRETS}/a"), written.clone()).await;
    assert_eq!(again["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"], "nothing is left to be written");

    // Who watched meanwhile saw the write under the new key like any other.
    let mut watch = watch;
    let frame = tokio::time::timeout(Duration::from_secs(60), watch.frame()).await.unwrap().unwrap().unwrap();
    let event: Value = serde_json::from_slice(frame.data_ref().unwrap()).unwrap();
    let seen = &event["object"];
    assert_eq!((&event["type"], &seen["data"]), (&json!("MODIFIED"), &a["data"]), "{event}");
    assert_eq!(seen["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);

    // A value that somebody moved to another place is no value there.
    let moved = raw(&etcd, "secrets/default/a").await;
    etcd.kv_client().put("/registry/secrets/default/copy", moved, None).await.unwrap();
    let list = done(&client, Method::GET, SECRETS, Value::Null).await;
    let names: Vec<&str> = list["items"].as_array().unwrap().iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
    assert!(names.contains(&"a") && !names.contains(&"copy"), "{names:?}");
}
