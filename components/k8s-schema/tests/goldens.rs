//! Every kind's golden object of upstream: JSON and protobuf, in and out, byte for byte.

use bytes::Bytes;
use k8s_schema::proto::open_envelope;
use k8s_schema::{DecodeError, Doc, Schema, peek_type_meta};
use std::collections::BTreeMap;

fn goldens() -> BTreeMap<String, Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/goldens.zst");
    let mut decoder = zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut archive = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut archive).unwrap();
    let mut rest = archive.as_slice();
    let mut part = || -> Option<Vec<u8>> {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let (content, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
        rest = tail;
        Some(content.to_vec())
    };
    let mut all = BTreeMap::new();
    while let (Some(name), Some(content)) = (part(), part()) {
        all.insert(String::from_utf8(name).unwrap(), content);
    }
    all
}

/// The golden files are indented by two spaces; documents are written without white space.
fn compact(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut in_string = false;
    let mut escaped = false;
    for &c in text {
        if in_string {
            out.push(c);
            match c {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else if !c.is_ascii_whitespace() {
            in_string = c == b'"';
            out.push(c);
        }
    }
    out
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn first_difference(got: &[u8], want: &[u8]) -> String {
    let at = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
    let around = |b: &[u8]| show(&b[at.saturating_sub(60)..(at + 60).min(b.len())]);
    format!("at {at}\n  got  {}\n  want {}", around(got), around(want))
}

fn json_doc(schema: &Schema, text: &[u8]) -> Result<Doc, String> {
    let meta = peek_type_meta(text).map_err(|e| e.to_string())?;
    // The one kind that has no apiVersion and kind of its own.
    let ty = if meta.kind.is_empty() { schema.kind("", "v1", "WatchEvent") } else { schema.kind_in(&meta.api_version, &meta.kind) };
    let ty = ty.ok_or(format!("no kind {meta:?}"))?;
    let decoded = Doc::from_json(schema, ty, Bytes::copy_from_slice(text)).map_err(|e| e.to_string())?;
    if !decoded.strict.is_empty() {
        return Err(format!("{:?}", decoded.strict));
    }
    Ok(decoded.doc)
}

fn pb_doc(schema: &Schema, body: &[u8]) -> Result<Doc, DecodeError> {
    let body = Bytes::copy_from_slice(body);
    let envelope = open_envelope(&body)?;
    match schema.kind("", "v1", "WatchEvent") {
        Some(ty) if envelope.kind.is_empty() => Doc::from_protobuf_message(schema, ty, envelope.raw),
        _ => Doc::from_protobuf(schema, body),
    }
}

#[test]
fn every_golden_of_this_version_round_trips_and_transcodes() {
    let schema = Schema::builtin();
    let all = goldens();
    let mut failures = Vec::new();
    let mut kinds = 0;
    for (name, json) in all.iter().filter(|(n, _)| n.starts_with("HEAD/") && n.ends_with(".json")) {
        kinds += 1;
        let pb = &all[&name.replace(".json", ".pb")];
        let want = compact(json);
        // Raw JSON inside is kept as it came, so what becomes protobuf is the text without white space.
        let from_json = match json_doc(&schema, &want) {
            Ok(doc) => doc,
            Err(e) => {
                failures.push(format!("{name}: {e}"));
                continue;
            }
        };
        let from_pb = match pb_doc(&schema, pb) {
            Ok(doc) => doc,
            Err(e) => {
                failures.push(format!("{name}: pb: {e}"));
                continue;
            }
        };
        for (what, got, want) in [
            ("indented json to json", json_doc(&schema, json).map(|d| d.to_json()).unwrap_or_default(), &want),
            ("json to json", from_json.to_json(), &want),
            ("pb to json", from_pb.to_json(), &want),
            ("pb to pb", if from_pb.ty().has_type_meta() { from_pb.to_protobuf() } else { pb.clone() }, pb),
            ("json to pb", if from_json.ty().has_type_meta() { from_json.to_protobuf() } else { pb.clone() }, pb),
        ] {
            if got != *want {
                failures.push(format!("{name}: {what}: {}", first_difference(&got, want)));
            }
        }
        if from_json != from_pb {
            failures.push(format!("{name}: the two documents differ"));
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    assert!(kinds >= 180, "only {kinds} kinds");
}

#[test]
fn goldens_of_older_versions_read_as_upstream_reads_them() {
    let schema = Schema::builtin();
    let all = goldens();
    let mut failures = Vec::new();
    let mut kinds = 0;
    for (name, json) in all.iter().filter(|(n, _)| n.starts_with('v') && n.ends_with(".json") && !n.contains("after_roundtrip")) {
        let stem = name.trim_end_matches(".json");
        let Ok(doc) =
            peek_type_meta(json).map_err(|e| e.to_string()).and_then(|m| schema.kind_in(&m.api_version, &m.kind).ok_or_else(String::new))
        else {
            // A kind that this version no longer has.
            continue;
        };
        kinds += 1;
        let after = |ext: &str| all.get(&format!("{stem}.after_roundtrip.{ext}")).unwrap_or(&all[&format!("{stem}.{ext}")]).clone();
        let (want_json, want_pb) = (compact(&after("json")), after("pb"));
        match Doc::from_json(&schema, doc, Bytes::copy_from_slice(json)) {
            Ok(d) if d.doc.to_json() != want_json => {
                failures.push(format!("{name}: json: {}", first_difference(&d.doc.to_json(), &want_json)))
            }
            Ok(_) => {}
            Err(e) => failures.push(format!("{name}: {e}")),
        }
        match Doc::from_protobuf(&schema, Bytes::copy_from_slice(&all[&format!("{stem}.pb")])) {
            Ok(d) if d.to_protobuf() != want_pb => failures.push(format!("{name}: pb: {}", first_difference(&d.to_protobuf(), &want_pb))),
            Ok(_) => {}
            Err(e) => failures.push(format!("{name}: pb: {e}")),
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    assert!(kinds >= 450, "only {kinds}");
}
