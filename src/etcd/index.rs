//! The index of a keyspace: every key's versions, in key order.
//!
//! Worked example. `foo` is put at 2 and 3, deleted at 4, put at 5:
//!
//! | revision | read at 1 | at 2 | at 3 | at 4 | at 5 |
//! |---|---|---|---|---|---|
//! | `foo` | absent | version 1 | version 2 | absent | version 1, created at 5 |
//!
//! Compacting at a revision keeps, of the versions up to it, only what a read at that revision
//! still sees, and what was changed at that very revision, which a watch may still ask for:
//!
//! | compacted at | versions kept |
//! |---|---|
//! | 2 | 2, 3, 4 (tombstone), 5 |
//! | 3 | 3, 4, 5 |
//! | 4 | 4, 5: the tombstone is an event at 4, and a watch from 4 must see it |
//! | 5 | 5 |
//!
//! Keys live in sorted blocks of at most [`BLOCK_KEYS`]. A block knows how many of its keys are
//! live and how new it is: counting a range adds up whole blocks, and looks only into the first and
//! the last. Blocks are shared with snapshots: taking one costs one reference count, and a writer copies
//! only the blocks that it changes while a snapshot lives. So a huge read holds no lock and stalls
//! no writer.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::key_range::{End, KeyRange};
use super::record::{Revision, SharedRecord};

/// Keys in a block before it is split. Copying a block costs about 10 ns a key.
const BLOCK_KEYS: usize = 256;
/// A block that compaction leaves with fewer keys joins the one before it.
const SPARSE_BLOCK_KEYS: usize = 32;

#[derive(Clone, Default)]
pub struct Index {
    /// Sorted, none empty.
    blocks: Arc<Vec<Arc<Block>>>,
}

#[derive(Clone, Default)]
struct Block {
    /// Sorted by key.
    keys: Vec<KeyVersions>,
    /// Keys whose latest version is not a tombstone.
    live: usize,
    /// Versions that the next compaction may remove.
    superseded: usize,
    /// Greatest revision in the block.
    newest: i64,
}

#[derive(Clone)]
struct KeyVersions {
    key: Bytes,
    /// By revision, ascending; not empty.
    versions: SmallVec<[SharedRecord; 1]>,
}

impl KeyVersions {
    fn latest(&self) -> &SharedRecord {
        &self.versions[self.versions.len() - 1]
    }

    /// The version that a read at `revision` sees.
    fn at(&self, revision: i64) -> Option<&SharedRecord> {
        self.versions
            .iter()
            .rev()
            .find(|version| version.revision.main <= revision)
            .filter(|version| !version.is_tombstone())
    }

    fn superseded(&self) -> usize {
        self.versions.len() - usize::from(!self.latest().is_tombstone())
    }

    /// Removes what compaction at `revision` forgets, oldest first.
    fn compact(&mut self, revision: i64, removed: &mut Vec<SharedRecord>) {
        let upto = self
            .versions
            .iter()
            .take_while(|version| version.revision.main <= revision)
            .count();
        let Some(last) = upto.checked_sub(1) else {
            return;
        };
        let keep_last =
            !self.versions[last].is_tombstone() || self.versions[last].revision.main == revision;
        removed.extend(self.versions.drain(..if keep_last { last } else { upto }));
    }
}

impl Block {
    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.keys
            .binary_search_by(|entry| entry.key.as_ref().cmp(key))
    }

    fn first_key(&self) -> &[u8] {
        self.keys.first().map_or(&[], |entry| &entry.key)
    }

    fn recount(&mut self) {
        let keys = self.keys.iter();
        self.live = keys.clone().filter(|k| !k.latest().is_tombstone()).count();
        self.superseded = keys.clone().map(KeyVersions::superseded).sum();
        self.newest = keys.map(|k| k.latest().revision.main).max().unwrap_or(0);
    }

    /// Where the range starts and ends among the block's keys.
    fn slice(&self, range: &KeyRange) -> &[KeyVersions] {
        let start = self.keys.partition_point(|entry| entry.key < range.start);
        let len = self.keys[start..].partition_point(|entry| !range.is_before(&entry.key));
        &self.keys[start..start + len]
    }
}

