//! Client slots: who joins, who comes back, who is gone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use kvd_nixl::sys::StartTime;
use kvd_proto::wire::session::RefusalCode;
use kvd_proto::{Epoch, GroupKey, SHARD_BYTES, SOURCES_MAX, Shard, Time};
use kvd_tiers::dram::ClientProcess;
use kvd_tiers::ladder::{JoinError, ViewSpec, namespace_prefix};
use kvd_tiers::record::{PAYLOAD_BYTES_MAX, meta_bytes, slot_bytes};
use kvd_tiers::{ClientSlot, SEGMENT_BYTES, SegmentId};

use crate::core::client::{Client, Identity, VIEWS_MAX, View};
use crate::core::requests::ALGORITHM;
use crate::core::state::Core;
use crate::session::{Control, Joined, Joining, OpenedView, Refusal, SessionCall, SessionId, ViewRequest};

/// Calls served in one turn.
const CALLS_PER_TURN: usize = 16;

impl Core {
    /// Serves the sessions thread; whether there was anything.
    pub(super) fn serve_calls(&mut self, now: Time) -> bool {
        let mut any = false;
        for _ in 0..CALLS_PER_TURN {
            let Ok(call) = self.calls.try_recv() else { break };
            any = true;
            // An answer that nobody waits for any more is dropped; what it was about shows as a hang-up or a death.
            match call {
                SessionCall::Join(joining, answer) => drop(answer.send(self.join(*joining, now))),
                SessionCall::OpenView(session, view, answer) => {
                    let opened = self.find(session).and_then(|at| self.open_view(at, *view));
                    drop(answer.send(opened));
                }
                SessionCall::Shards(session, view, answer) => {
                    drop(answer.send(self.find(session).and_then(|at| self.other_shards(at, view))));
                }
                SessionCall::Segments(session, answer) => {
                    drop(answer.send(self.find(session).map(|_| self.own_segments())));
                }
                SessionCall::Segment(session, segment, answer) => {
                    drop(answer.send(self.find(session).and_then(|_| self.segment(segment))));
                }
                SessionCall::SetPrefillRate(session, view, rate, answer) => {
                    let set = self.find(session).and_then(|at| self.set_prefill_rate(at, view, rate));
                    drop(answer.send(set));
                }
                SessionCall::Left(session) => self.left(session, now),
                SessionCall::Detached(session) => self.detached(session, now),
                SessionCall::Died(session) => self.died(session, now),
            }
        }
        any
    }

    fn find(&self, session: SessionId) -> Result<usize, Refusal> {
        let found = self.clients.iter().position(|client| client.as_ref().is_some_and(|c| c.session == session));
        found.ok_or_else(|| Refusal::new(RefusalCode::NotFound, "the session is over", "connect again"))
    }

    fn join(&mut self, joining: Joining, now: Time) -> Result<Joined, Refusal> {
        if self.stop.load(Ordering::Acquire) {
            return Err(Refusal::new(RefusalCode::Stopping, "the daemon is stopping", "connect again in a moment"));
        }
        let process = joining.process;
        let identity = Identity {
            instance: joining.instance,
            role: joining.role,
            name: joining.client_name,
            version: joining.version,
            uid: joining.uid,
            pid: process.map_or(0, |(pid, _)| pid.get()),
            start_time: process.map_or(0, |(_, start)| start.0),
            epoch: self.epoch,
        };
        let slot = match joining.replaces.and_then(|replaced| self.replace(replaced, &identity, process, now)) {
            Some(slot) => slot,
            None => {
                let free = self.clients.iter().position(Option::is_none);
                let free = free.and_then(|at| u8::try_from(at).ok()).and_then(ClientSlot::new);
                free.ok_or_else(|| Refusal::new(RefusalCode::Full, "all client slots are taken", "close an engine"))?
            }
        };
        let (pid, start_time) = (identity.pid, identity.start_time);
        self.ladder.table_mut().arena.join(slot, &ClientProcess { pid, start_time, instance: identity.instance });
        if let Err(error) = self.ladder.join(slot, identity.instance, self.settings.tenant, now) {
            self.ladder.table_mut().arena.leave(slot);
            return Err(Refusal::new(RefusalCode::Full, error.to_string(), "close an engine"));
        }
        let at = usize::from(slot.get());
        let bell = joining.link.bell.as_fd().try_clone_to_owned();
        if let Err(error) = bell.and_then(|bell| self.sleeper.watch(at, bell)) {
            self.forget(at, now);
            return Err(Refusal::new(RefusalCode::Full, error.to_string(), "raise the limit on open files"));
        }
        tracing::info!(client = slot.get(), instance = %identity.instance, pid, role = identity.role, "a session opens");
        self.clients[at] = Some(Client::new(joining.session, slot, identity, Some(joining.link), now));
        self.count_sessions();
        Ok(Joined {
            client: slot,
            epoch: self.epoch,
            lease_bytes_max: self.ladder.config().lease_bytes_max,
            match_deadline: self.settings.match_deadline,
            load_deadline: self.settings.load_deadline,
        })
    }

