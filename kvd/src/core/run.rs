//! The core thread's turns: serve everybody a bounded amount, spin a little, sleep.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvd_proto::Time;
use kvd_proto::wire::ring::RING_ENTRIES;

use crate::core::clock;
use crate::core::state::Core;
use crate::session::Control;

/// Requests of one client in one turn: enough to be efficient, few enough that nobody waits long behind a busy client.
const REQUESTS_PER_TURN: u32 = RING_ENTRIES / 16;
/// How long to look for more after the last request or its last answer. A wake-up costs a sleeper up to 60 us on an idle core, so
/// an engine that asks in bursts finds us awake; an idle daemon costs nothing. Not after a move that ended: the next one may be a
/// while away, and with 4000 records a second from a store that would be up to a fifth of a core.
const SPIN: Duration = Duration::from_micros(50);
/// The longest sleep: the heart beats at least this often.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// The sleep while completions wait for a client that does not read them: nothing wakes us when it does.
const BACKLOG_SLEEP: Duration = Duration::from_millis(2);
/// Turns of a busy core between two looks at whether the gauges are due.
const GAUGE_LOOKS_EVERY: u32 = 4096;

/// What a turn was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nobody wanted anything.
    Idle,
    /// Moves went on.
    Moved,
    /// Somebody asked for something, or was given the last of what was asked for.
    Asked,
}

impl Core {
    /// Serves until told to stop, then winds down. An error is one of epoll.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut last_asked = clock::now();
        let mut turns = 0u32;
        // Acquire pairs with the Release of whoever stops us.
        while !self.stop.load(Ordering::Acquire) {
            let now = clock::now();
            let turn = self.turn(now);
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(GAUGE_LOOKS_EVERY) {
                self.refresh_gauges();
            }
            match turn {
                Turn::Asked => last_asked = now,
                Turn::Moved => {}
                Turn::Idle if now.since(last_asked) < SPIN => std::hint::spin_loop(),
                // Bounded work that goes on with the next tick.
                Turn::Idle if self.ladder.poll_timeout().is_some_and(|due| due <= now) => {}
                Turn::Idle => {
                    self.refresh_gauges();
                    self.sleep(now)?;
                }
            }
        }
        self.wind_down()
    }

    fn turn(&mut self, now: Time) -> Turn {
        self.counters.heartbeat.add(1);
        self.counters.heartbeat_nanos.set(now.as_nanos());
        let mut moved = self.take_outcomes(now);
        let mut asked = self.take_events(now);
        asked |= self.serve_calls(now);
        asked |= self.serve_commands(now);
        asked |= self.serve_rings();
        let now = clock::now();
        self.ladder.tick(now);
        if self.ladder.drained() {
            // An operator's drain is a wait, not a state: stores go on behind it.
            self.ladder.drain(false, now);
            self.drains += 1;
            self.drain_left = self.dram_only();
        }
        moved |= self.hand_out_moves(now);
        asked |= self.pass_on_replies();
        self.deliver();
        match (asked, moved) {
            (true, _) => Turn::Asked,
            (false, true) => Turn::Moved,
            (false, false) => Turn::Idle,
        }
    }

    /// Serves every client a few requests, each turn beginning with another one.
    fn serve_rings(&mut self) -> bool {
        let count = self.clients.len();
        self.first_client = (self.first_client + 1) % count;
        let mut worked = false;
        for at in (self.first_client..count).chain(0..self.first_client) {
            for _ in 0..REQUESTS_PER_TURN {
                let Some(client) = &mut self.clients[at] else { break };
                let served = match client.next_request() {
                    Ok(Some(entry)) => self.serve(at, &entry, clock::now()),
                    Ok(None) => break,
                    Err(error) => Err(error),
                };
                worked = true;
                if served.is_err() {
                    self.cut(at);
                    break;
                }
            }
        }
        worked
    }

    /// Delivers completions that waited and wakes the clients that got any.
    fn deliver(&mut self) {
        for at in 0..self.clients.len() {
            let delivered = self.clients[at].as_mut().map_or(Ok(()), |client| client.deliver());
            if delivered.is_err() {
                self.cut(at);
            }
        }
    }

    /// Sleeps until somebody rings or something is due, unless a request came in just now.
    fn sleep(&mut self, now: Time) -> io::Result<()> {
        let mut backlog = false;
        let mut quiet = true;
        for at in 0..self.clients.len() {
            let Some(client) = &mut self.clients[at] else { continue };
            backlog |= client.is_backlogged();
            match client.park() {
                Ok(empty) => quiet &= empty,
                Err(_) => self.cut(at),
            }
        }
        if quiet {
            let questions = self.questions_due.first().map(|(due, _)| *due);
            let due = [self.ladder.poll_timeout(), questions].into_iter().flatten().min();
            let due = due.map_or(SLEEP_MAX, |at| at.since(now));
            let limit = if backlog { BACKLOG_SLEEP } else { SLEEP_MAX };
            let clients = &self.clients;
            let mut gone = Vec::new();
            self.sleeper.sleep(due.min(limit), |at| {
                if clients[at].as_ref().is_some_and(|client| !client.drain_bell()) {
                    gone.push(at);
                }
            })?;
            for at in gone {
                // The peer closed its end; its socket tells the rest. Watched on, the bell would ring for ever.
                self.sleeper.forget(at);
            }
        }
        for client in self.clients.iter().flatten() {
            client.unpark();
        }
        Ok(())
    }

    /// No newcomers; what only DRAM holds goes to the devices, and what is under way may end, until the stop deadline.
    /// Records in DRAM stay where a successor finds them.
    fn wind_down(mut self) -> io::Result<()> {
        let until = clock::now().after(self.settings.stop_deadline);
        self.control(Control::Stop);
        // Nobody's requests are served any more, so nobody's bell shall wake us.
        for at in 0..self.clients.len() {
            self.sleeper.forget(at);
        }
        self.ladder.drain(true, clock::now());
        while clock::now() < until {
            let now = clock::now();
            self.ladder.tick(now);
            let worked = self.take_outcomes(now) | self.take_events(now) | self.hand_out_moves(now);
            if self.ladder.drained() && self.ladder.uploads_done() && self.in_flight.is_empty() {
                break;
            }
            if !worked {
                self.sleeper.sleep(Duration::from_millis(10), |_| {})?;
            }
        }
        if !self.in_flight.is_empty() {
            tracing::warn!(moves = self.in_flight.len(), "moves were still under way at the stop deadline");
        }
        self.verifier = None;
        if let Some(object) = &mut self.object {
            // What it took is uploaded, as far as its own patience reaches.
            (object.orders, object.asked) = (None, None);
        }
        for device in &mut self.devices {
            // The device flushes and ends when its channel closes.
            device.orders = None;
            device.waker.wake();
        }
        Ok(())
    }
}
