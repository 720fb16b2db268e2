//! Where the core thread sleeps when nobody wants anything: one epoll over its doorbell and all bells.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::sys::{EventFd, Signal};
use rustix::event::{Timespec, epoll};

/// What the doorbell is called in epoll's data; bells go by their client slot.
const DOORBELL: u64 = u64::MAX;

/// The core thread's bed.
pub(super) struct Sleeper {
    epoll: OwnedFd,
    doorbell: Arc<EventFd>,
    /// A descriptor of each client's bell, by client slot: it must outlive its place in epoll.
    bells: Vec<Option<OwnedFd>>,
}

impl Sleeper {
    pub(super) fn new(doorbell: Arc<EventFd>, clients: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &doorbell, epoll::EventData::new_u64(DOORBELL), epoll::EventFlags::IN)?;
        let bells = std::iter::repeat_with(|| None).take(clients).collect();
        Ok(Self { epoll, doorbell, bells })
    }

    /// Lets a client's bell wake us.
    pub(super) fn watch(&mut self, client: usize, bell: OwnedFd) -> io::Result<()> {
        epoll::add(&self.epoll, bell.as_fd(), epoll::EventData::new_u64(client as u64), epoll::EventFlags::IN)?;
        self.bells[client] = Some(bell);
        Ok(())
    }

    /// The client's bell wakes us no more.
    pub(super) fn forget(&mut self, client: usize) {
        if let Some(bell) = self.bells[client].take() {
            // The description may live on in another descriptor, so closing alone would not take it out.
            let _ = epoll::delete(&self.epoll, &bell);
        }
    }

    /// Sleeps until somebody rings, at most `timeout`. Hands each client whose bell rang to `rang`.
    pub(super) fn sleep(&mut self, timeout: Duration, mut rang: impl FnMut(usize)) -> io::Result<()> {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut events = Vec::with_capacity(self.bells.len() + 1);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            match event.data.u64() {
                DOORBELL => self.doorbell.drain()?,
                client => rang(client as usize),
            }
        }
        Ok(())
    }
}
