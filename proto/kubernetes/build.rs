//! Compiles the `.proto` files with protox, so that building needs no `protoc`.

use prost::Message as _;

const FILES: [&str; 10] = [
    "apps.v1.proto",
    "coordination.v1.proto",
    "core.v1.proto",
    "discovery.v1.proto",
    "intstr.proto",
    "meta.v1.proto",
    "policy.v1.proto",
    "resource.proto",
    "runtime.proto",
    "storage.v1.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("kubernetes.binpb"), files.encode_to_vec())?;
    Ok(())
}
