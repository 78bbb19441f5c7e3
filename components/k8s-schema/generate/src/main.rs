//! Writes the schema table of `k8s-schema`.
//!
//! `k8s-schema-generate relock DIR` writes `packages.lock` anew from what the mirror has; `k8s-schema-generate fetch DIR` downloads and unpacks the packages named in `packages.lock` (through apt, from the
//! mirror the host is configured for); `k8s-schema-generate table DIR OUT` writes the table from them;
//! `k8s-schema-generate goldens DIR OUT` packs the golden objects.

mod emit;
mod fetch;
mod go;
mod goldens;
mod packages;

use anyhow::{Context, Result, bail};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["relock", dir] => fetch::relock(Path::new(dir), Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/packages.lock"))),
        ["fetch", dir] => fetch::fetch(Path::new(dir)),
        ["table", dir, out] => {
            let root = Path::new(dir).join("root/usr/share/gocode/src");
            let text = emit::table(&packages::read_all(&root)?)?;
            std::fs::write(out, text).with_context(|| format!("write {out}"))
        }
        ["goldens", dir, out] => goldens::pack(&Path::new(dir).join("root/usr/share/gocode/src/k8s.io/api/testdata"), Path::new(out)),
        _ => bail!("usage: k8s-schema-generate relock DIR | fetch DIR | table DIR OUT | goldens DIR OUT"),
    }
}
