//! Calls over the rings: up to sixteen at a time, from any thread.
//!
//! A call owns a slab from its request to its last completion. Among the threads that wait one takes the completion ring
//! and hands every completion to its call; the others sleep. A call that gives up leaves its slab behind: it is the
//! daemon's until the completion has come, and a lease that comes with it is given back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kvd_nixl::sys::{Bell, Consumer, EventFd, MemoryExtent, Producer, RingError, Signal};
use kvd_proto::Epoch;
use kvd_proto::wire::ring::{Completion, ENTRY_BYTES, Op, Request, Status};

/// How long a waiting thread spins before it sleeps: an answer of a busy daemon takes 5 to 15 us.
const SPIN: Duration = Duration::from_micros(50);
/// Longest sleep before a thread looks whether the session has ended.
const NAP: Duration = Duration::from_millis(20);
/// Requests without an answer to wait for that are kept while the ring is full. With more the session ends: a lease that was
/// not given back would hold its slots as long as the session lives, and a daemon so far behind is no use.
const GIVE_BACK_MAX: usize = 1024;
/// In the low byte of a token: nobody waits for the completion.
const NOBODY: u64 = 0xff;

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallError {
    /// The session has ended.
    Down,
    /// The deadline passed.
    Timeout,
    /// A device of the engine did not copy.
    Device,
}

/// The client's end of a session's fast path.
#[derive(Debug)]
pub(crate) struct Link {
    epoch: Epoch,
    slabs: Vec<MemoryExtent>,
    bell: Bell,
    /// Signalled when the session has ended.
    ended: Arc<EventFd>,
    down: AtomicBool,
    /// Whether the daemon ever completed a call.
    answered: AtomicBool,
    /// Who made it: a child that inherits it must leave it alone.
    process: u32,
    /// Guards the request ring. Taken with `state` held, never the other way round.
    sender: Mutex<Sender>,
    /// Guards the calls. Held for moments only, never while waiting for the daemon.
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug)]
struct Sender {
    producer: Producer,
    give_back: VecDeque<Request>,
}

#[derive(Debug)]
struct State {
    /// `None` while a waiting thread has it.
    consumer: Option<Consumer>,
    calls: Vec<Place>,
    sequence: u64,
    waiting: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// A thread has it. `token` is 0 before the first request.
    Taken {
        token: u64,
        partial: Option<Completion>,
        last: Option<Completion>,
    },
    /// The thread gave up; the daemon may still write in the slab.
    Abandoned {
        token: u64,
        op: Op,
    },
}

impl Link {
    pub(crate) fn new(
        epoch: Epoch,
        slabs: Vec<MemoryExtent>,
        rings: (Producer, Consumer),
        bell: Bell,
        ended: Arc<EventFd>,
    ) -> Self {
        let state = State {
            consumer: Some(rings.1),
            calls: vec![Place::Free; slabs.len().min(NOBODY as usize)],
            sequence: 0,
            waiting: 0,
        };
        Self {
            epoch,
            slabs,
            bell,
            ended,
            down: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            process: std::process::id(),
            sender: Mutex::new(Sender { producer: rings.0, give_back: VecDeque::new() }),
            state: Mutex::new(state),
            arrived: Condvar::new(),
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        // SeqCst: see Session::begin_copy.
        self.down.load(Ordering::SeqCst)
    }

    /// Whether the daemon did more than greet.
    pub(crate) fn has_answered(&self) -> bool {
        // Relaxed: nothing comes with it.
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends the session for every waiting and later call.
    pub(crate) fn shut(&self) {
        // SeqCst: see Session::begin_copy.
        self.down.store(true, Ordering::SeqCst);
        // A full counter is a signal already given.
        let _ = self.ended.signal();
        let _state = self.lock();
        self.arrived.notify_all();
    }

    /// Takes a place for a call, waiting for one if all are taken.
    pub(crate) fn call(&self, deadline: Instant) -> Result<Call<'_>, CallError> {
        let mut state = self.lock();
        self.take_late_answers(&mut state);
        loop {
            if self.is_down() {
                return Err(CallError::Down);
            }
            if let Some(place) = state.calls.iter().position(|place| *place == Place::Free) {
                state.calls[place] = Place::Taken { token: 0, partial: None, last: None };
                return Ok(Call { link: self, place, op: Op::Release, deadline, spin: SPIN });
            }
            state = self.wait(state, deadline, SPIN)?;
        }
    }

    /// Takes a place for a call if one is free now.
    pub(crate) fn try_call(&self, deadline: Instant) -> Option<Call<'_>> {
        let mut state = self.lock();
        self.take_late_answers(&mut state);
        let place = state.calls.iter().position(|place| *place == Place::Free).filter(|_| !self.is_down())?;
        state.calls[place] = Place::Taken { token: 0, partial: None, last: None };
        Some(Call { link: self, place, op: Op::Release, deadline, spin: SPIN })
    }

