//! A keyspace's part of the ordered key-value store: the only file that talks to `fdb`.

use bytes::{BufMut as _, Bytes, BytesMut};
use etcd_proto::authpb::{Role, User};
use fdb::{Database, RangeOption, RangeResult, Transaction, TransactionOption};
use prost::Message;

use super::alarm::Alarms;
use super::auth::{AuthState, Touched};
use super::encoding::{self, BatchId, CHUNK_BYTES, CHUNKED, Head, Subspace};
use super::error::Error;
use super::record::{DecodeError, Record, Revision, SharedRecord};
use super::view::{FIRST_REVISION, NEVER_COMPACTED};

/// Most bytes that one transaction of the store is given; it takes 10,000,000, its conflict ranges
/// included.
const TRANSACTION_BYTES: usize = 7_000_000;
/// Most clears in one transaction.
const CLEARS: usize = 10_000;
/// Bytes that one read of the log asks for.
const READ_BYTES: usize = 1 << 20;

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

/// Who this store says it is. Random at first, then the same for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
}

/// Reads the store's identity, or sets it to `new`.
pub async fn identity(database: &Database, new: Identity) -> Result<Identity, StoreError> {
    let found = database
        .transact(|transaction: Transaction| async move {
            let found = transaction.get(encoding::IDENTITY, false).await?;
            if found.is_none() {
                let mut value = BytesMut::with_capacity(16);
                value.put_u64(new.cluster_id);
                value.put_u64(new.member_id);
                transaction.set(encoding::IDENTITY, value.freeze());
            }
            Ok::<_, fdb::Error>(found)
        })
        .await?;
    let Some(found) = found else { return Ok(new) };
    let parse = |part: &[u8]| Some(u64::from_be_bytes(part.try_into().ok()?));
    match (
        found.get(..8).and_then(parse),
        found.get(8..).and_then(parse),
    ) {
        (Some(cluster_id), Some(member_id)) => Ok(Identity {
            cluster_id,
            member_id,
        }),
        _ => Err(StoreError::Damaged("identity")),
    }
}

/// The version that a downgrade was asked for.
pub async fn downgrade(database: &Database) -> Result<Option<String>, StoreError> {
    let found = database
        .transact(|transaction: Transaction| async move {
            transaction.get(encoding::DOWNGRADE, false).await
        })
        .await?;
    Ok(found.map(|version| String::from_utf8_lossy(&version).into_owned()))
}

pub async fn set_downgrade(database: &Database, version: Option<&str>) -> Result<(), StoreError> {
    let version = &version.map(|version| Bytes::copy_from_slice(version.as_bytes()));
    database
        .transact(|transaction: Transaction| async move {
            match version {
                Some(version) => transaction.set(encoding::DOWNGRADE, version.clone()),
                None => transaction.clear(encoding::DOWNGRADE),
            }
            Ok::<_, fdb::Error>(())
        })
        .await?;
    Ok(())
}

fn parse_number(value: &[u8]) -> Result<u32, StoreError> {
    let number = value.try_into().ok().map(u32::from_be_bytes);
    number.ok_or(StoreError::Damaged("number of a keyspace"))
}

/// The keyspace's subspace; a new one if there is none of that name yet.
pub async fn open_keyspace(database: &Database, name: &str) -> Result<Subspace, StoreError> {
    let key = &encoding::keyspace_name(name);
    let mut transaction = database.create_transaction();
    loop {
        let attempt = async {
            if let Some(found) = transaction.get(key, false).await? {
                return Ok((parse_number(&found)?, false));
            }
            let count = transaction.get(encoding::KEYSPACE_COUNT, false).await?;
            let number = count.map_or(Ok(0), |count| parse_number(&count))? + 1;
            let value = Bytes::copy_from_slice(&number.to_be_bytes());
            transaction.set(encoding::KEYSPACE_COUNT, value.clone());
            transaction.set(key.clone(), value);
            Ok((number, true))
        };
        let error = match attempt.await {
            Ok((number, false)) => return Ok(Subspace(number)),
            Ok((number, true)) => match transaction.commit().await {
                Ok(_) => return Ok(Subspace(number)),
                Err(failed) => {
                    transaction = failed.transaction;
                    failed.error
                }
            },
            Err(StoreError::Store(error)) => error,
            Err(error) => return Err(error),
        };
        transaction = transaction.on_error(error).await?;
    }
}

