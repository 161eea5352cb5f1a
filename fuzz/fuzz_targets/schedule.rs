#![no_main]

use allocation_counter::measure;
use tiny_probe_fuzz::schedule;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    schedule::check(input, |leave| {
        let allocated = measure(leave).bytes_current;
        usize::try_from(-allocated).unwrap_or(0)
    });
});
