//! Gathers the words from the sources of `k8s-openapi`, which cargo has fetched and checked, into a compressed table. No word of them is in this
//! repository (decision 13).

#[path = "src/extract.rs"]
mod extract;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// The folder of the Kubernetes version that the schema table is of.
const VERSION: &str = "v1_36";

fn main() {
    for path in ["build.rs", "src/extract.rs", "../../Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let sources = match sources() {
        Ok(sources) => sources,
        Err(e) => panic!("find the sources of k8s-openapi: {e}"),
    };
    let mut table = BTreeMap::new();
    if let Err(e) = read_all(&sources, &mut table) {
        panic!("read {}: {e}", sources.display());
    }
    let mut text = String::new();
    for ((definition, field), words) in &table {
        text.push_str(&format!("{definition}\t{field}\t{words}\n"));
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("descriptions.deflate");
    let written = std::fs::File::create(&out).and_then(|file| {
        let mut deflate = flate2::write::DeflateEncoder::new(file, flate2::Compression::best());
        deflate.write_all(text.as_bytes())?;
        deflate.finish().map(drop)
    });
    if let Err(e) = written {
        panic!("write {}: {e}", out.display());
    }
}

/// Where cargo keeps the crate: it says so itself, whether the crate comes from a registry, a mirror or a folder of vendored crates.
fn sources() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").ok_or("cargo does not say where it is")?;
    let platform = std::env::var("TARGET").map_err(|e| e.to_string())?;
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version=1", "--locked", "--filter-platform", &platform]);
    let run = command.output().map_err(|e| format!("run cargo metadata: {e}"))?;
    if !run.status.success() {
        return Err(format!("cargo metadata: {} (`cargo fetch` downloads what is missing)", String::from_utf8_lossy(&run.stderr).trim()));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&run.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let package = packages.iter().find(|p| p["name"] == "k8s-openapi").ok_or("it is not among the dependencies")?;
    let manifest = package["manifest_path"].as_str().ok_or("it has no manifest")?;
    let sources = Path::new(manifest).with_file_name("src").join(VERSION);
    if sources.is_dir() { Ok(sources) } else { Err(format!("{} is missing", sources.display())) }
}

fn read_all(folder: &Path, table: &mut BTreeMap<(String, String), String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, table)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            extract::descriptions(&std::fs::read_to_string(&path)?, table);
        }
    }
    Ok(())
}
