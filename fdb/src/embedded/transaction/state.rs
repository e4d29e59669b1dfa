//! What one attempt of a transaction has read and written so far.

use crate::{
    Error,
    embedded::{CommitRequestParts, View},
    limits::MAX_KEY,
    mutation::{Mutation, MutationType, VERSIONSTAMP_LENGTH},
    overlay::{self, Lookup, Overlay},
    range::{KeySelector, Keys, RangeOption, RangeResult, RangeSet, key_after},
    read,
    watch::Unarmed,
};
use bytes::Bytes;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) struct State {
    /// The view that is read, and when it was taken. Set by the first read.
    pub(super) view: Option<(Arc<View>, Duration)>,
    /// The read version that the caller has set, and when.
    pub(super) pinned: Option<(i64, Duration)>,
    pub(super) mutations: Vec<Mutation>,
    pub(super) overlay: Overlay,
    /// What must be unchanged at commit.
    pub(super) read_keys: HashSet<Bytes>,
    pub(super) read_ranges: RangeSet,
    /// What counts as written for others.
    pub(super) writes: Vec<Keys>,
    /// Bytes of mutations and write conflicts.
    pub(super) written_bytes: usize,
    /// Bytes of read conflicts.
    pub(super) read_bytes: usize,
    pub(super) next_write_conflicts: bool,
    /// See [`TransactionOption::CommitMayBlock`](crate::TransactionOption::CommitMayBlock).
    pub(super) commit_may_block: bool,
    /// The first illegal write, or why the commit failed: answers everything that follows.
    pub(super) error: Option<Error>,
    /// A read that failed fails the commit, as in FoundationDB; not what comes before.
    pub(super) failed_read: Option<Error>,
    pub(super) watches: Vec<Unarmed>,
    pub(super) versionstamps: Vec<oneshot::Sender<Result<[u8; VERSIONSTAMP_LENGTH], Error>>>,
    /// These survive `on_error`.
    pub(super) patience: Patience,
}

/// How long and how often the caller wants to try.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    pub(super) created: Duration,
    pub(super) timeout: Option<Duration>,
    pub(super) retry_limit: Option<u64>,
    pub(super) retries: u64,
    pub(super) backoff: Duration,
    pub(super) max_backoff: Duration,
    pub(super) size_limit: usize,
}

impl State {
    pub(super) fn new(patience: Patience) -> Self {
        State {
            view: None,
            pinned: None,
            mutations: Vec::new(),
            overlay: Overlay::default(),
            read_keys: HashSet::new(),
            read_ranges: RangeSet::default(),
            writes: Vec::new(),
            written_bytes: 0,
            read_bytes: 0,
            next_write_conflicts: true,
            commit_may_block: false,
            error: None,
            failed_read: None,
            watches: Vec::new(),
            versionstamps: Vec::new(),
            patience,
        }
    }

    /// Records a write that passed its checks, or remembers that it did not.
    pub(super) fn write(&mut self, mutation: Result<Mutation, Error>) {
        let conflicts = std::mem::replace(&mut self.next_write_conflicts, true);
        let mutation = match mutation {
            Ok(mutation) => mutation,
            Err(error) => {
                self.error.get_or_insert(error);
                return;
            }
        };
        let (size_bytes, written) = match &mutation {
            Mutation::Set { key, value } => (key.len() + value.len(), Some(Keys::One(key.clone()))),
            Mutation::Clear { key } => (2 * key.len() + 1, Some(Keys::One(key.clone()))),
            Mutation::ClearRange { begin, end } => (
                begin.len() + end.len(),
                Some(Keys::Range(begin.clone(), end.clone())),
            ),
            Mutation::Atomic { key, param, op } => {
                // The committer adds the real key of a versionstamped one.
                let stamped = *op == MutationType::SetVersionstampedKey;
                (
                    key.len() + param.len(),
                    (!stamped).then(|| Keys::One(key.clone())),
                )
            }
        };
        self.written_bytes += size_bytes;
        self.mutations.push(mutation);
        if let Some(written) = written.filter(|_| conflicts) {
            self.written_bytes += written.size_bytes();
            self.writes.push(written);
        }
    }

    pub(super) fn read_key(&mut self, key: &[u8]) {
        if !self.read_keys.contains(key) {
            self.read_bytes += 2 * key.len() + 1;
            self.read_keys.insert(Bytes::copy_from_slice(key));
        }
    }

    pub(super) fn read_range(&mut self, begin: Bytes, end: Bytes) {
        self.read_bytes += begin.len() + end.len();
        self.read_ranges.insert(begin, end);
    }

