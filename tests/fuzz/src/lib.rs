//! The fuzz targets: every decoder of bytes from outside, and the properties of its results.
//!
//! A target takes any bytes, and panics if a property does not hold: another decoder of the same bytes (prost, the snap
//! crate) has the same result, and an accepted value can be used. The same functions run under libFuzzer
//! (`tests/fuzz/run.sh`), and on their seeds in `cargo test` (`tests/fuzz.rs`), which detects a target that does not
//! compile or has no seeds. The seeds are made from the captures in `tests/data`.

mod models;
mod receiver;
mod texts;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};

/// A decoder under test.
pub struct Target {
    /// The name of its program in `fuzz_targets/`.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "snappy", run: wire::snappy, seeds: wire::bodies },
    Target { name: "write_v1", run: wire::write_v1, seeds: wire::messages },
    Target { name: "write_v2", run: wire::write_v2, seeds: wire::messages_v2 },
    Target { name: "xor", run: wire::xor, seeds: wire::chunks },
    Target { name: "read_response", run: wire::read_response, seeds: wire::answers },
    Target { name: "read_message", run: wire::read_message, seeds: wire::stream_messages },
    Target { name: "read_frames", run: wire::read_frames, seeds: wire::streams },
    Target { name: "read_request", run: wire::read_request, seeds: wire::questions },
    Target { name: "receiver", run: receiver::receiver, seeds: receiver::stories },
    Target { name: "model_folder", run: models::folder, seeds: models::folders },
    Target { name: "pickle", run: models::pickle, seeds: models::pickles },
    Target { name: "skops", run: models::skops, seeds: models::schemas },
    Target { name: "npy", run: models::npy, seeds: models::arrays },
    Target { name: "onnx", run: models::onnx, seeds: models::graphs },
    Target { name: "mlmodel", run: models::mlmodel, seeds: models::descriptions },
    Target { name: "config", run: texts::config, seeds: texts::configs },
    Target { name: "web_config", run: texts::web_config, seeds: texts::web_configs },
    Target { name: "selector", run: texts::selector, seeds: texts::selectors },
];

/// Runs a target by its name.
///
/// # Panics
/// If a property does not hold, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target {name}")).run)(data);
}

/// A folder of the captures.
fn data(folder: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // This file is compiled in the crate of the fuzzers, and in a test of the project's own.
    let data = [here.join("tests/data"), here.join("../data")].into_iter().find(|data| data.is_dir());
    data.expect("tests/data is there").join(folder)
}

/// The files of a folder and of those in it that end so.
fn files(folder: &str, end: &str) -> Vec<Vec<u8>> {
    fn collect(folder: &Path, end: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of tests/data") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                collect(&path, end, found);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&data(folder), end, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no file of {folder} ends with {end}");
    found.iter().map(|path| fs::read(path).expect("readable")).collect()
}
