use kvd_proto::BlockHash;

/// The hash of block `position` of chain `chain`: 32 bytes, distinct for distinct pairs.
pub fn chain_hash(chain: u64, position: u32) -> BlockHash {
    let mut bytes = [0; 32];
    let mut state = Payload::new(chain, position).state;
    for word in bytes.chunks_exact_mut(8) {
        state = step(state);
        word.copy_from_slice(&state.to_le_bytes());
    }
    BlockHash::new(&bytes).expect("32 bytes are a hash")
}

/// The bytes of one block, derived from its place, so that every byte of a load can be checked without keeping any.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    state: u64,
}

impl Payload {
    /// The payload of block `position` of chain `chain`.
    pub fn new(chain: u64, position: u32) -> Self {
        Self { state: step(chain.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(position).rotate_left(32)) | 1 }
    }

    /// Fills `bytes` (a multiple of 8) with the payload.
    pub fn fill(&self, bytes: &mut [u8]) {
        let mut state = self.state;
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&state.to_le_bytes());
            state = state.wrapping_add(self.state.rotate_left(17) | 1);
        }
    }

    /// Whether `bytes` are exactly this payload.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut state = self.state;
        bytes.chunks_exact(8).all(|word| {
            let same = word == state.to_le_bytes();
            state = state.wrapping_add(self.state.rotate_left(17) | 1);
            same
        })
    }
}

/// One step of the SplitMix64 generator (Steele, Lea, Flood 2014).
fn step(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_knows_itself_and_no_other() {
        let mut bytes = vec![0; 4096];
        Payload::new(1, 2).fill(&mut bytes);
        assert!(Payload::new(1, 2).matches(&bytes));
        assert!(!Payload::new(1, 3).matches(&bytes));
        bytes[4095] ^= 0x80;
        assert!(!Payload::new(1, 2).matches(&bytes));
    }
}
