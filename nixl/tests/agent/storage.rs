//! Memory to storage and back.

use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::agent::{
    Agent, DescriptorError, DescriptorList, Extent, MemoryCopy, NotificationQueue, Operation, PlanError, PostError,
    PostOptions, Section, SectionKind, Selection, wait_blocking,
};
use kvd_nixl::io::{Fault, FaultPlan, FaultRule, FaultTrigger, IoError};

use crate::support::{BLOCK, FILE_BYTES, Rig, blocks, bytes, in_flight, look, memory, noise, rig, until};

fn plain() -> MemoryCopy {
    MemoryCopy::default()
}

#[test]
fn selected_blocks_land_where_they_were_asked_for_and_again_when_posted_again() {
    let Rig { agent, disk, file, content, .. } = rig(8, FaultPlan::default());
    disk.set_automatic(true);
    let target = memory(4 * BLOCK);
    let local = blocks(&Section::memory(Arc::clone(&target)), 1, 4).all();
    let remote = blocks(&file, 1, 64).select(&[9, 3, 4, 63]).unwrap();
    let mut transfer = agent.prepare(Operation::Read, &local, &remote, plain()).unwrap();
    assert_eq!(transfer.operations(), 3, "3 and 4 lie side by side at both ends");
    for _ in 0..2 {
        target.zero(0, target.len()).unwrap();
        let report = wait_blocking(transfer.post(PostOptions::default()).unwrap());
        assert!(report.is_ok());
        assert_eq!(report.statuses.len(), 4);
        for (at, block) in [9, 3, 4, 63].into_iter().enumerate() {
            let from = (block * BLOCK) as usize;
            assert_eq!(bytes(&target, at as u64 * BLOCK, BLOCK), content[from..from + BLOCK as usize]);
        }
    }
    let telemetry = agent.telemetry()[1].1;
    assert_eq!((telemetry.bytes, telemetry.operations, telemetry.transfers), (8 * BLOCK, 6, 2));
    assert_eq!((telemetry.errors, telemetry.in_flight, telemetry.timeouts), (0, 0, 0));
    assert!(telemetry.latency_sum > Duration::ZERO);
}

#[test]
fn writes_reach_the_file() {
    let Rig { agent, disk, file, .. } = rig(8, FaultPlan::default());
    disk.set_automatic(true);
    let source = memory(FILE_BYTES);
    source.write(0, &noise(FILE_BYTES, 5)).unwrap();
    let local = blocks(&Section::memory(source), 1, 64).all();
    let mut transfer = agent.prepare(Operation::Write, &local, &blocks(&file, 1, 64).all(), plain()).unwrap();
    assert!(transfer.operations() <= 4, "neighbours are merged");
    assert!(wait_blocking(transfer.post(PostOptions::default()).unwrap()).is_ok());
    let mut found = vec![0; FILE_BYTES as usize];
    disk.inspect(kvd_nixl::io::FileId::new(0), 0, &mut found);
    assert_eq!(found, noise(FILE_BYTES, 5));
}

#[test]
fn every_descriptor_has_its_own_status_with_errno() {
    let broken = FaultRule::new(Fault::EIO, FaultTrigger::Nth(2));
    let full = FaultRule::new(Fault::ENOSPC, FaultTrigger::Nth(4));
    let Rig { agent, disk, file, faults, .. } = rig(8, FaultPlan::new([broken, full]));
    disk.set_automatic(true);
    let local = blocks(&Section::memory(memory(8 * BLOCK)), 2, 4).all();
    let mut transfer = agent.prepare(Operation::Read, &local, &blocks(&file, 1, 4).all(), plain()).unwrap();
    let report = wait_blocking(transfer.post(PostOptions::default()).unwrap());
    let errno = |status: &Result<(), DescriptorError>| match status {
        Err(DescriptorError::Io(error)) => error.errno(),
        _ => None,
    };
    assert_eq!(report.statuses.iter().map(errno).collect::<Vec<_>>(), [None, Some(5), None, Some(28)]);
    assert_eq!(report.statuses.iter().filter(|status| status.is_ok()).count(), 2);
    assert_eq!(report.first_error().unwrap().0, 1);
    assert_eq!(faults.happened(), 2);
    assert_eq!(agent.telemetry()[1].1.errors, 2);
}

