//! Questions to the catalog, answered on a thread of their own: a read may have to wait for a disk.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::Receiver;
use kvd_tiers::ObjectPlace;
use kvd_tiers::ladder::RemoteRecord;
use kvd_tiers::object::catalog::Located;

use super::tier::{Asked, Event, Shared};

/// Starts the thread. It ends when `questions` is closed.
pub(super) fn spawn(shared: Arc<Shared>, questions: Receiver<Asked>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("kvd-catalog".into()).spawn(move || {
        for Asked { ticket, shard, payload_bytes, keys } in questions {
            let found = shared.catalog.lookup_chain(&shard, &keys).unwrap_or_else(|error| {
                tracing::warn!(%error, "the catalog cannot be asked");
                Vec::new()
            });
            // One of another length is another layout's, whatever it is called.
            let records =
                found.iter().take_while(|located| located.payload_bytes == payload_bytes).map(record).collect();
            shared.tell(Event::Found { ticket, records });
        }
    })
}

fn record(located: &Located) -> RemoteRecord {
    RemoteRecord {
        place: ObjectPlace { pack: located.number, offset: located.offset, bytes: located.record_bytes },
        generation: located.generation,
        meta_checksum: located.meta_checksum,
    }
}
