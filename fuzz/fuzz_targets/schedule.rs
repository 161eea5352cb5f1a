#![no_main]

use allocation_counter::measure;
use tiny_probe_fuzz::schedule;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (connection, may_hold) = schedule::check(input);
    let held = measure(|| drop(connection)).bytes_current.unsigned_abs();
    assert!(held <= may_hold as u64, "{held} bytes, not {may_hold}");
});