    /// Sends a request to whose answer nobody listens.
    pub(crate) fn give_back(&self, op: Op, lease: u64) {
        if std::process::id() != self.process {
            // A child has a copy of the lease and of our end of the rings, but neither is its own.
            return;
        }
        let mut state = self.lock();
        if !self.give_back_with(&mut state, op, lease) {
            // Nobody waits for anything, so nobody has taken the answers, and the daemon waits for room.
            self.take_answers(&mut state);
        }
    }

    /// What came too late for its call gives its lease back before the next call asks for one: else a daemon that stood still would
    /// refuse that, for want of what nobody uses.
    fn take_late_answers(&self, state: &mut State) {
        if state.calls.iter().any(|place| matches!(place, Place::Abandoned { .. })) {
            self.take_answers(state);
        }
    }

    /// Takes the completions that are there, unless a waiting thread does.
    fn take_answers(&self, state: &mut State) {
        let Some(mut consumer) = state.consumer.take() else { return };
        let first = consumer.pop();
        if self.hand_out(state, &mut consumer, first).is_err() {
            self.fail();
        }
        state.consumer = Some(consumer);
    }

    /// Whether all that was kept went.
    fn give_back_with(&self, state: &mut State, op: Op, lease: u64) -> bool {
        state.sequence += 1;
        let token = state.sequence << 8 | NOBODY;
        let request =
            Request { op, flags: 0, view: 0, slab: 0, first: 0, count: 0, token, lease, deadline_us: 0, arg: 0 };
        let mut sender = self.sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if sender.give_back.len() >= GIVE_BACK_MAX {
            self.fail();
            return false;
        }
        sender.give_back.push_back(request);
        self.flush(&mut sender)
    }

    /// Sends what was kept; whether all of it went.
    fn flush(&self, sender: &mut Sender) -> bool {
        let mut sent = false;
        while let Some(request) = sender.give_back.front() {
            match sender.producer.push(&request.encode()) {
                Ok(true) => sent = true,
                Ok(false) => break,
                Err(_) => self.fail(),
            }
            if self.is_down() {
                return false;
            }
            sender.give_back.pop_front();
        }
        if sent && sender.producer.wake(&self.bell).is_err() {
            self.fail();
        }
        sender.give_back.is_empty()
    }

    /// Like [`Link::shut`], for callers that hold the state.
    fn fail(&self) {
        // SeqCst: see Session::begin_copy.
        self.down.store(true, Ordering::SeqCst);
        let _ = self.ended.signal();
        self.arrived.notify_all();
    }

    /// Sends a request; `false`: the ring is full.
    fn send(&self, request: &Request) -> Result<bool, CallError> {
        let mut sender = self.sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !self.flush(&mut sender) && self.is_down() {
            return Err(CallError::Down);
        }
        match sender.producer.push(&request.encode()) {
            Ok(false) => return Ok(false),
            Ok(true) if sender.producer.wake(&self.bell).is_ok() => return Ok(true),
            Ok(true) | Err(_) => {}
        }
        self.fail();
        Err(CallError::Down)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until something may have changed: reads the ring if nobody else does, else sleeps until that thread has.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Instant,
        spin: Duration,
    ) -> Result<MutexGuard<'a, State>, CallError> {
        let now = Instant::now();
        if now >= deadline {
            return Err(CallError::Timeout);
        }
        let nap = deadline.min(now + NAP);
        let Some(mut consumer) = state.consumer.take() else {
            state.waiting += 1;
            let slept = self.arrived.wait_timeout(state, nap - now);
            let mut state = slept.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            state.waiting -= 1;
            return Ok(state);
        };
        drop(state);
        let first = consumer.spin_then_wait(&self.bell, spin, Some(nap));
        let mut state = self.lock();
        if self.hand_out(&mut state, &mut consumer, first).is_err() {
            self.fail();
        }
        state.consumer = Some(consumer);
        if state.waiting > 0 {
            self.arrived.notify_all();
        }
        Ok(state)
    }

    /// Gives the completions that are there to their calls.
    fn hand_out(
        &self,
        state: &mut State,
        consumer: &mut Consumer,
        first: Result<Option<[u8; ENTRY_BYTES]>, RingError>,
    ) -> Result<(), RingError> {
        let mut next = first?;
        while let Some(entry) = next {
            match Completion::decode(&entry) {
                Ok(completion) if completion.epoch == self.epoch => self.deliver(state, completion),
                // Not the daemon that we have joined, or not one at all.
                Ok(_) | Err(_) => self.fail(),
            }
            next = consumer.pop()?;
        }
        Ok(())
    }

    fn deliver(&self, state: &mut State, completion: Completion) {
        self.answered.store(true, Ordering::Relaxed);
        let Ok(place) = usize::try_from(completion.token & NOBODY) else { return };
        match state.calls.get_mut(place) {
            Some(Place::Taken { token, partial, last }) if *token == completion.token => match completion.status {
                Status::Partial => *partial = Some(completion),
                Status::Ok | Status::Refused | Status::BadRequest => *last = Some(completion),
            },
            Some(abandoned @ Place::Abandoned { .. }) if completion.status != Status::Partial => {
                let Place::Abandoned { token, op } = *abandoned else { return };
                if token == completion.token {
                    *abandoned = Place::Free;
                    self.return_lease(state, op, completion.lease);
                }
            }
            _ => {}
        }
    }

    /// A lease that came too late to be of use.
    fn return_lease(&self, state: &mut State, op: Op, lease: u64) {
        match op {
            Op::Match if lease != 0 => drop(self.give_back_with(state, Op::Release, lease)),
            Op::Offer if lease != 0 => drop(self.give_back_with(state, Op::Abandon, lease)),
            _ => {}
        }
    }
}