/// Removes the keyspace with all that it holds, if there is one of that name.
pub async fn remove_keyspace(database: &Database, name: &str) -> Result<(), StoreError> {
    let key = encoding::keyspace_name(name);
    let key = &key;
    let damaged = database
        .transact(|transaction: Transaction| async move {
            let Some(number) = transaction.get(key, false).await? else {
                return Ok(false);
            };
            let Ok(number) = parse_number(&number) else {
                return Ok(true);
            };
            let (start, end) = Subspace(number).all();
            transaction.clear_range(start, end);
            transaction.clear(key.clone());
            Ok::<_, fdb::Error>(false)
        })
        .await?;
    if damaged {
        return Err(StoreError::Damaged("number of a keyspace"));
    }
    Ok(())
}

/// What a batch writes besides the head.
#[derive(Default)]
pub struct Writes {
    /// New entries of the log, and chunks: they do not count before the head does.
    log: Vec<(Bytes, Bytes)>,
    /// Leases, alarms, users and roles: set or cleared, in order, together with the head.
    leases: Vec<(Bytes, Option<Bytes>)>,
    size_bytes: usize,
}

impl Writes {
    pub fn is_empty(&self) -> bool {
        self.log.is_empty() && self.leases.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn append(&mut self, key: Bytes, value: Bytes) {
        self.size_bytes += key.len() + value.len();
        self.log.push((key, value));
    }

    pub fn record(&mut self, space: Subspace, record: &Record) {
        let Some(stored) = record.stored() else {
            return;
        };
        if stored.len() <= CHUNK_BYTES {
            self.append(space.log(record.revision), stored.clone());
            return;
        }
        let mut entry = BytesMut::with_capacity(5);
        entry.put_u8(CHUNKED);
        entry.put_u32(u32::try_from(stored.len()).unwrap_or(u32::MAX));
        self.append(space.log(record.revision), entry.freeze());
        for (chunk, start) in (0..).zip((0..stored.len()).step_by(CHUNK_BYTES)) {
            let end = stored.len().min(start + CHUNK_BYTES);
            self.append(
                space.chunk(record.revision, chunk),
                stored.slice(start..end),
            );
        }
    }

    pub fn grant(&mut self, space: Subspace, id: i64, ttl: i64) {
        let value = Bytes::copy_from_slice(&ttl.to_be_bytes());
        self.leases.push((space.lease(id), Some(value)));
    }

    /// Whether authentication is on, its revision, and what a change has touched.
    pub fn auth(&mut self, space: Subspace, auth: &AuthState, touched: &[Touched]) {
        let mut value = BytesMut::with_capacity(9);
        value.put_u8(u8::from(auth.enabled));
        value.put_u64(auth.revision);
        self.leases.push((space.auth(), Some(value.freeze())));
        for touched in touched {
            let (key, value) = match touched {
                Touched::User(name) => {
                    let user = auth.user(name).map(Message::encode_to_vec);
                    (space.user(name), user)
                }
                Touched::Role(name) => {
                    let role = auth.role(name).map(Message::encode_to_vec);
                    (space.role(name), role)
                }
            };
            self.leases.push((key, value.map(Bytes::from)));
        }
    }

    pub fn alarms(&mut self, space: Subspace, alarms: Alarms) {
        let bits = Bytes::copy_from_slice(&[alarms.bits()]);
        self.leases.push((space.alarms(), Some(bits)));
    }

    pub fn revoke(&mut self, space: Subspace, id: i64) {
        self.leases.push((space.lease(id), None));
    }
}

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    /// Nothing was written: the head is not what the batch was evaluated against.
    Foreign(Head),
}

/// One keyspace in the store.
#[derive(Clone)]
pub struct Store {
    database: Database,
    pub space: Subspace,
}

impl Store {
    pub fn new(database: Database, space: Subspace) -> Store {
        Store { database, space }
    }

    pub async fn auth(&self) -> Result<AuthState, StoreError> {
        let key = &self.space.auth();
        let found = self
            .database
            .transact(|transaction: Transaction| async move { transaction.get(key, false).await })
            .await?;
        let Some(found) = found else {
            return Ok(AuthState::default());
        };
        let damaged = StoreError::Damaged("authentication of a keyspace");
        let Some((enabled, revision)) = found.split_first() else {
            return Err(damaged);
        };
        let Ok(revision) = revision.try_into() else {
            return Err(damaged);
        };
        let users = self.messages::<User>(self.space.users()).await?;
        let roles = self.messages::<Role>(self.space.roles()).await?;
        let revision = u64::from_be_bytes(revision);
        Ok(AuthState::new(*enabled != 0, revision, users, roles))
    }

