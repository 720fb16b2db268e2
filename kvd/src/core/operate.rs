//! Operators' commands, carried out between two turns.

use std::collections::{BTreeMap, BTreeSet};

use kvd_proto::{BlockHash, BlockKey, GroupKey, MissReason, NamespaceDigest, Tier, Time};
use kvd_tiers::ladder::{DeviceStats, ExplainedRecord, Purge, namespace_prefix};
use kvd_tiers::object::Realm;

use crate::core::admin::{
    AdminCommand, AdminError, AdminReply, ChangedReply, CopyReply, DeviceReply, DeviceState, ExplainReply, LeaseReply,
    LiveSettings, NamespaceReply, PAGE_ENTRIES_MAX, Page, ScrubReply, Selection, SessionReply, StatusReply, TierReply,
};
use crate::core::clock;
use crate::core::namespaces::KnownNamespace;
use crate::core::state::{Core, DeviceLink};
use crate::object::purging::Scope;
use crate::object::tier::Order;

mod object;

/// Commands in one turn; each is bounded work.
const COMMANDS_PER_TURN: usize = 4;
/// Hashes in one command.
const HASHES_MAX: usize = 4096;

impl Core {
    /// Serves operators; whether there was anything.
    pub(super) fn serve_commands(&mut self, now: Time) -> bool {
        let mut any = false;
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(asked) = self.commands.try_recv() else { break };
            any = true;
            // Somebody who stopped listening gets no answer; the command was carried out.
            let _ = asked.answer.send(self.carry_out(asked.command, now));
        }
        any
    }

    fn carry_out(&mut self, command: AdminCommand, now: Time) -> Result<AdminReply, AdminError> {
        Ok(match command {
            AdminCommand::Status => AdminReply::Status(self.status(now)),
            AdminCommand::Tiers => AdminReply::Tiers(self.tiers()),
            AdminCommand::ObjectTier => AdminReply::ObjectTier(Box::new(self.object_tier()?)),
            AdminCommand::Devices => AdminReply::Devices(self.device_replies()),
            AdminCommand::Namespaces(page) => {
                let (total, namespaces) = paged(page, self.namespace_replies());
                AdminReply::Namespaces { total, namespaces }
            }
            AdminCommand::Sessions(page) => {
                let (total, sessions) = paged(page, self.session_replies(now));
                AdminReply::Sessions { total, sessions }
            }
            AdminCommand::Leases(page) => {
                let (total, leases) = paged(page, self.lease_replies(now));
                AdminReply::Leases { total, leases }
            }
            AdminCommand::Pin(selection) => self.for_each(&selection, |core, key| core.ladder.pin(key, true))?,
            AdminCommand::Unpin(selection) => self.for_each(&selection, |core, key| core.ladder.pin(key, false))?,
            AdminCommand::Evict { mut selection, tier } => {
                // The end of a chain first: what hangs on a block in a tier keeps it there.
                selection.hashes.reverse();
                self.for_each(&selection, |core, key| core.ladder.evict(key, tier, now))?
            }
            AdminCommand::Purge { namespace } => self.purge(namespace, now),
            AdminCommand::Prefetch(selection) => self.prefetch(&selection, now)?,
            AdminCommand::Drain => {
                self.ladder.drain(true, now);
                AdminReply::Changed(ChangedReply { blocks: self.dram_only(), skipped: 0 })
            }
            AdminCommand::Holdings { namespace } => AdminReply::Holdings(self.blocks(namespace)),
            AdminCommand::Scrub => {
                if !self.ladder.stats().scrubbing {
                    self.ladder.scrub(true, now);
                }
                AdminReply::Scrub(self.scrub_progress())
            }
            AdminCommand::ScrubProgress => AdminReply::Scrub(self.scrub_progress()),
            AdminCommand::ScrubObject(wanted) => AdminReply::ScrubObject(self.scrub_object(wanted)?),
            AdminCommand::ScrubObjectProgress => AdminReply::ScrubObject(self.scrub_object_progress()),
            AdminCommand::Explain { hash, namespace } => AdminReply::Explain(self.explain(&hash, namespace)?),
            AdminCommand::SetConfig(settings) => AdminReply::Settings(self.set_config(settings)),
        })
    }

    /// Records that only DRAM holds.
    pub(super) fn dram_only(&self) -> u64 {
        let stats = self.ladder.stats();
        stats.records - stats.durable
    }

    fn status(&self, now: Time) -> StatusReply {
        let stats = self.ladder.stats();
        StatusReply {
            epoch: self.epoch,
            uptime: now.since(self.report.ready),
            start_took: self.report.ready.since(self.report.started),
            blocks: self.blocks(None),
            records: stats.records,
            dram_only: stats.records - stats.durable,
            drains: self.drains,
            drain_left: self.drain_left,
            sessions: self.clients.iter().flatten().filter(|client| client.link.is_some()).count() as u32,
            leases: stats.leases,
            moves: self.in_flight.len() as u32,
            purges: stats.purges,
            store_purges: self.counters.object.purges_asked.get() - self.counters.object.purges_done.get(),
            store_purges_failed: self.counters.object.purges_failed.get(),
            draining: stats.draining,
            restored_dram: self.report.restored_dram,
            restored_nvme: self.report.restored_nvme,
            index_bytes: stats.memory_bytes,
        }
    }

    fn tiers(&self) -> Vec<TierReply> {
        let stats = self.ladder.stats();
        let counted = &stats.counters;
        let mut tiers = vec![TierReply {
            tier: Tier::Dram,
            capacity_bytes: u64::from(stats.segments) * u64::from(kvd_tiers::SEGMENT_BYTES),
            used_bytes: stats.dram_bytes_used,
            records: stats.records - stats.below,
            held_records: stats.pins,
            evicted: counted.dram_evictions,
            read_bytes_per_second: 0,
            write_bytes_per_second: 0,
        }];
        if !stats.devices.is_empty() {
            tiers.push(TierReply {
                tier: Tier::Nvme,
                capacity_bytes: self.devices.iter().map(|device| device.capacity_bytes).sum(),
                used_bytes: stats.devices.iter().map(|device| device.bytes_used).sum(),
                records: stats.durable,
                held_records: 0,
                evicted: counted.nvme_evictions,
                read_bytes_per_second: stats.devices.iter().map(|device| device.read_bytes_per_second).sum(),
                write_bytes_per_second: stats.devices.iter().map(|device| device.write_bytes_per_second).sum(),
            });
        }
        if let (Some(link), Some(found)) = (&self.object, stats.object) {
            let counters = &self.counters.object;
            tiers.push(TierReply {
                tier: Tier::Object,
                capacity_bytes: link.share_bytes,
                used_bytes: counters.own_bytes.get(),
                records: counters.own_records.get(),
                held_records: u64::from(found.remotes),
                evicted: counters.records_evicted.get(),
                read_bytes_per_second: found.read_bytes_per_second,
                write_bytes_per_second: 0,
            });
        }
        tiers
    }

    fn device_replies(&self) -> Vec<DeviceReply> {
        let stats = self.ladder.stats();
        let one = |(link, found): (&DeviceLink, &DeviceStats)| {
            let counters = self.counters.device(found.device.0);
            DeviceReply {
                device: found.device.0,
                path: link.path.clone(),
                io: link.io,
                state: state_of(link, found),
                capacity_bytes: link.capacity_bytes,
                queued: counters.queued.get() as u32,
                read_bytes: counters.read_bytes.get(),
                written_bytes: counters.written_bytes.get(),
                errors: counters.read_errors.get() + counters.write_errors.get(),
                last_error: link.health.last_error(),
            }
        };
        self.devices.iter().zip(&stats.devices).map(one).collect()
    }

    fn namespace_replies(&self) -> Vec<NamespaceReply> {
        let views = |digest: &NamespaceDigest| {
            let all = self.clients.iter().flatten().flat_map(|client| &client.views);
            all.filter(|view| view.namespace == *digest).count() as u32
        };
        let mut records = BTreeMap::<u64, u64>::new();
        for held in self.ladder.holdings() {
            *records.entry(held.namespace_prefix).or_default() += u64::from(held.records);
        }
        let one = |(digest, known): (&NamespaceDigest, &KnownNamespace)| NamespaceReply {
            digest: *digest,
            model: known.model.clone(),
            block_tokens: known.block_tokens,
            views: views(digest),
            records: records.get(&namespace_prefix(digest)).copied().unwrap_or(0),
        };
        self.namespaces.iter().map(one).collect()
    }

    /// How many blocks are here of a namespace, or of all: of each group the records of the shard that has the most.
    fn blocks(&self, namespace: Option<NamespaceDigest>) -> u64 {
        let wanted = namespace.as_ref().map(namespace_prefix);
        let mut groups = BTreeMap::<(u64, u16), u32>::new();
        for held in self.ladder.holdings().filter(|held| wanted.is_none_or(|wanted| held.namespace_prefix == wanted)) {
            let most = groups.entry((held.namespace_prefix, held.group)).or_default();
            *most = held.records.max(*most);
        }
        groups.values().copied().map(u64::from).sum()
    }

    fn session_replies(&self, now: Time) -> Vec<SessionReply> {
        let one = |client: &super::client::Client| SessionReply {
            session: client.session.0,
            client_slot: client.slot.get(),
            instance: client.identity.instance,
            client_name: client.identity.name.clone(),
            pid: client.identity.pid,
            uid: client.identity.uid,
            role: client.identity.role,
            version: client.identity.version,
            connected: now.since(client.connected),
            requests: client.requests,
            attached: client.link.is_some(),
        };
        self.clients.iter().flatten().map(one).collect()
    }

    fn lease_replies(&self, now: Time) -> Vec<LeaseReply> {
        let one = |lease: kvd_tiers::ladder::LeaseView| LeaseReply {
            lease: lease.id.0,
            instance: lease.instance,
            client_slot: lease.client.get(),
            fill: lease.fill,
            blocks: lease.blocks,
            bytes: lease.bytes,
            age: now.since(lease.touched),
        };
        self.ladder.leases().map(one).collect()
    }

    /// The groups in which an operator's hashes are looked for, with their keys; those of namespaces without records only where
    /// one was named or `all` are wanted.
    fn groups(
        &self,
        namespace: Option<NamespaceDigest>,
        all: bool,
    ) -> Result<Vec<(NamespaceDigest, u16, GroupKey)>, AdminError> {
        if namespace.is_some_and(|wanted| !self.namespaces.contains(&wanted)) {
            return Err(AdminError::NotFound("namespace among those that were opened here"));
        }
        let held: BTreeSet<u64> =
            self.ladder.holdings().filter(|held| held.records > 0).map(|held| held.namespace_prefix).collect();
        let looked_at = self.namespaces.iter().filter(|(digest, _)| match namespace {
            Some(wanted) => wanted == **digest,
            None => all || held.contains(&namespace_prefix(digest)),
        });
        let tenant_key = &self.settings.tenant_key;
        let derive = |digest: &NamespaceDigest, group| (*digest, group, GroupKey::derive(tenant_key, digest, group));
        Ok(looked_at.flat_map(|(digest, known)| known.groups.iter().map(move |&group| derive(digest, group))).collect())
    }

    /// Does something to every block that is named.
    fn for_each(
        &mut self,
        selection: &Selection,
        mut act: impl FnMut(&mut Self, &BlockKey) -> u32,
    ) -> Result<AdminReply, AdminError> {
        check(selection)?;
        let groups = self.groups(selection.namespace, false)?;
        let mut changed = ChangedReply::default();
        for hash in &selection.hashes {
            let records: u32 = groups.iter().map(|(_, _, key)| act(self, &key.block(hash))).sum();
            changed.blocks += u64::from(records > 0);
            changed.skipped += u64::from(records == 0);
        }
        Ok(AdminReply::Changed(changed))
    }

    fn purge(&mut self, namespace: Option<NamespaceDigest>, now: Time) -> AdminReply {
        let blocks = self.blocks(namespace);
        let purge = namespace.map_or(Purge::All, |digest| Purge::Namespace(self.settings.tenant, digest));
        // It goes on in the background; what it reaches cannot be matched from its turn on.
        self.ladder.purge(purge, now);
        if self.object.is_some() {
            let digest = namespace.unwrap_or(NamespaceDigest::new([0; 32]));
            let (tenant, named) = self.settings.tenant_key.sealed_names(&digest);
            let realm = Scope::Realm(Realm { tenant, namespace: named });
            let scope = if namespace.is_some() { realm } else { Scope::Tenant(tenant) };
            // One that waits already will do for both.
            if !self.store_purges.contains(&scope) {
                self.store_purges.push(scope);
                self.counters.object.purges_asked.add(1);
            }
        }
        AdminReply::Changed(ChangedReply { blocks, skipped: 0 })
    }

    /// Whether a purge of the store has not come to its end.
    pub(super) fn purging_store(&self) -> bool {
        self.counters.object.purges_asked.get() != self.counters.object.purges_done.get()
    }

    /// Passes purges on to the store: behind the ladder's, which may still give the tier what it has not reached, and behind
    /// all that the ladder wanted moved before.
    pub(super) fn purge_store(&mut self) {
        if self.store_purges.is_empty() || self.ladder.purging() > 0 {
            return;
        }
        let waiting = std::mem::take(&mut self.store_purges);
        let refused: Vec<Scope> =
            waiting.into_iter().filter(|scope| !self.order_object(Order::Purge(*scope))).collect();
        self.store_purges = refused;
    }

    /// Prefetches through views that engines have open: one for each shard, since the ladder plans for an instance.
    fn prefetch(&mut self, selection: &Selection, now: Time) -> Result<AdminReply, AdminError> {
        check(selection)?;
        let mut views = BTreeMap::new();
        for client in self.clients.iter().flatten() {
            let wanted =
                client.views.iter().filter(|view| selection.namespace.is_none_or(|wanted| view.namespace == wanted));
            for view in wanted {
                let part = (view.namespace, view.group, view.shard.to_bytes());
                views.entry(part).or_insert((client.slot, view.id));
            }
        }
        if views.is_empty() {
            return Err(AdminError::NotFound("engine with a view of that namespace"));
        }
        let reached = views.into_values().map(|(client, view)| {
            let reached = self.ladder.prefetch(client, view, &selection.hashes, now);
            u64::from(reached).min(selection.hashes.len() as u64)
        });
        let blocks = reached.max().unwrap_or(0);
        Ok(AdminReply::Changed(ChangedReply { blocks, skipped: selection.hashes.len() as u64 - blocks }))
    }

    fn scrub_progress(&self) -> ScrubReply {
        let stats = self.ladder.stats();
        let counted = stats.counters;
        ScrubReply {
            running: stats.scrubbing,
            runs: counted.scrubs,
            verified: counted.verified,
            corrupt: counted.corrupt_dram + counted.corrupt_nvme,
            remaining: stats.scrub_left,
        }
    }

    fn explain(&self, hash: &BlockHash, namespace: Option<NamespaceDigest>) -> Result<Vec<ExplainReply>, AdminError> {
        let groups = self.groups(namespace, true)?;
        Ok(groups
            .into_iter()
            .map(|(namespace, group, key)| self.explain_key(namespace, group, key.block(hash)))
            .collect())
    }

    fn explain_key(&self, namespace: NamespaceDigest, group: u16, key: BlockKey) -> ExplainReply {
        let found = self.ladder.explain(&key);
        let here = |record: &&ExplainedRecord| record.reachable && record.readable;
        let matchable = found.records.iter().any(|record| here(&record));
        let mut notes = Vec::new();
        let mut note = |holds: bool, text: &str| notes.extend(holds.then(|| text.to_owned()));
        note(found.records.iter().any(|record| record.filling), "An engine is filling it.");
        note(found.records.iter().any(|record| record.pinned), "An operator pinned it.");
        let adrift = found.records.iter().any(|record| !record.reachable && !record.filling);
        note(adrift, "A block before it in its chain is missing, so no match reaches it.");
        note(
            found.miss == Some(MissReason::TierDown),
            "Its only copy lies on a device that is out of use: see `kvd devices`.",
        );
        note(found.miss == Some(MissReason::Cold), "It was never stored here, or so long ago that it is forgotten.");
        note(self.ladder.stats().draining, "The daemon drains: nothing new is stored.");
        ExplainReply {
            namespace,
            group,
            key,
            matchable,
            reason: found.miss,
            position: found.records.first().map(|record| record.position),
            copies: found.records.iter().flat_map(copies).collect(),
            notes,
        }
    }

    fn set_config(&mut self, wanted: LiveSettings) -> LiveSettings {
        self.ladder.adjust(|config| {
            config.lease_bytes_max = wanted.lease_bytes_max.unwrap_or(config.lease_bytes_max);
            config.lease_idle = wanted.lease_idle.unwrap_or(config.lease_idle);
            config.gate = wanted.gate_enabled.unwrap_or(config.gate);
        });
        self.settings.match_deadline = wanted.match_deadline.unwrap_or(self.settings.match_deadline);
        let config = self.ladder.config();
        LiveSettings {
            lease_bytes_max: Some(config.lease_bytes_max),
            lease_idle: Some(config.lease_idle),
            match_deadline: Some(self.settings.match_deadline),
            gate_enabled: Some(config.gate),
        }
    }

    /// Copies what the ladder knows into the gauges, now and then.
    pub(super) fn refresh_gauges(&mut self) {
        let now = clock::now();
        if now < self.gauges_due {
            return;
        }
        self.gauges_due = now.after(GAUGES_EVERY);
        let stats = self.ladder.stats();
        let counters = &self.counters;
        counters.leases.set(u64::from(stats.leases));
        counters.records.set(stats.records);
        counters.blocks.set(self.blocks(None));
        counters.dram_used_bytes.set(stats.dram_bytes_used);
        counters.nvme_used_bytes.set(stats.devices.iter().map(|device| device.bytes_used).sum());
        counters.dram_capacity_bytes.set(u64::from(stats.segments) * u64::from(kvd_tiers::SEGMENT_BYTES));
        counters.nvme_capacity_bytes.set(self.devices.iter().map(|device| device.capacity_bytes).sum());
        for (link, found) in self.devices.iter().zip(&stats.devices) {
            counters.device(found.device.0).state.set(state_of(link, found).code());
        }
        counters.dram_evicted.set(stats.counters.dram_evictions);
        counters.nvme_evicted.set(stats.counters.nvme_evictions);
        let object = stats.object.unwrap_or_default();
        counters.object.waiting_records.set(u64::from(object.upload_queue) + u64::from(object.putting));
        counters.object.records_fallen.set(stats.counters.uploads_dropped);
        // Those that changed while the last ones were being written.
        self.namespaces.save();
    }
}

