//! What one rank reads and writes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::wire::ring::{BLOCKS_PER_CALL_MAX, Op, Request};
use kvd_proto::wire::session::{Body, OpenView, SetPrefillRate, ShardRange, ViewOpened};
use kvd_proto::{BlockHash, GroupSpec, HASH_BYTES_MAX, LayoutError, Namespace, Shard, Units};

use crate::deadline::deadline_in;
use crate::engine::Engine;
use crate::error::ViewError;
use crate::link::CallError;
use crate::session::{CONTROL_WAIT, ControlError, Session, SessionId};
use crate::shards::Others;

/// Between two looks at a view that another thread is just opening.
const LOCK_PAUSE: Duration = Duration::from_micros(200);

/// What a view is opened with.
#[derive(Debug, Clone)]
pub struct ViewSpec<'a> {
    /// Everything that must agree before two blocks may be exchanged.
    pub namespace: &'a Namespace,
    /// Which group of it.
    pub group: u16,
    /// Which part of each block.
    pub shard: Shard,
    /// Bytes of the engine's block hashes, 1 to 32.
    pub hash_bytes: usize,
    /// How fast the engine computes this shard's tokens itself; 0 for unknown. A load that would take longer is no hit.
    pub prefill_tokens_per_second: f64,
    /// Stores through this view bring the blocks' token ids.
    pub token_ids: bool,
}

/// An open view. Clones are the same view.
#[derive(Debug, Clone)]
pub struct View {
    pub(crate) engine: Engine,
    pub(crate) inner: Arc<Inner>,
    /// `None` for a view that is itself another shard's.
    pub(crate) others: Option<Arc<Others>>,
}

/// A shard of a group, as the daemon knows it.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) payload_bytes: u32,
    pub(crate) units: Units,
    pub(crate) block_tokens: u32,
    pub(crate) hash_bytes: usize,
    pub(crate) token_ids: bool,
    /// Guards what is needed to open the view again and under which number it is open. Held over the exchange with the
    /// daemon, so that two threads do not open it twice.
    opened: Mutex<Opening>,
    /// A daemon that refuses it is asked again: without it the engine has nothing.
    needed: bool,
}

#[derive(Debug)]
struct Opening {
    message: OpenView,
    open: Option<(SessionId, Opened)>,
    /// Who refused it last.
    refused: Option<SessionId>,
}

/// The view's names with the daemon that is joined now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) number: u16,
    pub(crate) meta_bytes: usize,
    pub(crate) algorithm: ChecksumAlgorithm,
}

/// Why a view is not open with the daemon.
enum NotOpen {
    Call(CallError),
    Refused(ViewError),
}

impl View {
    pub(crate) fn open(engine: Engine, spec: &ViewSpec<'_>) -> Result<Self, ViewError> {
        let group = spec.namespace.groups.get(usize::from(spec.group)).ok_or(ViewError::Group(spec.group))?;
        if spec.hash_bytes == 0 || spec.hash_bytes > HASH_BYTES_MAX {
            return Err(ViewError::HashBytes(spec.hash_bytes));
        }
        let message = OpenView {
            namespace: spec.namespace.encode()?,
            group: spec.group.into(),
            shard: None,
            prefill_tokens_per_second: spec.prefill_tokens_per_second,
            hash_bytes: u32::try_from(spec.hash_bytes).expect("at most 32"),
            token_ids: spec.token_ids,
        };
        let others = Others::new(group, &spec.shard, spec.namespace.block_tokens, message.clone());
        let inner = Inner::new(group, &spec.shard, spec.namespace.block_tokens, message, true)?;
        let view = Self { engine, inner: Arc::new(inner), others: Some(Arc::new(others)) };
        if let Some(session) = view.engine.shared.session() {
            match view.inner.with(&session, Instant::now() + CONTROL_WAIT) {
                Err(NotOpen::Refused(refused)) => return Err(refused),
                // Tried again by the first call.
                Ok(_) | Err(NotOpen::Call(_)) => {}
            }
        }
        Ok(view)
    }

    /// Bytes of a block's payload: what each destination and source must have.
    pub fn payload_bytes(&self) -> u32 {
        self.inner.payload_bytes
    }

    /// Tells the daemon how fast the engine computes now. Kept for the daemons after this one.
    pub fn set_prefill_rate(&self, tokens_per_second: f64) {
        let (session, until) = (self.engine.shared.session(), Instant::now() + CONTROL_WAIT);
        let others = self.others.as_ref().map(|others| others.set_prefill_rate(tokens_per_second));
        let others = others.iter().flat_map(|sources| &sources.views);
        // A hint: a daemon that does not hear one of them in time is not told the rest.
        let _ = std::iter::once(&self.inner)
            .chain(others)
            .try_for_each(|inner| inner.set_prefill_rate(session.as_deref(), tokens_per_second, until));
    }

    /// Asks the daemon to bring blocks towards DRAM before they are loaded. A hint: nothing is held, nothing is promised.
    pub fn prefetch(&self, hashes: &[BlockHash]) {
        let deadline = deadline_in(self.match_deadline(None));
        for part in hashes.chunks(BLOCKS_PER_CALL_MAX as usize) {
            if self.prefetch_part(part, deadline).is_none() {
                return;
            }
        }
    }

