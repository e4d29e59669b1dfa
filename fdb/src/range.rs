//! Ranges of keys: how a caller asks for one, and the sets of them that transactions and the resolver keep.

use bytes::Bytes;
use std::{collections::BTreeMap, ops::Bound};

/// Names a key relative to others: the `offset`-th key counted from `key`.
///
/// With `or_equal` false and offset 1 it is the first key `>= key`; see the four constructors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySelector {
    /// The reference key; need not exist.
    pub key: Bytes,
    /// Whether an existing `key` lies before the point that `offset` counts from.
    pub or_equal: bool,
    /// Keys to move on: 1 is the first key after the point, 0 the last one before it.
    pub offset: i32,
}

impl KeySelector {
    /// The first key `>= key`.
    #[must_use]
    pub fn first_greater_or_equal(key: impl Into<Bytes>) -> Self {
        KeySelector {
            key: key.into(),
            or_equal: false,
            offset: 1,
        }
    }

    /// The first key `> key`.
    #[must_use]
    pub fn first_greater_than(key: impl Into<Bytes>) -> Self {
        KeySelector {
            key: key.into(),
            or_equal: true,
            offset: 1,
        }
    }

    /// The last key `< key`.
    #[must_use]
    pub fn last_less_than(key: impl Into<Bytes>) -> Self {
        KeySelector {
            key: key.into(),
            or_equal: false,
            offset: 0,
        }
    }

    /// The last key `<= key`.
    #[must_use]
    pub fn last_less_or_equal(key: impl Into<Bytes>) -> Self {
        KeySelector {
            key: key.into(),
            or_equal: true,
            offset: 0,
        }
    }
}

impl From<Bytes> for KeySelector {
    fn from(key: Bytes) -> Self {
        KeySelector::first_greater_or_equal(key)
    }
}

/// A range read: keys from `begin` up to, not including, `end`.
#[derive(Debug, Clone)]
pub struct RangeOption {
    /// First key.
    pub begin: KeySelector,
    /// The key after the last.
    pub end: KeySelector,
    /// At most so many pairs; `None` is no limit. `Some(0)` reads nothing.
    pub limit: Option<usize>,
    /// Greatest key first.
    pub reverse: bool,
    /// A batch ends with the pair with which keys and values reach this many bytes; 0 is no limit.
    pub target_bytes: usize,
    /// A snapshot read: no conflict if what was read changes before commit.
    pub snapshot: bool,
}

impl RangeOption {
    /// `begin` up to, not including, `end`.
    #[must_use]
    pub fn new(begin: impl Into<KeySelector>, end: impl Into<KeySelector>) -> Self {
        RangeOption {
            begin: begin.into(),
            end: end.into(),
            limit: None,
            reverse: false,
            target_bytes: 0,
            snapshot: false,
        }
    }
}

impl From<(Bytes, Bytes)> for RangeOption {
    fn from((begin, end): (Bytes, Bytes)) -> Self {
        RangeOption::new(begin, end)
    }
}

/// One batch of a range read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// Keys and values in the order asked for.
    pub kvs: Vec<(Bytes, Bytes)>,
    /// A limit ended the batch: there may be more behind it.
    pub more: bool,
}

/// The smallest key greater than `key`.
pub(crate) fn key_after(key: &[u8]) -> Bytes {
    let mut after = Vec::with_capacity(key.len() + 1);
    after.extend_from_slice(key);
    after.push(0);
    after.into()
}

/// A set of keys that conflicts are decided on. One key is the common case and has its own form, which saves
/// allocating the range's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keys {
    One(Bytes),
    Range(Bytes, Bytes),
}

impl Keys {
    /// What the set counts in a transaction's size: a single key is the range `key .. key\0`.
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Keys::One(key) => 2 * key.len() + 1,
            Keys::Range(begin, end) => begin.len() + end.len(),
        }
    }
}

/// A set of keys made of ranges, kept disjoint and never touching: `begin -> end`, end excluded.
#[derive(Debug, Clone, Default)]
pub(crate) struct RangeSet(BTreeMap<Bytes, Bytes>);

