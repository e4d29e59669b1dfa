//! A keyspace's part of the ordered key-value store: the only folder that talks to `fdb`.

mod installation;
mod note;
mod read;
mod shared;
mod writes;

use bytes::Bytes;
use fdb::{Database, Transaction, TransactionOption};

use super::encoding::{BatchId, CHUNK_BYTES, Head, ServerId, Subspace};
use super::error::Error;
use super::lease::Stamp;
use super::record::{DecodeError, Revision, SharedRecord};

pub use installation::{
    Identity, downgrade, identity, open_keyspace, remove_keyspace, set_downgrade,
};
pub use note::{NOTES_KEPT, Note};
pub use shared::{Intents, Tail};
pub use writes::Writes;

/// Most bytes that one transaction of the store is given; it takes 10,000,000, its conflict ranges
/// included.
const TRANSACTION_BYTES: usize = 7_000_000;
/// Most clears in one transaction.
const CLEARS: usize = 10_000;

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Store(#[from] fdb::Error),
    #[error("damaged record at revision {}.{}: {source}", .revision.main, .revision.sub)]
    Record {
        revision: Revision,
        source: DecodeError,
    },
    #[error("damaged store: {0}")]
    Damaged(&'static str),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Store(fdb::Error::SHUTDOWN_IN_PROGRESS) => Error::Stopped,
            StoreError::Store(_) => Error::Timeout,
            StoreError::Record { .. } | StoreError::Damaged(_) => Error::Corrupt,
        }
    }
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    /// Nothing was written: the head is not what the batch was evaluated against.
    Foreign(Head),
    /// Nothing was written: these leases of the batch were kept alive by other servers.
    KeptAlive(Vec<(i64, Option<Stamp>)>),
}

/// One keyspace in the store.
#[derive(Clone)]
pub struct Store {
    database: Database,
    pub space: Subspace,
    /// Who writes here.
    server: ServerId,
    /// Other servers write to the keyspace, too.
    shared: bool,
}

/// What a commit does with the server's place in the line of those that want to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing: the server keeps its place, or has none.
    Stay,
    /// The server is out of the line.
    Out,
    /// The server is behind all others.
    ToTheEnd,
}

/// What a commit has to know.
pub struct CommitRequest<'a> {
    /// The head that the batch was evaluated against.
    pub expected: &'a Head,
    pub next: &'a Head,
    pub writes: &'a Writes,
    /// Nobody waits for this task meanwhile: the commit may block its thread.
    pub alone: bool,
    /// The store's version at which the head was `expected`, if it is known. Saves reading it.
    pub known_at: Option<i64>,
    /// What happens to the server's place among those that want to write.
    pub leave: Leave,
    /// Now, in milliseconds.
    pub at: i64,
}

impl Store {
    pub fn new(database: Database, space: Subspace, shared: bool) -> Store {
        Store {
            database,
            space,
            server: rand::random(),
            shared,
        }
    }

    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Who writes here.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// What another server writes with.
    #[cfg(test)]
    pub fn of_another_server(&self) -> Store {
        Store {
            server: rand::random(),
            ..self.clone()
        }
    }

    /// The name of the batch that comes after `last`.
    pub fn next_batch(&self, last: &Head) -> BatchId {
        BatchId {
            server: self.server,
            number: if last.batch.server == self.server {
                last.batch.number + 1
            } else {
                rand::random::<u64>() >> 1
            },
        }
    }

    /// Makes `writes` durable and moves the head from `expected` to `next`, or does neither. The second value is the
    /// store's version at which the head became `next`.
    ///
    /// The head is read and written by every batch, so of two servers that commit at a time one
    /// finds the other's head. After 1021 (commit unknown result) the head tells: it bears this batch's
    /// id, or the batch is not in; and an attempt still under way conflicts with the next one. Where others may have
    /// written since, the number of this server's last batch tells the same.
    pub async fn commit(
        &self,
        request: &CommitRequest<'_>,
    ) -> Result<(Outcome, Option<i64>), StoreError> {
        let mut rest = request.writes.log.as_slice();
        let mut first = true;
        loop {
            let piece = piece(rest);
            let last = piece == rest.len();
            let outcome = self
                .commit_piece(request, &rest[..piece], first, last)
                .await?;
            if last || outcome.0 != Outcome::Committed {
                return Ok(outcome);
            }
            rest = &rest[piece..];
            first = false;
        }
    }

    async fn commit_piece(
        &self,
        request: &CommitRequest<'_>,
        sets: &[(Bytes, Bytes)],
        first: bool,
        last: bool,
    ) -> Result<(Outcome, Option<i64>), StoreError> {
        let mut transaction = self.database.create_transaction();
        let whole = first && last;
        let mut known_at = request
            .known_at
            .filter(|_| whole && request.writes.expiring.is_empty());
        let mut unknown = false;
        loop {
            if request.alone && whole {
                transaction.set_option(TransactionOption::CommitMayBlock);
            }
            let staged = match known_at.take() {
                Some(version) => {
                    let head = self.space.head();
                    transaction.set_read_version(version);
                    let end = Bytes::from([&head[..], b"\0"].concat());
                    transaction.add_read_conflict_range(head, end);
                    Ok((None, *request.expected, true))
                }
                None => self
                    .look(&transaction, request, unknown)
                    .await
                    .map(|(outcome, head)| (outcome, head, false)),
            };
            let (error, guessed) = match staged {
                Ok((Some(outcome), ..)) => return Ok((outcome, None)),
                Ok((None, head, guessed)) => {
                    if first && head.spilled {
                        self.clear_spill(&transaction, &head);
                    }
                    self.write(&transaction, request, sets, last);
                    match transaction.commit().await {
                        Ok(committed) => {
                            return Ok((Outcome::Committed, Some(committed.version)));
                        }
                        Err(failed) => {
                            transaction = failed.transaction;
                            (failed.error, guessed)
                        }
                    }
                }
                Err(StoreError::Store(error)) => (error, false),
                Err(error) => return Err(error),
            };
            unknown |= error.is_maybe_committed();
            if guessed && error.is_retryable_not_committed() {
                // Somebody else was faster, or it was long ago: look, and at once.
                transaction = self.database.create_transaction();
            } else {
                transaction = transaction.on_error(error).await?;
            }
        }
    }

