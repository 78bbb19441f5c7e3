//! Makes the committed data of `k8s-schema` from Debian's Kubernetes API packages: the schema table and the golden objects.
//!
//! `cargo xtask schema` calls this; nothing here is part of the product. The packages are pinned in `packages.lock`, so the same lock gives
//! the same bytes.

mod emit;
mod fetch;
mod go;
mod goldens;
mod packages;

pub use fetch::{Sources, fetch, relock};

use anyhow::Result;

/// The schema table, as the text of `data/schema.txt`.
pub fn table(sources: &Sources) -> Result<String> {
    emit::table(&packages::read_all(sources.go())?)
}

/// Upstream's golden objects, as the content of `testdata/goldens.zst`.
pub fn goldens(sources: &Sources) -> Result<Vec<u8>> {
    goldens::pack(&sources.go().join("k8s.io/api/testdata"))
}