    async fn messages<M: Message + Default>(
        &self,
        (mut begin, end): (Bytes, Bytes),
    ) -> Result<Vec<M>, StoreError> {
        let mut messages = Vec::new();
        loop {
            let page = self.read(begin.clone(), end.clone()).await?;
            for (_, value) in &page.kvs {
                let message = M::decode(value.clone());
                let message = message.map_err(|_| StoreError::Damaged("user or role"))?;
                messages.push(message);
            }
            match page.kvs.last() {
                Some((last, _)) if page.more => begin = Bytes::from([&last[..], b"\0"].concat()),
                _ => return Ok(messages),
            }
        }
    }

    pub async fn alarms(&self) -> Result<Alarms, StoreError> {
        let key = &self.space.alarms();
        let found = self
            .database
            .transact(|transaction: Transaction| async move { transaction.get(key, false).await })
            .await?;
        match found.as_deref() {
            None => Ok(Alarms::default()),
            Some([bits]) => Ok(Alarms::from_bits(*bits)),
            Some(_) => Err(StoreError::Damaged("alarms of a keyspace")),
        }
    }

    /// The head; that of an empty keyspace if nothing was written yet.
    pub async fn head(&self) -> Result<Head, StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            match self.read_head(&transaction).await {
                Ok(head) => return Ok(head),
                Err(StoreError::Store(error)) => transaction = transaction.on_error(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn read_head(&self, transaction: &Transaction) -> Result<Head, StoreError> {
        match transaction.get(&self.space.head(), false).await? {
            Some(head) => Head::decode(&head).ok_or(StoreError::Damaged("head of a keyspace")),
            None => Ok(Head {
                revision: FIRST_REVISION,
                compacted: NEVER_COMPACTED,
                batch: BatchId::default(),
                spilled: false,
            }),
        }
    }

    /// Makes `writes` durable and moves the head from `expected` to `next`, or does neither.
    ///
    /// The head is read and written by every batch, so of two servers that commit at a time one
    /// finds the other's head. After 1021 (commit unknown result) the head tells: it bears this batch's
    /// id, or the batch is not in; and an attempt still under way conflicts with the next one.
    ///
    /// `alone` says that nobody waits for this task meanwhile: then the commit may block its thread.
    pub async fn commit(
        &self,
        expected: &Head,
        next: &Head,
        writes: &Writes,
        alone: bool,
    ) -> Result<Outcome, StoreError> {
        let mut rest = writes.log.as_slice();
        let mut first = true;
        loop {
            let piece = piece(rest);
            let last = piece == rest.len();
            let outcome = self
                .commit_piece(
                    expected,
                    next,
                    &rest[..piece],
                    last.then_some(writes),
                    first,
                    alone && last && first,
                )
                .await?;
            if last || outcome != Outcome::Committed {
                return Ok(outcome);
            }
            rest = &rest[piece..];
            first = false;
        }
    }

    async fn commit_piece(
        &self,
        expected: &Head,
        next: &Head,
        sets: &[(Bytes, Bytes)],
        last: Option<&Writes>,
        first: bool,
        alone: bool,
    ) -> Result<Outcome, StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            if alone {
                transaction.set_option(TransactionOption::CommitMayBlock);
            }
            let error = match self
                .stage(&transaction, expected, next, sets, last, first)
                .await
            {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => match transaction.commit().await {
                    Ok(_) => return Ok(Outcome::Committed),
                    Err(failed) => {
                        transaction = failed.transaction;
                        failed.error
                    }
                },
                Err(StoreError::Store(error)) => error,
                Err(error) => return Err(error),
            };
            transaction = transaction.on_error(error).await?;
        }
    }

    /// The outcome if it is known already, else `None` and a transaction to commit.
    async fn stage(
        &self,
        transaction: &Transaction,
        expected: &Head,
        next: &Head,
        sets: &[(Bytes, Bytes)],
        last: Option<&Writes>,
        first: bool,
    ) -> Result<Option<Outcome>, StoreError> {
        let head = self.read_head(transaction).await?;
        if head.batch == next.batch {
            return Ok(Some(Outcome::Committed));
        }
        if (head.batch, head.revision) != (expected.batch, expected.revision) {
            return Ok(Some(Outcome::Foreign(head)));
        }
        if first && head.spilled {
            self.clear_spill(transaction, &head);
        }
        for (key, value) in sets {
            // The head alone decides conflicts.
            transaction.set_option(TransactionOption::NextWriteNoWriteConflictRange);
            transaction.set(key.clone(), value.clone());
        }
        let written = match last {
            Some(writes) => {
                for (key, value) in &writes.leases {
                    match value {
                        Some(value) => transaction.set(key.clone(), value.clone()),
                        None => transaction.clear(key.clone()),
                    }
                }
                *next
            }
            None => Head {
                spilled: true,
                ..head
            },
        };
        transaction.set(self.space.head(), written.encode());
        Ok(None)
    }

