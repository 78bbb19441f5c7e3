//! What clients see of a compaction: who asks for what is no longer there is told so, with what helps to go on, and who follows misses nothing.

use etcd_client::Client as Etcd;
use serde_json::json;

use super::*;

async fn write(client: &Client, from: usize, to: usize) -> u64 {
    let mut last = 0;
    for n in from..to {
        last = version(&done(client, Method::POST, MAPS, json!({"metadata": {"name": format!("m-{n:03}")}})).await);
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_is_told_to_those_it_concerns_and_to_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (cluster, args) = tokio::task::spawn_blocking(move || Cluster::prepare(&path, None)).await.unwrap();
    serve(args.clone());
    let client = admin(&cluster.dir, cluster.port).await;
    ready(&client).await;
    let etcd = Etcd::connect([cluster.etcd_url.as_str()], None).await.unwrap();
    let old = version(&get(&client, MAPS).await);
    let first = write(&client, 0, 10).await;
    // Three read a list in pages, and three follow from where it began.
    let page = get(&client, &format!("{MAPS}?limit=3")).await;
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let mut watches = Vec::new();
    for n in 0..3 {
        let other = admin(&cluster.dir, cluster.port).await;
        watches.push((n, Watch::open(&other, &format!("{MAPS}?watch=true&resourceVersion={first}")).await.unwrap(), other));
    }
    let middle = write(&client, 10, 20).await;
    etcd.kv_client().compact(i64::try_from(middle).unwrap(), None).await.unwrap();
    let last = write(&client, 20, 30).await;

    // Who follows sees all of it, in order.
    for (n, watch, _) in &mut watches {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|(v, _)| *v < last) {
            let event = bounded("an event", watch.next()).await.unwrap_or_else(|| panic!("watch {n} ended"));
            assert_eq!(event["type"], "ADDED", "{event}");
            seen.push((version(&event["object"]), event["object"]["metadata"]["name"].as_str().unwrap().to_owned()));
        }
        assert!(seen.is_sorted() && seen.len() == 20, "watch {n}: {seen:?}");
    }

    // The rest of the list is gone as it was; with the token that comes with the refusal it is read as it is now.
    for _ in 0..3 {
        let (code, gone) = call(&client, Method::GET, &format!("{MAPS}?limit=3&continue={token}"), &[], &Value::Null).await.unwrap();
        assert_eq!((code, gone["reason"].as_str()), (410, Some("Expired")), "{gone}");
        let message = gone["message"].as_str().unwrap();
        assert!(message.contains("The provided continue parameter is too old"), "{message}");
        let fresh = gone["metadata"]["continue"].as_str().unwrap();
        let mut names = Vec::new();
        let mut next = fresh.to_owned();
        while !next.is_empty() {
            let list = get(&client, &format!("{MAPS}?limit=10&continue={next}")).await;
            names.extend(list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()));
            next = list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        }
        assert_eq!((names.first().map(String::as_str), names.last().map(String::as_str)), (Some("m-003"), Some("m-029")), "{names:?}");
    }
    let path = format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact");
    let (code, gone) = call(&client, Method::GET, &path, &[], &Value::Null).await.unwrap();
    assert_eq!((code, gone["reason"].as_str()), (410, Some("Expired")), "{gone}");
    // The server remembers more than etcd: a watch from before the compaction goes on.
    let mut watch = Watch::open(&client, &format!("{MAPS}?watch=true&resourceVersion={first}")).await.unwrap();
    assert_eq!(bounded("an event", watch.next()).await.unwrap()["object"]["metadata"]["name"], "m-010");
    // One that started after the compaction does not: the error comes as an event, as upstream's does.
    let (port, other) = beside(&args);
    serve(other);
    let late = admin(&cluster.dir, port).await;
    ready(&late).await;
    let mut watch = Watch::open(&late, &format!("{MAPS}?watch=true&resourceVersion={first}")).await.unwrap();
    let event = bounded("the error", watch.next()).await.unwrap();
    let object = &event["object"];
    assert_eq!((&event["type"], &object["code"], &object["reason"]), (&json!("ERROR"), &json!(410), &json!("Expired")), "{event}");
    assert!(object["message"].as_str().unwrap().starts_with(&format!("too old resource version: {first} (")), "{object}");
    assert!(bounded("the end", watch.next()).await.is_none());
}
