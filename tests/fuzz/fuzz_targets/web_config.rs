#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promforest_fuzz::run("web_config", data));
