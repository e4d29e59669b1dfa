//! Which values are in memory. The index always is; values are while they fit a budget.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use super::record::{Record, Revision, SharedRecord};
use super::view::State;

/// Bytes of a keyspace's values in memory, and how many there may be.
pub struct CachedBytes {
    used: AtomicUsize,
    budget: AtomicUsize,
    /// Records that compaction removed since the last sweep; see [`CachedValues`].
    removed: AtomicUsize,
}

impl CachedBytes {
    pub fn new(budget: usize) -> CachedBytes {
        CachedBytes {
            used: AtomicUsize::new(0),
            budget: AtomicUsize::new(budget),
            removed: AtomicUsize::new(0),
        }
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes note of records that compaction has removed.
    pub fn remove(&self, records: &[SharedRecord]) {
        self.sub(records.iter().map(|record| record.cached_bytes()).sum());
        self.removed.fetch_add(records.len(), Ordering::Relaxed);
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
/// Entries of records that compaction has removed stay until a sweep. A sweep looks at every entry while writers
/// wait, so there is none before half of them are of such records.
#[derive(Default)]
pub struct CachedValues {
    oldest_first: VecDeque<(Bytes, Revision)>,
}

/// Fewer removed records are not worth a sweep.
const SWEEP_LEN: usize = 16_384;

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
        let removed = bytes.removed.load(Ordering::Relaxed);
        if removed >= SWEEP_LEN.max(self.oldest_first.len() / 2) {
            // What is removed from here on may be swept now, and is counted for the next sweep.
            bytes.removed.store(0, Ordering::Relaxed);
            self.sweep(&state.read());
        }
    }

    /// Forgets entries of records that are no longer there.
    fn sweep(&mut self, state: &State) {
        self.oldest_first.retain(|(key, revision)| {
            let found = state.index.version_at(key, revision.main);
            found.is_some_and(|record| record.revision == *revision)
        });
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
    fn what_compaction_removed_is_forgotten_once_it_is_half_of_all() {
        let len = 3 * SWEEP_LEN;
        let (state, mut values, bytes) = filled(i64::try_from(len).expect("small"));
        let mut check = |compacted: usize, expect: usize| {
            let revision = i64::try_from(2 + compacted).expect("small");
            let removed = state
                .write()
                .index
                .compact(revision, b"", usize::MAX)
                .removed;
            bytes.remove(&removed);
            values.trim(&state, &bytes);
            assert_eq!(values.oldest_first.len(), expect, "{compacted}");
        };
        check(0, len);
        check(SWEEP_LEN, len);
        check(2 * SWEEP_LEN, SWEEP_LEN);
        // What is left is live, and nothing was removed since.
        check(2 * SWEEP_LEN, SWEEP_LEN);
    }
}
