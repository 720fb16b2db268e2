//! Messages that ride with a transfer and are delivered when all of it has landed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest message.
pub const NOTIFICATION_BYTES_MAX: usize = 4096;

/// A bounded queue of messages. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct NotificationQueue {
    /// Guards the messages and the count of reservations; no other lock is taken under it.
    state: Arc<Mutex<State>>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Vec<u8>>,
    reserved: usize,
}

impl NotificationQueue {
    /// A queue for so many messages, those of transfers under way included.
    pub fn new(capacity: usize) -> Self {
        Self { state: Arc::default(), capacity }
    }

    /// The oldest message.
    pub fn pop(&self) -> Option<Vec<u8>> {
        self.lock().messages.pop_front()
    }

    /// Room for one message, taken before the transfer starts, so that its delivery cannot fail.
    pub(super) fn reserve(&self, message: Vec<u8>) -> Option<Ticket> {
        let mut state = self.lock();
        if message.len() > NOTIFICATION_BYTES_MAX || state.messages.len() + state.reserved >= self.capacity {
            return None;
        }
        state.reserved += 1;
        drop(state);
        Some(Ticket { queue: self.clone(), message: Some(message) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Both fields change together without a panic between, so a poisoned lock guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for a message; given back when dropped undelivered.
#[derive(Debug)]
pub(super) struct Ticket {
    queue: NotificationQueue,
    message: Option<Vec<u8>>,
}

impl Ticket {
    pub(super) fn deliver(mut self) {
        if let Some(message) = self.message.take() {
            let mut state = self.queue.lock();
            state.reserved -= 1;
            state.messages.push_back(message);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.message.is_some() {
            self.queue.lock().reserved -= 1;
        }
    }
}
