//! Blocks that ranks of another tensor or pipeline parallel size wrote.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kvd_client::Engine;
use kvd_nixl::device::{Between, Device, Way};
use kvd_proto::{Interleave, MissReason, Shard};
use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine, ask_serving, skip};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::blocks::daemon;
use crate::devices;
use crate::ranks::{BLOCKS, HEADS, Home, LAYERS, Rank, homes, kinds, mla, opaque, tensor};

const SIZES: [u16; 4] = [1, 2, 4, 8];
const ALL: u32 = BLOCKS as u32;

fn engine(scratch: &Scratch, number: u8) -> Engine {
    Engine::connect(TestEngine::options(&scratch.socket(), number)).unwrap()
}

/// All ranks of one engine, in all kinds of memory by turns.
fn ranks(engine: &Engine, of: u16, device: &Device) -> Vec<Rank> {
    let homes = homes(device);
    let home = |rank: u16| homes[usize::from(rank + of) % homes.len()];
    (0..of).map(|rank| Rank::new(engine, tensor(of, rank), home(rank), None)).collect()
}

#[test]
fn what_one_tensor_parallel_size_wrote_every_other_one_reads() {
    for (name, device) in devices("shards of another size") {
        let scratch = Scratch::new("shards");
        let running = daemon(&scratch);
        for (number, of) in (1..).zip(SIZES) {
            let writers = engine(&scratch, number);
            for rank in ranks(&writers, of, &device) {
                let stored = rank.store(of.into(), BLOCKS);
                assert_eq!((stored.granted, stored.refused), (ALL, 0), "{name}: {stored:?}");
            }
        }
        for (number, of) in (11..).zip(SIZES) {
            let readers = engine(&scratch, number);
            for rank in ranks(&readers, of, &device) {
                for wrote in SIZES {
                    let what = format!("{name}: {wrote} wrote, {:?} reads", rank.shard);
                    let found = rank.find(wrote.into());
                    let own = if wrote == of { ALL } else { 0 };
                    assert_eq!((found.blocks(), found.own_blocks(), found.reason()), (ALL, own, None), "{what}");
                    let loaded = rank.load_found(wrote.into(), &found);
                    assert_eq!(
                        (loaded.blocks, loaded.from_dram, loaded.reason),
                        (ALL, ALL, None),
                        "{what}: {loaded:?}"
                    );
                }
            }
        }
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn in_every_kind_of_memory() {
    for (name, device) in devices("shards in every kind of memory") {
        let scratch = Scratch::new("shards-memory");
        let running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        for rank in ranks(&engine, 4, &device) {
            assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        }
        for home in homes(&device) {
            for shard in [tensor(1, 0), tensor(2, 1), tensor(8, 3), tensor(4, 2)] {
                let rank = Rank::new(&engine, shard, home, None);
                let loaded = rank.load(1);
                assert_eq!((loaded.blocks, loaded.reason), (ALL, None), "{name}, {home:?}, {:?}", rank.shard);
            }
        }
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn of_every_kind_of_group() {
    for (name, device) in devices("shards of every kind of group") {
        let scratch = Scratch::new("shards-kinds");
        // A size of records takes segments of its own.
        let options = DaemonOptions::sized("1GiB", "64MiB").with("tiers.nvme.enabled", "false");
        let running = Daemon::start(&scratch, &options);
        let engine = engine(&scratch, 1);
        for kind in kinds() {
            for (rank, home) in (0..4).zip(homes(&device)) {
                let rank = Rank::of(&kind, &engine, tensor(4, rank), home, None);
                assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}, {}", kind.name);
            }
            for home in homes(&device) {
                for shard in [tensor(1, 0), tensor(2, 1), tensor(8, 5), tensor(4, 2)] {
                    let rank = Rank::of(&kind, &engine, shard, home, None);
                    let loaded = rank.load(1);
                    assert_eq!(loaded.blocks, ALL, "{name}, {}, {home:?}, {:?}: {loaded:?}", kind.name, rank.shard);
                }
            }
        }
        // What every rank has whole is one shard, stored once.
        let kind = mla();
        let whole = Shard::whole(LAYERS, 1).unwrap();
        for (at, home) in homes(&device).into_iter().enumerate() {
            let rank = Rank::of(&kind, &engine, whole.clone(), home, None);
            let stored = rank.store(1, BLOCKS);
            assert_eq!((stored.granted, stored.refused), (if at == 0 { ALL } else { 0 }, 0), "{name}: {stored:?}");
            assert_eq!(rank.load(1).blocks, ALL, "{name}, {home:?}");
        }
        // What only the engine can read is of use to ranks of the same size alone.
        let kind = opaque();
        let rank = |of, rank| Rank::of(&kind, &engine, tensor(of, rank), Home::Flat, None);
        assert_eq!(rank(2, 0).store(1, BLOCKS).granted, ALL, "{name}");
        assert_eq!(rank(2, 1).store(1, BLOCKS).granted, ALL, "{name}");
        assert_eq!((rank(2, 0).load(1).blocks, rank(1, 0).load(1).blocks, rank(4, 0).load(1).blocks), (ALL, 0, 0));
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn pipeline_stages_and_shards_that_overlap_are_put_together() {
    for (name, device) in devices("stages and overlaps") {
        let scratch = Scratch::new("shards-stages");
        let running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        let rank =
            |layers, heads, home| Rank::new(&engine, Shard::new(layers, heads, Interleave::WHOLE).unwrap(), home, None);
        // Two stages, of which the second has another tensor parallel size; and one more that all of them overlap.
        for (layers, heads) in [(0..1, 0..HEADS), (1..LAYERS, 0..4), (1..LAYERS, 4..HEADS), (0..3, 2..6)] {
            assert_eq!(rank(layers, heads, Home::Hnd(Some(&device))).store(1, BLOCKS).granted, ALL, "{name}");
        }
        for home in homes(&device) {
            for (layers, heads) in [(0..LAYERS, 0..HEADS), (0..2, 1..7), (2..LAYERS, 3..4), (0..LAYERS, 4..HEADS)] {
                let reader = rank(layers, heads, home);
                let loaded = reader.load(1);
                assert_eq!(loaded.blocks, ALL, "{name}, {home:?}, {:?}: {loaded:?}", reader.shard);
            }
        }
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn a_shard_that_is_missing_is_a_miss_and_the_shortest_one_counts() {
    for (name, device) in devices("missing shards") {
        let scratch = Scratch::new("shards-missing");
        let running = daemon(&scratch);
        let writers = engine(&scratch, 1);
        let rank = |of, rank| Rank::new(&writers, tensor(of, rank), Home::Hnd(Some(&device)), None);
        // Half of the heads by one size, a quarter by another.
        assert_eq!(rank(2, 0).store(1, BLOCKS).granted, ALL, "{name}");
        assert_eq!(rank(4, 2).store(1, BLOCKS).granted, ALL, "{name}");
        let reader = |number| Rank::new(&engine(&scratch, number), tensor(1, 0), Home::Hnd(Some(&device)), None);
        let found = reader(2).find(1);
        assert_eq!((found.blocks(), found.reason()), (0, Some(MissReason::Cold)), "{name}");
        assert_eq!(rank(4, 3).store(1, 5).granted, 5, "{name}");
        // A process that has just come asks at once; one that knows of no other shard, within a second.
        let whole = reader(3);
        let found = whole.find(1);
        assert_eq!((found.blocks(), found.own_blocks(), found.reason()), (5, 0, Some(MissReason::Cold)), "{name}");
        let loaded = whole.load(1);
        assert_eq!((loaded.blocks, loaded.reason), (5, Some(MissReason::Cold)), "{name}");

        // What comes from others is stored again, and behind it the chain goes on in the reader's own shard.
        assert_eq!(whole.store(1, 3).granted, 3, "{name}");
        let found = whole.find(1);
        assert_eq!((found.blocks(), found.own_blocks()), (5, 3), "{name}");
        let loaded = whole.load_found(1, &found);
        assert_eq!(loaded.blocks, 5, "{name}: {loaded:?}");
        let stored = whole.store(1, BLOCKS);
        assert_eq!((stored.granted, stored.present), (ALL - 3, 3), "{name}: {stored:?}");
        assert_eq!(whole.find(1).own_blocks(), ALL, "{name}");
        // And for the others it is there now as well.
        assert_eq!(rank(4, 3).load(1).blocks, ALL, "{name}");
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn a_bit_that_flips_in_a_part_is_never_told() {
    for (name, device) in devices("flips in parts") {
        let scratch = Scratch::new("shards-flips");
        let running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        for rank in ranks(&engine, 2, &device) {
            assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        }
        // One bit of the second chunk that comes in.
        let chunks = Arc::new(AtomicUsize::new(0));
        let count = chunks.clone();
        let between = Between::new(move |way, staging| {
            if way == Way::ToDevice && count.fetch_add(1, Ordering::Relaxed) == 1 {
                let mut byte = [0];
                staging.read(77, &mut byte).unwrap();
                staging.write(77, &[byte[0] ^ 16]).unwrap();
            }
        });
        // Twenty of these records' parts are as much as five of its own: a chain is one chunk of each of the two.
        let rank = Rank::new(&engine, tensor(1, 0), Home::Nhd(Some(&device)), Some(between));
        let loaded = rank.load(1);
        assert_eq!((loaded.blocks, loaded.corrupt), (10, 1), "{name}: {loaded:?}");
        assert!(chunks.load(Ordering::Relaxed) >= 2, "{name}");
        // The other one is as it was.
        assert_eq!(Rank::new(&engine, tensor(4, 3), Home::Flat, None).load(1).corrupt, 0, "{name}");
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn copies_of_two_shards_that_are_wrong_are_both_put_aside() {
    for (name, device) in devices("flips in two shards") {
        let scratch = Scratch::new("shards-flips-two");
        let running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        for rank in ranks(&engine, 2, &device) {
            assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        }
        // Ten blocks' halves are a chunk, and two more: one bit of the seventh of one shard, one of the fourth of the other.
        let chunks = AtomicUsize::new(0);
        let between = Between::new(move |way, staging| {
            let chunk = chunks.fetch_add(1, Ordering::Relaxed);
            let block = [Some(6), None, Some(3)].get(chunk).copied().flatten();
            if let (Way::ToDevice, Some(block)) = (way, block) {
                let (at, mut byte) = (block * 64 * 1024 + 77, [0]);
                staging.read(at, &mut byte).unwrap();
                staging.write(at, &[byte[0] ^ 16]).unwrap();
            }
        });
        let rank = Rank::new(&engine, tensor(1, 0), Home::Hnd(Some(&device)), Some(between));
        let loaded = rank.load(1);
        assert_eq!((loaded.blocks, loaded.corrupt), (3, 2), "{name}: {loaded:?}");
        assert_eq!(rank.find(1).blocks(), 3, "{name}");
        let halves = [0, 1].map(|half| Rank::new(&engine, tensor(2, half), Home::Flat, None).load(1).blocks);
        assert_eq!(halves, [6, 3], "{name}");
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn where_others_have_not_all_of_it_they_are_not_asked() {
    let scratch = Scratch::new("shards-useless");
    let running = daemon(&scratch);
    let engine = engine(&scratch, 1);
    // Both ranks have the indexer, and each its own heads.
    let kind = kinds().into_iter().find(|kind| kind.name.contains("indexer")).unwrap();
    let [one, other] = [0, 1].map(|rank| Rank::of(&kind, &engine, tensor(2, rank), Home::Flat, None));
    assert_eq!((one.store(1, 5).granted, other.store(1, BLOCKS).granted), (5, ALL));
    let matches = || {
        let told = ask_serving(&scratch, &["status", "--metrics"]);
        let text = told["text"].as_str().unwrap().to_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("kvd_requests_total{op=\"match\"} "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = matches();
    for _ in 0..10 {
        assert_eq!(one.find(1).blocks(), 5);
    }
    assert_eq!(matches() - before, 10);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn matches_that_begin_at_once_all_learn_of_other_shards() {
    let scratch = Scratch::new("shards-at-once");
    let running = daemon(&scratch);
    let writer = engine(&scratch, 1);
    assert_eq!(Rank::new(&writer, tensor(1, 0), Home::Flat, None).store(1, BLOCKS).granted, ALL);
    for number in 2..10 {
        let readers = engine(&scratch, number);
        let rank = Rank::new(&readers, tensor(2, 0), Home::Flat, None);
        let together = Barrier::new(4);
        let find = || {
            together.wait();
            rank.find(1).blocks()
        };
        let found = std::thread::scope(|threads| {
            let threads = [(); 4].map(|()| threads.spawn(find));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(found, [ALL; 4]);
    }
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_daemon_that_comes_back_knows_the_shards_that_it_had() {
    for (name, device) in devices("shards after a death") {
        let scratch = Scratch::new("shards-death");
        let start = || Daemon::start(&scratch, &DaemonOptions::sized("256MiB", "256MiB"));
        let mut running = start();
        let writers = engine(&scratch, 1);
        for rank in ranks(&writers, 4, &device) {
            assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        }
        ask_serving(&scratch, &["drain"]);
        drop(writers);
        let readers = engine(&scratch, 2);
        let rank = Rank::new(&readers, tensor(2, 1), Home::Hnd(Some(&device)), None);
        assert_eq!(rank.load(1).from_dram, ALL, "{name}");
        for lost in [false, true] {
            running.kill();
            if lost {
                scratch.delete_dram();
            }
            running = start();
            let reader = Rank::new(&engine(&scratch, 3), tensor(2, 1), Home::Hnd(Some(&device)), None);
            let loaded = reader.load(1);
            let nvme = if lost { ALL } else { 0 };
            assert_eq!((loaded.blocks, loaded.from_nvme), (ALL, nvme), "{name}: {loaded:?}");
        }
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn a_daemon_that_is_killed_while_parts_come_in_costs_no_wrong_byte() {
    for (name, device) in devices("daemons killed under parts") {
        let scratch = Scratch::new("shards-killed");
        let mut running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        for rank in ranks(&engine, 4, &device) {
            assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        }
        for chunk in 0..4 {
            let (pid, chunks) = (running.pid(), Arc::new(AtomicUsize::new(0)));
            let count = chunks.clone();
            let between = Between::new(move |way, _| {
                if way == Way::ToDevice && count.fetch_add(1, Ordering::Relaxed) == chunk {
                    kill_process(pid, Signal::KILL).unwrap();
                }
            });
            let rank = Rank::new(&engine, tensor(1, 0), Home::Hnd(Some(&device)), Some(between));
            // What is told is right: `load` looks at every byte.
            rank.load(1);
            assert!(chunks.load(Ordering::Relaxed) > chunk, "{name}: the load took fewer chunks");
            running.kill();
            running = daemon(&scratch);
            let until = Instant::now() + Duration::from_secs(20);
            while rank.load(1).blocks < ALL {
                assert!(Instant::now() < until, "{name}: the arena is adopted");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn what_another_node_wrote_comes_out_of_the_store() {
    for (name, device) in devices("shards of another node") {
        let store = tempfile::tempdir().unwrap();
        let [writing, reading] = ["shards-writing", "shards-reading"].map(Scratch::new);
        let start = |scratch: &Scratch| {
            let secret = scratch.data().join("shared.secret");
            std::fs::write(&secret, "the secret that both nodes know 0123456789").unwrap();
            std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
            let options = DaemonOptions::sized("256MiB", "64MiB")
                .with("tiers.nvme.enabled", "false")
                .with("tiers.object.enabled", "true")
                .with("tiers.object.url", &format!("file://{}", store.path().join("objects").display()))
                .with("tiers.object.pack_age", "100ms")
                .with("tiers.object.sync_every", "100ms")
                .with("tenant.secret_file", &secret.display().to_string());
            Daemon::start(scratch, &options)
        };
        let (one, other) = (start(&writing), start(&reading));
        let readers = engine(&reading, 2);
        let rank = Rank::new(&readers, tensor(2, 1), Home::Hnd(Some(&device)), None);
        assert_eq!(rank.find(1).blocks(), 0, "{name}");
        for rank in ranks(&engine(&writing, 1), 4, &device) {
            assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        }
        let until = Instant::now() + Duration::from_secs(60);
        while rank.find(1).blocks() < ALL {
            assert!(Instant::now() < until, "{name}: not learned\n{}", other.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let loaded = rank.load(1);
        assert_eq!((loaded.blocks, loaded.from_object), (ALL, ALL), "{name}: {loaded:?}");
        assert_eq!((one.stop(), other.stop()), (Some(0), Some(0)));
    }
}

#[test]
fn ranks_are_processes() {
    let mut places = vec![("twin", vec!["--twin"])];
    match Device::cuda(0) {
        Ok(_) => places.push(("gpu", Vec::new())),
        Err(error) => skip("ranks as processes on a GPU", &error.to_string()),
    }
    for (name, place) in places {
        let mut bench = Command::new(Daemon::program());
        bench.args(["--json", "bench", "ranks", "--mib", "64", "--rounds", "1"]).args(place);
        let ended = bench.output().expect("kvd can be started");
        let told: Value = serde_json::from_slice(&ended.stdout).expect("one JSON object");
        assert_eq!(
            (&told["wrong_units"], told["cases"].as_array().map(Vec::len)),
            (&0.into(), Some(16)),
            "{name}: {told}"
        );
    }
}
