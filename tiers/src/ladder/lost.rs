//! Segments of the arena that lost their bytes while they were in use: a client cut the file short.

use kvd_proto::Time;

use super::extents::Use;
use super::nodes::flag;
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{SegmentId, SlotId};
use crate::policy::Policy;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// The bytes of a segment are gone. Its records are quarantined in bounded steps, nothing new goes there, and when the
    /// last holder has let go the segment is made anew. Records with a copy on a device live on.
    /// Returns whether that is news, and anything was lost.
    pub fn lose_segment(&mut self, segment: SegmentId, now: Time) -> bool {
        let lost = self.dram.lose(segment);
        if lost {
            self.counters.segments_lost += 1;
            self.work.losing.push_back((segment, 0));
        }
        self.work_some(now);
        lost
    }

    /// Quarantines what lies in lost segments. Returns the steps left.
    pub(super) fn work_lost(&mut self, mut steps: u32) -> u32 {
        while let Some((segment, index)) = self.work.losing.front_mut()
            && steps > 0
        {
            let (segment, at) = (*segment, *index);
            // Emptied meanwhile, it is somebody else's already.
            if !self.dram.is_lost(segment) || at >= self.dram.slots_of(segment) {
                self.work.losing.pop_front();
                continue;
            }
            *index += 1;
            steps -= 1;
            if let Use::Node(id) = self.dram.get(SlotId::new(segment, at))
                && self.nodes[id].has(flag::DRAM_READY)
            {
                self.quarantine_dram(id);
            }
        }
        steps
    }
}
