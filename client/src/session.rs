//! One epoch's session with the daemon: the socket, the link, the mapped segments.

mod control;
mod handshake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvd_nixl::sys::EventFd;
use kvd_proto::Epoch;
use kvd_proto::wire::session::{Body, GetSegment, Goodbye};

use crate::link::{CallError, Link};
use crate::segments::{Kept, Segment, Segments};

pub(crate) use control::{Control, ControlError, timespec};
pub(crate) use handshake::{Greeting, connect};

/// How long the daemon may take over a message on the socket.
pub(crate) const CONTROL_WAIT: Duration = Duration::from_secs(2);

/// Numbers the sessions of this process; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionId(u64);

impl SessionId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness counts.
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What the daemon told of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) epoch: Epoch,
    pub(crate) client_slot: u32,
    pub(crate) lease_bytes_max: u64,
    pub(crate) match_deadline: Duration,
    pub(crate) load_deadline: Duration,
    /// It tells which shards it has.
    pub(crate) lists_shards: bool,
    /// It tells which segments are the tenant's.
    pub(crate) lists_segments: bool,
}

/// A joined session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) terms: Terms,
    pub(crate) link: Link,
    pub(crate) control: Control,
    segments: Segments,
    copies: AtomicUsize,
}

impl Session {
    fn new(terms: Terms, link: Link, control: Control, kept: &Arc<Kept>) -> Self {
        let (id, segments) = (SessionId::next(), Segments::new(kept.clone()));
        Self { id, terms, link, control, segments, copies: AtomicUsize::new(0) }
    }

    /// Permission to touch the arena while the result lives; `None` once the session has ended.
    ///
    /// A client may rejoin only when nothing of the old session touches the arena. Count first, then look at the end; the
    /// other side ends first, then looks at the count: with one total order of these four (SeqCst) a copy is either seen or
    /// not begun.
    pub(crate) fn begin_copy(&self) -> Option<CopyGuard<'_>> {
        self.copies.fetch_add(1, Ordering::SeqCst);
        let guard = CopyGuard(self);
        (!self.link.is_down()).then_some(guard)
    }

    /// Whether a thread still touches the arena. Final once the link is down and this is false.
    pub(crate) fn is_copying(&self) -> bool {
        self.copies.load(Ordering::SeqCst) > 0
    }

    /// A segment of the arena, mapped when it is needed first.
    pub(crate) fn segment(&self, number: u32, deadline: Instant) -> Result<Arc<Segment>, CallError> {
        if let Some(open) = self.segments.get(number) {
            return Ok(open);
        }
        if !self.segments.has_room() {
            return Err(CallError::Timeout);
        }
        let answer = self.control.ask(Body::GetSegment(GetSegment { segment: number }), deadline);
        match answer {
            Ok((Body::SegmentFd(told), Some(file))) if told.segment == number => {
                self.segments.open(number, file, told.bytes).ok_or(CallError::Timeout)
            }
            Ok(_) => Err(CallError::Timeout),
            Err(error) => Err(self.control_failed(error)),
        }
    }

    /// Unmaps and unpins segments whose files were replaced, which nobody may ask for again.
    pub(crate) fn let_go_of_stale_segments(&self) {
        self.segments.let_go_of_stale();
    }

    /// Segments that are mapped, those of earlier sessions too.
    pub(crate) fn mapped_segments(&self) -> usize {
        self.segments.mapped()
    }

    /// What a failed exchange on the socket means for calls.
    pub(crate) fn control_failed(&self, error: ControlError) -> CallError {
        match error {
            ControlError::Timeout => CallError::Timeout,
            ControlError::Broken => {
                self.link.shut();
                CallError::Down
            }
        }
    }

    /// Gives all leases back and ends the session.
    pub(crate) fn goodbye(&self) {
        // The socket's end says the same, only later.
        let _ = self.control.ask(Body::Goodbye(Goodbye {}), Instant::now() + Duration::from_millis(200));
        self.link.shut();
    }
}

/// While it lives the session's slots may be touched.
#[derive(Debug)]
pub(crate) struct CopyGuard<'a>(&'a Session);

impl CopyGuard<'_> {
    /// The slots may be touched for ever: a device has not ended with them, and perhaps never does. The session ends without
    /// giving anything back, and its process does not join again.
    pub(crate) fn keep(self) {
        self.0.link.shut();
        std::mem::forget(self);
    }
}

impl Drop for CopyGuard<'_> {
    fn drop(&mut self) {
        self.0.copies.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What both the handshake and the keeper need.
pub(crate) type Ended = Arc<EventFd>;
