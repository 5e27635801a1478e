#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promforest_fuzz::run("read_request", data));
