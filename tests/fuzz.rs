//! The fuzz targets on their seeds and on damaged seeds, without a fuzzer. `tests/fuzz/run.sh` fuzzes from the same
//! seeds without a limit of time.

#[path = "fuzz/src/lib.rs"]
mod targets;

use std::path::Path;
use std::{env, fs};
use targets::TARGETS;

/// A linear congruential generator: the damage is the same in every run.
fn next_random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn seeds_and_damaged_seeds_pass_every_target() {
    let mut state = 1;
    for target in TARGETS {
        targets::run(target.name, &[]);
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for mut seed in seeds {
            targets::run(target.name, &seed);
            for _ in 0..10 {
                let at = next_random(&mut state) % seed.len();
                match next_random(&mut state) % 3 {
                    0 => targets::run(target.name, &seed[..at]),
                    _ => {
                        let before = std::mem::replace(&mut seed[at], next_random(&mut state) as u8);
                        targets::run(target.name, &seed);
                        seed[at] = before;
                    }
                }
            }
        }
    }
}

/// Inputs that once failed: `tests/data/fuzz/TARGET/NAME`.
#[test]
fn fixed_findings_stay_fixed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fuzz");
    for target in TARGETS {
        let Ok(entries) = fs::read_dir(folder.join(target.name)) else { continue };
        for entry in entries {
            let path = entry.expect("readable").path();
            println!("{}", path.display());
            targets::run(target.name, &fs::read(path).expect("readable"));
        }
    }
}

/// Every target has a program that cargo-fuzz runs.
#[test]
fn every_target_has_a_program() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let manifest = fs::read_to_string(crate_dir.join("Cargo.toml")).expect("the crate of the fuzzers");
    for target in TARGETS {
        let program = format!("fuzz_targets/{}.rs", target.name);
        assert!(manifest.contains(&format!("path = \"{program}\"")), "{program} is not in Cargo.toml");
        let code = fs::read_to_string(crate_dir.join(&program)).expect(&program);
        assert!(code.contains(&format!("run(\"{}\", data)", target.name)), "{program} runs something else");
    }
}

/// Writes the seeds into folders of `PROMFOREST_FUZZ_CORPUS`, one for each target: for `tests/fuzz/run.sh`.
#[test]
#[ignore = "writes files"]
fn write_seeds() {
    let corpus = env::var_os("PROMFOREST_FUZZ_CORPUS").expect("PROMFOREST_FUZZ_CORPUS names a folder");
    for target in TARGETS {
        let folder = Path::new(&corpus).join(target.name);
        fs::create_dir_all(&folder).expect("the folder is writable");
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed).expect("the folder is writable");
        }
    }
}
