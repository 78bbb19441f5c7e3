//! etcd as the API server uses it: single keys changed under a condition on their mod revision, paged reads, one watch. Values are sealed
//! and opened here, so nobody else sees how they are stored.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity, KvClient, PutOptions, TlsOptions, Txn,
    TxnOp, TxnOpResponse, WatchClient, WatchOptions, WatchStream,
};

use super::Encryption;

/// One request may take this long before the client hears of a timeout.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers are bounded by page size times object size; tonic's 4 MiB are too few for a page of large objects.
const MAX_MESSAGE: usize = 512 << 20;

/// Where and how to reach etcd.
#[derive(Debug, Clone, Default)]
pub struct EtcdConfig {
    pub servers: Vec<String>,
    pub ca_file: Option<std::path::PathBuf>,
    pub cert_file: Option<std::path::PathBuf>,
    pub key_file: Option<std::path::PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot read the etcd client file {path}")]
    ReadTls { path: String, source: std::io::Error },
    #[error("cannot connect to etcd")]
    Connect(#[source] etcd_client::Error),
    #[error("etcd request failed")]
    Request(#[source] etcd_client::Error),
    #[error("etcdserver: request timed out")]
    Timeout,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("{key} cannot be encrypted")]
    Seal { key: String },
    #[error("{key} cannot be decrypted: {why}")]
    Open { key: String, why: &'static str },
    #[error("everything is to be read again")]
    ReadAgain,
    #[error("{key} exists")]
    Exists { key: String },
    #[error("{key} changed meanwhile")]
    Changed { key: String, current: Option<RawKv> },
}

impl From<etcd_client::Error> for StoreError {
    fn from(e: etcd_client::Error) -> Self {
        if let etcd_client::Error::GRpcStatus(s) = &e {
            let m = s.message();
            if m.contains("required revision has been compacted") {
                return Self::Compacted;
            }
            if m.contains("request is too large") {
                return Self::TooLarge;
            }
        }
        Self::Request(e)
    }
}

/// A key with its value as it is in etcd.
#[derive(Debug, Clone)]
pub struct RawKv {
    pub key: String,
    pub value: Bytes,
    pub rev: i64,
}

impl RawKv {
    fn from_kv(kv: etcd_client::KeyValue) -> Self {
        let rev = kv.mod_revision();
        let (key, value) = kv.into_key_value();
        Self { key: String::from_utf8_lossy(&key).into_owned(), value: value.into(), rev }
    }
}

/// One page of a range.
#[derive(Debug)]
pub struct Page {
    pub kvs: Vec<RawKv>,
    pub more: bool,
    /// All keys of the range at that revision, also those not on this page.
    pub count: i64,
    /// The revision the page was read at.
    pub rev: i64,
}

/// A connection to etcd; clones share it.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    kv: KvClient,
    watch: WatchClient,
    encryption: Arc<Encryption>,
}

impl Etcd {
    /// Connects lazily: the first request finds out whether etcd is there.
    pub async fn connect(config: &EtcdConfig, encryption: Arc<Encryption>) -> Result<Self, StoreError> {
        let read =
            |p: &std::path::PathBuf| std::fs::read(p).map_err(|source| StoreError::ReadTls { path: p.display().to_string(), source });
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(5))
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_tcp_keepalive(Duration::from_secs(15));
        if config.servers.iter().any(|s| s.starts_with("https://")) {
            let mut tls = TlsOptions::new();
            if let Some(ca) = &config.ca_file {
                tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
            }
            if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        let client = Client::connect(&config.servers, Some(options)).await.map_err(StoreError::Connect)?;
        let kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        let watch = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { client, kv, watch, encryption })
    }

    pub async fn get(&self, key: &str) -> Result<(Option<RawKv>, i64), StoreError> {
        let mut kv = self.kv.clone();
        let mut r = timed(kv.get(key, None)).await?;
        let rev = r.header().map_or(0, |h| h.revision());
        match r.take_kvs().into_iter().next().map(RawKv::from_kv) {
            Some(mut kv) => {
                kv.value = self.encryption.open(&kv.key, kv.value)?;
                Ok((Some(kv), rev))
            }
            None => Ok((None, rev)),
        }
    }

    /// Whether a key's value is sealed otherwise than it would be now. Asks etcd only when anything is sealed.
    pub async fn is_stale(&self, key: &str) -> Result<bool, StoreError> {
        if !self.encryption.active() {
            return Ok(false);
        }
        let mut kv = self.kv.clone();
        let r = timed(kv.get(key, None)).await?;
        Ok(r.kvs().first().is_some_and(|kv| self.encryption.is_stale(key, kv.value())))
    }

    /// The value of an event, as it was before it was sealed.
    pub fn open(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        self.encryption.open(key, value)
    }

    /// A value as readers of many get it: one that cannot be opened is said to be so, and is no object to anybody.
    fn opened(&self, mut kv: RawKv) -> RawKv {
        match self.encryption.open(&kv.key, kv.value.clone()) {
            Ok(v) => kv.value = v,
            Err(e) => tracing::error!(error = &e as &dyn std::error::Error, "a value of etcd cannot be read"),
        }
        kv
    }

    /// The cluster's revision now, by a linearizable read of next to nothing.
    pub async fn revision(&self) -> Result<i64, StoreError> {
        let mut kv = self.kv.clone();
        let r = timed(kv.get("compact_rev_key", Some(GetOptions::new().with_count_only()))).await?;
        Ok(r.header().map_or(0, |h| h.revision()))
    }

    /// How many bytes the database of the server that answers has.
    pub async fn size(&self) -> Result<i64, StoreError> {
        let mut client = self.client.maintenance_client();
        Ok(timed(client.status()).await?.db_size())
    }