/// Between two looks at the gauges: a scrape interval is far longer.
const GAUGES_EVERY: std::time::Duration = std::time::Duration::from_millis(500);

fn state_of(link: &DeviceLink, found: &DeviceStats) -> DeviceState {
    match (found.readable, found.writable) {
        (true, true) => link.health.state(),
        (true, false) => DeviceState::ReadOnly,
        (false, _) => DeviceState::Failed,
    }
}

fn check(selection: &Selection) -> Result<(), AdminError> {
    match selection.hashes.len() {
        0 => Err(AdminError::BadRequest("name at least one block hash")),
        len if len > HASHES_MAX => Err(AdminError::BadRequest("at most 4096 block hashes at a time")),
        _ => Ok(()),
    }
}

/// One page of a list, and how long the list is.
fn paged<T>(page: Page, all: Vec<T>) -> (usize, Vec<T>) {
    let total = all.len();
    (total, all.into_iter().skip(page.offset).take(page.limit.min(PAGE_ENTRIES_MAX)).collect())
}

fn copies(record: &ExplainedRecord) -> impl Iterator<Item = CopyReply> {
    let copy = |tier, place| {
        let state = if record.filling { "filling" } else { "resident" };
        CopyReply { tier, state: state.into(), place, held: record.leases }
    };
    let dram = record.dram.map(|slot| copy(Tier::Dram, format!("segment {} slot {}", slot.segment().0, slot.index())));
    let nvme = record.nvme.map(|slot| {
        let place = format!("device {} zone {} slot {}", slot.device().0, slot.zone().0, slot.index());
        copy(Tier::Nvme, place)
    });
    dram.into_iter().chain(nvme)
}
