#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom::audit::fuzzing::changed_trail(data));
