//! The bytes of an object as they come: counted, bounded, and never waited for longer than the store may be silent.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};

use super::Fault;
use super::asks::{Opened, Source};
use super::ticket::Ticket;

/// Bytes of an object, in order. Dropping it ends the request.
pub type Body = BoxStream<'static, Result<Bytes, Fault>>;

/// Reads one body.
pub(super) struct Reader {
    source: Source,
    wanted: u64,
    got: u64,
    begun: Instant,
    deadline: Instant,
    silence: Duration,
    unhurried: bool,
}

impl Reader {
    pub(super) fn new(opened: Opened, silence: Duration, deadline: Instant) -> Reader {
        let Opened { source, bytes } = opened;
        Reader { source, wanted: bytes, got: 0, begun: Instant::now(), deadline, silence, unhurried: false }
    }

    /// Whoever reads takes its time: how long that takes says nothing about the store.
    pub(super) fn unhurried(self) -> Reader {
        Reader { unhurried: true, ..self }
    }

    /// The next bytes; `None` when all have come and no more than those.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let until = self.deadline.min(Instant::now() + self.silence);
        let pull = self.source.pull(self.wanted, self.got);
        let bytes = match tokio::time::timeout_at(until.into(), pull).await {
            Ok(pulled) => pulled?,
            Err(_) if Instant::now() >= self.deadline => return Err(Fault::Timeout),
            Err(_) => return Err(Fault::Stalled(self.silence)),
        };
        let Some(bytes) = bytes else {
            let (wanted, got) = (self.wanted, self.got);
            return if got == wanted { Ok(None) } else { Err(Fault::Short { wanted, got, cut: true }) };
        };
        if bytes.len() as u64 > self.wanted - self.got {
            return Err(Fault::Long { wanted: self.wanted });
        }
        self.got += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Bytes that came, and since when they have been coming.
    pub(super) fn progress(&self) -> (u64, Duration) {
        (self.got, self.begun.elapsed())
    }

    /// As a stream that settles its request when it ends.
    pub(super) fn stream(self, ticket: Ticket) -> Body {
        Box::pin(stream::unfold(Some((self, ticket)), |state| async move {
            let (mut reader, ticket) = state?;
            match reader.next().await {
                Ok(Some(bytes)) => {
                    ticket.received(bytes.len() as u64);
                    Some((Ok(bytes), Some((reader, ticket))))
                }
                Ok(None) => {
                    let (bytes, took) = reader.progress();
                    if !reader.unhurried {
                        ticket.measured(bytes, took);
                    }
                    ticket.settle(None);
                    None
                }
                Err(fault) => {
                    ticket.settle(Some(&fault));
                    Some((Err(fault), None))
                }
            }
        }))
    }
}