/// What [`Index::compact`] did in one step.
pub struct CompactionStep {
    /// Oldest first for each key.
    pub removed: Vec<SharedRecord>,
    /// Where to go on; `None` at the end.
    pub next: Option<Bytes>,
}

impl Index {
    /// The block where `key` is or belongs.
    fn block_of(&self, key: &[u8]) -> usize {
        self.blocks
            .partition_point(|block| block.first_key() <= key)
            .saturating_sub(1)
    }

    fn versions(&self, key: &[u8]) -> Option<&KeyVersions> {
        let block = self.blocks.get(self.block_of(key))?;
        block.find(key).ok().map(|at| &block.keys[at])
    }

    /// The version that a read at `revision` sees.
    pub fn get(&self, key: &[u8], revision: i64) -> Option<&SharedRecord> {
        self.versions(key)?.at(revision)
    }

    /// The version up to `revision`, which may be a tombstone.
    pub fn version_at(&self, key: &[u8], revision: i64) -> Option<&SharedRecord> {
        let versions = self.versions(key)?.versions.iter();
        versions.rev().find(|v| v.revision.main <= revision)
    }

    /// Adds a change, newer than every one before. Returns the live record that it supersedes.
    pub fn insert(&mut self, record: SharedRecord) -> Option<SharedRecord> {
        let index = self.block_of(&record.key);
        let blocks = Arc::make_mut(&mut self.blocks);
        let last_block = index + 1 >= blocks.len();
        let Some(block) = blocks.get_mut(index) else {
            blocks.push(Arc::default());
            return self.insert(record);
        };
        let block = Arc::make_mut(block);
        block.newest = block.newest.max(record.revision.main);
        let found = block.find(&record.key);
        let previous = match found {
            Ok(at) => {
                let entry = &mut block.keys[at];
                let before = entry.superseded();
                let latest = entry.latest();
                let previous = (!latest.is_tombstone()).then(|| Arc::clone(latest));
                block.live -= usize::from(previous.is_some());
                block.live += usize::from(!record.is_tombstone());
                entry.versions.push(record);
                block.superseded += entry.superseded() - before;
                return previous;
            }
            Err(at) => {
                let entry = KeyVersions {
                    key: record.key.clone(),
                    versions: SmallVec::from_iter([record]),
                };
                block.live += usize::from(!entry.latest().is_tombstone());
                block.superseded += entry.superseded();
                block.keys.insert(at, entry);
                at
            }
        };
        if block.keys.len() > BLOCK_KEYS {
            // Keys that arrive in order leave full blocks behind them.
            let in_order = last_block && previous + 1 == block.keys.len();
            let cut = if in_order {
                block.keys.len() - 1
            } else {
                block.keys.len() / 2
            };
            let mut upper = Block {
                keys: block.keys.split_off(cut),
                ..Block::default()
            };
            upper.recount();
            block.recount();
            blocks.insert(index + 1, Arc::new(upper));
        }
        None
    }

    /// Visits what a read of `range` at `revision` sees, in key order.
    pub fn scan(
        &self,
        range: &KeyRange,
        revision: i64,
        mut visit: impl FnMut(&SharedRecord) -> ControlFlow<()>,
    ) {
        if range.end == End::Single {
            if let Some(record) = self.get(&range.start, revision) {
                let _ = visit(record);
            }
            return;
        }
        for block in &self.blocks[self.block_of(&range.start)..] {
            if range.is_before(block.first_key()) {
                return;
            }
            for entry in block.slice(range) {
                if let Some(record) = entry.at(revision)
                    && visit(record).is_break()
                {
                    return;
                }
            }
        }
    }

    /// How many keys a read of `range` at `revision` sees.
    pub fn count(&self, range: &KeyRange, revision: i64) -> usize {
        if range.end == End::Single {
            return usize::from(self.get(&range.start, revision).is_some());
        }
        let first = self.block_of(&range.start);
        let mut count = 0;
        for (at, block) in self.blocks[first..].iter().enumerate() {
            if range.is_before(block.first_key()) {
                break;
            }
            let last_inside = block
                .keys
                .last()
                .is_some_and(|entry| !range.is_before(&entry.key));
            let whole = last_inside && (at > 0 || range.start <= block.keys[0].key);
            count += if whole && block.newest <= revision {
                block.live
            } else {
                let keys = block.slice(range).iter();
                keys.filter(|entry| entry.at(revision).is_some()).count()
            };
        }
        count
    }

