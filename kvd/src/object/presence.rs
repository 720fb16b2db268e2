//! Who writes to the store: each node says so by a small object, again and again, and takes the older one away.
//!
//! What it is for: nodes that know of each other take turns in uploading what several of them store at the same time.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use kvd_tiers::ladder::Turns;
use kvd_tiers::object::{NODES_PREFIX, NodeName, PresenceName};

use super::store::{Fault, Listed};
use super::tier::{Event, Shared};
use super::worker::unix_ms;

/// Between two times that a node says it.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// What a node has said is in its own listings by then, also where a network's file system keeps old ones for a while.
const SEEN_AFTER: Duration = Duration::from_secs(5);
/// A node that has not said it for so long, by the store's clock, has no turn.
const ALIVE_FOR: Duration = Duration::from_secs(180);
/// Nodes that are looked at; a pool is smaller.
const NODES_MAX: usize = 4096;
/// What an upload and the news of it may take, beside the waiting of packs and of those who look for them.
const UPLOAD_TIME: Duration = Duration::from_secs(2);
/// By how much one of two nodes that are asked the same may lag behind the other, and its first turn still comes before the
/// other's second.
const LAG: Duration = Duration::from_secs(4);

/// What this node said, and what it was told.
#[derive(Default)]
pub(super) struct Presence {
    said: Option<(PresenceName, Instant)>,
    turns: Option<Turns>,
}

impl Presence {
    /// Says it, where it is time to. A store that does not take it will hardly take packs, and shows that by itself.
    pub(super) async fn say(&mut self, shared: &Shared) {
        let due = self.said.is_none_or(|(_, at)| at.elapsed() >= SAID_EVERY);
        if due && shared.options.writable {
            let name = PresenceName { node: shared.node, seq: unix_ms() };
            let body = vec![Bytes::from_static(b"kvd\n")];
            if shared.store.put_new(&name.path(), body, shared.asking().deadline()).await.is_ok() {
                self.said = Some((name, Instant::now()));
            }
        }
    }

    /// The nodes that have said it. Tells the ladder of those that still do, where they are not the same as before.
    pub(super) async fn nodes(&mut self, shared: &Shared) -> Result<Vec<NodeName>, Fault> {
        let folder = NODES_PREFIX.trim_end_matches('/');
        let listed = shared.store.list(folder, None, NODES_MAX, shared.asking().deadline()).await?;
        let named = |object: &Listed| PresenceName::parse(&object.path).map(|name| (name, object.modified));
        let found: Vec<_> = listed.iter().filter_map(named).collect();
        if let Some((said, at)) = self.said {
            for (old, _) in found.iter().filter(|(name, _)| name.node == said.node && *name != said) {
                // What stays goes with the next turn, or with a collector's.
                let _ = shared.store.delete(&old.path(), shared.asking().deadline()).await;
            }
            if at.elapsed() > SEEN_AFTER && !found.iter().any(|(name, _)| *name == said) {
                // The bucket is another, or somebody has cleared it: it is said again with the next turn.
                self.said = None;
            }
        }
        let alive = alive(&found);
        shared.counters().nodes.set(alive.len() as u64);
        let wait = shared.options.pack_age + 2 * shared.options.sync_every + UPLOAD_TIME + LAG;
        let turns = Turns::new(shared.node, alive, wait);
        if self.turns.as_ref() != Some(&turns) {
            shared.tell(Event::Turns(turns.clone()));
            self.turns = Some(turns);
        }
        let mut nodes: Vec<_> = found.into_iter().map(|(name, _)| name.node).collect();
        nodes.dedup();
        Ok(nodes)
    }
}

/// Those that said it lately, in order of their names: of two that one node said, as of one.
fn alive(found: &[(PresenceName, SystemTime)]) -> Vec<NodeName> {
    let newest = found.iter().map(|(_, said)| *said).max();
    let lately =
        |said: SystemTime| newest.is_some_and(|newest| newest.duration_since(said).unwrap_or_default() < ALIVE_FOR);
    let mut nodes: Vec<_> = found.iter().filter(|(_, said)| lately(*said)).map(|(name, _)| name.node).collect();
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_said_it_for_long_is_not_waited_for() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let said = |node: u8, seconds| (PresenceName { node: NodeName::new([node; 16]), seq: seconds }, at(seconds));
        let found = [said(1, 1000), said(2, 940), said(2, 1000), said(3, 800), said(4, 821)];
        let nodes = [1, 2, 4].map(|node| NodeName::new([node; 16]));
        assert_eq!(alive(&found), nodes);
        assert_eq!(alive(&[]), []);
    }
}
