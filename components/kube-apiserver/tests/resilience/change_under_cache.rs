//! What is cached changes its meaning: a definition's schema while its objects are listed and watched, a right while it is used.

use serde_json::json;

use super::*;

fn definition(properties: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": properties}}}}},
                {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": properties}}}}}]}})
}

/// The spec of the thing in every way it can be read: alone, in a list from the cache, exact and at a version, and as the first event of a watch.
async fn everywhere(client: &Client, api: &str, name: &str) -> Vec<(String, Value)> {
    let path = format!("/apis/example.com/{api}/namespaces/default/things");
    let mut all = vec![("get".to_owned(), get(client, &format!("{path}/{name}")).await["spec"].clone())];
    for query in ["", "?resourceVersion=0", "?limit=500"] {
        let list = get(client, &format!("{path}{query}")).await;
        let item = list["items"].as_array().unwrap().iter().find(|i| i["metadata"]["name"] == name).cloned();
        all.push((format!("list{query}"), item.unwrap()["spec"].clone()));
    }
    let mut watch = Watch::open(client, &format!("{path}?watch=true&fieldSelector=metadata.name%3D{name}")).await.unwrap();
    let event = bounded("the first event", watch.next()).await.unwrap();
    all.push(("watch".into(), event["object"]["spec"].clone()));
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (code, table) = call(client, Method::GET, &format!("{path}?includeObject=Object"), &table, &Value::Null).await.unwrap();
    assert_eq!(code, 200);
    let row = table["rows"].as_array().unwrap().iter().find(|row| row["object"]["metadata"]["name"] == name).cloned();
    all.push(("table".into(), row.unwrap()["object"]["spec"].clone()));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definitions_new_schema_is_seen_in_every_answer_alike() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir).await;
    let client = admin(&cluster.dir, cluster.port).await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let old = json!({"kept": {"type": "string"}, "lost": {"type": "string"}, "colour": {"type": "string", "default": "red"}});
    done(&client, Method::POST, definitions, definition(old)).await;
    let things = "/apis/example.com/v1/namespaces/default/things";
    let thing = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": {"kept": "k", "lost": "l"}});
    until("the definition", async || call(&client, Method::POST, things, &[], &thing("a")).await.ok().filter(|(code, _)| *code == 201))
        .await;
    until("the second version", async || {
        let path = "/apis/example.com/v2/namespaces/default/things";
        call(&client, Method::GET, path, &[], &Value::Null).await.ok().filter(|(code, _)| *code == 200)
    })
    .await;
    for api in ["v1", "v2"] {
        for (how, spec) in everywhere(&client, api, "a").await {
            assert_eq!(spec, json!({"kept": "k", "lost": "l", "colour": "red"}), "{api} {how}");
        }
    }
    // Another default, a field less, a field more with a default of its own; somebody watches meanwhile.
    let list = get(&client, things).await;
    let mut watch = Watch::open(&client, &format!("{things}?watch=true&resourceVersion={}", version(&list))).await.unwrap();
    let new =
        json!({"kept": {"type": "string"}, "colour": {"type": "string", "default": "blue"}, "size": {"type": "integer", "default": 3}});
    let mut crd = get(&client, &format!("{definitions}/things.example.com")).await;
    crd["spec"]["versions"] = definition(new)["spec"]["versions"].clone();
    done(&client, Method::PUT, &format!("{definitions}/things.example.com"), crd).await;
    // `colour` was stored when the thing was made; `size` was not, and `lost` is no field any more.
    let wanted = json!({"kept": "k", "colour": "red", "size": 3});
    until("the new schema", async || {
        let (_, spec) = everywhere(&client, "v1", "a").await.swap_remove(0);
        (spec == wanted).then_some(())
    })
    .await;
    for api in ["v1", "v2"] {
        for (how, spec) in everywhere(&client, api, "a").await {
            assert_eq!(spec, wanted, "{api} {how}");
        }
    }
    done(&client, Method::POST, things, thing("b")).await;
    for (how, spec) in everywhere(&client, "v2", "b").await {
        assert_eq!(spec, json!({"kept": "k", "colour": "blue", "size": 3}), "{how}");
    }
    // The watch that was open either ended, and its client comes again, or goes on in the new form.
    if let Some(event) = bounded("an event or the end", watch.next()).await
        && event["type"] == "ADDED"
    {
        assert_eq!(event["object"]["spec"], json!({"kept": "k", "colour": "blue", "size": 3}), "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_was_taken_away_is_gone_for_whatever_is_cached() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir).await;
    let client = admin(&cluster.dir, cluster.port).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    done(&client, Method::POST, secrets, json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}})).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]}]});
    done(&client, Method::POST, &format!("{rbac}/roles"), role).await;
    let binding = json!({"metadata": {"name": "alice"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}]});
    let paths = [
        secrets.to_owned(),
        format!("{secrets}/s"),
        format!("{secrets}?resourceVersion=0"),
        format!("{secrets}?watch=true&timeoutSeconds=1"),
    ];
    let ask = async |path: &str| {
        let answer = call(&client, Method::GET, path, &[("impersonate-user", "alice")], &Value::Null).await;
        answer.unwrap().0
    };
    for round in 0..3 {
        assert_eq!(ask(secrets).await, 403);
        done(&client, Method::POST, &format!("{rbac}/rolebindings"), binding.clone()).await;
        until("the right", async || (ask(secrets).await == 200).then_some(())).await;
        for path in &paths {
            assert_eq!(ask(path).await, 200, "{path} in round {round}");
        }
        done(&client, Method::DELETE, &format!("{rbac}/rolebindings/alice"), Value::Null).await;
        until("the end of the right", async || (ask(secrets).await == 403).then_some(())).await;
        for path in &paths {
            assert_eq!(ask(path).await, 403, "{path} in round {round}");
        }
    }
}
