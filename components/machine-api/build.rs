//! Compiles the protobuf definitions with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["machine", "node", "cluster"].map(|name| format!("strake/machine/v1alpha1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".strake.machine.v1alpha1.Chunk.data").compile_fds(descriptors)?;
    Ok(())
}
