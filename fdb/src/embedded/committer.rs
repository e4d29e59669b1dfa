//! The one thread that commits, and who may do its work.
//!
//! It takes what is queued, decides in order which transactions hold (see [`super::resolver`]), applies their
//! mutations to the state that the earlier ones left, writes all of it as one batch with one fsync, publishes the
//! new version and only then answers. While it waits for the disk the next batch queues up: that is the whole of
//! group commit, and it needs no timer.
//!
//! Sketch of a batch of 64 transactions with three keys each (60 + 300 bytes): 70 KB in the journal, one `write`
//! per 8 KB, one fsync. CPU: about 10 us per transaction, most of it fjall's journal and memtable. Anything from
//! 0.1 ms (NVMe) to 5 ms (network disk) of fsync is shared by 64.
//!
//! A commit that nobody else's is under way with may be done by the caller, on the caller's thread (see
//! [`Embedded::commit`](super::Embedded::commit)): waking this thread and being woken by it takes as long as the
//! fsync of a fast disk. The committer is behind a lock for that; its thread waits for it, a caller never does.
//!
//! # When the disk fails
//!
//! After a failed write or fsync nobody knows what is on disk: Linux marks dirty pages clean after a failed fsync,
//! so a second fsync that succeeds proves nothing ("fsyncgate"; Rebello et al., USENIX ATC 2020). So nothing is
//! tried again. The transactions of that batch get 1021, because the batch may be found on disk at the next start;
//! nothing can be read or committed from then on (1510), because what would be read might not be what the next
//! start finds. Opening the store again decides by what recovery reads. One doubt remains that only the operator
//! can remove: until the machine restarts, recovery may read from the page cache what the disk never got.

