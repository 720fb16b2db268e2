//! What a block is, as far as its chance of being used again goes.
//!
//! A class is (turn, uses, length, end): how many times its chain had branched off something known when the block came, how
//! often it was used since, how long that chain was, and whether it is the chain's last block. Conversations make these
//! four the strong signs: who has come back comes back again, and the last block of a prompt is seldom whole when the next
//! turn arrives, so its hash changes.

/// Turns, uses and length have this many steps at most; the last step means "or more".
const TURNS: u8 = 5;
const USES: u8 = 5;
const LENGTHS: u8 = 4;

/// Number of [`Class`]es.
pub(super) const CLASSES: usize = TURNS as usize * USES as usize * LENGTHS as usize * 2;
const _: () = assert!(CLASSES <= 256, "a class fits the byte that a rank has for it");

/// Number of coarser groups from which a class borrows while it has seen little itself.
pub(super) const GROUPS: usize = TURNS as usize * USES as usize * 2 + 4 + 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class(u8);

/// What makes a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    pub(super) turn: u8,
    pub(super) uses: u8,
    /// Step of the chain's length: up to 3 blocks, 15, 63, more.
    pub(super) length: u8,
    pub(super) last: bool,
}

impl Traits {
    pub(super) fn length_step(chain_blocks: u32) -> u8 {
        match chain_blocks {
            0..=3 => 0,
            4..=15 => 1,
            16..=63 => 2,
            _ => 3,
        }
    }
}

impl Class {
    pub(super) fn new(traits: Traits) -> Self {
        let (turn, uses) = (traits.turn.min(TURNS - 1), traits.uses.min(USES - 1));
        Self(((turn * USES + uses) * LENGTHS + traits.length.min(LENGTHS - 1)) * 2 + u8::from(traits.last))
    }

    /// From the byte of a rank. Ranks come back from disk tables and may be anything: unknown bytes are the first class.
    pub(super) fn from_byte(byte: u8) -> Self {
        if usize::from(byte) < CLASSES { Self(byte) } else { Self(0) }
    }

    pub(super) fn byte(self) -> u8 {
        self.0
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(super) fn traits(self) -> Traits {
        let rest = self.0 / 2;
        let (length, rest) = (rest % LENGTHS, rest / LENGTHS);
        Traits { turn: rest / USES, uses: rest % USES, length, last: self.0 % 2 == 1 }
    }

    /// The same block after one more use.
    pub(super) fn used_again(self) -> Self {
        let mut traits = self.traits();
        traits.uses += 1;
        Self::new(traits)
    }

    /// The groups it belongs to, from the finest to "all blocks", as indices below [`GROUPS`].
    pub(super) fn groups(self) -> [usize; 3] {
        let traits = self.traits();
        let fine = usize::from((traits.turn * USES + traits.uses) * 2 + u8::from(traits.last));
        let coarse = GROUPS - 5 + usize::from(traits.uses > 0) * 2 + usize::from(traits.last);
        [fine, coarse, GROUPS - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_class_and_every_class_its_traits() {
        for byte in 0..=255 {
            let class = Class::from_byte(byte);
            assert_eq!(Class::new(class.traits()), class);
            assert!(class.index() < CLASSES);
            let groups = class.groups();
            assert!(groups[0] < groups[1] && groups[1] < groups[2] && groups[2] == GROUPS - 1);
        }
        let first = Class::new(Traits { turn: 0, uses: 0, length: Traits::length_step(9), last: false });
        let many = (0..9).fold(first, |class, _| class.used_again());
        assert_eq!(many.traits(), Traits { turn: 0, uses: USES - 1, length: 1, last: false });
    }
}
