//! Records on their way to the object tier: each waits for this node's turn, then for the tier to take it.

use std::collections::VecDeque;

use kvd_proto::{BlockKey, Time};

use super::moves::{Move, Outcome};
use super::nodes::{NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use super::turns::{BLOCKS_PER_TURN, TURNS, Turns};
use crate::ids::{SlotId, SlotState, earliest};
use crate::policy::Policy;

/// A record that waits.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    since: Time,
    node: NodeId,
    generation: u32,
}

/// All that wait, a queue for each turn, the oldest first.
#[derive(Debug)]
pub(super) struct Uploads {
    turns: Turns,
    queues: [VecDeque<Waiting>; TURNS],
}

impl Default for Uploads {
    fn default() -> Self {
        Self { turns: Turns::alone(), queues: Default::default() }
    }
}

impl Uploads {
    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.capacity() * size_of::<Waiting>()).sum()
    }

    /// Adds a record. Where too many wait, the oldest of its turn gives way: to the first turn, and out of that one for
    /// good. Tells whether one went for good.
    fn push(&mut self, turn: usize, record: Waiting, queue_max: usize) -> bool {
        let queue = &mut self.queues[turn];
        let oldest = (queue.len() >= queue_max).then(|| queue.pop_front()).flatten();
        queue.push_back(record);
        match oldest {
            Some(oldest) if turn > 0 => self.push(0, oldest, queue_max),
            oldest => oldest.is_some(),
        }
    }

    fn due(&self, turn: usize) -> Option<Time> {
        self.queues[turn].front().map(|first| first.since + self.turns.wait(turn))
    }

    /// The next whose turn it is; whoever comes next, if nothing is to be waited for.
    fn pop(&mut self, now: Time, hurry: bool) -> Option<Waiting> {
        let turn = (0..TURNS).find(|turn| self.due(*turn).is_some_and(|due| hurry || due <= now))?;
        self.queues[turn].pop_front()
    }
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Who else writes to the object tier's store. What waits already keeps its turn.
    pub fn set_object_turns(&mut self, turns: Turns, now: Time) {
        self.remotes.uploads.turns = turns;
        self.work_some(now);
    }

    /// Whether everything that was to be given to the object tier has been, as far as it takes anything.
    pub fn uploads_done(&self) -> bool {
        self.remotes.putting == 0 && (self.remotes.uploads.len() == 0 || !self.remotes.takes)
    }

    /// The record shall be given to the object tier when its turn comes.
    pub(super) fn want_upload(&mut self, id: NodeId, now: Time) {
        let Some(object) = self.config.object.filter(|object| object.writes) else { return };
        let node = &mut self.nodes[id];
        if !node.has(flag::DRAM_READY | flag::ATTACHED) || node.has(flag::UPLOADED) || self.work.restoring {
            return;
        }
        node.set(flag::UPLOADED);
        let record = Waiting { since: now, node: id, generation: node.generation };
        let turn = self.remotes.uploads.turns.of(&self.anchor(id));
        let dropped = self.remotes.uploads.push(turn, record, object.queue_max as usize);
        self.counters.uploads_dropped += u64::from(dropped);
    }

    /// The block on which the turn of `id` hangs: the first of its part of the chain.
    fn anchor(&self, id: NodeId) -> BlockKey {
        let mut at = &self.nodes[id];
        while !at.position.is_multiple_of(BLOCKS_PER_TURN) {
            let Some(parent) = at.parent.get() else { break };
            at = &self.nodes[parent];
        }
        at.key
    }

    /// Gives the tier as many records as it takes at a time. While the daemon is being drained nobody's turn is waited for.
    pub(super) fn work_uploads(&mut self, now: Time) {
        let Some(object) = self.config.object else { return };
        while self.remotes.takes && self.remotes.putting < object.puts_max {
            let hurry = self.work.draining();
            let Some(record) = self.remotes.uploads.pop(now, hurry) else { return };
            let here = self.nodes.live(record.node.0).filter(|id| {
                let node = &self.nodes[*id];
                node.generation == record.generation && node.has(flag::DRAM_READY | flag::ATTACHED)
            });
            let Some(id) = here else {
                self.counters.uploads_dropped += 1;
                continue;
            };
            let from = self.dram_slot(id).expect("a published copy has a slot");
            self.hold(id);
            if !cfg!(kvd_bug = "put_unpinned") {
                self.pin_slot(from, Holder::Move);
            }
            self.remotes.putting += 1;
            let entry = self.entry(id, SlotState::Resident);
            let move_id = self.start(Flight::Put { node: id, from });
            self.moves.push_back(Move::Put { id: move_id, from, entry });
        }
    }

    /// When the next turn comes; `None` while the tier takes nothing, or as much as it can.
    pub(super) fn next_turn(&self) -> Option<Time> {
        let object = self.config.object?;
        let takes = self.remotes.takes && self.remotes.putting < object.puts_max;
        let due = (0..TURNS).filter_map(|turn| self.remotes.uploads.due(turn));
        takes.then(|| due.fold(None, |next, due| earliest(next, Some(due))))?
    }

    pub(super) fn put_ended(&mut self, id: NodeId, from: SlotId, outcome: Outcome) {
        self.remotes.putting -= 1;
        let current = self.nodes[id].has(flag::DRAM_READY) && self.nodes[id].dram == from.raw();
        self.unpin_slot(from, Holder::Move);
        match outcome {
            Outcome::Done { bytes: 0, .. } => self.counters.uploads_known += 1,
            Outcome::Done { .. } => self.counters.uploaded += 1,
            Outcome::Corrupt if current => self.quarantine_dram(id),
            Outcome::Corrupt => {}
            Outcome::Missing | Outcome::Failed(_) => self.counters.uploads_dropped += 1,
        }
        self.unhold(id);
    }
}
