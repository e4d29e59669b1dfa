//! What several servers on one store tell each other through it.

use std::collections::HashMap;

use bytes::Bytes;
use fdb::{MutationType, RangeOption, Transaction, VERSIONSTAMP_LENGTH, Watch};
use futures::future;

use super::read::{READ_BYTES, decode_head};
use super::{NOTES_KEPT, Note, Store, StoreError};
use crate::etcd::encoding::{Head, ServerId};
use crate::etcd::lease::Stamp;
use crate::etcd::record::{Record, Revision};

/// What happened since, as of one moment.
pub struct Tail {
    pub head: Head,
    /// The store's version at that moment.
    pub version: i64,
    /// Records that were asked for, up to the head's revision: all of them, or whole pages of them.
    pub records: Vec<Record>,
    /// Where the rest of the records is.
    pub next: Option<Revision>,
    /// `None` if there were too many to be kept.
    pub notes: Option<Vec<Note>>,
    /// Who wants to write.
    pub line: Intents,
}

/// What a server that is gone has left is removed after so long, in milliseconds.
const LEFTOVERS_KEPT_MS: i64 = 24 * 3_600_000;

/// Servers that want to write, in the order in which they shall, each with its ticket: a versionstamp.
pub type Intents = Vec<(ServerId, Bytes)>;

impl Store {
    /// The log from `from` on, and the notes after the first `changes` ones.
    pub async fn tail(&self, from: Revision, changes: u64) -> Result<Tail, StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            match self.try_tail(&transaction, from, changes).await {
                Ok(tail) => return Ok(tail),
                Err(StoreError::Store(error)) => transaction = transaction.on_error(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_tail(
        &self,
        transaction: &Transaction,
        from: Revision,
        changes: u64,
    ) -> Result<Tail, StoreError> {
        let range = |begin: Bytes, end: Bytes| {
            let mut option = RangeOption::new(begin, end);
            option.target_bytes = READ_BYTES;
            option.snapshot = true;
            option
        };
        let log = range(self.space.log(from), self.space.log_end());
        let notes = range(self.space.change(changes + 1), self.space.change(u64::MAX));
        let (head, log, notes, version, line) = future::join5(
            self.read_head(transaction),
            transaction.get_range(log),
            transaction.get_range(notes),
            transaction.get_read_version(),
            self.line(transaction),
        )
        .await;
        let (head, mut log, notes, version, line) = (head?, log?, notes?, version?, line?);
        let next = match log.kvs.last().filter(|_| log.more) {
            None => None,
            Some((last, _)) => {
                let last = self.space.parse_log(last);
                let last = last.ok_or(StoreError::Damaged("key of the log"))?;
                (last.main <= head.revision).then(|| Revision {
                    main: last.main,
                    sub: last.sub.saturating_add(1),
                })
            }
        };
        // What a batch that is not complete has spilled does not count.
        let counts = self.space.log_from(head.revision.saturating_add(1));
        log.kvs.retain(|(key, _)| *key < counts);
        let behind = head.changes.saturating_sub(changes);
        let complete = behind <= NOTES_KEPT
            && !notes.more
            && u64::try_from(notes.kvs.len()).is_ok_and(|found| found == behind);
        let decoded: Option<Vec<_>> = complete
            .then(|| notes.kvs.iter().map(|(_, value)| Note::decode_all(value)))
            .and_then(Iterator::collect);
        Ok(Tail {
            head,
            version,
            records: self.decode_log(&log).await?,
            next,
            notes: decoded.map(|notes| notes.concat()),
            line,
        })
    }

    /// The head, and a watch that resolves when it is another one.
    pub async fn watch_head(&self) -> Result<(Head, Watch), StoreError> {
        let (head, watch) = self.watch(&self.space.head()).await?;
        Ok((decode_head(head)?, watch))
    }

    /// A watch that resolves when the server has another ticket, or none; `None` if that is so already.
    pub async fn watch_intent(
        &self,
        (server, ticket): &(ServerId, Bytes),
    ) -> Result<Option<Watch>, StoreError> {
        let (found, watch) = self.watch(&self.space.intent(*server)).await?;
        Ok((found.as_ref() == Some(ticket)).then_some(watch))
    }

    /// The value of `key`, and a watch that resolves when it is another one.
    async fn watch(&self, key: &Bytes) -> Result<(Option<Bytes>, Watch), StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            let error = match transaction.get(key, true).await {
                Ok(found) => {
                    let watch = transaction.watch(key.clone());
                    match transaction.commit().await {
                        Ok(_) => return Ok((found, watch)),
                        Err(failed) => {
                            transaction = failed.transaction;
                            failed.error
                        }
                    }
                }
                Err(error) => error,
            };
            transaction = transaction.on_error(error).await?;
        }
    }

