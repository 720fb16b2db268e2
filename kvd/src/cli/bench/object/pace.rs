//! How far engines may be ahead of the uploads. A daemon gives up records that find no room in packs for long, as it must
//! where nobody waits for the store; here somebody does.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Chains that may be stored by now.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Guards the number, or that it is over; held for an instruction, and no other lock is taken under it.
    allowed: Mutex<Allowed>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Allowed {
    chains: usize,
    over: bool,
}

impl Pace {
    fn allowed(&self) -> MutexGuard<'_, Allowed> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this chain, counted from 0, may be stored; `false` once it is over.
    pub(super) fn wait(&self, chain: usize) -> bool {
        let until = |allowed: &mut Allowed| !allowed.over && allowed.chains <= chain;
        let allowed = self.changed.wait_while(self.allowed(), until).unwrap_or_else(PoisonError::into_inner);
        !allowed.over
    }

    /// So many chains may be stored.
    pub(super) fn allow(&self, chains: usize) {
        self.allowed().chains = chains;
        self.changed.notify_all();
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        self.allowed().over = true;
        self.changed.notify_all();
    }

    /// Whether somebody said so.
    pub(super) fn is_over(&self) -> bool {
        self.allowed().over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ahead_waits() {
        let pace = Pace::default();
        pace.allow(2);
        assert!(pace.wait(0) && pace.wait(1));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| pace.wait(2));
            pace.allow(3);
            assert!(waits.join().expect("it ends"));
            let waits = scope.spawn(|| pace.wait(3));
            pace.end();
            assert!(!waits.join().expect("it ends"));
        });
        assert!(pace.is_over() && !pace.wait(0));
    }
}
