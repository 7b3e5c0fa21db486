//! A queue bounded in items and in bytes, used for both directions.
//!
//! Invariant: an ordinary push never takes the queue beyond either bound. What was accepted once and comes back
//! ([`Queue::put_back`]), and the few events that must not be lost ([`Queue::push_always`]), may: their number is
//! bounded by whoever calls.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Bytes an item counts for.
pub(crate) trait Weigh {
    fn weight(&self) -> usize;
}

/// Why a push was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    most_items: usize,
    most_bytes: usize,
    contents: Mutex<Contents<T>>,
    filled: Notify,
    drained: Notify,
}

#[derive(Debug)]
struct Contents<T> {
    items: VecDeque<T>,
    bytes: usize,
    closed: bool,
}

impl<T: Weigh> Queue<T> {
    pub(crate) fn new(most_items: usize, most_bytes: usize) -> Self {
        let contents = Contents { items: VecDeque::new(), bytes: 0, closed: false };
        Self {
            most_items,
            most_bytes,
            contents: Mutex::new(contents),
            filled: Notify::new(),
            drained: Notify::new(),
        }
    }

    /// Appends, or gives the item back with the reason.
    pub(crate) fn try_push(&self, item: T) -> Result<(), (Refused, T)> {
        let mut contents = self.lock();
        if contents.closed {
            return Err((Refused::Closed, item));
        }
        if !self.has_room_for(&contents, item.weight()) {
            return Err((Refused::Full, item));
        }
        contents.append(item);
        drop(contents);
        self.filled.notify_one();
        Ok(())
    }

    /// Appends whatever the bounds say, unless the queue is closed.
    pub(crate) fn push_always(&self, item: T) {
        let mut contents = self.lock();
        if contents.closed {
            return;
        }
        contents.append(item);
        drop(contents);
        self.filled.notify_one();
    }

    /// Puts items, in their order, before all others; also into a closed queue, for they were accepted.
    pub(crate) fn put_back(&self, items: Vec<T>) {
        let mut contents = self.lock();
        for item in items.into_iter().rev() {
            contents.bytes += item.weight();
            contents.items.push_front(item);
        }
        drop(contents);
        self.filled.notify_one();
    }

    pub(crate) fn try_pop(&self) -> Option<T> {
        self.try_pop_if(|_| true)
    }

    /// Takes the first item if it is such a one.
    pub(crate) fn try_pop_if(&self, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut contents = self.lock();
        if !contents.items.front().is_some_and(wanted) {
            return None;
        }
        let item = contents.items.pop_front()?;
        contents.bytes -= item.weight();
        drop(contents);
        self.drained.notify_one();
        Some(item)
    }

    /// Removes all items but those to keep.
    pub(crate) fn retain(&self, keep: impl FnMut(&T) -> bool) {
        let mut contents = self.lock();
        contents.items.retain(keep);
        contents.bytes = contents.items.iter().map(Weigh::weight).sum();
        drop(contents);
        self.drained.notify_one();
    }

    /// Waits for an item; `None` once the queue is closed and empty. Cancel safe.
    pub(crate) async fn pop(&self) -> Option<T> {
        loop {
            if let Some(item) = self.try_pop() {
                return Some(item);
            }
            if self.lock().closed {
                return None;
            }
            self.filled.notified().await;
        }
    }

    /// Waits until there is something to pop. Cancel safe; for a single consumer.
    pub(crate) async fn filled(&self) {
        while self.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Waits until an item of this weight fits or the queue is closed. Cancel safe; for a single producer.
    pub(crate) async fn room_for(&self, weight: usize) {
        loop {
            {
                let contents = self.lock();
                if contents.closed || self.has_room_for(&contents, weight) {
                    return;
                }
            }
            self.drained.notified().await;
        }
    }

    /// No more pushes. Items in the queue can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
        self.drained.notify_one();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One item may always enter an empty queue, whatever its weight: it could never be sent otherwise.
    fn has_room_for(&self, contents: &Contents<T>, weight: usize) -> bool {
        contents.items.is_empty()
            || (contents.items.len() < self.most_items && contents.bytes + weight <= self.most_bytes)
    }

    /// A panic elsewhere cannot leave the queue half changed: no call out happens under the lock.
    fn lock(&self) -> MutexGuard<'_, Contents<T>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Weigh> Contents<T> {
    fn append(&mut self, item: T) {
        self.bytes += item.weight();
        self.items.push_back(item);
    }
}
