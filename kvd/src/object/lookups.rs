//! Questions to the catalog, answered on a thread of their own: a read may have to wait for a disk.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::Receiver;
use kvd_tiers::ObjectPlace;
use kvd_tiers::ladder::RemoteRecord;
use kvd_tiers::object::catalog::{Catalog, CatalogError, Located};

use super::tier::{Asked, Event, Shared};

/// Starts the thread. It ends when `questions` is closed.
pub(super) fn spawn(shared: Arc<Shared>, questions: Receiver<Asked>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("kvd-catalog".into()).spawn(move || {
        for asked in questions {
            let found = look_up(&shared.catalog, &asked).unwrap_or_else(|error| {
                tracing::warn!(%error, "the catalog cannot be asked");
                Vec::new()
            });
            // One of another length is another layout's, or another view's: there is no slot for it.
            let alike = found.iter().take_while(|located| {
                (located.payload_bytes, located.record_bytes) == (asked.payload_bytes, asked.record_bytes)
            });
            shared.tell(Event::Found { ticket: asked.ticket, records: alike.map(record).collect() });
        }
    })
}

/// Most chains end at the first block that is not here: its key alone is made first.
fn look_up(catalog: &Catalog, asked: &Asked) -> Result<Vec<Located>, CatalogError> {
    let Some((first, rest)) = asked.hashes.get(asked.first as usize..).and_then(<[_]>::split_first) else {
        return Ok(Vec::new());
    };
    let Some(first) = catalog.lookup(&asked.group_key.block(first), &asked.shard)? else { return Ok(Vec::new()) };
    let keys: Vec<_> = rest.iter().map(|hash| asked.group_key.block(hash)).collect();
    let mut found = vec![first];
    found.append(&mut catalog.lookup_chain(&asked.shard, &keys)?);
    Ok(found)
}

fn record(located: &Located) -> RemoteRecord {
    RemoteRecord {
        place: ObjectPlace { pack: located.number, offset: located.offset, bytes: located.record_bytes },
        generation: located.generation,
        meta_checksum: located.meta_checksum,
    }
}
