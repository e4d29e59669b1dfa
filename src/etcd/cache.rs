//! Which values are in memory. The index always is; values are while they fit a budget.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use super::record::{Record, Revision};
use super::view::State;

/// Bytes of a keyspace's values in memory, and how many there may be.
pub struct CachedBytes {
    used: AtomicUsize,
    budget: AtomicUsize,
}

impl CachedBytes {
    pub fn new(budget: usize) -> CachedBytes {
        CachedBytes {
            used: AtomicUsize::new(0),
            budget: AtomicUsize::new(budget),
        }
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes effect with the next value.
    pub fn set_budget(&self, bytes: usize) {
        self.budget.store(bytes, Ordering::Relaxed);
    }

    fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.budget.load(Ordering::Relaxed)
    }
}

/// The cached values in the order they were written. When the budget is used up the oldest go.
#[derive(Default)]
pub struct CachedValues {
    oldest_first: VecDeque<(Bytes, Revision)>,
}

/// Entries of records that compaction has removed stay, until there are so many times more entries
/// than live keys, and this many besides.
const STALE_FACTOR: usize = 4;
const STALE_LEN: usize = 65_536;

impl CachedValues {
    pub fn push(&mut self, record: &Record, bytes: &CachedBytes) {
        bytes.add(record.cached_bytes());
        self.oldest_first
            .push_back((record.key.clone(), record.revision));
    }

    /// Leaves the oldest values to the store while there are too many.
    pub fn trim(&mut self, state: &RwLock<State>, bytes: &CachedBytes) {
        while bytes.is_exceeded() {
            let Some((key, revision)) = self.oldest_first.pop_front() else {
                return;
            };
            bytes.sub(state.write().index.drop_value(&key, revision));
        }
        if self.oldest_first.len() > STALE_LEN {
            let state = state.read();
            if self.oldest_first.len() > STALE_FACTOR * state.index.len() + STALE_LEN {
                self.oldest_first.retain(|(key, revision)| {
                    let found = state.index.version_at(key, revision.main);
                    found.is_some_and(|record| record.revision == *revision)
                });
            }
        }
    }
}
