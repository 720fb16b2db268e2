#![no_main]

#[path = "../decoders.rs"]
#[allow(dead_code, reason = "each target uses one of them")]
mod decoders;

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::pack(data));
