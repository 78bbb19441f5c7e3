//! Compiles the committed schema table into the blob that the crate includes.

#[path = "src/table/compile.rs"]
mod compile;

fn main() {
    println!("cargo::rerun-if-changed=data/schema.txt");
    println!("cargo::rerun-if-changed=src/table/compile.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let text = match std::fs::read_to_string("data/schema.txt") {
        Ok(text) => text,
        Err(e) => panic!("read data/schema.txt: {e}"),
    };
    let blob = match compile::compile(&text) {
        Ok(blob) => blob,
        Err(e) => panic!("data/schema.txt: {}", e.0),
    };
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("schema.bin");
    if let Err(e) = std::fs::write(&out, blob) {
        panic!("write {}: {e}", out.display());
    }
}
