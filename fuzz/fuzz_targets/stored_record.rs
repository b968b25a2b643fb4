#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom::records::fuzzing::stored_record(data));
