//! Two servers on one etcd: what one was told the other knows, and what both give out is given once.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

async fn two(dir: &tempfile::TempDir) -> (Cluster, Client, Client) {
    let path = dir.path().to_owned();
    let (cluster, args) = tokio::task::spawn_blocking(move || Cluster::prepare(&path, None)).await.unwrap();
    let (second, other) = beside(&args);
    serve(args);
    serve(other);
    let (a, b) = (admin(&cluster.dir, cluster.port).await, admin(&cluster.dir, second).await);
    ready(&a).await;
    ready(&b).await;
    (cluster, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_wrote_the_other_reads_lists_and_watches_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, a, b) = two(&dir).await;
    let list = get(&b, MAPS).await;
    let mut watch = Watch::open(&b, &format!("{MAPS}?watch=true&resourceVersion={}", version(&list))).await.unwrap();
    for n in 0..40 {
        let (writer, reader) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let name = format!("m{n}");
        let made = done(writer, Method::POST, MAPS, json!({"metadata": {"name": name}, "data": {"n": "1"}})).await;
        let read = get(reader, &format!("{MAPS}/{name}")).await;
        assert_eq!(version(&read), version(&made));
        let list = get(reader, MAPS).await;
        assert!(list["items"].as_array().unwrap().iter().any(|i| i["metadata"]["name"] == name.as_str()), "{name} is not in the list");
        // The other one changes it on top of what the first wrote, and the first sees that.
        let mut next = read.clone();
        next["data"]["n"] = json!("2");
        let changed = done(reader, Method::PUT, &format!("{MAPS}/{name}"), next.clone()).await;
        assert_eq!(get(writer, &format!("{MAPS}/{name}")).await["data"]["n"], "2");
        let (code, _) = call(writer, Method::PUT, &format!("{MAPS}/{name}"), &[], &next).await.unwrap();
        assert_eq!(code, 409, "an old version");
        let exact = get(writer, &format!("{MAPS}?resourceVersion={}&resourceVersionMatch=NotOlderThan", version(&changed))).await;
        assert!(exact["items"].as_array().unwrap().iter().any(|i| i["metadata"]["name"] == name.as_str() && i["data"]["n"] == "2"));
        for (kind, object) in [("ADDED", &made), ("MODIFIED", &changed)] {
            let event = bounded("the event", watch.next()).await.unwrap();
            assert_eq!((event["type"].as_str().unwrap(), version(&event["object"])), (kind, version(object)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_a_moment_ago_is_there_for_what_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, a, b) = two(&dir).await;
    let pod = |account: &str| json!({"metadata": {"name": account}, "spec": {"serviceAccountName": account, "containers": [{"name": "main", "image": "x"}]}});
    for n in 0..20 {
        let namespace = format!("n{n}");
        let path = |plural: &str| format!("/api/v1/namespaces/{namespace}/{plural}");
        done(&a, Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
        done(&b, Method::POST, &path("configmaps"), json!({"metadata": {"name": "x"}})).await;
        done(&a, Method::POST, &path("serviceaccounts"), json!({"metadata": {"name": "own"}})).await;
        done(&b, Method::POST, &path("pods"), pod("own")).await;
        // The default account comes from a controller, a moment later.
        let (pods, accounts) = (path("pods"), path("serviceaccounts"));
        let later = async {
            tokio::time::sleep(Duration::from_millis(20 * n)).await;
            done(&a, Method::POST, &accounts, json!({"metadata": {"name": "default"}})).await
        };
        let (made, _) = tokio::join!(done(&b, Method::POST, &pods, pod("default")), later);
        assert_eq!(made["spec"]["serviceAccountName"], "default");
        let (code, refused) = call(&b, Method::POST, &path("pods"), &[], &pod("missing")).await.unwrap();
        assert_eq!(code, 403, "{refused}");
    }
}

/// Sends all at once, half to each server; gives those that succeeded, and the codes of the others.
async fn race(a: &Client, b: &Client, path: &str, bodies: Vec<Value>) -> (Vec<Value>, Vec<u16>) {
    let calls = bodies.iter().enumerate().map(|(n, body)| call(if n % 2 == 0 { a } else { b }, Method::POST, path, &[], body));
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for answer in futures_util::future::join_all(calls).await {
        match answer.unwrap() {
            (201, body) => good.push(body),
            (code, _) => bad.push(code),
        }
    }
    (good, bad)
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_ports_and_quota_are_given_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, a, b) = two(&dir).await;
    let path = "/api/v1/namespaces/default/services";
    let service = |name: String, spec: Value| {
        let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        for (key, value) in spec.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        service
    };
    let (made, refused) = race(&a, &b, path, (0..40).map(|n| service(format!("s{n}"), json!({"type": "NodePort"}))).collect()).await;
    assert_eq!((made.len(), refused.len()), (40, 0), "{refused:?}");
    let addresses: BTreeSet<_> = made.iter().map(|s| s["spec"]["clusterIP"].as_str().unwrap()).collect();
    let ports: BTreeSet<_> = made.iter().map(|s| s["spec"]["ports"][0]["nodePort"].as_i64().unwrap()).collect();
    assert_eq!((addresses.len(), ports.len()), (40, 40));

    for round in 0..5 {
        let wanted = json!({"clusterIP": format!("10.96.200.{}", round + 1)});
        let (made, refused) = race(&a, &b, path, (0..6).map(|n| service(format!("ip{round}-{n}"), wanted.clone())).collect()).await;
        assert_eq!((made.len(), refused), (1, vec![422; 5]), "{wanted}");
        // Of the first ports, which nobody is given who names none.
        let wanted = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000 + round}]});
        let (made, refused) = race(&a, &b, path, (0..6).map(|n| service(format!("port{round}-{n}"), wanted.clone())).collect()).await;
        assert_eq!((made.len(), refused), (1, vec![422; 5]), "{wanted}");
        // What was refused holds nothing: its name and its address are free.
        let again = service(format!("free{round}"), json!({"clusterIP": format!("10.96.201.{}", round + 1)}));
        done(&b, Method::POST, path, again).await;
    }

    done(&a, Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "q"}})).await;
    let quotas = "/api/v1/namespaces/q/resourcequotas";
    let mut quota = done(&a, Method::POST, quotas, json!({"metadata": {"name": "few"}, "spec": {"hard": {"count/configmaps": "7"}}})).await;
    // What the controller would say first.
    quota["status"] = json!({"hard": {"count/configmaps": "7"}, "used": {"count/configmaps": "0"}});
    let quota = done(&a, Method::PUT, &format!("{quotas}/few/status"), quota).await;
    until("the quota on both servers", async || {
        let path = format!("{quotas}?resourceVersion={}&resourceVersionMatch=NotOlderThan", version(&quota));
        call(&b, Method::GET, &path, &[], &Value::Null).await.ok().filter(|(code, _)| *code == 200)
    })
    .await;
    let maps = (0..30).map(|n| json!({"metadata": {"name": format!("m{n}")}})).collect();
    let (made, refused) = race(&a, &b, "/api/v1/namespaces/q/configmaps", maps).await;
    let used = get(&b, &format!("{quotas}/few")).await["status"]["used"]["count/configmaps"].clone();
    assert!(made.len() <= 7 && refused.iter().all(|code| matches!(code, 403 | 409 | 500)), "{} {refused:?}", made.len());
    let there = get(&a, "/api/v1/namespaces/q/configmaps").await["items"].as_array().unwrap().len();
    assert_eq!((there, used), (made.len(), json!("7")), "{refused:?}");
}
