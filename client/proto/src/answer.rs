//! Where bytes lie and why they are missing.

use std::fmt;

/// A place that keeps records. The order is the ladder's, fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tier {
    /// GPU memory.
    Hbm = 1,
    /// The arena in the host's memory.
    Dram = 2,
    /// Local solid-state disks.
    Nvme = 3,
    /// An S3-compatible store.
    Object = 4,
    /// Another node.
    Peer = 5,
}

impl Tier {
    /// Every tier, fastest first.
    pub const ALL: [Self; 5] = [Self::Hbm, Self::Dram, Self::Nvme, Self::Object, Self::Peer];

    /// The byte that stands for this tier on the wire; never 0.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The tier of a wire byte.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.code() == code)
    }

    /// Its name in metrics, JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hbm => "hbm",
            Self::Dram => "dram",
            Self::Nvme => "nvme",
            Self::Object => "object",
            Self::Peer => "peer",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a block was not served. Every miss has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum MissReason {
    /// Never stored here, as far as the daemon remembers.
    Cold = 1,
    /// Was here and had to give way.
    Evicted = 2,
    /// Its bytes did not match their checksums and no other copy did.
    Corrupt = 3,
    /// The deadline passed first.
    Timeout = 4,
    /// The tier that holds it does not answer.
    TierDown = 5,
    /// Loading it would take longer than computing it again.
    SlowerThanRecompute = 6,
    /// A bound of the instance or tenant was reached.
    Quota = 7,
    /// The lease under which it was held is gone.
    LeaseLost = 8,
    /// The engine's device did not copy it.
    Device = 9,
}

impl MissReason {
    /// Every reason, in the order of their codes.
    pub const ALL: [Self; 9] = [
        Self::Cold,
        Self::Evicted,
        Self::Corrupt,
        Self::Timeout,
        Self::TierDown,
        Self::SlowerThanRecompute,
        Self::Quota,
        Self::LeaseLost,
        Self::Device,
    ];

    /// The byte that stands for this reason on the wire; never 0.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The reason of a wire byte.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// Its name in metrics, JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Evicted => "evicted",
            Self::Corrupt => "corrupt",
            Self::Timeout => "timeout",
            Self::TierDown => "tier_down",
            Self::SlowerThanRecompute => "slower_than_recompute",
            Self::Quota => "quota",
            Self::LeaseLost => "lease_lost",
            Self::Device => "device",
        }
    }
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