    /// Notes that these leases were kept alive. Resolves to their stamps when that is durable; leases that do not exist have none.
    pub async fn keep_alive(&self, ids: &[i64]) -> Result<HashMap<i64, Stamp>, StoreError> {
        let stamp: Stamp = rand::random();
        let kept = self
            .database
            .transact(|transaction: Transaction| async move {
                let leases = ids.iter().map(|id| {
                    let (transaction, key) = (&transaction, self.space.lease(*id));
                    // Whoever revokes the lease meanwhile comes before or after.
                    async move { transaction.get(&key, false).await }
                });
                let found = future::try_join_all(leases).await?;
                let mut kept = HashMap::new();
                for (id, found) in ids.iter().zip(found) {
                    if found.is_some() {
                        let value = Bytes::copy_from_slice(&stamp);
                        transaction.set(self.space.renewal(*id), value);
                        kept.insert(*id, stamp);
                    }
                }
                Ok::<_, fdb::Error>(kept)
            })
            .await?;
        Ok(kept)
    }

    /// The stamps of these leases' last keep-alives.
    pub async fn stamps(&self, ids: &[i64]) -> Result<Vec<Option<Stamp>>, StoreError> {
        let stamps = self
            .database
            .transact(|transaction: Transaction| async move {
                let stamps = ids.iter().map(|id| {
                    let (transaction, key) = (&transaction, self.space.renewal(*id));
                    async move { transaction.get(&key, true).await }
                });
                future::try_join_all(stamps).await
            })
            .await?;
        let stamp = |found: Option<Bytes>| found.and_then(|stamp| stamp.as_ref().try_into().ok());
        Ok(stamps.into_iter().map(stamp).collect())
    }

    /// Gets this server in line, behind all that want to write already. One that is in line loses its place.
    pub async fn announce(&self) -> Result<(), StoreError> {
        self.database
            .transact(|transaction: Transaction| async move {
                self.take_ticket(&transaction);
                Ok::<_, fdb::Error>(())
            })
            .await?;
        Ok(())
    }

    /// The server's ticket becomes the transaction's versionstamp.
    pub(super) fn take_ticket(&self, transaction: &Transaction) {
        const STAMP_AT: [u8; 4] = 0_u32.to_le_bytes();
        let ticket = [&[0; VERSIONSTAMP_LENGTH][..], &STAMP_AT].concat();
        let intent = self.space.intent(self.server);
        transaction.atomic_op(intent, ticket, MutationType::SetVersionstampedValue);
    }

    /// The servers that want to write.
    pub async fn intents(&self) -> Result<Intents, StoreError> {
        let line = self
            .database
            .transact(|transaction: Transaction| async move { self.line(&transaction).await })
            .await?;
        Ok(line)
    }

    async fn line(&self, transaction: &Transaction) -> Result<Intents, fdb::Error> {
        let (begin, end) = self.space.intents();
        let mut option = RangeOption::new(begin, end);
        option.snapshot = true;
        option.target_bytes = READ_BYTES;
        let page = transaction.get_range(option).await?;
        let intent = |(key, ticket): (Bytes, Bytes)| Some((self.space.parse_intent(&key)?, ticket));
        let mut line: Intents = page.kvs.into_iter().filter_map(intent).collect();
        line.sort_by(|(_, one), (_, other)| one.cmp(other));
        Ok(line)
    }

    /// Removes what servers have left that did not write for a day. `now` is in milliseconds.
    pub async fn clear_leftovers(&self, now: i64) -> Result<(), StoreError> {
        let (begin, end) = self.space.last_batches();
        let mut old = Vec::new();
        self.read_all(begin, end, |key, value| {
            let at = value.get(8..).and_then(|at| at.try_into().ok());
            let at = at.map(i64::from_be_bytes);
            if at.is_none_or(|at| at < now.saturating_sub(LEFTOVERS_KEPT_MS)) {
                old.push(Bytes::copy_from_slice(key));
            }
            Ok(())
        })
        .await?;
        let old = &old;
        self.database
            .transact(|transaction: Transaction| async move {
                old.iter().for_each(|key| transaction.clear(key.clone()));
                Ok::<_, fdb::Error>(())
            })
            .await?;
        Ok(())
    }

    /// Puts a server out of the line, unless it has another ticket meanwhile.
    pub async fn forget_intent(
        &self,
        (server, ticket): &(ServerId, Bytes),
    ) -> Result<(), StoreError> {
        self.database
            .transact(|transaction: Transaction| async move {
                let intent = self.space.intent(*server);
                transaction.atomic_op(intent, ticket.clone(), MutationType::CompareAndClear);
                Ok::<_, fdb::Error>(())
            })
            .await?;
        Ok(())
    }
}
