//! What is done to bytes that were valid.

use rand::Rng as _;
use rand::rngs::SmallRng;

/// Values at which arithmetic goes wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_fffe,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fffe,
    u64::MAX,
];

/// A value that is likely to hurt, or any at all.
pub(crate) fn edge(random: &mut SmallRng) -> u64 {
    match random.random_range(0..4) {
        0 => random.random(),
        1 => random.random_range(0..5000),
        _ => EDGES[random.random_range(0..EDGES.len())],
    }
}

/// Flips a few bits.
pub(crate) fn flip(bytes: &mut [u8], random: &mut SmallRng) {
    for _ in 0..random.random_range(1..=4) {
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
    }
}

/// Changes bytes in one of many ways; their number may change.
pub(crate) fn any(bytes: &mut Vec<u8>, random: &mut SmallRng) {
    let at = random.random_range(0..=bytes.len());
    let some = random.random_range(1..=16);
    match random.random_range(0..7) {
        0 | 1 => flip(bytes, random),
        2 => bytes.truncate(at),
        3 => bytes.extend((0..some).map(|_| random.random::<u8>())),
        4 => drop(bytes.splice(at..at, (0..some).map(|_| random.random::<u8>()).collect::<Vec<_>>())),
        // The longest variable-length number of protobuf: where a length stood, it is huge now.
        5 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])),
        _ => {
            let value = edge(random).to_le_bytes();
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
    }
}

/// A frame changed: mostly its message under a length that fits, else its length too.
pub(crate) fn frame(valid: &[u8], random: &mut SmallRng) -> Vec<u8> {
    if random.random_ratio(1, 8) {
        let mut bytes = valid.to_vec();
        match random.random_range(0..3) {
            0 => bytes[..4].copy_from_slice(&(edge(random) as u32).to_le_bytes()),
            1 => any(&mut bytes, random),
            _ => bytes = (0..random.random_range(1..200)).map(|_| random.random()).collect(),
        }
        return bytes;
    }
    let mut message = valid[4..].to_vec();
    for _ in 0..random.random_range(1..=3) {
        any(&mut message, random);
    }
    let mut bytes = (message.len() as u32).to_le_bytes().to_vec();
    bytes.append(&mut message);
    bytes
}
