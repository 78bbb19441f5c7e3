//! Encryption at rest: values are sealed on their way to etcd and opened on their way back, by rules that name resources.
//!
//! Every value says by its prefix which key sealed it, so any number of keys can be in use while values move from one to the next: they
//! are written with the first key of their resource, and whatever another key sealed is written again by the next update.

mod cipher;
mod config;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use cipher::Cipher;
use config::Which;

use super::StoreError;
use crate::config_file::{self, ConfigFileError};

/// How every sealed value begins.
const SEALED: &[u8] = b"k8s:enc:";

/// A way to store a value: sealed with one key, or as it is.
#[derive(Debug)]
struct Transformer {
    prefix: Vec<u8>,
    cipher: Option<Cipher>,
}

/// What reads a resource's values; the first one writes them.
type Chain = Vec<Transformer>;

/// The rules of now, and whose values they are for.
#[derive(Debug)]
pub struct Encryption {
    /// The key space, with a slash at its end.
    root: String,
    /// Group and plural of the built-in resources, by storage prefix.
    builtin: HashMap<String, Which>,
    path: Option<PathBuf>,
    rules: ArcSwap<HashMap<Which, Chain>>,
    /// A value could not be opened since the rules were read.
    unreadable: AtomicBool,
}

impl Encryption {
    /// Without a file nothing is sealed.
    pub fn load(root: &str, builtin: HashMap<String, Which>, path: Option<PathBuf>) -> Result<Self, ConfigFileError> {
        let e = Self { root: root.to_owned(), builtin, path, rules: ArcSwap::default(), unreadable: AtomicBool::new(false) };
        e.reload()?;
        Ok(e)
    }

    /// Reads the file again. What was read before stays when it is not good.
    pub fn reload(&self) -> Result<(), ConfigFileError> {
        if let Some(path) = &self.path {
            self.rules.store(config_file::read("encryption configuration", path, config::parse)?.into());
        }
        Ok(())
    }

    pub fn path(&self) -> Option<PathBuf> {
        self.path.clone()
    }

    /// Whether there were values that could not be opened, which newer rules may be able to. Asking forgets it.
    pub fn take_unreadable(&self) -> bool {
        self.unreadable.swap(false, Ordering::AcqRel)
    }

    /// Group and plural of what is stored at a key; none: it is no object.
    fn which(&self, key: &str) -> Option<Which> {
        let mut parts = key.strip_prefix(self.root.as_str())?.splitn(3, '/');
        let (first, second) = (parts.next()?, parts.next()?);
        if let Some(w) = self.builtin.get(first).or_else(|| self.builtin.get(&format!("{first}/{second}"))) {
            return Some(w.clone());
        }
        // Definitions' groups have a dot; counters and leases of servers are no objects.
        first.contains('.').then(|| (first.to_owned(), second.to_owned()))
    }

    /// Does something with the chain of a key; with nothing when there is no rule for it.
    fn with<T>(&self, key: &str, work: impl FnOnce(&[Transformer]) -> T) -> T {
        let rules = self.rules.load();
        if rules.is_empty() {
            return work(&[]);
        }
        let Some((group, plural)) = self.which(key) else { return work(&[]) };
        let find = |g: &str, p: &str| rules.get(&(g.to_owned(), p.to_owned()));
        let chain = find(&group, &plural).or_else(|| find(&group, "*")).or_else(|| find("*", "*"));
        work(chain.map_or(&[], Vec::as_slice))
    }