use super::{
    CommitRequestParts, Shared, View, WriteHook, WriteStage, resolver::Resolver, storage::Changes,
    too_old,
};
use crate::{
    Error,
    embedded::{resolver::BatchWrites, storage::Storage},
    faults::CommitFault,
    limits::{TRANSACTION_LIFE, VERSIONS_PER_SECOND},
    mutation::{self, Mutation, MutationType},
    range::Keys,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{io, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Transactions of one batch. Bounds the delay of the first one, and fits the versionstamp's two bytes of order.
const BATCH_TRANSACTIONS: usize = 1_024;
/// A batch takes no further transaction once it has written this much.
const BATCH_BYTES: usize = 16 << 20;
/// Writes that the resolver remembers at most, about 100 bytes each.
const RESOLVER_ENTRIES: usize = 2_000_000;
/// Versions skipped at each start, so that none that a crash swallowed is ever given out again.
const RECOVERY_VERSIONS: i64 = VERSIONS_PER_SECOND;

pub(crate) struct CommitRequest {
    pub(super) parts: CommitRequestParts,
    pub(super) reply: oneshot::Sender<Result<(i64, u16), Error>>,
    /// The request's share of the bytes that may be queued; given back when it is answered. None if it never was.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// An answer that waits for the batch to be durable.
struct Answer {
    reply: oneshot::Sender<Result<(i64, u16), Error>>,
    result: Result<(i64, u16), Error>,
    _permit: Option<OwnedSemaphorePermit>,
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    storage: Arc<Storage>,
    write_hook: Option<WriteHook>,
    resolver: Resolver,
    /// The newest version, and when it was given out.
    version: i64,
    advanced_at: Duration,
    /// The newest version's view: what atomic operations and range clears start from.
    view: Arc<View>,
    /// The disk has failed.
    failed: bool,
    /// How long the last batch took to be written.
    last_write: Duration,
}

/// A batch while it is put together.
struct Batch {
    version: i64,
    order: u16,
    changes: Changes,
    writes: BatchWrites,
    bytes: usize,
}

impl Committer {
    /// Begins a new epoch after the last one's newest version: writes and publishes a first, empty batch. So a
    /// disk that cannot be written is noticed when the store is opened.
    pub(super) fn recover(
        shared: Arc<Shared>,
        storage: Arc<Storage>,
        last_version: i64,
        write_hook: Option<WriteHook>,
    ) -> io::Result<Self> {
        let version = last_version.saturating_add(RECOVERY_VERSIONS);
        storage
            .write(version, &Changes::new())
            .map_err(|error| io::Error::other(error.to_string()))?;
        let view = Arc::new(View {
            version,
            snapshot: storage.snapshot(),
            storage: storage.clone(),
        });
        *shared.published.write() = Ok(view.clone());
        Ok(Committer {
            resolver: Resolver::new(version, TRANSACTION_LIFE, RESOLVER_ENTRIES),
            advanced_at: shared.time.now(),
            shared,
            storage,
            write_hook,
            version,
            view,
            failed: false,
            last_write: Duration::ZERO,
        })
    }

    /// How long the disk took for the last batch.
    pub(super) fn last_write(&self) -> Duration {
        self.last_write
    }

    /// Commits batches until `requests` are used up. If the disk fails, or has failed, refuses the rest.
    pub(super) fn commit_all(&mut self, requests: &mut impl Iterator<Item = CommitRequest>) {
        let _end = End(self.shared.clone());
        let mut requests = requests.peekable();
        while !self.failed && requests.peek().is_some() {
            if let Err(error) = self.commit(&mut requests) {
                self.fail(&error);
            }
        }
        for request in requests {
            let _ = request.reply.send(Err(Error::IO_ERROR));
        }
    }

    /// Commits one batch: as many of `requests` as fit.
    fn commit(&mut self, requests: &mut impl Iterator<Item = CommitRequest>) -> Result<(), String> {
        let now = self.shared.time.now();
        let mut batch = Batch {
            version: self.next_version(now),
            order: 0,
            changes: Changes::new(),
            writes: BatchWrites::default(),
            bytes: 0,
        };
        let mut answers = Vec::with_capacity(64);
        let mut broken = None;
        while batch.bytes < BATCH_BYTES {
            let Some(CommitRequest {
                parts,
                reply,
                permit,
            }) = requests.next()
            else {
                break;
            };
            let fault = self.decide(&parts, &batch, now);
            let result = match fault {
                CommitFault::Refuse(error) => Err(error),
                CommitFault::RefuseUnknown => Err(Error::COMMIT_UNKNOWN_RESULT),
                CommitFault::None | CommitFault::CommitUnknown => {
                    match self.apply(parts, &mut batch) {
                        Ok(_) if fault == CommitFault::CommitUnknown => {
                            Err(Error::COMMIT_UNKNOWN_RESULT)
                        }
                        Ok(committed) => Ok(committed),
                        // The batch holds a part of the transaction: it must not be written.
                        Err(error) => {
                            broken = Some(error);
                            Err(Error::IO_ERROR)
                        }
                    }
                }
            };
            answers.push(Answer {
                reply,
                result,
                _permit: permit,
            });
            if broken.is_some() {
                break;
            }
        }
        let written = match broken {
            Some(error) => Err(format!("cannot read what a commit builds on: {error}")),
            None if batch.order == 0 => Ok(false),
            None => self.write(&batch).map(|()| true),
        };
        match written {
            Ok(true) => {
                self.publish(&batch, now);
                self.resolver.add(batch.version, now, batch.writes);
                answer(answers);
                self.shared.watches.notify_all(&batch.changes);
            }
            Ok(false) => answer(answers),
            Err(error) => {
                // Refusals stand; nobody can say whether the others are on disk.
                for answer in &mut answers {
                    if answer.result.is_ok() {
                        answer.result = Err(Error::COMMIT_UNKNOWN_RESULT);
                    }
                }
                *self.shared.published.write() = Err(Error::IO_ERROR);
                answer(answers);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Versions advance by about a million a second, as FoundationDB's do, and at least by one a batch.
    fn next_version(&self, now: Duration) -> i64 {
        let elapsed = now.saturating_sub(self.advanced_at);
        let advance = i64::try_from(elapsed.as_micros())
            .unwrap_or(i64::MAX)
            .max(1);
        self.version.saturating_add(advance)
    }

    /// Does what the transaction read still hold?
    fn decide(&self, parts: &CommitRequestParts, batch: &Batch, now: Duration) -> CommitFault {
        if let Some((version, taken)) = parts.read {
            if too_old(taken, now) || version < self.resolver.floor() {
                return CommitFault::Refuse(Error::TRANSACTION_TOO_OLD);
            }
            if parts.reads.iter().any(|read| batch.writes.intersects(read))
                || self.resolver.conflicts(version, parts.reads.iter())
            {
                return CommitFault::Refuse(Error::NOT_COMMITTED);
            }
        }
        match &self.shared.faults {
            Some(faults) => faults.commit_fault(parts.read.is_some()),
            None => CommitFault::None,
        }
    }

    /// Adds a transaction to the batch.
    fn apply(&self, parts: CommitRequestParts, batch: &mut Batch) -> Result<(i64, u16), Error> {
        let order = batch.order;
        let stamp = mutation::versionstamp(batch.version, order);
        for mutation in parts.mutations {
            self.apply_mutation(mutation, &stamp, batch)?;
        }
        for keys in parts.writes {
            batch.writes.add(keys);
        }
        batch.bytes += parts.size_bytes;
        batch.order += 1;
        Ok((batch.version, order))
    }

    fn apply_mutation(
        &self,
        mutation: Mutation,
        stamp: &[u8; mutation::VERSIONSTAMP_LENGTH],
        batch: &mut Batch,
    ) -> Result<(), Error> {
        match mutation {
            Mutation::Set { key, value } => {
                batch.changes.insert(key, Some(value));
            }
            Mutation::Clear { key } => {
                batch.changes.insert(key, None);
            }
            Mutation::ClearRange { begin, end } => {
                self.clear_range(&begin, &end, &mut batch.changes)?;
            }
            Mutation::Atomic { key, param, op } => match op {
                MutationType::SetVersionstampedKey => {
                    let key = mutation::place_versionstamp(&key, stamp)?;
                    batch.writes.add(Keys::One(key.clone()));
                    batch.changes.insert(key, Some(param));
                }
                MutationType::SetVersionstampedValue => {
                    let value = mutation::place_versionstamp(&param, stamp)?;
                    batch.changes.insert(key, Some(value));
                }
                op => {
                    let value = match batch.changes.get(&key) {
                        Some(value) => mutation::apply(op, value.as_ref(), &param),
                        None => mutation::apply(op, self.view.get(&key)?.as_ref(), &param),
                    };
                    batch.changes.insert(key, value);
                }
            },
        }
        Ok(())
    }

    /// fjall has no transactional range deletion, so every key that exists in the range is deleted by itself:
    /// about a microsecond and 100 bytes of memory each.
    fn clear_range(&self, begin: &Bytes, end: &Bytes, changes: &mut Changes) -> Result<(), Error> {
        if begin >= end {
            return Ok(());
        }
        for (_, value) in changes.range_mut::<Bytes, _>(begin..end) {
            *value = None;
        }
        for pair in self.view.range(begin, end) {
            changes.insert(pair?.0, None);
        }
        Ok(())
    }

    fn write(&mut self, batch: &Batch) -> Result<(), String> {
        let write_hook = self.write_hook.clone();
        let hook = |stage| match &write_hook {
            Some(hook) => hook(stage).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        let begun = self.shared.time.now();
        hook(WriteStage::Before)?;
        self.storage
            .write(batch.version, &batch.changes)
            .map_err(|error| error.to_string())?;
        hook(WriteStage::After)?;
        self.last_write = self.shared.time.now().saturating_sub(begun);
        Ok(())
    }

    fn publish(&mut self, batch: &Batch, now: Duration) {
        self.version = batch.version;
        self.advanced_at = now;
        self.view = Arc::new(View {
            version: batch.version,
            snapshot: self.storage.snapshot(),
            storage: self.storage.clone(),
        });
        *self.shared.published.write() = Ok(self.view.clone());
    }

    fn fail(&mut self, error: &str) {
        tracing::error!(
            error,
            "the store's disk failed: nothing is served until it is opened again"
        );
        self.failed = true;
        self.shared.watches.fail_all(Error::IO_ERROR);
    }
}

/// Commits what is queued, as long as somebody can queue more.
pub(super) fn run(committer: &Mutex<Option<Committer>>, mut queue: mpsc::Receiver<CommitRequest>) {
    let mut requests = Vec::with_capacity(BATCH_TRANSACTIONS);
    while queue.blocking_recv_many(&mut requests, BATCH_TRANSACTIONS) > 0 {
        let mut committer = committer.lock();
        let Some(committer) = committer.as_mut() else {
            return;
        };
        if let Some(faults) = &committer.shared.faults {
            faults.reorder(&mut requests);
        }
        committer.commit_all(&mut requests.drain(..));
    }
}

/// If the committer panics, nothing is readable any more, as after a failure of the disk.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.published.write() = Err(Error::IO_ERROR);
            self.0.watches.fail_all(Error::IO_ERROR);
        }
    }
}

fn answer(answers: Vec<Answer>) {
    for answer in answers {
        let _ = answer.reply.send(answer.result);
    }
}
