//! Answers that are long enough are compressed for whoever takes it, and say the same.

use std::io::Read;

use futures_util::StreamExt;
use hyper::{Method, Request};
use k8s_schema::{Doc, Schema};
use kube_client::client::Body;
use serde_json::{Value, json};

use super::*;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GZIP: (&str, &str) = ("accept-encoding", "gzip");
const PROTOBUF: (&str, &str) = ("accept", "application/vnd.kubernetes.protobuf");

fn gunzip(a: &Answer) -> Vec<u8> {
    assert_eq!((a.code, a.headers.get("content-encoding").and_then(|v| v.to_str().ok())), (200, Some("gzip")));
    assert_eq!(a.headers["vary"], "Accept-Encoding");
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(&a.body[..]).read_to_end(&mut out).unwrap();
    out
}

/// The items of a list, whatever its revision.
fn items(json: &[u8]) -> Value {
    serde_json::from_slice::<Value>(json).unwrap()["items"].take()
}

fn protobuf_items(bytes: &[u8]) -> Value {
    Doc::from_protobuf(&Schema::builtin(), Bytes::copy_from_slice(bytes)).unwrap().to_value()["items"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_and_objects_are_compressed_and_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, Vec::new()).await;
    let client = client(&cluster, "admin").await;
    for n in 0..120 {
        let data: String = (0..60).map(|i| format!("line {} of {n}\n", i * n)).collect();
        let v = json!({"metadata": {"name": format!("map-{n}"), "labels": {"half": (n % 2).to_string()}}, "data": {"text": data}});
        done(&client, Method::POST, MAPS, v).await;
    }
    let plain = get(&client, MAPS, &[]).await;
    assert!(plain.headers.get("content-encoding").is_none() && plain.body.len() > 128 << 10, "{}", plain.body.len());
    // The first is compressed as it is made, the second comes from what was kept of the first.
    for _ in 0..2 {
        let a = get(&client, MAPS, &[GZIP]).await;
        assert!(a.body.len() < plain.body.len() / 2);
        assert_eq!(items(&gunzip(&a)), items(&plain.body));
    }
    let plain_protobuf = get(&client, MAPS, &[PROTOBUF]).await;
    for _ in 0..2 {
        let a = get(&client, MAPS, &[GZIP, PROTOBUF]).await;
        assert_eq!(protobuf_items(&gunzip(&a)), protobuf_items(&plain_protobuf.body));
    }
    let table = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let rows = |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap()["rows"].as_array().unwrap().len();
    let a = get(&client, &format!("{MAPS}?includeObject=Object"), &[GZIP, table]).await;
    assert_eq!(rows(&gunzip(&a)), rows(&get(&client, MAPS, &[table]).await.body));

    // What was kept is for one selection, and for one state of the resource.
    let a = get(&client, &format!("{MAPS}?labelSelector=half%3D0"), &[GZIP]).await;
    let body = if a.headers.contains_key("content-encoding") { gunzip(&a) } else { a.body.to_vec() };
    assert!(items(&body).as_array().unwrap().iter().all(|i| i["metadata"]["labels"]["half"] == "0"));
    done(&client, Method::DELETE, &format!("{MAPS}/map-7"), Value::Null).await;
    let after = items(&gunzip(&get(&client, MAPS, &[GZIP]).await));
    assert_eq!(after, items(&get(&client, MAPS, &[]).await.body));
    assert!(after.as_array().unwrap().iter().all(|i| i["metadata"]["name"] != "map-7"));
    let after = protobuf_items(&gunzip(&get(&client, MAPS, &[GZIP, PROTOBUF]).await));
    assert!(after.as_array().unwrap().iter().all(|i| i["metadata"]["name"] != "map-7"));

    // One long object; a short one stays as it is.
    done(&client, Method::POST, MAPS, json!({"metadata": {"name": "long"}, "data": {"text": "x".repeat(200 << 10)}})).await;
    let a = get(&client, &format!("{MAPS}/long"), &[GZIP]).await;
    assert_eq!(serde_json::from_slice::<Value>(&gunzip(&a)).unwrap()["metadata"]["name"], "long");
    assert!(get(&client, &format!("{MAPS}/map-1"), &[GZIP]).await.headers.get("content-encoding").is_none());

    // A watch never is: its events would wait for each other.
    let request = Request::get(format!("{MAPS}?watch=true")).header(GZIP.0, GZIP.1).body(Body::empty()).unwrap();
    let response = client.send(request).await.unwrap();
    assert!(response.headers().get("content-encoding").is_none());
    let first = response.into_body().into_data_stream().next().await.unwrap().unwrap();
    assert!(first.starts_with(b"{\"type\":\"ADDED\""));
}