    /// The range was read: whatever of it the store decided must still hold at commit.
    pub(super) fn depend_on(&mut self, begin: &Bytes, end: &Bytes) {
        if self.overlay.is_empty() {
            self.read_range(begin.clone(), end.clone());
        } else {
            for (begin, end) in self.overlay.dependent(begin, end) {
                self.read_range(begin, end);
            }
        }
    }

    pub(super) fn get(
        &mut self,
        view: &View,
        key: &[u8],
        snapshot: bool,
    ) -> Result<Option<Bytes>, Error> {
        if self.mutations.is_empty() {
            if !snapshot {
                self.read_key(key);
            }
            return view.get(key);
        }
        self.overlay.catch_up(&self.mutations, view.version);
        let value = match self.overlay.get(key) {
            Lookup::Untouched => view.get(key)?,
            Lookup::Known(value) => return Ok(value.cloned()),
            Lookup::Operations(operations) => overlay::resolve(operations, view.get(key)?),
            Lookup::Unreadable => return Err(Error::ACCESSED_UNREADABLE),
        };
        if !snapshot {
            self.read_key(key);
        }
        Ok(value)
    }

    /// The key that a selector names, `""` and `"\xff"` standing for what lies outside.
    pub(super) fn get_key(
        &mut self,
        view: &View,
        selector: &KeySelector,
        snapshot: bool,
    ) -> Result<Bytes, Error> {
        if selector.key.as_ref() > MAX_KEY {
            return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
        }
        self.overlay.catch_up(&self.mutations, view.version);
        let first = Bytes::new();
        let last = Bytes::from_static(MAX_KEY);
        let point = if selector.or_equal {
            key_after(&selector.key).min(last.clone())
        } else {
            selector.key.clone()
        };
        let steps = i64::from(selector.offset);
        let forward = steps >= 1;
        let steps = usize::try_from(if forward { steps } else { 1 - steps }).unwrap_or(usize::MAX);
        let (begin, end) = if forward {
            (&point, &last)
        } else {
            (&first, &point)
        };
        let found = read::range(view, &self.overlay, begin, end, !forward, steps, usize::MAX)?;
        let key = match found.kvs.into_iter().nth(steps - 1) {
            Some((key, _)) => key,
            None if forward => last,
            None => first,
        };
        if !snapshot {
            if forward {
                self.depend_on(&point, &key_after(&key).min(Bytes::from_static(MAX_KEY)));
            } else {
                self.depend_on(&key, &point);
            }
        }
        Ok(key)
    }

    pub(super) fn get_range(
        &mut self,
        view: &View,
        option: &RangeOption,
    ) -> Result<RangeResult, Error> {
        let mut bound = |selector: &KeySelector| {
            let plain = !selector.or_equal && selector.offset == 1;
            if plain && selector.key.as_ref() <= MAX_KEY {
                Ok(selector.key.clone())
            } else {
                self.get_key(view, selector, option.snapshot)
            }
        };
        let begin = bound(&option.begin)?;
        let end = bound(&option.end)?;
        let limit = option.limit.unwrap_or(usize::MAX);
        if begin >= end || limit == 0 {
            return Ok(RangeResult::default());
        }
        let target_bytes = if option.target_bytes == 0 {
            usize::MAX
        } else {
            option.target_bytes
        };
        self.overlay.catch_up(&self.mutations, view.version);
        let result = read::range(
            view,
            &self.overlay,
            &begin,
            &end,
            option.reverse,
            limit,
            target_bytes,
        )?;
        if !option.snapshot {
            match result.kvs.last() {
                Some((last, _)) if result.more && option.reverse => {
                    self.depend_on(&last.clone(), &end);
                }
                Some((last, _)) if result.more => self.depend_on(&begin, &key_after(last)),
                _ => self.depend_on(&begin, &end),
            }
        }
        Ok(result)
    }

    /// Takes out what the committer needs.
    pub(super) fn take_commit(&mut self) -> CommitRequestParts {
        let read = (!self.read_keys.is_empty() || !self.read_ranges.is_empty())
            .then(|| {
                let viewed = self.view.as_ref();
                self.pinned
                    .or_else(|| viewed.map(|(view, taken)| (view.version, *taken)))
            })
            .flatten();
        let keys = std::mem::take(&mut self.read_keys)
            .into_iter()
            .map(Keys::One);
        let ranges = std::mem::take(&mut self.read_ranges).into_ranges();
        CommitRequestParts {
            read,
            reads: keys
                .chain(ranges.map(|(begin, end)| Keys::Range(begin, end)))
                .collect(),
            writes: std::mem::take(&mut self.writes),
            mutations: std::mem::take(&mut self.mutations),
            size_bytes: self.written_bytes + self.read_bytes,
        }
    }
}