    /// The slot of the session that this one says it replaces, if it is that process's, or that engine's where processes
    /// cannot be told apart. Whatever the old session held is free then.
    fn replace(
        &mut self,
        (epoch, slot): (Epoch, ClientSlot),
        identity: &Identity,
        process: Option<(NonZeroU32, StartTime)>,
        now: Time,
    ) -> Option<ClientSlot> {
        let at = usize::from(slot.get());
        let old = self.clients[at].as_ref()?;
        let theirs = &old.identity;
        let known = theirs.pid != 0 && process.is_some();
        let same_process = (theirs.pid, theirs.start_time) == (identity.pid, identity.start_time);
        // A survivor of an earlier epoch has no pid here: its table entry was matched against living processes at start.
        // A slot of another epoch may be another session's of the same process by now.
        if theirs.instance != identity.instance || theirs.epoch != epoch || (known && !same_process) {
            return None;
        }
        let session = old.session;
        // The ladder need not know whether it was a death: nothing of the old session touches the arena either way.
        self.forget(at, now);
        self.control(Control::Forget(session));
        Some(slot)
    }

    fn open_view(&mut self, at: usize, wanted: ViewRequest) -> Result<OpenedView, Refusal> {
        let client = self.clients[at].as_ref().expect("found a moment ago");
        if let Some(open) = client.views.iter().position(|view| view.is(&wanted)) {
            let (id, meta_bytes) = (client.views[open].id, client.views[open].meta_bytes);
            let rate = whole_rate(wanted.prefill_tokens_per_second);
            if rate > 0 {
                self.ladder.set_prefill_rate(id, rate);
            }
            let view = open as u16;
            return Ok(OpenedView { view, meta_bytes, checksum_algorithm: ALGORITHM.id() });
        }
        if client.views.len() >= VIEWS_MAX {
            return Err(Refusal::new(RefusalCode::Full, "the session has too many views", "reuse the open ones"));
        }
        let tokens = if wanted.token_ids { wanted.block_tokens as usize } else { 0 };
        let meta = meta_bytes(wanted.units as usize, tokens);
        let too_large =
            |message: String| Refusal::new(RefusalCode::Size, message, "use smaller blocks or larger units");
        let whole = slot_bytes(meta, wanted.payload_bytes.min(PAYLOAD_BYTES_MAX));
        if wanted.payload_bytes > PAYLOAD_BYTES_MAX
            || meta > kvd_tiers::record::META_BYTES_MAX
            || whole > SEGMENT_BYTES as usize
        {
            let message = format!("a record of {} + {meta} bytes is larger than a segment", wanted.payload_bytes);
            return Err(too_large(message));
        }
        let group_key = GroupKey::derive(&self.settings.tenant_key, &wanted.namespace, wanted.group);
        let spec = ViewSpec {
            tenant: self.settings.tenant,
            namespace: wanted.namespace,
            group: wanted.group,
            group_key,
            shard: wanted.shard.clone(),
            payload_bytes: wanted.payload_bytes,
            meta_bytes: meta as u32,
            block_tokens: wanted.block_tokens,
            prefill_tokens_per_second: whole_rate(wanted.prefill_tokens_per_second),
        };
        let opened = self.ladder.open_view(&spec).map_err(|error| match error {
            JoinError::SlotBytes(_) => too_large(error.to_string()),
            JoinError::Instances | JoinError::Views | JoinError::Lanes | JoinError::NotJoined => {
                Refusal::new(RefusalCode::Full, error.to_string(), "close unused views or engines")
            }
        })?;
        self.remember(&wanted);
        let client = self.clients[at].as_mut().expect("found a moment ago");
        client.views.push(View {
            id: opened,
            namespace: wanted.namespace,
            group: wanted.group,
            shard: wanted.shard,
            payload_bytes: wanted.payload_bytes,
            meta_bytes: meta as u32,
            unit_bytes: wanted.unit_bytes,
            units: wanted.units,
            unit_order: wanted.unit_order,
            replicated: wanted.replicated,
            block_tokens: wanted.block_tokens,
            token_ids: wanted.token_ids,
            hash_bytes: wanted.hash_bytes,
        });
        let view = client.views.len() as u16 - 1;
        Ok(OpenedView { view, meta_bytes: meta as u32, checksum_algorithm: ALGORITHM.id() })
    }