    /// The outcome if it is known already, and the head. `unknown` says that the batch may be in.
    async fn look(
        &self,
        transaction: &Transaction,
        request: &CommitRequest<'_>,
        unknown: bool,
    ) -> Result<(Option<Outcome>, Head), StoreError> {
        let head = self.read_head(transaction).await?;
        let batch = request.next.batch;
        if head.batch == batch {
            return Ok((Some(Outcome::Committed), head));
        }
        if unknown && self.shared {
            let last = self.space.last_batch(self.server);
            let last = transaction.get(&last, false).await?;
            if last.is_some_and(|last| last.starts_with(&batch.number.to_be_bytes())) {
                return Ok((Some(Outcome::Committed), head));
            }
        }
        if (head.batch, head.revision) != (request.expected.batch, request.expected.revision) {
            return Ok((Some(Outcome::Foreign(head)), head));
        }
        let mut kept_alive = Vec::new();
        for (id, known) in request.writes.expiring.iter().filter(|_| self.shared) {
            let stamp = transaction.get(&self.space.renewal(*id), false).await?;
            let stamp = stamp.and_then(|stamp| stamp.as_ref().try_into().ok());
            if stamp != *known {
                kept_alive.push((*id, stamp));
            }
        }
        let outcome = (!kept_alive.is_empty()).then_some(Outcome::KeptAlive(kept_alive));
        Ok((outcome, head))
    }

    fn write(
        &self,
        transaction: &Transaction,
        request: &CommitRequest<'_>,
        sets: &[(Bytes, Bytes)],
        last: bool,
    ) {
        for (key, value) in sets {
            // The head alone decides conflicts.
            transaction.set_option(TransactionOption::NextWriteNoWriteConflictRange);
            transaction.set(key.clone(), value.clone());
        }
        let CommitRequest {
            expected,
            next,
            writes,
            ..
        } = *request;
        if !last {
            let spilled = Head {
                spilled: true,
                ..*expected
            };
            transaction.set(self.space.head(), spilled.encode());
            return;
        }
        for (key, value) in &writes.rest {
            match value {
                Some(value) => transaction.set(key.clone(), value.clone()),
                None => transaction.clear(key.clone()),
            }
        }
        if next.changes != expected.changes {
            let notes = Note::encode_all(&writes.notes);
            transaction.set(self.space.change(next.changes), notes);
            if let Some(old) = next.changes.checked_sub(NOTES_KEPT) {
                transaction.clear(self.space.change(old));
            }
            for note in &writes.notes {
                if let Note::Revoke { id, .. } = note {
                    transaction.clear(self.space.renewal(*id));
                }
            }
        }
        if self.shared {
            let last = [next.batch.number.to_be_bytes(), request.at.to_be_bytes()];
            let last = Bytes::from(last.concat());
            transaction.set(self.space.last_batch(self.server), last);
        }
        match request.leave {
            Leave::Stay => {}
            Leave::Out => transaction.clear(self.space.intent(self.server)),
            Leave::ToTheEnd => self.take_ticket(transaction),
        }
        transaction.set(self.space.head(), next.encode());
    }

    fn clear_spill(&self, transaction: &Transaction, head: &Head) {
        let after = Revision {
            main: head.revision + 1,
            sub: 0,
        };
        transaction.clear_range(self.space.log(after), self.space.log_end());
        transaction.clear_range(self.space.chunks(after).0, self.space.chunks_end());
    }

    /// Clears records that compaction has removed, in the order given: a crash between two
    /// transactions must not leave an older version of a key without its tombstone.
    pub async fn clear_records(&self, records: &[SharedRecord]) -> Result<(), StoreError> {
        for part in records.chunks(CLEARS) {
            self.database
                .transact(|transaction: Transaction| async move {
                    for record in part {
                        // Nobody else touches these: the index has forgotten them.
                        transaction.set_option(TransactionOption::NextWriteNoWriteConflictRange);
                        transaction.clear(self.space.log(record.revision));
                        if record.stored_len() > CHUNK_BYTES {
                            let (begin, end) = self.space.chunks(record.revision);
                            transaction
                                .set_option(TransactionOption::NextWriteNoWriteConflictRange);
                            transaction.clear_range(begin, end);
                        }
                    }
                    Ok::<_, fdb::Error>(())
                })
                .await?;
        }
        Ok(())
    }
}

/// How many of `sets` fit one transaction; at least one.
fn piece(sets: &[(Bytes, Bytes)]) -> usize {
    let mut size = 0;
    for (at, (key, value)) in sets.iter().enumerate() {
        size += key.len() + value.len();
        if size > TRANSACTION_BYTES && at > 0 {
            return at;
        }
    }
    sets.len()
}
