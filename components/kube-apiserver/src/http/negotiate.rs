//! Which representation a client wants, and which one it sent.

use http::{HeaderMap, header};

use super::status::ApiError;

/// An encoding of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// A transformation of the object on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    Object,
    Table,
    PartialMetadata,
    PartialMetadataList,
    Discovery,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub media: Media,
    pub shape: As,
    /// `pretty=1`: indented JSON.
    pub pretty: bool,
    /// A table is to call itself by its former version.
    pub beta: bool,
}

impl Wanted {
    pub const JSON: Self = Self { media: Media::Json, shape: As::Object, pretty: false, beta: false };
}

/// What an endpoint can turn its answer into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offers {
    /// Objects: Table and PartialObjectMetadata too.
    Objects,
    /// Answers to what is posted (reviews, bindings, evictions, tokens): no tables.
    Posted,
    /// Aggregated discovery too.
    Discovery,
    /// Only the plain object.
    Plain,
    /// That in JSON only.
    Json,
}

const ALL: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCHED: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];

struct Clause<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut list: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|c| {
            let mut parts = c.split(';').map(str::trim);
            let media = parts.next()?;
            if media.is_empty() {
                return None;
            }
            let params: Vec<(&str, &str)> =
                parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim().trim_matches('"'))).collect();
            let q = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            Some(Clause { media, params, q })
        })
        .collect();
    list.sort_by(|a, b| b.q.total_cmp(&a.q));
    list
}

/// The text of a 406 by the layer that routes requests, which knows content types only.
fn router_refusal(list: bool, offers: Offers) -> ApiError {
    let all = match offers {
        Offers::Json => &ALL[..1],
        _ if list => WATCHED,
        _ => ALL,
    };
    let mut e = ApiError::new(406, "NotAcceptable", format!("406: Not Acceptable\n\nAvailable representations: {}", all.join(", ")));
    e.details = Some(Box::default());
    e
}

/// Chooses what to answer with. `list`: the path also serves watches.
pub fn wanted(headers: &HeaderMap, pretty: bool, offers: Offers, list: bool) -> Result<Wanted, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let pretty = pretty || ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| agent.starts_with(p));
    if accept.trim().is_empty() {
        return Ok(Wanted { media: Media::Json, shape: As::Object, pretty, beta: false });
    }
    let mut routed = false;
    for c in clauses(accept) {
        let media = match c.media {
            "application/json" | "*/*" => Media::Json,
            _ if offers == Offers::Json => continue,
            "application/yaml" => Media::Yaml,
            "application/vnd.kubernetes.protobuf" => Media::Protobuf,
            "application/*" => {
                // The negotiation of objects would take it, the router in front of it does not.
                continue;
            }
            _ => continue,
        };
        routed = true;
        let param = |k: &str| c.params.iter().find(|(n, _)| *n == k).map(|(_, v)| *v);
        let pretty = pretty || param("pretty") == Some("1");
        let shape = match (param("as"), param("g"), param("v")) {
            (None, ..) => As::Object,
            // The fields of tables have no numbers.
            (Some("Table"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) if offers == Offers::Objects && media != Media::Protobuf => {
                As::Table
            }
            (Some("PartialObjectMetadata"), Some("meta.k8s.io"), Some("v1" | "v1beta1"))
                if matches!(offers, Offers::Objects | Offers::Posted) =>
            {
                As::PartialMetadata
            }
            (Some("PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1" | "v1beta1"))
                if matches!(offers, Offers::Objects | Offers::Posted) =>
            {
                As::PartialMetadataList
            }
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) if offers == Offers::Discovery => As::Discovery,
            _ => continue,
        };
        return Ok(Wanted { media, shape, pretty, beta: param("v") == Some("v1beta1") });
    }
    Err(if routed { ApiError::not_acceptable(ALL) } else { router_refusal(list, offers) })
}

/// What cannot be answered in any form that was asked for.
pub fn refusal() -> ApiError {
    ApiError::not_acceptable(ALL)
}

/// Custom resources have no protobuf form: it is as if the client had not asked for it, unless it asks for nothing else.
pub fn without_protobuf(headers: &mut HeaderMap) {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let plain = |c: &&str| c.contains("protobuf") && !c.contains("as=");
    if !accept.split(',').any(|c| plain(&c)) {
        return;
    }
    let rest: Vec<&str> = accept.split(',').filter(|c| !plain(c)).collect();
    // Nothing left that could be served is refused further on.
    let rest = if rest.is_empty() { "application/vnd.kubernetes.none".to_owned() } else { rest.join(",") };
    if let Ok(v) = header::HeaderValue::from_str(&rest) {
        headers.insert(header::ACCEPT, v);
    }
}

/// What a body is in, by its Content-Type; nothing said means JSON.
pub fn content(headers: &HeaderMap) -> Result<Media, ApiError> {
    let ct = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let media = ct.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match media.as_str() {
        "" | "application/json" => Ok(Media::Json),
        "application/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        other => Err(ApiError::unsupported_media_type(other, ALL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(accept: &str) -> Result<(Media, As), u16> {
        ask_of(Offers::Objects, accept)
    }

    fn ask_of(offers: Offers, accept: &str) -> Result<(Media, As), u16> {
        let mut h = HeaderMap::new();
        h.insert(header::ACCEPT, accept.parse().unwrap());
        wanted(&h, false, offers, false).map(|w| (w.media, w.shape)).map_err(|e| e.code)
    }

    #[test]
    fn the_first_clause_that_can_be_served_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(ask(""), Ok((Media::Json, As::Object)));
        assert_eq!(ask(&format!("{table},{table}beta1,application/json")), Ok((Media::Json, As::Table)));
        assert_eq!(ask("application/json;as=Table;v=v9;g=meta.k8s.io,application/json"), Ok((Media::Json, As::Object)));
        assert_eq!(ask("application/json;as=Table"), Err(406));
        assert_eq!(ask("application/yaml;q=0.1,application/json;q=0.9"), Ok((Media::Json, As::Object)));
        assert_eq!(ask("application/vnd.kubernetes.protobuf,application/json"), Ok((Media::Protobuf, As::Object)));
        assert_eq!(ask("text/html,*/*;q=0.8"), Ok((Media::Json, As::Object)));
        assert_eq!(ask("application/*"), Err(406));
    }
    #[test]
    fn what_is_posted_and_not_kept_has_no_table() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(ask_of(Offers::Posted, table), Err(406));
        assert_eq!(ask_of(Offers::Posted, &format!("{table},application/json")), Ok((Media::Json, As::Object)));
        assert_eq!(
            ask_of(Offers::Posted, "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"),
            Ok((Media::Json, As::PartialMetadata))
        );
    }
}
