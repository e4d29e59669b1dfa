//! What requests are evaluated against: a keyspace at one moment.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::alarm::Alarms;
use super::auth::AuthState;
use super::error::Error;
use super::index::{CompactionStep, Index};
use super::key_range::{End, KeyRange};
use super::record::{Revision, SharedRecord};

/// No compaction has happened yet. Not 0, because etcd lets a client compact at 0 once.
pub const NEVER_COMPACTED: i64 = -1;
/// Revision of an empty keyspace.
pub const FIRST_REVISION: i64 = 1;

/// A keyspace's durable state. Cloning it is cheap and takes a snapshot.
#[derive(Clone)]
pub struct State {
    pub index: Index,
    pub revision: i64,
    /// Reads before this revision fail.
    pub compacted: i64,
    pub alarms: Alarms,
    pub auth: Arc<AuthState>,
    /// Bytes of the log, keys of the store included.
    pub log_bytes: u64,
}

/// Length of a log entry's key in the store.
const LOG_KEY_BYTES: u64 = 18;

/// What a record takes in the log.
fn log_bytes(record: &SharedRecord) -> u64 {
    LOG_KEY_BYTES + record.stored_len() as u64
}

impl State {
    /// Adds a change, newer than every one before.
    pub fn insert(&mut self, record: SharedRecord) {
        self.log_bytes += log_bytes(&record);
        self.index.insert(record);
    }

    /// Bytes of the values that are in memory.
    pub fn cached_bytes(&self) -> usize {
        let mut bytes = 0;
        self.index
            .versions_of_all(|record| bytes += record.cached_bytes());
        bytes
    }

    /// See [`Index::compact`].
    pub fn compact(&mut self, revision: i64, from: &[u8], blocks: usize) -> CompactionStep {
        let step = self.index.compact(revision, from, blocks);
        let freed: u64 = step.removed.iter().map(log_bytes).sum();
        self.log_bytes = self.log_bytes.saturating_sub(freed);
        step
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            index: Index::default(),
            revision: FIRST_REVISION,
            compacted: NEVER_COMPACTED,
            alarms: Alarms::default(),
            auth: Arc::default(),
            log_bytes: 0,
        }
    }
}

/// Why an evaluation came to no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Refused(Error),
    /// These values are not in memory: fetch them and evaluate again.
    Needs(Vec<Revision>),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Refused(error)
    }
}

/// Records fetched from the store for one evaluation.
pub type Fetched = HashMap<Revision, SharedRecord>;

pub trait View {
    /// The newest revision that a read sees.
    fn revision(&self) -> i64;
    fn compacted(&self) -> i64;
    fn get(&self, key: &[u8], revision: i64) -> Option<SharedRecord>;
    fn scan(
        &self,
        range: &KeyRange,
        revision: i64,
        visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>,
    );
    fn count(&self, range: &KeyRange, revision: i64) -> usize;

    /// The revision that a request's `revision` means; 0 or less is now.
    fn resolve(&self, requested: i64) -> Result<i64, Error> {
        if requested > self.revision() {
            return Err(Error::FutureRevision);
        }
        let revision = if requested <= 0 {
            self.revision()
        } else {
            requested
        };
        if revision < self.compacted() {
            return Err(Error::Compacted);
        }
        Ok(revision)
    }
}

impl View for State {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn compacted(&self) -> i64 {
        self.compacted
    }

    fn get(&self, key: &[u8], revision: i64) -> Option<SharedRecord> {
        self.index.get(key, revision).cloned()
    }

    fn scan(
        &self,
        range: &KeyRange,
        revision: i64,
        visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>,
    ) {
        self.index.scan(range, revision, visit);
    }

    fn count(&self, range: &KeyRange, revision: i64) -> usize {
        self.index.count(range, revision)
    }
}

/// Changes that are evaluated and not yet durable, on top of a [`State`].
///
/// Each key's staged versions by revision, ascending.
#[derive(Default)]
pub struct Overlay {
    versions: BTreeMap<Bytes, Vec<SharedRecord>>,
}

impl Overlay {
    pub fn push(&mut self, record: SharedRecord) {
        self.versions
            .entry(record.key.clone())
            .or_default()
            .push(record);
    }

    /// Takes the key's last change back.
    pub fn pop(&mut self, key: &Bytes) {
        if let Some(versions) = self.versions.get_mut(key) {
            versions.pop();
            if versions.is_empty() {
                self.versions.remove(key);
            }
        }
    }

    fn at(versions: &[SharedRecord], revision: i64) -> Option<&SharedRecord> {
        versions
            .iter()
            .rev()
            .find(|version| version.revision.main <= revision)
    }

    /// The staged version up to `revision`, which may be a tombstone.
    fn get(&self, key: &[u8], revision: i64) -> Option<&SharedRecord> {
        Overlay::at(self.versions.get(key)?, revision)
    }

    fn range<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = &'a Vec<SharedRecord>> + 'a {
        self.versions
            .range::<[u8], _>((Bound::Included(range.start.as_ref()), Bound::Unbounded))
            .take_while(|(key, _)| !range.is_before(key))
            .map(|(_, versions)| versions)
    }

    /// Keys whose latest staged version hangs on `lease`.
    pub fn keys_of_lease(&self, lease: i64) -> impl Iterator<Item = &Bytes> {
        self.versions
            .iter()
            .filter(move |(_, versions)| versions.last().is_some_and(|last| last.lease == lease))
            .map(|(key, _)| key)
    }
}

/// A [`State`] with an [`Overlay`] on it.
pub struct Staged<'a> {
    pub state: &'a State,
    pub overlay: &'a mut Overlay,
    pub revision: i64,
    pub compacted: i64,
}

impl Staged<'_> {
    fn merged(&self, range: &KeyRange, revision: i64) -> Option<BTreeMap<Bytes, SharedRecord>> {
        self.overlay.range(range).next()?;
        let mut merged = BTreeMap::new();
        self.state.index.scan(range, revision, |record| {
            merged.insert(record.key.clone(), Arc::clone(record));
            ControlFlow::Continue(())
        });
        for versions in self.overlay.range(range) {
            match Overlay::at(versions, revision) {
                Some(record) if record.is_tombstone() => {
                    merged.remove(&record.key);
                }
                Some(record) => {
                    merged.insert(record.key.clone(), Arc::clone(record));
                }
                None => {}
            }
        }
        Some(merged)
    }
}

impl View for Staged<'_> {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn compacted(&self) -> i64 {
        self.compacted
    }

    fn get(&self, key: &[u8], revision: i64) -> Option<SharedRecord> {
        match self.overlay.get(key, revision) {
            Some(record) if record.is_tombstone() => None,
            Some(record) => Some(Arc::clone(record)),
            None => self.state.get(key, revision),
        }
    }

    fn scan(
        &self,
        range: &KeyRange,
        revision: i64,
        visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>,
    ) {
        if range.end == End::Single {
            if let Some(record) = self.get(&range.start, revision) {
                let _ = visit(&record);
            }
            return;
        }
        match self.merged(range, revision) {
            None => self.state.scan(range, revision, visit),
            Some(merged) => {
                for record in merged.values() {
                    if visit(record).is_break() {
                        return;
                    }
                }
            }
        }
    }

    fn count(&self, range: &KeyRange, revision: i64) -> usize {
        if range.end == End::Single {
            return usize::from(self.get(&range.start, revision).is_some());
        }
        match self.merged(range, revision) {
            None => self.state.count(range, revision),
            Some(merged) => merged.len(),
        }
    }
}
