//! Lists for operators, and the few bounds that a running daemon may change.

use kvd_proto::{InstanceId, Time};

use super::config::LadderConfig;
use super::leases::{Lease, LeaseKind};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{ClientSlot, LeaseId};
use crate::policy::Policy;

/// A lease as an operator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseView {
    /// Its number.
    pub id: LeaseId,
    /// Who holds it.
    pub instance: InstanceId,
    /// The process that got it.
    pub client: ClientSlot,
    /// Whether it is to fill, not to read.
    pub fill: bool,
    /// Blocks it holds.
    pub blocks: u32,
    /// Bytes counted against the instance's cap.
    pub bytes: u64,
    /// When it was last used.
    pub touched: Time,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// The open leases. Walks the table of leases.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView> {
        self.leases.iter().map(|lease| self.view_lease(lease))
    }

    fn view_lease(&self, lease: &Lease) -> LeaseView {
        let (fill, blocks) = match &lease.kind {
            LeaseKind::Match { blocks, .. } => (false, *blocks),
            LeaseKind::Fill { open, .. } => (true, *open),
        };
        LeaseView {
            id: lease.id,
            instance: self.instances.get(lease.instance).id,
            client: lease.client,
            fill,
            blocks,
            bytes: lease.charge,
            touched: lease.touched,
        }
    }

    /// Whether a client process holds a lease or may touch a slot. Walks both tables: for rare events such as a hang-up.
    pub fn holds(&self, client: ClientSlot) -> bool {
        let mine = |holder| holder == Holder::Client(client) || holder == Holder::Fenced(client);
        self.leases.iter().any(|lease| lease.client == client) || self.pins.iter().any(|(_, holder, _)| mine(holder))
    }

    /// Changes bounds and paces of a running ladder. Sizes of the arena, of devices and of tables stay as they were.
    pub fn adjust(&mut self, change: impl FnOnce(&mut LadderConfig)) {
        let mut wanted = self.config.clone();
        change(&mut wanted);
        self.config.lease_bytes_max = wanted.lease_bytes_max;
        self.config.lease_idle = wanted.lease_idle;
        self.config.gate = wanted.gate;
    }
}
