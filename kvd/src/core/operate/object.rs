//! What an operator asks of the object tier.

use crate::core::admin::{AdminError, ObjectScrub, ObjectScrubReply, ObjectTierReply};
use crate::core::state::Core;
use crate::object::tier::{ObjectLink, Order};

impl Core {
    fn object_link(&self) -> Result<&ObjectLink, AdminError> {
        self.object.as_ref().ok_or(AdminError::NotFound("object tier in this daemon"))
    }

    pub(super) fn object_tier(&self) -> Result<ObjectTierReply, AdminError> {
        Ok(self.object_link()?.view.reply(&self.ladder.stats().object.unwrap_or_default()))
    }

    /// Begins a run, unless one is under way.
    pub(super) fn scrub_object(&mut self, wanted: ObjectScrub) -> Result<ObjectScrubReply, AdminError> {
        self.object_link()?;
        let before = self.scrub_object_progress();
        if self.counters.object.scrubs_asked.get() == before.runs {
            if !self.order_object(Order::Scrub(wanted)) {
                return Err(AdminError::Busy);
            }
            self.counters.object.scrubs_asked.add(1);
        }
        Ok(before)
    }

    pub(super) fn scrub_object_progress(&self) -> ObjectScrubReply {
        let counters = &self.counters.object;
        ObjectScrubReply {
            runs: counters.scrubs_done.get(),
            failed: counters.scrubs_failed.get(),
            verified: counters.scrub_records.get(),
            corrupt: counters.scrub_corrupt.get(),
            damaged_packs: counters.scrub_damaged.get(),
            bytes: counters.scrub_bytes.get(),
            remaining: counters.scrub_left.get(),
        }
    }
}