    /// Leaves the record's value to the store. Returns the bytes that this frees.
    pub fn drop_value(&mut self, key: &[u8], revision: Revision) -> usize {
        let index = self.block_of(key);
        let found = self.blocks.get(index).and_then(|block| {
            let at = block.find(key).ok()?;
            let versions = &block.keys[at].versions;
            let version = versions.iter().position(|v| v.revision == revision)?;
            Some((at, version, Arc::new(versions[version].without_value())))
        });
        let Some((at, version, bare)) = found else {
            return 0;
        };
        let block = Arc::make_mut(&mut Arc::make_mut(&mut self.blocks)[index]);
        let slot = &mut block.keys[at].versions[version];
        std::mem::replace(slot, bare).cached_bytes()
    }

    /// Forgets what compaction at `revision` forgets, in up to `blocks` blocks from key `from` on.
    pub fn compact(&mut self, revision: i64, from: &[u8], blocks: usize) -> CompactionStep {
        let mut removed = Vec::new();
        let mut index = self.block_of(from);
        let end = index.saturating_add(blocks);
        let mut next = self
            .blocks
            .get(end)
            .map(|b| Bytes::copy_from_slice(b.first_key()));
        let list = Arc::make_mut(&mut self.blocks);
        let mut left = end.min(list.len()).saturating_sub(index);
        while left > 0 {
            left -= 1;
            if list[index].superseded == 0 {
                index += 1;
                continue;
            }
            let block = Arc::make_mut(&mut list[index]);
            for entry in &mut block.keys {
                entry.compact(revision, &mut removed);
            }
            block.keys.retain(|entry| !entry.versions.is_empty());
            let sparse = block.keys.len() < SPARSE_BLOCK_KEYS;
            if block.keys.is_empty() {
                list.remove(index);
                continue;
            }
            block.recount();
            if sparse && index > 0 && list[index - 1].keys.len() < BLOCK_KEYS / 2 {
                let mut keys = std::mem::take(&mut Arc::make_mut(&mut list[index]).keys);
                list.remove(index);
                let before = Arc::make_mut(&mut list[index - 1]);
                before.keys.append(&mut keys);
                before.recount();
                continue;
            }
            index += 1;
        }
        if list.is_empty() {
            next = None;
        }
        CompactionStep { removed, next }
    }

    /// Visits every version, tombstones and superseded ones included, key by key.
    pub fn versions_of_all(&self, visit: impl FnMut(&SharedRecord)) {
        let keys = self.blocks.iter().flat_map(|block| &block.keys);
        keys.flat_map(|entry| &entry.versions).for_each(visit);
    }

    /// Whether a read of everything at `revision` sees anything.
    pub fn any_at(&self, revision: i64) -> bool {
        let mut keys = self.blocks.iter().flat_map(|block| &block.keys);
        keys.any(|entry| entry.at(revision).is_some())
    }

    /// Versions held, tombstones and superseded ones included.
    #[cfg(test)]
    pub fn version_count(&self) -> usize {
        let keys = self.blocks.iter().flat_map(|block| &block.keys);
        keys.map(|entry| entry.versions.len()).sum()
    }

    /// Keys that are live now.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.live).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::etcd::record::Record;

