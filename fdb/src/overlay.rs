//! A transaction's own writes, as its reads see them (read-your-writes).

use crate::{
    Error,
    mutation::{self, Mutation, MutationType},
    range::{RangeSet, key_after},
};
use bytes::Bytes;
use std::collections::{BTreeMap, btree_map};

/// What the transaction has done to one key.
#[derive(Debug, Clone)]
pub(crate) enum Pending {
    /// The value is known whatever the store holds; `None` is cleared (by compare-and-clear on a known value).
    Known(Option<Bytes>),
    /// Atomic operations over whatever the store holds.
    Operations(Vec<(MutationType, Bytes)>),
    /// Depends on the versionstamp: cannot be read before commit.
    Unreadable,
}

/// What the overlay says about a key.
pub(crate) enum Lookup<'a> {
    /// Nothing: the store's value holds.
    Untouched,
    Known(Option<&'a Bytes>),
    Operations(&'a [(MutationType, Bytes)]),
    Unreadable,
}

/// The overlay is built from the list of mutations, and only when something is read after a write: a transaction
/// that reads first and writes then, as most do, never pays for it.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    keys: BTreeMap<Bytes, Pending>,
    /// Cleared ranges; keys written after the clear are in `keys`.
    cleared: RangeSet,
    /// Where a versionstamped key may come to lie.
    unreadable: RangeSet,
    /// So many of the transaction's mutations are in here.
    applied: usize,
}

impl Overlay {
    pub(crate) fn is_empty(&self) -> bool {
        self.applied == 0
    }

    /// Takes in the mutations that have been added since the last call. `read_version` bounds from below the
    /// stamp that versionstamped keys will get.
    pub(crate) fn catch_up(&mut self, mutations: &[Mutation], read_version: i64) {
        for mutation in mutations.iter().skip(self.applied) {
            self.apply(mutation, read_version);
        }
        self.applied = mutations.len();
    }

    fn apply(&mut self, mutation: &Mutation, read_version: i64) {
        match mutation {
            Mutation::Set { key, value } => {
                self.write(key, |_| Pending::Known(Some(value.clone())));
            }
            Mutation::Clear { key } => {
                let end = key_after(key);
                self.clear_range(key.clone(), end);
            }
            Mutation::ClearRange { begin, end } => self.clear_range(begin.clone(), end.clone()),
            Mutation::Atomic {
                key,
                op: MutationType::SetVersionstampedKey,
                ..
            } => {
                // The operand was checked when it was written; see `Transaction::atomic_op`.
                let lowest = mutation::versionstamp(read_version, 0);
                let begin = mutation::place_versionstamp(key, &lowest);
                let last =
                    mutation::place_versionstamp(key, &[0xff; mutation::VERSIONSTAMP_LENGTH]);
                if let (Ok(begin), Ok(last)) = (begin, last) {
                    let end = key_after(&last);
                    self.take_out(&begin, &end);
                    self.cleared.remove(&begin, &end);
                    self.unreadable.insert(begin, end);
                }
            }
            Mutation::Atomic {
                key,
                op: MutationType::SetVersionstampedValue,
                ..
            } => self.write(key, |_| Pending::Unreadable),
            Mutation::Atomic { key, param, op } => self.write(key, |before| match before {
                Some(Pending::Known(value)) => {
                    Pending::Known(mutation::apply(*op, value.as_ref(), param))
                }
                Some(Pending::Operations(mut operations)) => {
                    operations.push((*op, param.clone()));
                    Pending::Operations(operations)
                }
                Some(Pending::Unreadable) => Pending::Unreadable,
                None => Pending::Operations(vec![(*op, param.clone())]),
            }),
        }
    }

    /// Replaces what is pending for `key`. What is unreadable stays so until it is cleared, as in FoundationDB.
    fn write(&mut self, key: &Bytes, new: impl FnOnce(Option<Pending>) -> Pending) {
        let before = match self.keys.remove(key) {
            Some(Pending::Unreadable) => {
                self.keys.insert(key.clone(), Pending::Unreadable);
                return;
            }
            Some(pending) => Some(pending),
            None if self.unreadable.contains(key) => return,
            None if self.cleared.contains(key) => Some(Pending::Known(None)),
            None => None,
        };
        self.keys.insert(key.clone(), new(before));
    }

    fn clear_range(&mut self, begin: Bytes, end: Bytes) {
        self.take_out(&begin, &end);
        self.unreadable.remove(&begin, &end);
        self.cleared.insert(begin, end);
    }

    fn take_out(&mut self, begin: &Bytes, end: &Bytes) {
        while let Some(key) = self
            .keys
            .range::<Bytes, _>(begin..end)
            .next()
            .map(|(key, _)| key.clone())
        {
            self.keys.remove(&key);
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Lookup<'_> {
        match self.keys.get(key) {
            Some(pending) => pending.lookup(),
            None if self.unreadable.contains(key) => Lookup::Unreadable,
            None if self.cleared.contains(key) => Lookup::Known(None),
            None => Lookup::Untouched,
        }
    }

    /// The parts of a range whose keys the store may still decide.
    pub(crate) fn uncleared(&self, begin: &Bytes, end: &Bytes) -> Vec<(Bytes, Bytes)> {
        self.cleared.gaps(begin, end)
    }

    pub(crate) fn keys_in(
        &self,
        begin: &Bytes,
        end: &Bytes,
    ) -> btree_map::Range<'_, Bytes, Pending> {
        // An inverted range would panic in `BTreeMap::range`.
        self.keys.range::<Bytes, _>(begin.min(end)..end)
    }

    /// # Errors
    /// [`Error::ACCESSED_UNREADABLE`] if something in the range cannot be read before commit.
    pub(crate) fn check_readable(&self, begin: &Bytes, end: &Bytes) -> Result<(), Error> {
        let unreadable = self.unreadable.intersects(begin, end)
            || self
                .keys_in(begin, end)
                .any(|(_, pending)| matches!(pending, Pending::Unreadable));
        if unreadable {
            Err(Error::ACCESSED_UNREADABLE)
        } else {
            Ok(())
        }
    }

    /// The parts of a range for which the store was really asked: not what is cleared or set whatever it holds.
    pub(crate) fn dependent(&self, begin: &Bytes, end: &Bytes) -> Vec<(Bytes, Bytes)> {
        let mut known = self.cleared.clone();
        for (key, pending) in self.keys_in(begin, end) {
            match pending {
                // A versionstamped value, too, will be what it is whatever the store holds.
                Pending::Known(_) | Pending::Unreadable => {
                    known.insert(key.clone(), key_after(key));
                }
                Pending::Operations(_) => {}
            }
        }
        known.gaps(begin, end)
    }
}

impl Pending {
    pub(crate) fn lookup(&self) -> Lookup<'_> {
        match self {
            Pending::Known(value) => Lookup::Known(value.as_ref()),
            Pending::Operations(operations) => Lookup::Operations(operations),
            Pending::Unreadable => Lookup::Unreadable,
        }
    }
}

/// The value that pending operations make of what the store holds.
pub(crate) fn resolve(
    operations: &[(MutationType, Bytes)],
    stored: Option<Bytes>,
) -> Option<Bytes> {
    operations.iter().fold(stored, |value, (op, param)| {
        mutation::apply(*op, value.as_ref(), param)
    })
}
