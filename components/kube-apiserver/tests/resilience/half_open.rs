//! Connections that neither carry anything nor end: between the server and etcd, and of clients that never read.

use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

/// Carries connections to `to`. Raising the number freezes those there are for good, as a lost route does: no byte more, no end.
async fn proxy(to: String) -> (u16, Arc<watch::Sender<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let frozen = Arc::new(watch::Sender::new(0));
    let state = Arc::clone(&frozen);
    tokio::spawn(async move {
        while let Ok((inward, _)) = listener.accept().await {
            let (to, mut frozen) = (to.clone(), state.subscribe());
            tokio::spawn(async move {
                let Ok(outward) = TcpStream::connect(&to).await else { return };
                let ((mut from_server, mut to_server), (mut from_etcd, mut to_etcd)) = (inward.into_split(), outward.into_split());
                let (mut up, mut down) = ([0; 16 * 1024], [0; 16 * 1024]);
                frozen.mark_unchanged();
                loop {
                    tokio::select! {
                        _ = frozen.changed() => {
                            // Both ends stay open and nothing moves.
                            std::future::pending::<()>().await;
                        }
                        n = from_server.read(&mut up) => match n {
                            Ok(n) if n > 0 => if to_etcd.write_all(&up[..n]).await.is_err() { return },
                            _ => return,
                        },
                        n = from_etcd.read(&mut down) => match n {
                            Ok(n) if n > 0 => if to_server.write_all(&down[..n]).await.is_err() { return },
                            _ => return,
                        },
                    }
                }
            });
        }
    });
    (port, frozen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_to_etcd_is_given_up_and_nothing_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (cluster, mut args) = tokio::task::spawn_blocking(move || Cluster::prepare(&path, None)).await.unwrap();
    let (port, frozen) = proxy(cluster.etcd_url.trim_start_matches("http://").to_owned()).await;
    args.iter_mut()
        .filter(|arg| arg.to_string_lossy().starts_with("--etcd-servers="))
        .for_each(|arg| *arg = format!("--etcd-servers=http://127.0.0.1:{port}").into());
    serve(args);
    let client = admin(&cluster.dir, cluster.port).await;
    until("the server", async || {
        let request = Request::builder().uri("/readyz").body(Body::empty()).unwrap();
        client.send(request).await.ok().filter(|r| r.status() == 200)
    })
    .await;
    let before = done(&client, Method::POST, MAPS, json!({"metadata": {"name": "before"}})).await;
    let mut watch = Watch::open(&client, &format!("{MAPS}?watch=true&resourceVersion={}", version(&before))).await.unwrap();
    frozen.send_modify(|n| *n += 1);
    // What needs no etcd is answered as ever.
    let cached = bounded("a cached list", get(&client, &format!("{MAPS}?resourceVersion=0"))).await;
    assert!(cached["items"].as_array().unwrap().iter().any(|i| i["metadata"]["name"] == "before"));
    let alive = bounded("liveness", client.send(Request::builder().uri("/livez/ping").body(Body::empty()).unwrap())).await.unwrap();
    assert_eq!(alive.status(), 200);
    // A write fails or succeeds in bounded time, and one that was acknowledged is there.
    let mut tries = 0;
    let after = until("a write over a new connection", async || {
        tries += 1;
        let object = json!({"metadata": {"name": format!("after-{tries}")}});
        let answer = bounded("an answer", call(&client, Method::POST, MAPS, &[], &object)).await.ok()?;
        (answer.0 == 201).then_some(answer.1)
    })
    .await;
    let seen = bounded("the event of the write", async {
        loop {
            let event = watch.next().await.expect("the watch goes on");
            if version(&event["object"]) >= version(&after) {
                return event;
            }
        }
    })
    .await;
    assert_eq!(seen["object"]["metadata"]["name"], after["metadata"]["name"]);
    assert_eq!(
        get(&client, &format!("{MAPS}/{}", after["metadata"]["name"].as_str().unwrap())).await["metadata"]["uid"],
        after["metadata"]["uid"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir).await;
    let client = admin(&cluster.dir, cluster.port).await;
    let from = version(&get(&client, MAPS).await);
    let watch = format!("{MAPS}?watch=true&resourceVersion={from}");
    let mut deaf = Vec::new();
    for n in 0..6 {
        // Its own connection each, of which the answer's head is all that is ever read.
        let other = admin(&cluster.dir, cluster.port).await;
        let path = if n % 2 == 0 {
            watch.clone()
        } else {
            format!("{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
        };
        let response = other.send(Request::builder().uri(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        deaf.push((other, response));
    }
    let mut reader = Watch::open(&client, &watch).await.unwrap();
    let filler = "x".repeat(40_000);
    let writer = async {
        for n in 0..400 {
            let object = json!({"metadata": {"name": format!("m{}", n % 8)}, "data": {"n": n.to_string(), "filler": filler}});
            let path = format!("{MAPS}/m{}", n % 8);
            let (code, body) = if n < 8 {
                call(&client, Method::POST, MAPS, &[], &object).await
            } else {
                call(&client, Method::PUT, &path, &[], &object).await
            }
            .unwrap();
            assert!(code < 300, "{code} {body}");
        }
    };
    let reads = async {
        for n in 0..400 {
            let event = reader.next().await.expect("a client that reads is not cut off");
            assert_eq!(event["object"]["data"]["n"], n.to_string());
        }
    };
    bounded("400 writes, read by who reads", async { tokio::join!(writer, reads) }).await;
    // A large list to somebody who does not read it, and others get theirs.
    for (other, _) in &deaf {
        let lost = other.clone();
        tokio::spawn(async move { lost.send(Request::builder().uri(MAPS).body(Body::empty()).unwrap()).await.map(std::mem::forget) });
    }
    assert_eq!(bounded("a list", get(&client, MAPS)).await["items"].as_array().unwrap().len(), 8);
}