    /// Keys of `[start, end)`; `rev` 0 reads the newest.
    pub async fn range(&self, start: &str, end: Vec<u8>, limit: i64, rev: i64) -> Result<Page, StoreError> {
        let mut kv = self.kv.clone();
        let mut options = GetOptions::new().with_range(end).with_limit(limit);
        if rev > 0 {
            options = options.with_revision(rev);
        }
        let mut r = timed(kv.get(start, Some(options))).await?;
        let header = r.header().map_or(0, |h| h.revision());
        Ok(Page {
            more: r.more(),
            count: r.count(),
            rev: if rev > 0 { rev } else { header },
            kvs: r.take_kvs().into_iter().map(|kv| self.opened(RawKv::from_kv(kv))).collect(),
        })
    }

    pub async fn create(&self, key: &str, value: Bytes, lease: i64) -> Result<i64, StoreError> {
        let value = self.encryption.seal(key, value)?;
        let txn = Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, 0)]).and_then([TxnOp::put(
            key,
            value,
            (lease != 0).then(|| PutOptions::new().with_lease(lease)),
        )]);
        let mut kv = self.kv.clone();
        let r = timed(kv.txn(txn)).await?;
        if r.succeeded() { Ok(r.header().map_or(0, |h| h.revision())) } else { Err(StoreError::Exists { key: key.to_owned() }) }
    }

    /// Creates those of `items` that don't exist, many per transaction; a transaction in which one exists falls back to single writes.
    pub async fn create_many(&self, items: Vec<(String, Bytes)>) -> Result<usize, StoreError> {
        let mut created = 0;
        let seal = |(k, v): &(String, Bytes)| self.encryption.seal(k, v.clone()).map(|v| TxnOp::put(k.as_str(), v, None));
        // etcd's default limit is 128 operations per transaction.
        for batch in items.chunks(100) {
            let txn = Txn::new()
                .when(batch.iter().map(|(k, _)| Compare::mod_revision(k.as_str(), CompareOp::Equal, 0)).collect::<Vec<_>>())
                .and_then(batch.iter().map(seal).collect::<Result<Vec<_>, _>>()?);
            let mut kv = self.kv.clone();
            if timed(kv.txn(txn)).await?.succeeded() {
                created += batch.len();
                continue;
            }
            for (k, v) in batch {
                match self.create(k, v.clone(), 0).await {
                    Ok(_) => created += 1,
                    Err(StoreError::Exists { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(created)
    }

    /// Replaces the value if the key is still at `expected`; otherwise tells what is there now.
    pub async fn update(&self, key: &str, expected: i64, value: Bytes, lease: i64) -> Result<i64, StoreError> {
        let value = self.encryption.seal(key, value)?;
        let put = TxnOp::put(key, value, (lease != 0).then(|| PutOptions::new().with_lease(lease)));
        self.conditional(key, expected, put).await
    }

    pub async fn delete(&self, key: &str, expected: i64) -> Result<i64, StoreError> {
        self.conditional(key, expected, TxnOp::delete(key, Some(DeleteOptions::new()))).await
    }

    async fn conditional(&self, key: &str, expected: i64, op: TxnOp) -> Result<i64, StoreError> {
        let txn = Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, expected)]).and_then([op]).or_else([TxnOp::get(key, None)]);
        let mut kv = self.kv.clone();
        let r = timed(kv.txn(txn)).await?;
        if r.succeeded() {
            return Ok(r.header().map_or(0, |h| h.revision()));
        }
        let current = r.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut g) => g.take_kvs().into_iter().next().map(|kv| self.opened(RawKv::from_kv(kv))),
            _ => None,
        });
        Err(StoreError::Changed { key: key.to_owned(), current })
    }

    pub async fn watch(&self, prefix: &str, from: i64) -> Result<WatchStream, StoreError> {
        let mut w = self.watch.clone();
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        timed(w.watch(prefix, Some(options))).await
    }

    /// A lease that ends in `ttl` seconds unless something keeps it alive.
    pub async fn lease(&self, ttl: i64) -> Result<i64, StoreError> {
        let mut c = self.client.lease_client();
        Ok(timed(c.grant(ttl, None)).await?.id())
    }

    /// One round of upstream's compaction agreement: whoever moves `compact_rev_key` from `version` compacts to the revision of the
    /// round before. Gives the version and revision to use the next time.
    pub async fn compact_round(&self, version: i64, rev: i64) -> Result<(i64, i64), StoreError> {
        const KEY: &str = "compact_rev_key";
        let txn = Txn::new()
            .when([Compare::version(KEY, CompareOp::Equal, version)])
            .and_then([TxnOp::put(KEY, rev.to_string(), None)])
            .or_else([TxnOp::get(KEY, None)]);
        let mut kv = self.kv.clone();
        let r = timed(kv.txn(txn)).await?;
        let now = r.header().map_or(0, |h| h.revision());
        if !r.succeeded() {
            let version = r.op_responses().into_iter().find_map(|op| match op {
                TxnOpResponse::Get(g) => g.kvs().first().map(|kv| kv.version()),
                _ => None,
            });
            return Ok((version.unwrap_or(0), now));
        }
        if rev > 0 {
            match timed(kv.compact(rev, None)).await {
                Ok(_) | Err(StoreError::Compacted) => {}
                Err(e) => return Err(e),
            }
        }
        Ok((version + 1, now))
    }
}

async fn timed<T>(f: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, f).await {
        Ok(r) => r.map_err(StoreError::from),
        Err(_) => Err(StoreError::Timeout),
    }
}

/// The end of the range of all keys that start with `prefix`.
pub fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return end;
        }
        end.pop();
    }
    vec![0]
}