#[test]
fn a_deadline_detaches_the_waiter_and_never_the_move() {
    let Rig { agent, disk, file, content, .. } = rig(8, FaultPlan::default());
    let target = memory(4 * BLOCK);
    let held = Arc::downgrade(&target);
    let local = blocks(&Section::memory(Arc::clone(&target)), 1, 4).select(&[0, 2]).unwrap();
    let mut transfer = agent.prepare(Operation::Read, &local, &blocks(&file, 2, 2).all(), plain()).unwrap();
    let options = PostOptions { deadline: Some(Duration::from_millis(20)), notify: None };
    let report = wait_blocking(transfer.post(options).unwrap());
    assert_eq!(report.statuses, [Err(DescriptorError::TimedOut); 2]);
    assert!(transfer.is_active());
    assert_eq!(transfer.post(PostOptions::default()).unwrap_err(), PostError::Active);
    assert_eq!(agent.telemetry()[1].1.timeouts, 1);
    // Everybody lets go but the move.
    drop((target, local));
    assert!(held.upgrade().is_some());
    while disk.step().is_some() {}
    wait_blocking(transfer.drained());
    assert_eq!(bytes(&held.upgrade().unwrap(), 2 * BLOCK, BLOCK), content[2 * BLOCK as usize..3 * BLOCK as usize]);
    drop(transfer);
    until("memory let go", || held.upgrade().is_none());
}

#[test]
fn after_a_cancel_is_through_nothing_lands() {
    let Rig { agent, disk, file, content, .. } = rig(4, FaultPlan::default());
    let target = memory(32 * BLOCK);
    let local = blocks(&Section::memory(Arc::clone(&target)), 2, 16).all();
    let mut transfer = agent.prepare(Operation::Read, &local, &blocks(&file, 3, 16).all(), plain()).unwrap();
    let future = transfer.post(PostOptions::default()).unwrap();
    until("four started", || in_flight(&agent) == 4);
    let mut cancelling = future.cancel();
    for landed in 0..4 {
        assert!(look(&mut cancelling).is_none(), "drained with {} under way", 4 - landed);
        disk.step().unwrap();
        until("seen by the driver", || agent.telemetry()[1].1.operations == landed + 1);
    }
    let report = wait_blocking(cancelling);
    assert_eq!(disk.step(), None, "nothing may be left on its way");
    assert_eq!(report.statuses[..4], [Ok(()); 4]);
    assert_eq!(report.statuses[4..], [Err(DescriptorError::Cancelled); 12]);
    for block in 0..16 {
        let wanted = match block < 4 {
            true => content[(3 * block * BLOCK) as usize..][..BLOCK as usize].to_vec(),
            false => vec![0; BLOCK as usize],
        };
        assert_eq!(bytes(&target, 2 * block * BLOCK, BLOCK), wanted, "block {block}");
    }
    disk.set_automatic(true);
    assert!(wait_blocking(transfer.post(PostOptions::default()).unwrap()).is_ok(), "posted again after a cancel");
}

#[test]
fn a_dropped_future_keeps_both_ends_until_the_hardware_is_done() {
    let Rig { agent, disk, file, .. } = rig(8, FaultPlan::default());
    let target = memory(BLOCK);
    let held = Arc::downgrade(&target);
    let local = blocks(&Section::memory(target), 1, 1).all();
    let mut transfer = agent.prepare(Operation::Read, &local, &blocks(&file, 1, 1).all(), plain()).unwrap();
    drop(transfer.post(PostOptions::default()).unwrap());
    until("started", || in_flight(&agent) == 1);
    drop((transfer, local));
    assert!(held.upgrade().is_some());
    disk.step().unwrap();
    until("memory let go", || held.upgrade().is_none());
}

#[test]
fn a_dropped_agent_waits_for_what_is_under_way() {
    let Rig { agent, disk, file, .. } = rig(8, FaultPlan::default());
    let target = memory(4 * BLOCK);
    let local = blocks(&Section::memory(Arc::clone(&target)), 1, 4).all();
    let mut transfer = agent.prepare(Operation::Read, &local, &blocks(&file, 2, 4).all(), plain()).unwrap();
    let mut future = transfer.post(PostOptions::default()).unwrap();
    until("started", || in_flight(&agent) == 4);
    drop((agent, transfer));
    assert!(look(&mut future).is_none());
    disk.set_automatic(true);
    assert!(wait_blocking(&mut future).is_ok());
    // The future is the last handle: its drop joins the driver.
    drop((future, local));
    assert_eq!(Arc::strong_count(&target), 1);
}

