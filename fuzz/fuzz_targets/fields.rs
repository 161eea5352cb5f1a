#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tiny_probe_fuzz::fields::check(input));
