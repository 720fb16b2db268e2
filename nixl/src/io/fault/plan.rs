//! Which operations meet which fault.

use rustix::io::Errno;

use crate::io::{FileId, IoKind, IoOp, Seeded};

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing moves; the completion carries this error number.
    Errno(i32),
    /// Only the first sectors move, and the completion says so ([`IoError::Short`](crate::io::IoError::Short)).
    Short,
    /// Only the first sectors move, and the completion says `Ok`.
    Torn,
    /// Nothing moves, and the completion says `Ok`.
    Lost,
    /// The operation goes to another 4 KiB aligned offset below `span_bytes`, and the completion says `Ok`.
    Misdirected {
        /// Range in which the wrong offset lies, from the start of the file.
        span_bytes: u64,
    },
    /// A read brings what the range held before its last write (zeros where that is not known).
    Stale,
    /// One bit differs: in memory after a read, on the disk after a write.
    BitFlip,
    /// The completion is withheld for so many polls.
    Delay {
        /// Polls until the completion is handed out.
        polls: u32,
    },
    /// Nothing happens until [`FaultControl::release`](super::FaultControl::release).
    Hang,
}

impl Fault {
    /// A medium error.
    pub const EIO: Self = Self::Errno(Errno::IO.raw_os_error());
    /// No space left.
    pub const ENOSPC: Self = Self::Errno(Errno::NOSPC.raw_os_error());
    /// Read-only filesystem.
    pub const EROFS: Self = Self::Errno(Errno::ROFS.raw_os_error());

    /// Whether the fault means anything for this kind of operation.
    const fn befalls(self, kind: IoKind) -> bool {
        match (self, kind) {
            (Self::Errno(_) | Self::Lost | Self::Delay { .. } | Self::Hang, _) => true,
            (Self::Short | Self::Torn | Self::Misdirected { .. } | Self::BitFlip, _) => !matches!(kind, IoKind::Sync),
            (Self::Stale, _) => matches!(kind, IoKind::Read),
        }
    }
}

/// When a rule strikes, counted over the operations it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultTrigger {
    /// The n-th operation only, counted from 1.
    Nth(u64),
    /// Every operation from the n-th on, counted from 1.
    From(u64),
    /// So many of a million, drawn from the seed.
    PerMillion(u32),
}

/// One fault and the operations it may strike.
#[derive(Clone, Copy, Debug)]
pub struct FaultRule {
    /// What happens.
    pub fault: Fault,
    /// When.
    pub trigger: FaultTrigger,
    /// Only operations of this kind; `None`: every kind for which the fault has a meaning.
    pub kind: Option<IoKind>,
    /// Only operations on this file.
    pub file: Option<FileId>,
}

impl FaultRule {
    /// `fault` on operations of any kind and file.
    pub const fn new(fault: Fault, trigger: FaultTrigger) -> Self {
        Self { fault, trigger, kind: None, file: None }
    }

    /// The same on one kind of operation.
    pub const fn on(self, kind: IoKind) -> Self {
        Self { kind: Some(kind), ..self }
    }

    /// The same on one file.
    pub const fn of(self, file: FileId) -> Self {
        Self { file: Some(file), ..self }
    }
}

/// Rules in order: the first that strikes decides. Every rule counts every operation that it applies to.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    rules: Vec<(FaultRule, u64)>,
}

impl FaultPlan {
    /// A plan with these rules.
    pub fn new(rules: impl IntoIterator<Item = FaultRule>) -> Self {
        Self { rules: rules.into_iter().map(|rule| (rule, 0)).collect() }
    }

    /// Whether earlier content has to be remembered.
    pub(super) fn has_stale_reads(&self) -> bool {
        self.rules.iter().any(|(rule, _)| rule.fault == Fault::Stale)
    }

    /// The fault of the next operation.
    pub(super) fn next(&mut self, op: &IoOp, random: &mut Seeded) -> Option<Fault> {
        let mut struck = None;
        for (rule, count) in &mut self.rules {
            let applies = rule.kind.is_none_or(|kind| kind == op.kind)
                && rule.file.is_none_or(|file| file == op.file)
                && rule.fault.befalls(op.kind);
            if !applies {
                continue;
            }
            *count += 1;
            let strikes = match rule.trigger {
                FaultTrigger::Nth(n) => *count == n,
                FaultTrigger::From(n) => *count >= n,
                FaultTrigger::PerMillion(rate) => random.chance(rate),
            };
            if strikes && struck.is_none() {
                struck = Some(rule.fault);
            }
        }
        struck
    }
}
