//! Compiles `proto/` with a parser written in Rust, so that the build does not need `protoc`, and records the revision and
//! the compiler.

use std::env;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let schemas = ["remote_write_v1.proto", "remote_write_v2.proto", "remote_read.proto", "onnx.proto"];
    let files = protox::compile(schemas, ["proto"])?;
    prost_build::Config::new().compile_fds(files)?;
    println!("cargo:rustc-env=PROMFOREST_BUILD_REVISION={}", revision());
    println!("cargo:rustc-env=PROMFOREST_BUILD_RUST={}", rust_version());
    Ok(())
}

/// `PROMFOREST_REVISION`, or else the commit of a release build. Other builds have none: a new commit would compile
/// everything again.
fn revision() -> String {
    println!("cargo:rerun-if-env-changed=PROMFOREST_REVISION");
    if let Ok(revision) = env::var("PROMFOREST_REVISION") {
        return revision;
    }
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        for path in ["HEAD", "logs/HEAD"] {
            if let Some(path) = output("git", &["rev-parse", "--git-path", path]) {
                println!("cargo:rerun-if-changed={path}");
            }
        }
        return output("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    }
    "unknown".into()
}

/// The version of the compiler: `1.89.0`.
fn rust_version() -> String {
    let text = env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]));
    text.and_then(|text| text.split(' ').nth(1).map(String::from)).unwrap_or_else(|| "unknown".into())
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_string())
}