    /// Keeps a namespace's name for operators. Where there is no room, one gives way that holds nothing and is not open.
    fn remember(&mut self, view: &ViewRequest) {
        if self.namespaces.is_full() && !self.namespaces.contains(&view.namespace) {
            let held: BTreeSet<u64> =
                self.ladder.holdings().filter(|held| held.records > 0).map(|held| held.namespace_prefix).collect();
            let views = self.clients.iter().flatten().flat_map(|client| &client.views);
            let open: BTreeSet<_> = views.map(|view| view.namespace).collect();
            self.namespaces.forget_one(|digest| !held.contains(&namespace_prefix(digest)) && !open.contains(digest));
        }
        self.namespaces.note(view);
    }

    /// The tenant's segments.
    fn own_segments(&self) -> Vec<u32> {
        let arena = &self.ladder.table().arena;
        let own = |segment: &u32| {
            arena.assignment(SegmentId(*segment)).is_some_and(|(tenant, _)| tenant == self.settings.tenant)
        };
        (0..arena.segments()).filter(own).collect()
    }

    /// A descriptor of one of the tenant's own segments.
    fn segment(&self, segment: u32) -> Result<(OwnedFd, u64), Refusal> {
        let missing = || Refusal::new(RefusalCode::NotFound, "the tenant has no such segment", "match or offer again");
        let arena = &self.ladder.table().arena;
        let id = SegmentId(segment);
        if segment >= arena.segments() || arena.assignment(id).is_none_or(|(tenant, _)| tenant != self.settings.tenant)
        {
            return Err(missing());
        }
        let open = arena.files().get(id).ok_or_else(missing)?;
        let fd = open.as_fd().try_clone_to_owned();
        let fd =
            fd.map_err(|error| Refusal::new(RefusalCode::Full, error.to_string(), "raise the limit on open files"))?;
        Ok((fd, u64::from(SEGMENT_BYTES)))
    }

    fn set_prefill_rate(&mut self, at: usize, view: u32, rate: f64) -> Result<(), Refusal> {
        let view = self.view(at, view)?.id;
        self.ladder.set_prefill_rate(view, whole_rate(rate));
        Ok(())
    }

    fn view(&self, at: usize, view: u32) -> Result<&View, Refusal> {
        let client = self.clients[at].as_ref().expect("found a moment ago");
        let view = usize::try_from(view).ok().and_then(|view| client.views.get(view));
        view.ok_or_else(|| Refusal::new(RefusalCode::NotFound, "there is no such view", "open it first"))
    }