#[test]
fn a_message_comes_after_everything_landed_and_not_otherwise() {
    let broken = FaultRule::new(Fault::EIO, FaultTrigger::Nth(3));
    let Rig { agent, disk, file, .. } = rig(8, FaultPlan::new([broken]));
    let queue = NotificationQueue::new(1);
    let local = blocks(&Section::memory(memory(4 * BLOCK)), 2, 2).all();
    let prepare = || agent.prepare(Operation::Read, &local, &blocks(&file, 2, 2).all(), plain()).unwrap();
    let notify = || PostOptions { deadline: None, notify: Some((queue.clone(), b"landed".to_vec())) };
    let mut first = prepare();
    let future = first.post(notify()).unwrap();
    assert_eq!(prepare().post(notify()).unwrap_err(), PostError::NotificationRefused, "room is reserved at post");
    until("started", || in_flight(&agent) == 2);
    disk.step().unwrap();
    assert_eq!(queue.pop(), None);
    disk.step().unwrap();
    assert!(wait_blocking(future).is_ok());
    assert_eq!(queue.pop().unwrap(), b"landed");
    // The third operation fails: no message, and its room is free again.
    disk.set_automatic(true);
    assert!(!wait_blocking(first.post(notify()).unwrap()).is_ok());
    assert_eq!(queue.pop(), None);
    assert!(wait_blocking(first.post(notify()).unwrap()).is_ok());
    assert_eq!(queue.pop().unwrap(), b"landed");
    let long = PostOptions { deadline: None, notify: Some((queue, vec![0; 4097])) };
    assert_eq!(first.post(long).unwrap_err(), PostError::NotificationRefused);
}

#[test]
fn a_full_backend_refuses_and_nothing_grows() {
    let Rig { agent, disk, file, .. } = rig(1, FaultPlan::default());
    let local = blocks(&Section::memory(memory(BLOCK)), 1, 1).all();
    let remote = blocks(&file, 1, 1).all();
    let mut kept = Vec::new();
    let refused = (0..2000).find_map(|_| {
        let mut transfer = agent.prepare(Operation::Read, &local, &remote, plain()).unwrap();
        match transfer.post(PostOptions::default()) {
            Ok(future) => {
                kept.push((transfer, future));
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(refused, Some(PostError::Busy));
    disk.set_automatic(true);
    for (_, future) in kept {
        assert!(wait_blocking(future).is_ok());
    }
}

#[test]
fn what_no_backend_can_move_is_refused() {
    let Rig { agent, file, .. } = rig(8, FaultPlan::default());
    let mine = blocks(&Section::memory(memory(BLOCK)), 1, 1).all();
    let stored = blocks(&file, 1, 1).all();
    let foreign = |kind| blocks(&Section::foreign(kind, BLOCK), 1, 1).all();
    let refused = |local: &Selection, remote: &Selection| {
        let error = agent.prepare(Operation::Read, local, remote, plain()).unwrap_err();
        assert!(matches!(error, PlanError::NotSupported { .. }), "{error}");
    };
    refused(&mine, &foreign(SectionKind::Object));
    refused(&foreign(SectionKind::Device), &mine);
    refused(&stored, &stored);
    // A section of another agent's backend means nothing here.
    let other = Agent::new().unwrap();
    let error = other.prepare(Operation::Read, &mine, &stored, plain()).unwrap_err();
    assert!(matches!(error, PlanError::NotSupported { .. }), "{error}");

    let two = blocks(&Section::memory(memory(2 * BLOCK)), 1, 2).all();
    let error = agent.prepare(Operation::Read, &two, &stored, plain()).unwrap_err();
    assert_eq!(error, PlanError::CountMismatch { local: 2, remote: 1 });
    let section = Section::memory(memory(BLOCK));
    let half = DescriptorList::prepare([Extent { section, offset: 0, len: BLOCK / 2 }]).unwrap().all();
    let error = agent.prepare(Operation::Read, &half, &stored, plain()).unwrap_err();
    assert_eq!(error, PlanError::LengthMismatch { index: 0, local: BLOCK / 2, remote: BLOCK });
}

#[test]
fn of_a_merged_operation_that_is_short_the_part_that_landed_counts() {
    let short = FaultRule::new(Fault::Short, FaultTrigger::Nth(1));
    let Rig { agent, disk, file, content, .. } = rig(8, FaultPlan::new([short]));
    disk.set_automatic(true);
    let target = memory(8 * BLOCK);
    let local = blocks(&Section::memory(Arc::clone(&target)), 1, 8).all();
    let mut transfer = agent.prepare(Operation::Read, &local, &blocks(&file, 1, 8).all(), plain()).unwrap();
    assert_eq!(transfer.operations(), 1);
    let report = wait_blocking(transfer.post(PostOptions::default()).unwrap());
    let (first, error) = report.first_error().unwrap();
    assert!(matches!(error, DescriptorError::Io(IoError::Short { wanted: BLOCK, .. })), "{error}");
    for (index, status) in report.statuses.iter().enumerate() {
        assert_eq!(status.is_ok(), index < first);
        if status.is_ok() {
            let at = index * BLOCK as usize;
            assert_eq!(bytes(&target, at as u64, BLOCK), content[at..at + BLOCK as usize]);
        }
    }
}