/// One thread's place in the link: a slab, and one request at a time. Dropped, it gives the slab back, or leaves it to the
/// daemon when an answer is outstanding.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    link: &'a Link,
    place: usize,
    op: Op,
    deadline: Instant,
    /// How long the next wait spins: not after one that was longer than a spin. What comes from a disk or a store mostly takes
    /// that long again, and a thread that spins in vain takes a core from whoever brings it.
    spin: Duration,
}

impl Call<'_> {
    /// The slab. The caller writes it before a request, and reads it after the completion.
    pub(crate) fn slab(&self) -> &MemoryExtent {
        &self.link.slabs[self.place]
    }

    /// Microseconds left, for the request.
    pub(crate) fn deadline_us(&self) -> u32 {
        let left = self.deadline.saturating_duration_since(Instant::now());
        u32::try_from(left.as_micros()).unwrap_or(u32::MAX).max(1)
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The next request may take until then.
    pub(crate) fn renew(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Sends a request; slab, token and deadline are filled in here. The one before must have been answered.
    pub(crate) fn send(&mut self, request: Request) -> Result<(), CallError> {
        let token = {
            let mut state = self.link.lock();
            state.sequence += 1;
            let token = state.sequence << 8 | self.place as u64;
            state.calls[self.place] = Place::Taken { token, partial: None, last: None };
            token
        };
        self.op = request.op;
        let slab = u16::try_from(self.place).expect("there are at most 254 places");
        let sent = loop {
            match self.link.send(&Request { slab, token, deadline_us: self.deadline_us(), ..request }) {
                Ok(true) => break Ok(()),
                // A full ring. It may be full because nobody has taken the answers to what was given back: while waiting we do.
                Ok(false) => match self.link.wait(self.link.lock(), self.deadline, SPIN) {
                    Ok(_) => {}
                    Err(error) => break Err(error),
                },
                Err(error) => break Err(error),
            }
        };
        if sent.is_err() {
            self.set_place(Place::Taken { token: 0, partial: None, last: None });
        }
        sent
    }

    /// The next completion: `Partial` ones as they come (the newest if several have), then the last.
    pub(crate) fn next(&mut self) -> Result<Completion, CallError> {
        let mut state = self.link.lock();
        loop {
            if let Place::Taken { token, partial, last } = &mut state.calls[self.place] {
                if let Some(done) = last.take() {
                    *token = 0;
                    return Ok(done);
                }
                if let Some(progress) = partial.take() {
                    return Ok(progress);
                }
            }
            if self.link.is_down() {
                return Err(CallError::Down);
            }
            let since = Instant::now();
            state = self.link.wait(state, self.deadline, self.spin)?;
            self.spin = if since.elapsed() < SPIN { SPIN } else { Duration::ZERO };
        }
    }

    fn set_place(&self, place: Place) {
        self.link.lock().calls[self.place] = place;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = self.link.lock();
        let (after, lease) = match state.calls[self.place] {
            // Answered in the moment in which the caller gave up.
            Place::Taken { last: Some(last), .. } => (Place::Free, last.lease),
            Place::Taken { token, .. } if token != 0 => (Place::Abandoned { token, op: self.op }, 0),
            _ => (Place::Free, 0),
        };
        state.calls[self.place] = after;
        self.link.return_lease(&mut state, self.op, lease);
        if state.waiting > 0 {
            self.link.arrived.notify_all();
        }
    }
}