impl RangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_ranges(self) -> impl Iterator<Item = (Bytes, Bytes)> {
        self.0.into_iter()
    }

    /// The range that holds `key`.
    fn around(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.0
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .filter(|(_, end)| key < end.as_ref())
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        !self.0.is_empty() && self.around(key).is_some()
    }

    pub(crate) fn intersects(&self, begin: &[u8], end: &[u8]) -> bool {
        !self.0.is_empty()
            && begin < end
            && self
                .0
                .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(end)))
                .next_back()
                .is_some_and(|(_, last)| begin < last.as_ref())
    }

    pub(crate) fn insert(&mut self, mut begin: Bytes, mut end: Bytes) {
        if begin >= end {
            return;
        }
        // Every range that overlaps or touches begin..=end melts into the new one.
        while let Some((b, e)) = self
            .0
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(end.as_ref())))
            .next_back()
            .filter(|(_, e)| begin <= **e)
            .map(|(b, e)| (b.clone(), e.clone()))
        {
            self.0.remove(&b);
            begin = begin.min(b);
            end = end.max(e);
        }
        self.0.insert(begin, end);
    }

    pub(crate) fn remove(&mut self, begin: &Bytes, end: &Bytes) {
        if begin >= end {
            return;
        }
        while let Some((b, e)) = self
            .0
            .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(end.as_ref())))
            .next_back()
            .filter(|(_, e)| begin < *e)
            .map(|(b, e)| (b.clone(), e.clone()))
        {
            self.0.remove(&b);
            if *end < e {
                self.0.insert(end.clone(), e);
            }
            if b < *begin {
                self.0.insert(b, begin.clone());
            }
        }
    }

    /// The parts of `begin..end` that are in no range of the set, in order.
    pub(crate) fn gaps(&self, begin: &Bytes, end: &Bytes) -> Vec<(Bytes, Bytes)> {
        let mut gaps = Vec::new();
        let mut from = match self.around(begin) {
            Some((_, e)) => e.clone(),
            None => begin.clone(),
        };
        if from < *end {
            let inside = (
                Bound::Included(from.as_ref()),
                Bound::Excluded(end.as_ref()),
            );
            for (b, e) in self.0.range::<[u8], _>(inside) {
                if from < *b {
                    gaps.push((from, b.clone()));
                }
                from = e.clone();
            }
        }
        if from < *end {
            gaps.push((from, end.clone()));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn key(n: u8) -> Bytes {
        Bytes::copy_from_slice(&[n])
    }

    proptest! {
        /// Against a set of single keys 0..32.
        #[test]
        fn a_range_set_is_a_set(operations in proptest::collection::vec((any::<bool>(), 0u8..32, 0u8..32), 0..40)) {
            let mut ranges = RangeSet::default();
            let mut model = BTreeSet::new();
            for (insert, begin, end) in operations {
                if insert {
                    ranges.insert(key(begin), key(end));
                    model.extend(begin..end);
                } else {
                    ranges.remove(&key(begin), &key(end));
                    model.retain(|n| !(begin..end).contains(n));
                }
                for n in 0..32 {
                    prop_assert_eq!(ranges.contains(&key(n)), model.contains(&n));
                    for m in 0..32 {
                        let expect = n < m && model.range(n..m).next().is_some();
                        prop_assert_eq!(ranges.intersects(&key(n), &key(m)), expect);
                    }
                }
                let gaps: BTreeSet<u8> =
                    ranges.gaps(&key(3), &key(29)).iter().flat_map(|(b, e)| b[0]..e[0]).collect();
                let expect: BTreeSet<u8> = (3..29).filter(|n| !model.contains(n)).collect();
                prop_assert_eq!(gaps, expect);
                let listed: Vec<_> = ranges.0.iter().collect();
                prop_assert!(listed.windows(2).all(|pair| pair[0].1 < pair[1].0), "touching: {:?}", listed);
            }
        }
    }
}
