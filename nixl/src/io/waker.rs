//! Ending the wait of an `Io` from another thread.

use std::sync::Arc;

/// Ends the `wait` of the [`Io`](crate::io::Io) that it came from. Cheap to clone; outliving the `Io` is harmless.
#[derive(Clone)]
pub struct IoWaker {
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl IoWaker {
    /// A waker that calls `wake`; the call must not block and may come from any thread, any number of times.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { wake: Arc::new(wake) }
    }

    /// Ends the current or, when there is none, the next `wait`.
    pub fn wake(&self) {
        (self.wake)();
    }
}

impl std::fmt::Debug for IoWaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IoWaker")
    }
}
