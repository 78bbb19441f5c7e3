//! Packs upstream's golden objects (JSON and protobuf of every kind, of this version and the three before) for the tests.
//!
//! The archive is a zstd stream of entries: the length of a name and the name, the length of the content and the
//! content; lengths are little-endian `u32`.

use anyhow::{Context, Result};
use std::io::Write;
use std::path::Path;

/// The archive of the objects below `testdata`.
pub fn pack(testdata: &Path) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    let mut versions: Vec<_> = std::fs::read_dir(testdata)?.collect::<std::io::Result<_>>()?;
    versions.sort_by_key(std::fs::DirEntry::file_name);
    for version in versions {
        let mut files: Vec<_> = std::fs::read_dir(version.path())?.collect::<std::io::Result<_>>()?;
        // Alike files beside each other compress best.
        files.sort_by_key(|f| (f.path().extension().map(ToOwned::to_owned), f.file_name()));
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            if !(name.ends_with(".json") || name.ends_with(".pb")) {
                continue;
            }
            let name = format!("{}/{name}", version.file_name().to_string_lossy());
            let content = std::fs::read(file.path()).with_context(|| format!("read {name}"))?;
            for part in [name.as_bytes(), &content] {
                archive.write_all(&u32::try_from(part.len())?.to_le_bytes())?;
                archive.write_all(part)?;
            }
        }
    }
    let mut encoder = zstd::Encoder::new(Vec::new(), 19)?;
    encoder.window_log(27)?;
    encoder.write_all(&archive)?;
    Ok(encoder.finish()?)
}