    fn prefetch_part(&self, hashes: &[BlockHash], deadline: Instant) -> Option<()> {
        let session = self.engine.shared.session()?;
        let opened = self.inner.opened(&session, deadline).ok()?;
        let mut call = session.link.call(deadline).ok()?;
        for (index, hash) in hashes.iter().enumerate() {
            call.slab().write(index * HASH_BYTES_MAX, &hash.padded()).ok()?;
        }
        call.send(request(Op::Prefetch, opened.number, hashes.len())).ok()?;
        call.next().ok().map(drop)
    }

    pub(crate) fn match_deadline(&self, session: Option<&Session>) -> Duration {
        let told = session.map(|session| session.terms.match_deadline).filter(|told| !told.is_zero());
        self.engine.shared.options.match_deadline.or(told).unwrap_or(Duration::from_millis(50))
    }

    pub(crate) fn load_deadline(&self, session: Option<&Session>) -> Duration {
        let told = session.map(|session| session.terms.load_deadline).filter(|told| !told.is_zero());
        self.engine.shared.options.load_deadline.or(told).unwrap_or(Duration::from_secs(1))
    }
}

impl Inner {
    /// The shard of a group that `message` describes but for its shard.
    pub(crate) fn new(
        group: &GroupSpec,
        shard: &Shard,
        block_tokens: u32,
        message: OpenView,
        needed: bool,
    ) -> Result<Self, LayoutError> {
        Ok(Self {
            needed,
            payload_bytes: group.record_bytes(shard)?,
            units: group.units(shard)?,
            block_tokens,
            hash_bytes: message.hash_bytes as usize,
            token_ids: message.token_ids,
            opened: Mutex::new(Opening {
                message: OpenView { shard: Some(ShardRange::from(shard)), ..message },
                open: None,
                refused: None,
            }),
        })
    }

    /// The same for a shard that the engine can do without.
    pub(crate) fn other(
        group: &GroupSpec,
        shard: &Shard,
        block_tokens: u32,
        message: OpenView,
    ) -> Result<Self, LayoutError> {
        Self::new(group, shard, block_tokens, message, false)
    }

    fn set_prefill_rate(&self, session: Option<&Session>, rate: f64, until: Instant) -> Result<(), ControlError> {
        let open = {
            let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.message.prefill_tokens_per_second = rate;
            opened.open
        };
        // The lock is free again: calls of other threads do not wait for this answer.
        let (Some(session), Some((id, open))) = (session, open) else { return Ok(()) };
        if session.id == id {
            let message = SetPrefillRate { view: open.number.into(), tokens_per_second: rate };
            session.control.ask(Body::SetPrefillRate(message), until).inspect_err(|error| {
                // One that came too late costs nothing; a broken socket ends the session.
                session.control_failed(*error);
            })?;
        }
        Ok(())
    }

    /// The view's names with the daemon of `session`, which learns of the view if it has not.
    pub(crate) fn opened(&self, session: &Session, deadline: Instant) -> Result<Opened, CallError> {
        self.with(session, deadline).map_err(|error| match error {
            NotOpen::Call(error) => error,
            // A daemon that accepted the view before does not now: its calls miss.
            NotOpen::Refused(_) => CallError::Timeout,
        })
    }

    fn with(&self, session: &Session, deadline: Instant) -> Result<Opened, NotOpen> {
        let mut opening = self.lock(deadline)?;
        if let Some((_, open)) = opening.open.filter(|(id, _)| *id == session.id) {
            return Ok(open);
        }
        if !self.needed && opening.refused == Some(session.id) {
            return Err(NotOpen::Call(CallError::Timeout));
        }
        let answer = session.control.ask(Body::OpenView(opening.message.clone()), deadline);
        let told = match answer {
            Ok((Body::ViewOpened(told), _)) => told,
            Ok((Body::Error(error), _)) => {
                opening.refused = Some(session.id);
                return Err(NotOpen::Refused(ViewError::Refused { code: error.code(), message: error.message }));
            }
            Ok(_) => return Err(NotOpen::Call(session.control_failed(ControlError::Broken))),
            Err(error) => return Err(NotOpen::Call(session.control_failed(error))),
        };
        let open = self.check(&told).ok_or_else(|| NotOpen::Call(session.control_failed(ControlError::Broken)))?;
        opening.open = Some((session.id, open));
        Ok(open)
    }

    /// The lock, which another thread holds while it opens the view: with a deadline of its own, not ours.
    fn lock(&self, deadline: Instant) -> Result<MutexGuard<'_, Opening>, NotOpen> {
        loop {
            match self.opened.try_lock() {
                Ok(opening) => return Ok(opening),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => return Err(NotOpen::Call(CallError::Timeout)),
            }
        }
    }

    /// What the daemon says of the view must be what it is here.
    fn check(&self, told: &ViewOpened) -> Option<Opened> {
        let same = told.payload_bytes == self.payload_bytes
            && told.unit_bytes == self.units.unit_bytes
            && told.hash_bytes as usize == self.hash_bytes;
        Some(Opened {
            number: u16::try_from(told.view).ok()?,
            meta_bytes: told.meta_bytes as usize,
            algorithm: u8::try_from(told.checksum_algorithm).ok().and_then(ChecksumAlgorithm::from_id)?,
        })
        .filter(|_| same)
    }
}

/// A request without the parts that depend on the operation.
pub(crate) fn request(op: Op, view: u16, count: usize) -> Request {
    let count = u32::try_from(count).expect("calls are bounded by BLOCKS_PER_CALL_MAX");
    Request { op, flags: 0, view, slab: 0, first: 0, count, token: 0, lease: 0, deadline_us: 0, arg: 0 }
}
