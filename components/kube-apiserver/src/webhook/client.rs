//! The client of all webhooks: one call is one JSON document sent and one received, within a time and a size.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use parking_lot::Mutex;
use serde_json::Value;

use super::{
    pool::{Pool, Sender},
    target::{ClientConfig, Target},
    tls,
};
use crate::objects::Objects;

/// An answer is at most this long.
const MAX_ANSWER: usize = 16 << 20;
/// Of an error's body this much is shown.
const SHOWN: usize = 2048;
/// Webhooks whose connections and certificates are kept.
const MAX_POOLS: usize = 256;

/// A call that gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    #[error("Post \"{url}\": {why}")]
    Request { url: String, why: String },
    #[error("{0}")]
    Status(String),
    #[error("the webhook's answer is no JSON: {0}")]
    NotJson(String),
}

pub struct Webhooks {
    objects: Arc<Objects>,
    pools: Mutex<HashMap<ClientConfig, Arc<Pool>>>,
}

impl Webhooks {
    pub fn new(objects: Arc<Objects>) -> Self {
        Self { objects, pools: Mutex::default() }
    }

    /// Posts `body` and gives the answer's JSON.
    pub async fn call(&self, at: &ClientConfig, body: &Value, timeout: Duration) -> Result<Value, CallError> {
        let failed = |why: String| CallError::Request { url: at.url(timeout), why };
        let body = Bytes::from(serde_json::to_vec(body).map_err(|e| failed(e.to_string()))?);
        match tokio::time::timeout(timeout, self.post(at, body, timeout)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => Err(failed(why)),
            Err(_) => Err(failed("context deadline exceeded".into())),
        }
    }

    fn pool(&self, at: &ClientConfig) -> Result<Arc<Pool>, String> {
        if let Some(p) = self.pools.lock().get(at) {
            return Ok(Arc::clone(p));
        }
        let pool = Arc::new(Pool::new(tls::config(&at.ca_bundle)?));
        let mut pools = self.pools.lock();
        if pools.len() >= MAX_POOLS {
            // Those in use come back by themselves.
            pools.clear();
        }
        Ok(Arc::clone(pools.entry(at.clone()).or_insert(pool)))
    }

    /// The outer error is about the connection, the inner one about the answer.
    async fn post(&self, at: &ClientConfig, body: Bytes, timeout: Duration) -> Result<Result<Value, CallError>, String> {
        let target = at.target(&self.objects)?;
        let pool = self.pool(at)?;
        if let Some(mut sender) = pool.reuse(&target) {
            // The other side may have closed it meanwhile; a new connection shows whether there is anybody.
            if let Ok(response) = sender.send_request(request(&target, body.clone(), timeout)?).await {
                return receive(&pool, &target, sender, response).await;
            }
        }
        let mut sender = pool.connect(&target).await?;
        let response = sender.send_request(request(&target, body, timeout)?).await.map_err(|e| e.to_string())?;
        receive(&pool, &target, sender, response).await
    }
}

fn request(t: &Target, body: Bytes, timeout: Duration) -> Result<Request<Full<Bytes>>, String> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("{}?timeout={}s", t.path, timeout.as_secs()))
        .header(header::HOST, t.authority.as_str())
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(header::ACCEPT, HeaderValue::from_static("application/json, */*"))
        .header(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"))
        .body(Full::new(body))
        .map_err(|e| e.to_string())
}

async fn receive(
    pool: &Pool,
    target: &Target,
    sender: Sender,
    response: http::Response<hyper::body::Incoming>,
) -> Result<Result<Value, CallError>, String> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| {
        if e.downcast_ref::<LengthLimitError>().is_some() { format!("the answer is longer than {MAX_ANSWER} bytes") } else { e.to_string() }
    })?;
    let body = body.to_bytes();
    pool.put_back(target, sender);
    if status.is_success() {
        return Ok(serde_json::from_slice(&body).map_err(|e| CallError::NotJson(e.to_string())));
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).trim().to_owned();
    Ok(Err(CallError::Status(match status.as_u16() {
        404 => "the server could not find the requested resource".into(),
        500.. => format!(
            "an error on the server ({:?}) has prevented the request from succeeding",
            if text.is_empty() { "unknown" } else { &text }
        ),
        code => format!("the server responded with the status code {code} but did not return more information"),
    })))
}