    /// The value as it goes to etcd.
    pub fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        self.with(key, |chain| {
            let Some(Transformer { prefix, cipher: Some(cipher) }) = chain.first() else { return Ok(value) };
            let mut out = Vec::with_capacity(prefix.len() + value.len() + 64);
            out.extend_from_slice(prefix);
            cipher.seal(key, &value, &mut out).map_err(|_| StoreError::Seal { key: key.to_owned() })?;
            Ok(out.into())
        })
    }

    /// The value as it was before [`seal`](Self::seal).
    pub fn open(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        if !value.starts_with(SEALED) {
            return Ok(value);
        }
        let opened = self.with(key, |chain| {
            let mut why = "no key of the encryption configuration is the one that sealed it";
            for t in chain {
                let (Some(cipher), Some(sealed)) = (&t.cipher, value.strip_prefix(t.prefix.as_slice())) else { continue };
                match cipher.open(key, sealed) {
                    Ok(plain) => return Ok(plain.into()),
                    Err(_) => why = "the key of that name did not seal it",
                }
            }
            Err(StoreError::Open { key: key.to_owned(), why })
        });
        if opened.is_err() {
            self.unreadable.store(true, Ordering::Release);
        }
        opened
    }

    /// Whether anything is sealed at all.
    pub fn active(&self) -> bool {
        !self.rules.load().is_empty()
    }

    /// Whether `value` is stored otherwise than it would be written now.
    pub fn is_stale(&self, key: &str, value: &[u8]) -> bool {
        self.with(key, |chain| match chain.first() {
            Some(Transformer { prefix, cipher: Some(_) }) => !value.starts_with(prefix),
            _ => value.starts_with(SEALED),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    const OLD: &str = "YWJjZGVmZ2hpamtsbW5vcGFiY2RlZmdoaWprbG1ub3A=";

    fn encryption(entries: &str) -> Encryption {
        let builtin = [("secrets", ("", "secrets")), ("services/specs", ("", "services")), ("deployments", ("apps", "deployments"))];
        let builtin = builtin.map(|(p, (g, n))| (p.to_owned(), (g.to_owned(), n.to_owned()))).into();
        let e = Encryption::load("/registry/", builtin, None).unwrap();
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{entries}");
        e.rules.store(config::parse(&text).unwrap().into());
        e
    }

    #[test]
    fn keys_rotate_by_their_order() {
        let key = "/registry/secrets/a/b";
        let one = |name: &str, secret: &str| format!("{{name: {name}, secret: {secret}}}");
        let with = |keys: &str| {
            encryption(&format!("- resources: [secrets]\n  providers: [{{secretbox: {{keys: [{keys}]}}}}, {{identity: {{}}}}]\n"))
        };
        let old = with(&one("old", OLD));
        let both = with(&format!("{}, {}", one("new", NEW), one("old", OLD)));
        let new = with(&one("new", NEW));
        let plain = Bytes::from_static(b"k8s\0value");
        let sealed = old.seal(key, plain.clone()).unwrap();
        assert!(sealed.starts_with(b"k8s:enc:secretbox:v1:old:"));
        assert_eq!(both.open(key, sealed.clone()).unwrap(), plain);
        assert_eq!([old.is_stale(key, &sealed), both.is_stale(key, &sealed)], [false, true]);
        assert!(!new.take_unreadable());
        assert!(matches!(new.open(key, sealed.clone()), Err(StoreError::Open { .. })));
        assert!(new.take_unreadable() && !new.take_unreadable());
        // What was stored before anything was sealed is readable, and not as it should be.
        assert_eq!(new.open(key, plain.clone()).unwrap(), plain);
        assert!(new.is_stale(key, &plain));
        // With identity first, values are opened and written as they are.
        let off = encryption(&format!(
            "- resources: [secrets]\n  providers: [{{identity: {{}}}}, {{secretbox: {{keys: [{}]}}}}]\n",
            one("old", OLD)
        ));
        assert_eq!(off.open(key, sealed.clone()).unwrap(), plain);
        assert_eq!((off.seal(key, plain.clone()).unwrap(), off.is_stale(key, &sealed)), (plain, true));
    }

    #[test]
    fn keys_of_etcd_belong_to_resources() {
        let e = encryption("- resources: ['*.*']\n  providers: [{identity: {}}]\n");
        for (key, which) in [
            ("/registry/secrets/a/b", Some(("", "secrets"))),
            ("/registry/services/specs/a/b", Some(("", "services"))),
            ("/registry/services/endpoints/a/b", None),
            ("/registry/deployments/a/b", Some(("apps", "deployments"))),
            ("/registry/example.com/pandas/a/b", Some(("example.com", "pandas"))),
            ("/registry/masterleases/10.0.0.1", None),
            ("/registry/ranges/serviceips", None),
            ("compact_rev_key", None),
        ] {
            assert_eq!(e.which(key), which.map(|(g, p)| (g.to_owned(), p.to_owned())), "{key}");
        }
    }
}
