//! Daemons that die or stand still while a device copies: every call ends, what is told is right, and the next daemon goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvd_client::Engine;
use kvd_nixl::device::{Between, Way};
use kvd_tests::{Scratch, TestEngine};
use rustix::process::{Pid, Signal, kill_process};

use crate::blocks::{BLOCKS, Blocks, daemon};
use crate::devices;

/// A chain takes so many chunks of five blocks.
const CHUNKS: usize = BLOCKS.div_ceil(5);
/// No call takes longer, whatever the daemon does: the load's deadline is two seconds.
const ENDS_WITHIN: Duration = Duration::from_secs(4);

/// Which chunk of a way, and what a daemon gets between its two steps.
struct Aim {
    way: Way,
    chunk: usize,
    pid: Pid,
    signal: Signal,
}

/// Waits for such a chunk.
#[derive(Clone, Default)]
struct Ambush {
    aim: Arc<Mutex<Option<Aim>>>,
    chunks: Arc<AtomicUsize>,
}

impl Ambush {
    fn between(&self) -> Between {
        let ambush = self.clone();
        Between::new(move |way, _| {
            let chunk = ambush.chunks.fetch_add(1, Ordering::Relaxed);
            let mut aim = ambush.aim.lock().unwrap();
            if let Some(Aim { pid, signal, .. }) = aim.take_if(|aim| (aim.way, aim.chunk) == (way, chunk)) {
                kill_process(pid, signal).unwrap();
            }
        })
    }

    fn lay(&self, way: Way, chunk: usize, pid: Pid, signal: Signal) {
        self.chunks.store(0, Ordering::Relaxed);
        *self.aim.lock().unwrap() = Some(Aim { way, chunk, pid, signal });
    }

    /// Whether the signal was sent.
    fn sprang(&self) -> bool {
        self.aim.lock().unwrap().take().is_none()
    }
}

/// In time, or the test fails.
fn ends<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = work();
    assert!(started.elapsed() < ENDS_WITHIN, "{what} took {:?}", started.elapsed());
    done
}

/// Loads until the next daemon has been joined.
fn rejoined(blocks: &Blocks, chain: u64, all: &[usize]) -> u32 {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let loaded = blocks.load(chain, all);
        if loaded.blocks > 0 || Instant::now() > until {
            return loaded.blocks;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_daemon_that_is_killed_while_a_device_copies_costs_no_wrong_byte() {
    let cycles = if std::env::var("KVD_DEATHS").is_ok_and(|value| value == "1") { 100 } else { 4 };
    for (name, device) in devices("daemons killed") {
        let scratch = Scratch::new("gpu-killed");
        let mut running = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let ambush = Ambush::default();
        let blocks = Blocks::on(&engine, Some(&device), Some(ambush.between()));
        let all: Vec<usize> = (0..BLOCKS).collect();
        for cycle in 0..cycles {
            let (kept, torn) = (2 * cycle + 1, 2 * cycle + 2);
            let what = format!("{name}, cycle {cycle}");
            assert_eq!(blocks.store(kept, &all).granted, BLOCKS as u32, "{what}");
            // Under a load: what is told is right, which `load` looks at.
            ambush.lay(Way::ToDevice, cycle as usize % CHUNKS, running.pid(), Signal::KILL);
            ends(&what, || blocks.load(kept, &all));
            assert!(ambush.sprang(), "{what}: the load took fewer chunks");
            running.kill();
            running = daemon(&scratch);
            assert_eq!(rejoined(&blocks, kept, &all), BLOCKS as u32, "{what}: the arena is adopted");
            // Under a store: what was published is there afterwards, the rest a miss.
            ambush.lay(Way::ToHost, cycle as usize % 3, running.pid(), Signal::KILL);
            let stored = ends(&what, || blocks.store(torn, &all));
            assert!(ambush.sprang(), "{what}: the store took fewer chunks");
            assert!(stored.granted < BLOCKS as u32, "{what}: {stored:?}");
            running.kill();
            running = daemon(&scratch);
            assert_eq!(rejoined(&blocks, kept, &all), BLOCKS as u32, "{what}");
            let left = blocks.load(torn, &all);
            assert!(left.blocks >= stored.granted && left.corrupt == 0, "{what}: {stored:?}, then {left:?}");
        }
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn a_daemon_that_stands_still_while_a_device_copies_is_a_miss_in_time() {
    for (name, device) in devices("daemons that stand still") {
        let scratch = Scratch::new("gpu-stopped");
        let running = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let ambush = Ambush::default();
        let blocks = Blocks::on(&engine, Some(&device), Some(ambush.between()));
        let all: Vec<usize> = (0..BLOCKS).collect();
        assert_eq!(blocks.store(1, &all).granted, BLOCKS as u32, "{name}");
        ambush.lay(Way::ToDevice, 2, running.pid(), Signal::STOP);
        // The slots were pinned and named before: the load comes to its end.
        let loaded = ends(name, || blocks.load(1, &all));
        assert!(ambush.sprang());
        assert_eq!(loaded.blocks, BLOCKS as u32, "{name}: {loaded:?}");
        let missed = ends(name, || blocks.load(1, &all));
        assert_eq!(missed.blocks, 0, "{name}: {missed:?}");
        running.signal(Signal::CONT);
        assert_eq!(rejoined(&blocks, 1, &all), BLOCKS as u32, "{name}");
        assert_eq!(running.stop(), Some(0));
    }
}