    fn put(index: &mut Index, key: &str, main: i64) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let previous = index.get(&key, main).cloned();
        let revision = Revision { main, sub: 0 };
        let value = Bytes::copy_from_slice(&main.to_be_bytes());
        index.insert(Arc::new(Record::put(
            &key,
            value,
            0,
            revision,
            previous.as_deref(),
        )));
    }

    fn delete(index: &mut Index, key: &str, main: i64) -> bool {
        let Some(previous) = index.get(key.as_bytes(), main).cloned() else {
            return false;
        };
        let revision = Revision { main, sub: 0 };
        index.insert(Arc::new(Record::tombstone(&previous, revision)));
        true
    }

    fn versions(index: &Index, key: &str) -> Vec<i64> {
        index
            .versions(key.as_bytes())
            .map_or_else(Vec::new, |entry| {
                entry.versions.iter().map(|v| v.revision.main).collect()
            })
    }

    fn example() -> Index {
        let mut index = Index::default();
        put(&mut index, "foo", 2);
        put(&mut index, "foo", 3);
        assert!(delete(&mut index, "foo", 4));
        put(&mut index, "foo", 5);
        index
    }

    #[test]
    fn the_worked_example_reads_as_told() {
        let index = example();
        let seen: Vec<_> = (1..=5)
            .map(|at| {
                index
                    .get(b"foo", at)
                    .map(|r| (r.version, r.create_revision))
            })
            .collect();
        assert_eq!(seen, [None, Some((1, 2)), Some((2, 2)), None, Some((1, 5))]);
    }

    #[test]
    fn the_worked_example_compacts_as_told() {
        for (at, kept) in [
            (1, vec![2, 3, 4, 5]),
            (2, vec![2, 3, 4, 5]),
            (3, vec![3, 4, 5]),
            (4, vec![4, 5]),
            (5, vec![5]),
        ] {
            let mut index = example();
            let step = index.compact(at, b"", usize::MAX);
            assert_eq!(versions(&index, "foo"), kept, "compacted at {at}");
            assert_eq!(step.removed.len(), 4 - kept.len());
        }
        let mut index = example();
        assert!(delete(&mut index, "foo", 6));
        index.compact(7, b"", usize::MAX);
        assert_eq!(index.version_count(), 0);
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let mut index = Index::default();
        put(&mut index, "a", 2);
        let snapshot = index.clone();
        put(&mut index, "b", 3);
        assert!(delete(&mut index, "a", 4));
        index.compact(4, b"", usize::MAX);
        assert_eq!(snapshot.len(), 1);
        assert!(snapshot.get(b"a", 9).is_some());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Put(u16),
        Delete(u16),
        Compact(u8),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            8 => (0..700u16).prop_map(Op::Put),
            4 => (0..700u16).prop_map(Op::Delete),
            1 => any::<u8>().prop_map(Op::Compact),
        ];
        prop::collection::vec(op, 1..1500)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Against a map of whole histories, at every revision not compacted.
        #[test]
        fn reads_like_a_map_of_histories(ops in ops(), bounds in (0..700u16, 0..700u16)) {
            let mut index = Index::default();
            let mut states = vec![BTreeMap::<String, i64>::new()];
            let mut compacted = 0;
            let name = |key: u16| format!("{key:04}");
            for op in ops {
                let revision = i64::try_from(states.len()).expect("small");
                let mut state = states[states.len() - 1].clone();
                match op {
                    Op::Put(key) => {
                        put(&mut index, &name(key), revision);
                        state.insert(name(key), revision);
                    }
                    Op::Delete(key) => {
                        let deleted = delete(&mut index, &name(key), revision);
                        prop_assert_eq!(deleted, state.remove(&name(key)).is_some());
                    }
                    Op::Compact(share) => {
                        compacted = compacted.max((revision - 1) * i64::from(share) / 255);
                        let mut from = Bytes::new();
                        while let Some(next) = index.compact(compacted, &from, 2).next {
                            from = next;
                        }
                        continue;
                    }
                }
                states.push(state);
            }
            let (start, end) = (name(bounds.0), name(bounds.1));
            let whole = KeyRange { start: Bytes::new(), end: End::Open };
            let part = KeyRange { start: start.into(), end: End::Before(end.into()) };
            let stride = states.len() / 16 + 1;
            for (at, state) in states.iter().enumerate().rev().step_by(stride) {
                let at = i64::try_from(at).expect("small");
                if at < compacted { break }
                for range in [&whole, &part] {
                    let expected: Vec<_> = state
                        .iter()
                        .filter(|(key, _)| range.contains(key.as_bytes()))
                        .map(|(key, revision)| (key.as_bytes().to_vec(), *revision))
                        .collect();
                    let mut seen = Vec::new();
                    index.scan(range, at, |record| {
                        seen.push((record.key.to_vec(), record.revision.main));
                        ControlFlow::Continue(())
                    });
                    prop_assert_eq!(index.count(range, at), expected.len());
                    prop_assert_eq!(seen, expected);
                }
            }
            prop_assert_eq!(index.len(), states[states.len() - 1].len());
        }
    }
}
