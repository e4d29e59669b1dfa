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
///
/// Entries of records that compaction has removed stay until a sweep. A sweep looks at every entry, so
/// the next one waits until there are twice as many as it left: its cost is spread over as many writes.
pub struct CachedValues {
    oldest_first: VecDeque<(Bytes, Revision)>,
    /// Entries at which the next sweep is due.
    sweep_at: usize,
}

/// Fewer entries are never swept.
const SWEEP_LEN: usize = 65_536;

impl Default for CachedValues {
    fn default() -> Self {
        CachedValues {
            oldest_first: VecDeque::new(),
            sweep_at: SWEEP_LEN,
        }
    }
}

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
        if self.oldest_first.len() >= self.sweep_at {
            self.sweep(&state.read());
        }
    }

    /// Forgets entries of records that are no longer there.
    fn sweep(&mut self, state: &State) {
        self.oldest_first.retain(|(key, revision)| {
            let found = state.index.version_at(key, revision.main);
            found.is_some_and(|record| record.revision == *revision)
        });
        self.sweep_at = SWEEP_LEN.max(2 * self.oldest_first.len());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// `count` versions of one key.
    fn filled(count: i64) -> (RwLock<State>, CachedValues, CachedBytes) {
        let bytes = CachedBytes::new(usize::MAX);
        let mut values = CachedValues::default();
        let mut state = State::default();
        let key = Bytes::from_static(b"key");
        for main in 2..2 + count {
            let revision = Revision { main, sub: 0 };
            let record = Record::put(&key, Bytes::from_static(b"v"), 0, revision, None);
            values.push(&record, &bytes);
            state.index.insert(Arc::new(record));
            state.revision = main;
        }
        (RwLock::new(state), values, bytes)
    }

    #[test]
    fn a_sweep_that_finds_nothing_stale_is_not_repeated_at_once() {
        let len = SWEEP_LEN + 1;
        let (state, mut values, bytes) = filled(i64::try_from(len).expect("small"));
        values.trim(&state, &bytes);
        assert_eq!(values.oldest_first.len(), len);
        assert_eq!(values.sweep_at, 2 * len);
    }

    #[test]
    fn a_sweep_forgets_what_compaction_removed() {
        let (state, mut values, _) = filled(10);
        let removed = state.write().index.compact(8, b"", usize::MAX).removed;
        assert_eq!(removed.len(), 6);
        values.sweep(&state.read());
        assert_eq!(values.oldest_first.len(), 4);
    }
}
