//! The model of a watch: whatever selector, starting point and reconnects, and whatever happens to etcd meanwhile, the events folded into a map
//! are the list at the version they have come to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use etcd_client::Client as Etcd;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::*;

type State = BTreeMap<String, u64>;

/// As the list at exactly that version has it; nothing when that is compacted or cannot be said now.
async fn exact(client: &Client, selector: &str, at: u64) -> Option<State> {
    let path = format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=Exact{selector}");
    let (code, list) = call(client, Method::GET, &path, &[], &Value::Null).await.ok()?;
    (code == 200).then(|| fold_list(&list))
}

fn fold_list(list: &Value) -> State {
    let items = list["items"].as_array().into_iter().flatten();
    items.map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), version(item))).collect()
}

#[derive(Default)]
struct Seen {
    events: AtomicUsize,
    compared: AtomicUsize,
    bookmarks: AtomicUsize,
    gone: AtomicUsize,
    broken: AtomicUsize,
}

/// One client that watches, loses its connection now and then, and compares.
async fn watcher(client: Client, selector: &'static str, seed: u64, stop: Arc<AtomicBool>, seen: Arc<Seen>) {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut state, mut at): (State, u64) = (State::new(), 0);
    let mut fresh = true;
    while !stop.load(Ordering::Relaxed) {
        let from = if fresh && random.random_bool(0.5) {
            // Everything there is comes first, as events.
            (state, at) = (State::new(), 0);
            "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=".to_owned()
        } else {
            if fresh {
                let path = format!("{MAPS}?{}", selector.trim_start_matches('&'));
                let Ok((200, list)) = call(&client, Method::GET, &path, &[], &Value::Null).await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                (state, at) = (fold_list(&list), version(&list));
            }
            format!("&resourceVersion={at}")
        };
        let seconds = random.random_range(3..6);
        let path = format!("{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}{from}{selector}");
        let mut watch = match Watch::open(&client, &path).await {
            Ok(watch) => watch,
            Err(code) => {
                fresh = code == 410 || at == 0;
                seen.gone.fetch_add(usize::from(code == 410), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Until the initial events are complete there is no version that the state belongs to.
        let mut complete = at != 0;
        let mut left = random.random_range(5..200);
        fresh = false;
        loop {
            let Some(event) = bounded("a watch with a time limit", watch.next()).await else {
                seen.broken.fetch_add(1, Ordering::Relaxed);
                break;
            };
            let object = &event["object"];
            let name = || object["metadata"]["name"].as_str().unwrap().to_owned();
            match event["type"].as_str().unwrap() {
                "ERROR" => {
                    assert_eq!(object["code"], 410, "{object}");
                    seen.gone.fetch_add(1, Ordering::Relaxed);
                    fresh = true;
                    break;
                }
                "BOOKMARK" => {
                    seen.bookmarks.fetch_add(1, Ordering::Relaxed);
                    complete |= object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true";
                }
                "ADDED" => {
                    let known = state.insert(name(), version(object));
                    assert!(known.is_none(), "{selector}: {} was there already", name());
                }
                "MODIFIED" => {
                    let known = state.insert(name(), version(object));
                    assert!(known.is_some_and(|known| known < version(object)), "{selector}: {} was {known:?}: {object}", name());
                }
                "DELETED" => assert!(state.remove(&name()).is_some(), "{selector}: {} was not there", name()),
                other => panic!("{other}"),
            }
            seen.events.fetch_add(1, Ordering::Relaxed);
            if !complete {
                continue;
            }
            assert!(version(object) >= at, "{selector}: back from {at}: {event}");
            at = version(object);
            let look = event["type"] == "BOOKMARK" || random.random_ratio(1, 12);
            if look && let Some(list) = exact(&client, selector, at).await {
                assert_eq!(state, list, "{selector} at {at}");
                seen.compared.fetch_add(1, Ordering::Relaxed);
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        fresh |= !complete;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folded_events_are_the_list_while_etcd_dies_and_is_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = start(&dir).await;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(Seen::default());
    let selectors = [
        "",
        "&labelSelector=tier%3Da",
        "&labelSelector=tier%21%3Da",
        "&labelSelector=tier+in+(b,c)",
        "&labelSelector=%21tier",
        "&fieldSelector=metadata.name%3Dm3",
    ];
    let mut tasks = tokio::task::JoinSet::new();
    for (n, selector) in selectors.into_iter().enumerate() {
        let client = admin(&cluster.dir, cluster.port).await;
        tasks.spawn(watcher(client, selector, n as u64, Arc::clone(&stop), Arc::clone(&seen)));
    }
    let client = admin(&cluster.dir, cluster.port).await;
    let etcd = Etcd::connect([cluster.etcd_url.as_str()], None).await.unwrap();
    // What was acknowledged, by name: the version written last, or nothing for what was deleted. Left out while nobody knows.
    let mut known: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let mut random = StdRng::seed_from_u64(77);
    for round in 0..500 {
        if round % 250 == 200 {
            cluster = tokio::task::spawn_blocking(move || {
                cluster.restart_etcd(Duration::from_millis(700));
                cluster
            })
            .await
            .unwrap();
        }
        if round % 150 == 140 {
            let list =
                until("a list", async || call(&client, Method::GET, MAPS, &[], &Value::Null).await.ok().filter(|(code, _)| *code == 200))
                    .await
                    .1;
            // It may be down at this moment.
            let _ = etcd.kv_client().compact(i64::try_from(version(&list)).unwrap() - 20, None).await;
        }
        let name = format!("m{}", random.random_range(0..12));
        let mut object = json!({"metadata": {"name": name}, "data": {"round": round.to_string()}});
        if let Some(tier) = ["a", "b", "c"].get(random.random_range(0..4)) {
            object["metadata"]["labels"] = json!({"tier": tier});
        }
        let path = format!("{MAPS}/{name}");
        let answer = match random.random_range(0..5) {
            0 => call(&client, Method::DELETE, &path, &[], &Value::Null).await,
            1 => call(&client, Method::POST, MAPS, &[], &object).await,
            _ => call(&client, Method::PUT, &path, &[], &object).await,
        };
        match answer {
            Ok((200 | 201, body)) => {
                let deleted = body["kind"] == "Status";
                known.insert(name, (!deleted).then(|| version(&body)));
            }
            // Refused, so nothing happened.
            Ok((404 | 409, _)) => {}
            Ok((code, body)) => {
                assert!(code >= 429, "{code} {body}");
                known.remove(&name);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(_) => {
                known.remove(&name);
            }
        }
    }
    let list =
        until("a list", async || call(&client, Method::GET, MAPS, &[], &Value::Null).await.ok().filter(|(code, _)| *code == 200)).await.1;
    let found = fold_list(&list);
    for (name, version) in &known {
        assert_eq!(found.get(name), version.as_ref(), "{name} was acknowledged");
    }
    // Each watcher ends its watch by itself.
    stop.store(true, Ordering::Relaxed);
    bounded("the watchers", async {
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    let count = |n: &AtomicUsize| n.load(Ordering::Relaxed);
    println!(
        "events {}, compared {}, bookmarks {}, 410 {}, ended {}",
        count(&seen.events),
        count(&seen.compared),
        count(&seen.bookmarks),
        count(&seen.gone),
        count(&seen.broken)
    );
    assert!(
        count(&seen.compared) > 20 && count(&seen.bookmarks) > 0,
        "compared {}, bookmarks {}",
        count(&seen.compared),
        count(&seen.bookmarks)
    );
}
