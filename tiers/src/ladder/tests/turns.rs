//! Nodes take turns: a block waits for this one's turn, no longer, and not while the daemon is being drained.

use std::time::Duration;

use kvd_proto::BlockKey;

use super::world::{World, chain, kind};
use crate::ladder::turns::BLOCKS_PER_TURN;
use crate::ladder::{DeviceConfig, LadderConfig, Move, ObjectConfig, TURNS, Turns};
use crate::object::NodeName;

const WAIT: Duration = Duration::from_secs(5);

/// One of four nodes.
fn turns() -> Turns {
    let nodes = [1, 2, 3, 4].map(|node| NodeName::new([node; 16]));
    Turns::new(nodes[0], nodes, WAIT)
}

fn world() -> World {
    let object = Some(ObjectConfig::default());
    let mut world = World::new(LadderConfig { object, ..LadderConfig::new(16, vec![DeviceConfig { zones: 8 }]) });
    world.ladder.set_object_turns(turns(), world.now);
    world
}

fn putting(world: &World) -> usize {
    world.moves.values().filter(|found| matches!(found, Move::Put { .. })).count()
}

/// A chain of one block for each turn.
fn one_of_each(world: &mut World) -> Vec<usize> {
    let kind = kind(1, 0..8, 1 << 20);
    let view = world.open(0, &kind);
    let mut waiting = vec![0; TURNS];
    for number in 0..16 {
        let hashes = chain(number, 1);
        assert_eq!(world.store(0, view, &hashes), 1);
        waiting[turns().of(&kind.spec.group_key.block(&hashes[0]))] += 1;
    }
    assert!(waiting.iter().all(|count| *count > 0), "{waiting:?}");
    waiting
}

#[test]
fn a_block_waits_for_its_turn_and_no_longer() {
    let mut world = world();
    let waiting = one_of_each(&mut world);
    let mut uploaded = 0;
    for (turn, count) in waiting.iter().enumerate() {
        if turn > 0 {
            world.run();
            assert_eq!(world.ladder.poll_timeout(), Some(world.now + WAIT), "it says when the next turn comes");
            world.tick(WAIT - Duration::from_millis(1));
            assert_eq!(putting(&world), 0, "turn {turn} has not come");
            world.tick(Duration::from_millis(1));
        }
        assert_eq!(putting(&world), *count, "turn {turn}");
        world.run();
        uploaded += count;
        assert_eq!(world.ladder.counters().uploaded, uploaded as u64);
    }
    assert!(world.ladder.uploads_done());
}

#[test]
fn while_the_daemon_is_drained_nobody_waits() {
    let mut world = world();
    let waiting = one_of_each(&mut world);
    world.run();
    assert!(!world.ladder.uploads_done());
    world.ladder.drain(true, world.now);
    world.run();
    assert_eq!(world.ladder.counters().uploaded, waiting.iter().sum::<usize>() as u64);
    assert!(world.ladder.uploads_done());
}

#[test]
fn blocks_side_by_side_in_a_chain_have_one_turn() {
    let mut world = world();
    let kind = kind(1, 0..8, 8 << 10);
    let view = world.open(0, &kind);
    let parts = 6;
    let hashes = chain(1, parts * BLOCKS_PER_TURN);
    world.store(0, view, &hashes);
    let turn_of = |block: u32| turns().of(&kind.spec.group_key.block(&hashes[block as usize]));
    let mut uploaded = 0;
    for turn in 0..TURNS {
        world.run();
        let whole = (0..parts).filter(|part| turn_of(part * BLOCKS_PER_TURN) == turn).count() as u32;
        uploaded += whole * BLOCKS_PER_TURN;
        assert_eq!(world.ladder.counters().uploaded, u64::from(uploaded), "turn {turn}");
        world.tick(WAIT);
    }
    assert_eq!(uploaded, parts * BLOCKS_PER_TURN);
}

#[test]
fn of_too_many_that_wait_the_oldest_come_first_and_none_is_lost_while_there_is_room() {
    let object = Some(ObjectConfig { queue_max: 8, puts_max: 1, ..ObjectConfig::default() });
    let mut world = World::new(LadderConfig { object, ..LadderConfig::new(16, vec![DeviceConfig { zones: 8 }]) });
    let all = turns();
    world.ladder.set_object_turns(all.clone(), world.now);
    let kind = kind(1, 0..8, 1 << 20);
    let view = world.open(0, &kind);
    let key = |number: u32| -> BlockKey { kind.spec.group_key.block(&chain(number, 1)[0]) };
    let last: Vec<u32> = (0..200).filter(|number| all.of(&key(*number)) == TURNS - 1).take(12).collect();
    for number in &last {
        world.store(0, view, &chain(*number, 1));
    }
    world.run();
    let counters = world.ladder.counters();
    assert_eq!((counters.uploaded, counters.uploads_dropped), (4, 0), "those for which there was no room did not wait");
    world.tick(WAIT * TURNS as u32);
    world.run();
    assert_eq!(world.ladder.counters().uploaded, 12);
}
