//! Registries and web servers that say no, stop in the middle or send something else. What is not whole and not what was asked for is never kept.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// What a server says to a request: the beginning of the request to what is sent, byte for byte, before the connection ends.
type Answers = HashMap<String, Vec<u8>>;

fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    [format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\n\r\n").as_bytes(), body].concat()
}

fn whole(body: &[u8]) -> Vec<u8> {
    answer("200 OK", &[&format!("content-length: {}", body.len())], body)
}

/// Serves what it says to each request, the longest beginning first; requests are kept with their headers.
async fn serve(make: impl FnOnce(&str) -> Answers) -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (answers, asked) = (make(&address), Arc::new(std::sync::Mutex::new(Vec::new())));
    let kept = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (mut request, mut piece) = (Vec::new(), [0; 1024]);
            while !request.ends_with(b"\r\n\r\n") {
                match socket.read(&mut piece).await {
                    Ok(count) if count > 0 => request.extend(&piece[..count]),
                    _ => break,
                }
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let fitting = answers.iter().filter(|(beginning, _)| request.contains(beginning.as_str()));
            let found = fitting.max_by_key(|(beginning, _)| beginning.len()).map(|(_, answer)| answer.clone());
            kept.lock().unwrap().push(request);
            // Whoever has heard enough goes away in the middle.
            let _ = socket.write_all(&found.unwrap_or_else(|| answer("404 Not Found", &[], b"no such thing"))).await;
            let _ = socket.shutdown().await;
        }
    });
    (address, asked)
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn told(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

async fn pulled(address: &str, docker: Option<&Path>) -> Result<Vec<u8>, String> {
    let reference = Reference::parse(&format!("{address}/strake:1")).unwrap();
    let (mut http, mut target) = (Http::new(None).unwrap(), Vec::new());
    let pulled = oci::pull(&mut http, &reference, docker, &mut target, &ProgressBar::hidden()).await;
    pulled.map(|()| target).map_err(|error| told(&error))
}

#[tokio::test]
async fn a_layer_that_is_cut_off_or_too_long_is_no_upgrade_file() {
    let file = vec![7; 10_000];
    let manifest = |size: usize| json!({"layers": [{"digest": digest(&file), "size": size}]}).to_string().into_bytes();
    let chunked = |body: &[u8], end: &[u8]| {
        let framed = [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n", end].concat();
        answer("200 OK", &["transfer-encoding: chunked"], &framed)
    };
    let longer = [&file[..], b"more"].concat();
    for (size, blob, expected) in [
        (10_000, whole(&file), ""),
        (10_000, chunked(&file, b"0\r\n\r\n"), ""),
        // The connection ends before what was announced.
        (10_000, answer("200 OK", &["content-length: 10000"], &file[..5000]), "ask for"),
        (10_000, chunked(&file[..5000], b""), "ask for"),
        // An answer that seems whole, and is not.
        (10_000, whole(&file[..5000]), "what came has the digest"),
        (10_000, chunked(&file[..5000], b"0\r\n\r\n"), "what came has the digest"),
        (10_000, whole(b""), "what came has the digest"),
        // More than the manifest says, with and without saying so.
        (10_000, whole(&longer), "has more than 10000 bytes"),
        (10_000, chunked(&longer, b"0\r\n\r\n"), "has more than 10000 bytes"),
        (5000, whole(&file), "has more than 5000 bytes"),
        (10_000, answer("500 Internal Server Error", &[], b"out of disk"), "500 Internal Server Error: out of disk"),
        (10_000, b"no HTTP at all\r\n\r\n".to_vec(), "ask for"),
        (10_000, Vec::new(), "ask for"),
    ] {
        let (address, _) = serve(|_| {
            HashMap::from([("/manifests/1".to_owned(), whole(&manifest(size))), (format!("/blobs/{}", digest(&file)), blob.clone())])
        })
        .await;
        match pulled(&address, None).await {
            Ok(found) => assert!(expected.is_empty() && found == file, "{expected}"),
            Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{error}: {expected:?}"),
        }
    }
}

#[tokio::test]
async fn a_manifest_is_small_and_names_one_layer() {
    let index = json!({"manifests": [{"digest": digest(b"arm"), "size": 3, "platform": {"architecture": "arm64"}}]}).to_string();
    let endless = answer("200 OK", &[], &vec![b' '; (4 << 20) + 1]);
    for (manifest, expected) in [
        (whole(index.as_bytes()), "the index has nothing for amd64"),
        (whole(b"{}"), "its manifest cannot be read"),
        (whole(b"<html>"), "its manifest cannot be read"),
        (whole(b"{\"layers\": []}"), "it has 0 layers"),
        (whole(b"{\"layers\": [{\"digest\": \"../../secret\", \"size\": 5}]}"), "its layer ../../secret"),
        (whole(b"{\"layers\": [{\"digest\": 5}]}"), "its manifest cannot be read"),
        (answer("200 OK", &["content-length: 5000000"], b""), "has more than 4194304 bytes"),
        (endless, "has more than 4194304 bytes"),
        (answer("307 Temporary Redirect", &["location: nowhere"], b""), "\"nowhere\" is no URL"),
    ] {
        let (address, _) = serve(|_| HashMap::from([("/manifests/1".to_owned(), manifest)])).await;
        let error = pulled(&address, None).await.unwrap_err();
        assert!(error.contains(expected), "{error}: {expected}");
    }
}

#[tokio::test]
async fn a_registry_that_refuses_who_asks_is_told_as_such() {
    let bearer = |address: &str| format!("www-authenticate: Bearer realm=\"http://{address}/token\",service=\"here\"");
    let no = |header: &str| answer("401 Unauthorized", &[header], b"");
    for (challenge, token, expected) in [
        (None, answer("401 Unauthorized", &[], b"who are you?"), "401 Unauthorized: who are you?"),
        (None, answer("403 Forbidden", &[], b"blocked"), "403 Forbidden: blocked"),
        (None, whole(b"{}"), "asks for a token, and gave none"),
        (None, whole(b"{\"token\": 5}"), "asks for a token, and gave none"),
        // A token that it does not take afterwards: asked once more, and not for ever.
        (None, whole(b"{\"token\": \"t\"}"), "/manifests/1: 401 Unauthorized"),
        (Some("www-authenticate: Bearer service=\"here\""), Vec::new(), "does not say of whom"),
        (Some("www-authenticate: Negotiate"), Vec::new(), "credentials of an unknown kind: \"Negotiate\""),
        (Some("x-other: 1"), Vec::new(), "credentials of an unknown kind"),
        (Some("www-authenticate: Basic realm=\"x\""), Vec::new(), "wants a name and a password"),
    ] {
        let (address, asked) = serve(|address| {
            let challenge = challenge.map_or_else(|| bearer(address), str::to_owned);
            HashMap::from([("/manifests/1".to_owned(), no(&challenge)), ("/token".to_owned(), token)])
        })
        .await;
        let error = pulled(&address, None).await.unwrap_err();
        assert!(error.contains(expected), "{error}: {expected}");
        assert!(asked.lock().unwrap().len() <= 3, "{expected}: {asked:?}");
    }
}

#[tokio::test]
async fn names_and_passwords_of_docker_go_to_their_registry_alone() {
    let (file, dir) = (b"file".to_vec(), tempfile::tempdir().unwrap());
    let manifest = json!({"layers": [{"digest": digest(&file), "size": file.len()}]}).to_string();
    // The blob is elsewhere, as registries have theirs.
    let (store, stored) = serve(|_| HashMap::from([("/store".to_owned(), whole(&file))])).await;
    let (registry, asked) = serve(|_| {
        let blob = format!("GET /v2/strake/blobs/{}", digest(&file));
        HashMap::from([
            ("/v2/strake/".to_owned(), answer("401 Unauthorized", &["www-authenticate: Basic realm=\"x\""], b"")),
            // Longer than the one before, so that it counts where the name and the password are there.
            ("authorization: Basic YWxpY2U6c2VjcmV0".to_owned(), whole(manifest.as_bytes())),
            (blob, answer("307 Temporary Redirect", &[&format!("location: http://{store}/store")], b"")),
        ])
    })
    .await;
    let config = |auths: serde_json::Value| std::fs::write(dir.path().join("config.json"), json!({"auths": auths}).to_string()).unwrap();
    config(json!({registry.clone(): {"auth": "YWxpY2U6c2VjcmV0"}}));
    assert_eq!(pulled(&registry, Some(dir.path())).await.unwrap(), file);
    assert!(asked.lock().unwrap().iter().any(|request| request.contains("authorization: Basic YWxpY2U6c2VjcmV0")));
    let elsewhere = stored.lock().unwrap().concat();
    assert!(elsewhere.contains("GET /store") && !elsewhere.to_lowercase().contains("authorization"), "{elsewhere}");

    for auths in
        [json!({"other.example": {"auth": "YWxpY2U6c2VjcmV0"}}), json!({registry.clone(): {"auth": "bm8gcGFzc3dvcmQ="}}), json!([])]
    {
        config(auths.clone());
        let error = pulled(&registry, Some(dir.path())).await.unwrap_err();
        assert!(error.contains("(config.json) has none for it"), "{auths}: {error}");
    }
}
