use std::fs::File;
use std::io::Read as _;

/// A seed that no run had before, from the system. Tests print it, so that they can be run again with it.
pub fn fresh_seed() -> u64 {
    let mut bytes = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("the system has randomness");
    u64::from_le_bytes(bytes)
}