    fn clear_spill(&self, transaction: &Transaction, head: &Head) {
        let after = Revision {
            main: head.revision + 1,
            sub: 0,
        };
        transaction.clear_range(self.space.log(after), self.space.log_end());
        transaction.clear_range(self.space.chunks(after).0, self.space.chunks_end());
    }

    /// Records from `from` up to and including revision `upto`, in order: one read's worth.
    /// The second value says where to go on; `None` at the end.
    pub async fn read_log(
        &self,
        from: Revision,
        upto: i64,
    ) -> Result<(Vec<Record>, Option<Revision>), StoreError> {
        let end = self.space.log_from(upto.saturating_add(1));
        let page = self.read(self.space.log(from), end).await?;
        let mut records = Vec::with_capacity(page.kvs.len());
        for (key, value) in &page.kvs {
            let revision = self.space.parse_log(key);
            let revision = revision.ok_or(StoreError::Damaged("key of the log"))?;
            records.push(self.decode(revision, value).await?);
        }
        let next = records.last().filter(|_| page.more).map(|last| Revision {
            main: last.revision.main,
            sub: last.revision.sub.saturating_add(1),
        });
        Ok((records, next))
    }

    /// One page of a range, read in a transaction of its own.
    async fn read(&self, begin: Bytes, end: Bytes) -> Result<RangeResult, StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            let mut option = RangeOption::new(begin.clone(), end.clone());
            option.target_bytes = READ_BYTES;
            option.snapshot = true;
            match transaction.get_range(option).await {
                Ok(page) => return Ok(page),
                Err(error) => transaction = transaction.on_error(error).await?,
            }
        }
    }

    async fn decode(&self, revision: Revision, value: &Bytes) -> Result<Record, StoreError> {
        let stored = match value.first() {
            Some(&CHUNKED) => self.read_chunks(revision, value).await?,
            // A copy: the page that it was read from is larger.
            _ => Bytes::copy_from_slice(value),
        };
        Record::decode(revision, stored).map_err(|source| StoreError::Record { revision, source })
    }

    async fn read_chunks(&self, revision: Revision, entry: &[u8]) -> Result<Bytes, StoreError> {
        let damaged = StoreError::Damaged("length of a large record");
        let len = match entry[1..].try_into() {
            Ok(len) => u32::from_be_bytes(len) as usize,
            Err(_) => return Err(damaged),
        };
        let (mut begin, end) = self.space.chunks(revision);
        let mut stored = Vec::new();
        loop {
            let page = self.read(begin.clone(), end.clone()).await?;
            for (_, chunk) in &page.kvs {
                stored.extend_from_slice(chunk);
            }
            match page.kvs.last() {
                Some((last, _)) if page.more => {
                    let mut after = BytesMut::from(last.as_ref());
                    after.put_u8(0);
                    begin = after.freeze();
                }
                _ => break,
            }
        }
        if stored.len() != len {
            return Err(damaged);
        }
        Ok(Bytes::from(stored))
    }

    /// One record; `None` if compaction has removed it.
    pub async fn read_record(&self, revision: Revision) -> Result<Option<Record>, StoreError> {
        let key = self.space.log(revision);
        let mut transaction = self.database.create_transaction();
        loop {
            match transaction.get(&key, true).await {
                Ok(None) => return Ok(None),
                Ok(Some(value)) => return self.decode(revision, &value).await.map(Some),
                Err(error) => transaction = transaction.on_error(error).await?,
            }
        }
    }

    /// Every lease with its TTL in seconds.
    pub async fn leases(&self) -> Result<Vec<(i64, i64)>, StoreError> {
        let (mut begin, end) = self.space.leases();
        let mut leases = Vec::new();
        loop {
            let page = self.read(begin, end.clone()).await?;
            for (key, value) in &page.kvs {
                let id = self.space.parse_lease(key);
                let ttl = value.as_ref().try_into().ok().map(i64::from_be_bytes);
                leases.push(id.zip(ttl).ok_or(StoreError::Damaged("lease"))?);
            }
            match page.kvs.last() {
                Some((last, _)) if page.more => {
                    let mut after = BytesMut::from(last.as_ref());
                    after.put_u8(0);
                    begin = after.freeze();
                }
                _ => return Ok(leases),
            }
        }
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

    pub fn size_bytes(&self) -> u64 {
        self.database.size_bytes()
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
