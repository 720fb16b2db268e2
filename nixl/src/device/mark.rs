//! Points in an engine's own work: its blocks may be moved once it has come there.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::DeviceError;
use crate::sys::cuda::StreamEvent;

/// Between two looks at a point that is not reached: short at first, for steps that decode are short.
const PAUSE_MIN: Duration = Duration::from_micros(20);
/// Long in the end: each look takes locks of the driver, which the engine's launches need too.
const PAUSE_MAX: Duration = Duration::from_micros(500);

/// A point in an engine's work, reached once all before it has ended. Clones are the same point.
///
/// What is stored behind a mark are the bytes that the work before it has left; what is loaded behind one is not overwritten by
/// that work. Who waits for a mark holds no slot, no lease and no chunk meanwhile.
#[derive(Debug, Clone)]
pub struct Mark(Arc<Point>);

#[derive(Debug)]
enum Point {
    /// In a stream of a GPU.
    Stream(StreamEvent),
    /// Where work has ended when its caller goes on.
    Past(Instant),
}

impl Mark {
    pub(crate) fn in_stream(event: StreamEvent) -> Self {
        Self(Arc::new(Point::Stream(event)))
    }

    /// One that is reached: behind what the calling thread has done itself, as engines on CPUs compute.
    pub fn now() -> Self {
        Self(Arc::new(Point::Past(Instant::now())))
    }

    /// Whether all before it has ended. An error of that work, if there was one.
    pub fn is_reached(&self) -> Result<bool, DeviceError> {
        match &*self.0 {
            Point::Stream(event) => event.is_reached(),
            Point::Past(_) => Ok(true),
        }
    }

    /// Waits until it is reached, `within` at most; whether it is.
    pub fn wait(&self, within: Duration) -> Result<bool, DeviceError> {
        let (started, mut pause) = (Instant::now(), PAUSE_MIN);
        while !self.is_reached()? {
            let left = within.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(true)
    }

    /// How long the engine worked from an earlier mark to this one, by the clock of whoever did that work; `None` where one of them
    /// is not reached, or they are of different clocks.
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        match (&*earlier.0, &*self.0) {
            (Point::Stream(earlier), Point::Stream(later)) => later.since(earlier),
            (Point::Past(earlier), Point::Past(later)) => Some(later.saturating_duration_since(*earlier)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_has_done_is_behind_it() {
        let (earlier, _) = (Mark::now(), thread::sleep(Duration::from_millis(2)));
        let later = Mark::now();
        assert!(earlier.is_reached().unwrap() && later.wait(Duration::ZERO).unwrap());
        assert!(later.since(&earlier).unwrap() >= Duration::from_millis(2));
        assert_eq!(earlier.since(&later), Some(Duration::ZERO));
    }
}
