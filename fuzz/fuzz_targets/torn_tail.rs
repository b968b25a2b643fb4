#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom::audit::fuzzing::torn_tail(data));
