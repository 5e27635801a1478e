//! Compiles `proto/` with a parser written in Rust, so that the build does not need `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let schemas = ["remote_write_v1.proto", "remote_write_v2.proto", "remote_read.proto", "onnx.proto"];
    let files = protox::compile(schemas, ["proto"])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
