//! Node ports, as upstream keeps them: a bitmap in one object, changed by compare-and-swap.

use std::fmt;

use bytes::Bytes;
use k8s_schema::Doc;
use rand::RngExt;

use crate::{
    http::ApiError,
    server::Server,
    storage::{RawKv, StoreError},
};

/// The range of node ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePorts {
    pub first: u16,
    pub last: u16,
}

impl fmt::Display for NodePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl std::str::FromStr for NodePorts {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is not a range of ports such as 30000-32767");
        let (first, last) = match s.split_once('-') {
            Some((a, b)) => (a.parse().map_err(|_| bad())?, b.parse().map_err(|_| bad())?),
            None => {
                let (a, n) = s.split_once('+').ok_or_else(bad)?;
                let a: u16 = a.parse().map_err(|_| bad())?;
                (a, a.checked_add(n.parse().map_err(|_| bad())?).ok_or_else(bad)?)
            }
        };
        if first == 0 || last < first { Err(bad()) } else { Ok(Self { first, last }) }
    }
}

/// Bit `n` is the port `first + n`; stored as a big-endian number without leading zeros, as upstream stores it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Bitmap(Vec<u8>);

impl Bitmap {
    fn decode(big_endian: &[u8]) -> Self {
        Self(big_endian.iter().rev().copied().collect())
    }

    fn encode(&self) -> Vec<u8> {
        let len = self.0.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
        self.0[..len].iter().rev().copied().collect()
    }

    fn has(&self, n: usize) -> bool {
        self.0.get(n / 8).is_some_and(|b| b & (1 << (n % 8)) != 0)
    }

    fn set(&mut self, n: usize, on: bool) {
        if self.0.len() <= n / 8 {
            self.0.resize(n / 8 + 1, 0);
        }
        if on {
            self.0[n / 8] |= 1 << (n % 8);
        } else {
            self.0[n / 8] &= !(1 << (n % 8));
        }
    }
}

impl NodePorts {
    pub fn contains(&self, p: u16) -> bool {
        (self.first..=self.last).contains(&p)
    }

    fn size(&self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    fn key(server: &Server) -> String {
        format!("{}ranges/servicenodeports", server.root)
    }

    async fn read(&self, server: &Server) -> Result<(Bitmap, i64), ApiError> {
        let (kv, _) = server.etcd.get(&Self::key(server)).await?;
        match kv {
            Some(RawKv { value, rev, .. }) => {
                let d = crate::objects::decode(&server.objects.schema, &value).map_err(ApiError::internal)?;
                Ok((Bitmap::decode(d.at("data").bytes()), rev))
            }
            None => Ok((Bitmap::default(), 0)),
        }
    }

    fn value(&self, server: &Server, map: &Bitmap) -> Result<Bytes, ApiError> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let mut d = Doc::of_kind(&server.objects.schema, "", "v1", "RangeAllocation")
            .ok_or_else(|| ApiError::internal("no type RangeAllocation"))?;
        d.set("range", self.to_string()).map_err(ApiError::internal)?;
        d.set("data", STANDARD.encode(map.encode())).map_err(ApiError::internal)?;
        Ok(d.to_protobuf().into())
    }

    /// Changes the bitmap; `f` tells whether it did. None: it did not want to.
    async fn change<T>(&self, server: &Server, mut f: impl FnMut(&mut Bitmap) -> Option<T>) -> Result<Option<T>, ApiError> {
        for _ in 0..64 {
            let (mut map, rev) = self.read(server).await?;
            let Some(result) = f(&mut map) else { return Ok(None) };
            let value = self.value(server, &map)?;
            let key = Self::key(server);
            let written = if rev == 0 { server.etcd.create(&key, value, 0).await } else { server.etcd.update(&key, rev, value, 0).await };
            match written {
                Ok(_) => return Ok(Some(result)),
                Err(StoreError::Exists { .. } | StoreError::Changed { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(ApiError::internal("node ports are contended"))
    }

    /// Takes `wanted`, or any free port. None: it is taken, or none is free.
    pub async fn take(&self, server: &Server, wanted: Option<u16>) -> Result<Option<u16>, ApiError> {
        let size = self.size();
        // The lower part is left for ports that people choose.
        let offset = if size >= 64 { (size / 32).clamp(16, 128) } else { 0 };
        let start = rand::rng().random_range(offset..size.max(offset + 1));
        self.change(server, |map| {
            let n = match wanted {
                Some(p) => Some(usize::from(p - self.first)).filter(|n| !map.has(*n)),
                None => (start..size).chain(offset..start).chain(0..offset).find(|n| !map.has(*n)),
            }?;
            map.set(n, true);
            Some(self.first + n as u16)
        })
        .await
    }

    pub async fn is_taken(&self, server: &Server, p: u16) -> Result<bool, ApiError> {
        Ok(self.read(server).await?.0.has(usize::from(p - self.first)))
    }

    pub async fn release(&self, server: &Server, ports: &[u16]) -> Result<(), ApiError> {
        self.change(server, |map| {
            let mut any = false;
            for p in ports.iter().filter(|p| self.contains(**p)) {
                let n = usize::from(p - self.first);
                any |= map.has(n);
                map.set(n, false);
            }
            any.then_some(())
        })
        .await
        .map(drop)
    }

    /// Marks the ports that Services have; those that nobody has are freed.
    pub async fn repair(&self, server: &Server, used: &[u16]) -> Result<(), ApiError> {
        self.change(server, |map| {
            let mut right = Bitmap::default();
            for p in used.iter().filter(|p| self.contains(**p)) {
                right.set(usize::from(p - self.first), true);
            }
            let different = right.encode() != map.encode();
            *map = right;
            different.then_some(())
        })
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_are_big_endian_numbers() {
        let mut m = Bitmap::default();
        m.set(0, true);
        m.set(9, true);
        assert_eq!(m.encode(), [2, 1]);
        assert_eq!(Bitmap::decode(&[2, 1]), Bitmap(vec![1, 2]));
        m.set(9, false);
        assert_eq!(m.encode(), [1]);
    }

    #[test]
    fn ranges_are_read_in_both_forms() {
        assert_eq!("30000-32767".parse(), Ok(NodePorts { first: 30000, last: 32767 }));
        assert_eq!("30000+100".parse(), Ok(NodePorts { first: 30000, last: 30100 }));
        assert!("5-1".parse::<NodePorts>().is_err());
        assert!("x".parse::<NodePorts>().is_err());
    }
}