    /// The other shards in which there is something of a view's blocks, here or in the store: those with most records here first.
    fn other_shards(&self, at: usize, view: u32) -> Result<Vec<Shard>, Refusal> {
        let view = self.view(at, view)?;
        let prefix = namespace_prefix(&view.namespace);
        // Shards that differ in what goes with a record, as token ids, are lanes of their own.
        let mut records: BTreeMap<[u8; SHARD_BYTES], (u64, Shard)> = BTreeMap::new();
        for held in self.ladder.holdings().filter(|held| held.records > 0 && view.overlaps(&held.shard)) {
            if (held.tenant, held.namespace_prefix, held.group) == (self.settings.tenant, prefix, view.group) {
                let (count, _) = records.entry(held.shard.to_bytes()).or_insert((0, held.shard));
                *count += u64::from(held.records);
            }
        }
        let store = self.object.as_ref().filter(|_| self.object_up);
        let in_store = store.map(|link| link.view.shards(&view.namespace, view.group)).unwrap_or_default();
        for shard in in_store.into_iter().filter(|shard| view.overlaps(shard)) {
            records.entry(shard.to_bytes()).or_insert((0, shard));
        }
        let mut found: Vec<(u64, Shard)> = records.into_values().collect();
        found.sort_by_key(|(count, _)| Reverse(*count));
        found.truncate(SOURCES_MAX);
        Ok(found.into_iter().map(|(_, shard)| shard).collect())
    }

    /// The client said goodbye: nothing of it touches the arena any more.
    fn left(&mut self, session: SessionId, now: Time) {
        if let Ok(at) = self.find(session) {
            self.forget(at, now);
        }
    }

    /// The socket is gone, the process is not: what the session holds stays fenced until the process rejoins or dies. One
    /// that holds nothing is over.
    fn detached(&mut self, session: SessionId, now: Time) {
        let Ok(at) = self.find(session) else {
            // A join that was refused too late for anybody to hear of it.
            return self.control(Control::Forget(session));
        };
        self.unplug(at);
        let Some(client) = &self.clients[at] else { return };
        tracing::info!(client = at, pid = client.identity.pid, "a session's socket is gone");
        if self.ladder.holds(client.slot) {
            self.count_sessions();
        } else {
            self.forget(at, now);
            self.control(Control::Forget(session));
        }
    }

    fn died(&mut self, session: SessionId, now: Time) {
        if let Ok(at) = self.find(session) {
            let pid = self.clients[at].as_ref().map_or(0, |client| client.identity.pid);
            tracing::info!(client = at, pid, "an engine process ended");
            self.forget(at, now);
        }
    }

    /// Frees a client slot and everything it holds.
    fn forget(&mut self, at: usize, now: Time) {
        let Some(slot) = u8::try_from(at).ok().and_then(ClientSlot::new) else { return };
        self.unplug(at);
        self.ladder.client_died(slot, now);
        self.ladder.table_mut().arena.leave(slot);
        self.clients[at] = None;
        self.count_sessions();
    }

    /// Ends a session's fast path: its rings, views and waiting loads. What it holds stays held.
    fn unplug(&mut self, at: usize) {
        self.sleeper.forget(at);
        if let Some(client) = &mut self.clients[at] {
            for question in &client.questions {
                self.questions_due.remove(&(question.due, question.ticket));
            }
            client.unplug();
            for view in client.views.drain(..) {
                self.ladder.close_view(view.id);
            }
        }
    }

    /// A client whose ring makes no sense: its socket is closed, which detaches it.
    pub(super) fn cut(&mut self, at: usize) {
        if let Some(client) = &self.clients[at] {
            tracing::warn!(client = at, pid = client.identity.pid, "a client's ring is corrupt: its session is cut");
            self.control(Control::Cut(client.session));
            self.unplug(at);
        }
    }

    fn count_sessions(&self) {
        let open = self.clients.iter().flatten().filter(|client| client.link.is_some()).count();
        self.counters.sessions.set(open as u64);
    }
}

/// The ladder counts in whole tokens; a rate that is known is at least one.
fn whole_rate(tokens_per_second: f64) -> u32 {
    if tokens_per_second > 0.0 { (tokens_per_second.round() as u32).max(1) } else { 0 }
}
