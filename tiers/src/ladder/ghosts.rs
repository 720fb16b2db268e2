//! Why a block that is gone is gone: a small table of fingerprints, newest wins.

use kvd_proto::{BlockKey, MissReason};

/// One word per place: 24 bits of the key and the reason's code.
pub(super) struct Ghosts {
    words: Vec<u32>,
}

impl Ghosts {
    pub(super) fn new(count: u32) -> Self {
        Self { words: vec![0; count.next_power_of_two() as usize] }
    }

    fn place(&self, key: &BlockKey) -> (usize, u32) {
        // The tail of the key: the index uses the head.
        let tail = u64::from_le_bytes(key.as_bytes()[8..].try_into().expect("8 of 16 bytes"));
        ((tail >> 24) as usize & (self.words.len() - 1), (tail as u32) << 8)
    }

    pub(super) fn put(&mut self, key: &BlockKey, reason: MissReason) {
        let (place, print) = self.place(key);
        self.words[place] = print | u32::from(reason.code());
    }

    pub(super) fn get(&self, key: &BlockKey) -> Option<MissReason> {
        let (place, print) = self.place(key);
        let word = self.words[place];
        if word & !0xff != print {
            return None;
        }
        // Where nothing was put stands 0, which is no reason's code.
        MissReason::from_code((word & 0xff) as u8)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_last_reason() {
        let mut ghosts = Ghosts::new(1000);
        let (a, b) = (BlockKey::new([7; 16]), BlockKey::new([8; 16]));
        assert_eq!(ghosts.get(&a), None);
        ghosts.put(&a, MissReason::Evicted);
        ghosts.put(&a, MissReason::Corrupt);
        assert_eq!(ghosts.get(&a), Some(MissReason::Corrupt));
        assert_eq!(ghosts.get(&b), None);
    }

    #[test]
    fn a_block_is_not_taken_for_another() {
        let key = |tail: u64| {
            let mut bytes = [7; 16];
            bytes[8..].copy_from_slice(&tail.to_le_bytes());
            BlockKey::new(bytes)
        };
        let reason = |place: u64| if place.is_multiple_of(3) { MissReason::Corrupt } else { MissReason::Evicted };
        let mut ghosts = Ghosts::new(1024);
        // One for each place.
        (0..1024).for_each(|place| ghosts.put(&key(place << 24 | (place + 1)), reason(place)));
        for place in 0..1024 {
            assert_eq!(ghosts.get(&key(place << 24 | (place + 1))), Some(reason(place)));
            for other in [place, place + 2, (place + 1) | 1 << 23] {
                assert_eq!(ghosts.get(&key(place << 24 | other)), None, "{other} at {place}");
            }
        }
    }
}
