//! Blocks on their way between slots and a device's memory: gathered to chunks, several chunks under way, ended in their order.

use std::collections::VecDeque;
use std::time::Instant;

use kvd_nixl::device::{DeviceError, Flight, Lane, RecordMove, Way};

use crate::link::CallError;
use crate::session::{CopyGuard, Session};

/// The call misses; why the device failed is what [`crate::EngineLayout::device_failure`] says.
fn failed(_: DeviceError) -> CallError {
    CallError::Device
}

/// One block that came to its end: what was said of it, and the checksums of what the device read.
#[derive(Debug)]
pub(crate) struct Moved<T> {
    pub(crate) tag: T,
    pub(crate) sums: Vec<u64>,
}

/// The blocks of one call. Dropped early it waits for what is under way: when it is gone nothing of it moves any more.
#[derive(Debug)]
pub(crate) struct Convoy<'a, T> {
    session: &'a Session,
    way: Way,
    lane: Option<Lane>,
    moves: Vec<RecordMove>,
    tags: Vec<T>,
    under_way: VecDeque<Chunk<'a, T>>,
    moved: VecDeque<Moved<T>>,
}

#[derive(Debug)]
struct Chunk<'a, T> {
    /// `None` once it has ended.
    flight: Option<Flight>,
    tags: Vec<T>,
    units: usize,
    /// `None` where the device has not ended and perhaps never will: the session's slots are in use for good then.
    guard: Option<CopyGuard<'a>>,
}

impl<T> Chunk<'_, T> {
    fn end(&mut self) -> Result<Vec<u64>, DeviceError> {
        let ended = self.flight.take().map_or(Ok(Vec::new()), Flight::finish);
        if ended.is_err() {
            self.guard.take().into_iter().for_each(CopyGuard::keep);
        }
        ended
    }
}

impl<T> Drop for Chunk<'_, T> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl<'a, T> Convoy<'a, T> {
    pub(crate) fn new(session: &'a Session, way: Way) -> Self {
        let (under_way, moved) = (VecDeque::new(), VecDeque::new());
        Self { session, way, lane: None, moves: Vec::new(), tags: Vec::new(), under_way, moved }
    }

    /// Whose slots are used.
    pub(crate) fn session(&self) -> &'a Session {
        self.session
    }

    /// Adds a block. It is sent off with others, when they fill a chunk.
    pub(crate) fn add(&mut self, lane: &Lane, one: RecordMove, tag: T, until: Instant) -> Result<(), CallError> {
        let same = self.lane.as_ref().is_some_and(|current| current.is(lane));
        if !same || self.moves.len() >= lane.records_max() {
            self.send(until)?;
        }
        if !same {
            self.lane = Some(lane.clone());
        }
        self.moves.push(one);
        self.tags.push(tag);
        Ok(())
    }

    /// Sends off what was added.
    pub(crate) fn send(&mut self, until: Instant) -> Result<(), CallError> {
        let Some(lane) = self.lane.as_ref().filter(|_| !self.moves.is_empty()) else { return Ok(()) };
        if lane.failure().is_some() {
            // It failed before, perhaps in another session: nothing of this one is with it.
            return Err(CallError::Device);
        }
        let (moves, tags) = (std::mem::take(&mut self.moves), std::mem::take(&mut self.tags));
        let guard = self.session.begin_copy().ok_or(CallError::Down)?;
        let begun = lane.begin(self.way, moves, until);
        if matches!(begun, Err(DeviceError::Stuck { .. })) {
            guard.keep();
            return Err(CallError::Device);
        }
        let flight = begun.map_err(failed)?.ok_or(CallError::Timeout)?;
        let guard = Some(guard);
        self.under_way.push_back(Chunk { flight: Some(flight), tags, units: lane.layout().units(), guard });
        Ok(())
    }

    /// The next block that has come to its end, waiting for it where some are under way. `None`: there are none.
    pub(crate) fn next(&mut self) -> Result<Option<Moved<T>>, CallError> {
        while self.moved.is_empty() && !self.under_way.is_empty() {
            self.end_one()?;
        }
        Ok(self.moved.pop_front())
    }

    /// Waits for the oldest chunk.
    fn end_one(&mut self) -> Result<(), CallError> {
        let Some(mut chunk) = self.under_way.pop_front() else { return Ok(()) };
        let sums = chunk.end().map_err(failed)?;
        let tags = std::mem::take(&mut chunk.tags);
        let each = sums.chunks_exact(chunk.units).map(<[u64]>::to_vec);
        self.moved.extend(tags.into_iter().zip(each).map(|(tag, sums)| Moved { tag, sums }));
        Ok(())
    }
}
