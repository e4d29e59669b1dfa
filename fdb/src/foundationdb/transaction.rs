//! A transaction of the FoundationDB engine. What each method does is told of [`crate::Transaction`].

use super::{FoundationDb, error, network};
use crate::{
    Committed, Error, TransactionOption, Versionstamp,
    limits::{
        KEY_SIZE_LIMIT, MAX_KEY, TRANSACTION_SIZE_LIMIT, check_key, check_range, check_value,
        clamped,
    },
    mutation::{self, MutationType, VERSIONSTAMP_LENGTH},
    range::{KeySelector, RangeOption, RangeResult},
    transaction::Stamped,
    watch::Watch,
};
use bytes::Bytes;
use foundationdb::{
    self as client,
    options::{self, ConflictRangeType, StreamingMode},
};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Handles share it, as [`crate::Database::transact`] lends one to its closure.
#[derive(Debug)]
pub(crate) struct Transaction {
    engine: Arc<FoundationDb>,
    state: Arc<Mutex<State>>,
}

enum State {
    Open {
        transaction: client::Transaction,
        /// The first illegal write or option: answers everything that follows.
        error: Option<Error>,
        /// The library takes a write without a change for one, too; but not that nothing was written.
        written: bool,
        /// Who waits for the versionstamp.
        promises: Vec<oneshot::Sender<Stamped>>,
    },
    /// A commit failed: the library's own rules say whether and when to try again.
    Failed(client::TransactionCommitError),
    /// Being committed, committed, reset, or never opened.
    Closed(Error),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Open { .. } => "Open",
            State::Failed(_) => "Failed",
            State::Closed(_) => "Closed",
        })
    }
}

impl State {
    fn new(engine: &FoundationDb) -> State {
        match engine.create_transaction() {
            Ok(transaction) => State::open(transaction),
            Err(error) => State::Closed(error),
        }
    }

    fn open(transaction: client::Transaction) -> State {
        State::Open {
            transaction,
            error: None,
            written: false,
            promises: Vec::new(),
        }
    }
}

impl Transaction {
    pub(crate) fn new(engine: Arc<FoundationDb>) -> Self {
        let state = Arc::new(Mutex::new(State::new(&engine)));
        Transaction { engine, state }
    }

    pub(crate) fn share(&self) -> Self {
        Transaction {
            engine: self.engine.clone(),
            state: self.state.clone(),
        }
    }

    /// Begins something with the library's transaction, if it may be used.
    fn with<T>(&self, begin: impl FnOnce(&client::Transaction) -> T) -> Result<T, Error> {
        match &*self.state.lock() {
            State::Open {
                error: Some(error), ..
            }
            | State::Closed(error) => Err(*error),
            State::Open { transaction, .. } => Ok(begin(transaction)),
            State::Failed(failed) => Err(Error::from_code(failed.code())),
        }
    }

    /// Writes, or remembers why not.
    fn write(&self, checked: Result<(), Error>, write: impl FnOnce(&client::Transaction)) {
        if let State::Open {
            transaction,
            error,
            written,
            ..
        } = &mut *self.state.lock()
        {
            match checked {
                Ok(()) => {
                    *written = true;
                    write(transaction);
                }
                Err(refused) => *error = error.or(Some(refused)),
            }
        }
    }

    pub(crate) async fn get_read_version(&self) -> Result<i64, Error> {
        let version = self.with(client::Transaction::get_read_version)?;
        version.await.map_err(error)
    }

    pub(crate) fn set_read_version(&self, version: i64) {
        // What is wrong with the transaction, the next read says.
        let _ = self.with(|transaction| transaction.set_read_version(version));
    }

    pub(crate) async fn get(&self, key: &[u8], snapshot: bool) -> Result<Option<Bytes>, Error> {
        if key >= MAX_KEY {
            return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
        }
        if key.len() > KEY_SIZE_LIMIT {
            // Nobody can have written it.
            return self.get_read_version().await.map(|_| None);
        }
        let key = self.engine.space.pack(key);
        let value = self.with(|transaction| transaction.get(&key, snapshot))?;
        let value = value.await.map_err(error)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    pub(crate) async fn get_key(
        &self,
        selector: &KeySelector,
        snapshot: bool,
    ) -> Result<Bytes, Error> {
        if selector.key.as_ref() > MAX_KEY {
            return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
        }
        let space = &self.engine.space;
        let key = space.pack_bound(&clamped(selector.key.clone()));
        let selector = client::KeySelector::new(key.into(), selector.or_equal, selector.offset);
        let found = self.with(|transaction| transaction.get_key(&selector, snapshot))?;
        Ok(space.unpack(&found.await.map_err(error)?))
    }

    /// The key that bounds a range.
    async fn bound(&self, selector: &KeySelector, snapshot: bool) -> Result<Vec<u8>, Error> {
        if selector.key.as_ref() > MAX_KEY {
            return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
        }
        let space = &self.engine.space;
        if !selector.or_equal && selector.offset == 1 {
            return Ok(space.pack_bound(&clamped(selector.key.clone())));
        }
        Ok(space.pack_bound(&self.get_key(selector, snapshot).await?))
    }

    pub(crate) async fn get_range(&self, range: RangeOption) -> Result<RangeResult, Error> {
        let begin = self.bound(&range.begin, range.snapshot).await?;
        let end = self.bound(&range.end, range.snapshot).await?;
        if range.limit == Some(0) || begin >= end {
            return self.get_read_version().await.map(|_| RangeResult {
                kvs: Vec::new(),
                more: false,
            });
        }
        let unlimited = i32::MAX as usize;
        let limit = range.limit.map_or(unlimited, |limit| limit.min(unlimited));
        let option = client::RangeOption {
            // The library asks for a limit of rows with it; bytes may end the batch before.
            mode: StreamingMode::Exact,
            limit: Some(limit),
            target_bytes: range.target_bytes.min(unlimited),
            reverse: range.reverse,
            ..client::RangeOption::from((begin, end))
        };
        let found = self.with(|transaction| transaction.get_range(&option, 1, range.snapshot))?;
        let found = found.await.map_err(error)?;
        let prefix = self.engine.space.len();
        let pair = |pair: &client::future::FdbKeyValue| {
            (
                Bytes::copy_from_slice(&pair.key()[prefix..]),
                Bytes::copy_from_slice(pair.value()),
            )
        };
        Ok(RangeResult {
            kvs: found.iter().map(pair).collect(),
            more: found.more(),
        })
    }

    pub(crate) fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        let checked = check_key(&key).and_then(|()| check_value(&value));
        let key = self.engine.space.pack(&key);
        self.write(checked, |transaction| transaction.set(&key, &value));
    }

    pub(crate) fn clear(&self, key: impl Into<Bytes>) {
        let key = key.into();
        let checked = match check_key(&key) {
            Err(Error::KEY_TOO_LARGE) => return,
            checked => checked,
        };
        let key = self.engine.space.pack(&key);
        self.write(checked, |transaction| transaction.clear(&key));
    }

    pub(crate) fn clear_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        let (begin, end) = (begin.into(), end.into());
        if begin == end && end.as_ref() <= MAX_KEY {
            return;
        }
        let checked = check_range(&begin, &end);
        let space = &self.engine.space;
        let begin = space.pack_bound(&clamped(begin));
        let end = space.pack_bound(&clamped(end));
        self.write(checked, |transaction| transaction.clear_range(&begin, &end));
    }

    pub(crate) fn atomic_op(
        &self,
        key: impl Into<Bytes>,
        param: impl Into<Bytes>,
        op: MutationType,
    ) {
        let (key, param) = (key.into(), param.into());
        let operand = match op {
            MutationType::SetVersionstampedKey => mutation::split_offset(&key).map(drop),
            MutationType::SetVersionstampedValue => mutation::split_offset(&param).map(drop),
            _ => Ok(()),
        };
        let checked = check_key(&key)
            .and_then(|()| check_value(&param))
            .and(operand);
        let mut key = self.engine.space.pack(&key);
        if op == MutationType::SetVersionstampedKey
            && let Some((_, offset)) = key.split_last_chunk_mut::<4>()
        {
            // The stamp moves with the prefix.
            let prefix = u32::try_from(self.engine.space.len()).unwrap_or(u32::MAX);
            *offset = u32::from_le_bytes(*offset)
                .saturating_add(prefix)
                .to_le_bytes();
        }
        self.write(checked, |transaction| {
            transaction.atomic_op(&key, &param, code(op));
        });
    }

    pub(crate) fn add_read_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        self.add_conflict_range(begin.into(), end.into(), ConflictRangeType::Read);
    }

    pub(crate) fn add_write_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        self.add_conflict_range(begin.into(), end.into(), ConflictRangeType::Write);
    }

    fn add_conflict_range(&self, begin: Bytes, end: Bytes, kind: ConflictRangeType) {
        let checked = check_range(&begin, &end);
        let writes = matches!(kind, ConflictRangeType::Write) && begin < end;
        let space = &self.engine.space;
        let begin = space.pack_bound(&clamped(begin));
        let end = space.pack_bound(&clamped(end));
        if let State::Open {
            transaction,
            error: refused,
            written,
            ..
        } = &mut *self.state.lock()
        {
            let added = checked.and_then(|()| {
                let added = transaction.add_conflict_range(&begin, &end, kind);
                added.map_err(error)
            });
            *written |= writes;
            *refused = refused.or(added.err());
        }
    }

    pub(crate) fn watch(&self, key: impl Into<Bytes>) -> Watch {
        let key = key.into();
        if let Err(error) = check_key(&key) {
            return Watch::failed(error);
        }
        let key = self.engine.space.pack(&key);
        match self.with(|transaction| transaction.watch(&key)) {
            Ok(watch) => Watch::of(async move { watch.await.map_err(error) }),
            Err(error) => Watch::failed(error),
        }
    }

    pub(crate) fn get_versionstamp(&self) -> Versionstamp {
        let (promise, versionstamp) = Versionstamp::new();
        let refused = match &mut *self.state.lock() {
            State::Open { promises, .. } => {
                promises.push(promise);
                return versionstamp;
            }
            State::Failed(failed) => Error::from_code(failed.code()),
            State::Closed(error) => *error,
        };
        let _ = promise.send(Err(refused));
        versionstamp
    }

    pub(crate) async fn get_approximate_size(&self) -> Result<usize, Error> {
        let size = self.with(client::Transaction::get_approximate_size)?;
        let size = size.await.map_err(error)?;
        Ok(usize::try_from(size).unwrap_or(0))
    }

    pub(crate) async fn commit(self) -> Result<Committed, (Transaction, Error)> {
        let taken = std::mem::replace(
            &mut *self.state.lock(),
            State::Closed(Error::USED_DURING_COMMIT),
        );
        let (transaction, written, promises) = match taken {
            State::Open {
                transaction,
                error: None,
                written,
                promises,
            } => (transaction, written, promises),
            State::Open {
                error: Some(refused),
                promises,
                ..
            } => {
                *self.state.lock() = State::Closed(refused);
                keep(promises, Err(refused));
                return Err((self, refused));
            }
            State::Closed(refused) => {
                *self.state.lock() = State::Closed(refused);
                return Err((self, refused));
            }
            State::Failed(failed) => {
                let error = Error::from_code(failed.code());
                *self.state.lock() = State::Failed(failed);
                return Err((self, error));
            }
        };
        let stamp = written.then(|| transaction.get_versionstamp());
        match transaction.commit().await {
            Ok(committed) => {
                network::settled();
                let version = committed.committed_version().unwrap_or(-1);
                let versionstamp = match stamp {
                    Some(stamp) => stamp.await.ok().and_then(|stamp| parse_stamp(&stamp)),
                    None => None,
                };
                keep(promises, versionstamp.ok_or(Error::NO_COMMIT_VERSION));
                Ok(Committed {
                    version,
                    versionstamp,
                })
            }
            Err(failed) => {
                let error = Error::from_code(failed.code());
                *self.state.lock() = State::Failed(failed);
                keep(promises, Err(error));
                Err((self, error))
            }
        }
    }

    pub(crate) async fn on_error(self, cause: Error) -> Result<Transaction, Error> {
        let taken = std::mem::replace(
            &mut *self.state.lock(),
            State::Closed(Error::TRANSACTION_CANCELLED),
        );
        let transaction = match taken {
            State::Failed(failed) if failed.code() == cause.code() => {
                failed.on_error().await.map_err(error)?
            }
            State::Failed(failed) => retried(failed.reset(), cause).await?,
            State::Open { transaction, .. } => retried(transaction, cause).await?,
            State::Closed(_) => return Err(cause),
        };
        Ok(Transaction {
            engine: self.engine,
            state: Arc::new(Mutex::new(State::open(transaction))),
        })
    }

    pub(crate) fn set_option(&self, option: TransactionOption) {
        use options::TransactionOption as Library;
        let number = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
        let option = match option {
            TransactionOption::Timeout(ms) => Library::Timeout(number(ms)),
            TransactionOption::RetryLimit(limit) => {
                Library::RetryLimit(i32::try_from(limit.max(-1)).unwrap_or(i32::MAX))
            }
            TransactionOption::MaxRetryDelay(ms) => Library::MaxRetryDelay(number(ms)),
            TransactionOption::SizeLimit(bytes) => {
                if !(32..=TRANSACTION_SIZE_LIMIT).contains(&bytes) {
                    return self.write(Err(Error::INVALID_OPTION_VALUE), |_| {});
                }
                Library::SizeLimit(number(bytes as u64))
            }
            TransactionOption::NextWriteNoWriteConflictRange => {
                Library::NextWriteNoWriteConflictRange
            }
            TransactionOption::CommitMayBlock => return,
        };
        if let State::Open {
            transaction,
            error: refused,
            ..
        } = &mut *self.state.lock()
        {
            let set = transaction.set_option(option).map_err(error);
            *refused = refused.or(set.err());
        }
    }

    pub(crate) fn reset(&mut self) {
        *self.state.lock() = State::Closed(Error::TRANSACTION_CANCELLED);
        *self = Transaction::new(self.engine.clone());
    }
}

/// Waits as the library says, and gives the transaction back empty.
async fn retried(
    transaction: client::Transaction,
    cause: Error,
) -> Result<client::Transaction, Error> {
    let cause = client::FdbError::from_code(cause.code());
    transaction.on_error(cause).await.map_err(error)
}

fn parse_stamp(stamp: &[u8]) -> Option<[u8; VERSIONSTAMP_LENGTH]> {
    stamp.try_into().ok()
}

fn keep(promises: Vec<oneshot::Sender<Stamped>>, stamp: Stamped) {
    for promise in promises {
        let _ = promise.send(stamp);
    }
}

fn code(op: MutationType) -> options::MutationType {
    use options::MutationType as Library;
    match op {
        MutationType::Add => Library::Add,
        MutationType::BitAnd => Library::BitAnd,
        MutationType::BitOr => Library::BitOr,
        MutationType::BitXor => Library::BitXor,
        MutationType::AppendIfFits => Library::AppendIfFits,
        MutationType::Max => Library::Max,
        MutationType::Min => Library::Min,
        MutationType::ByteMin => Library::ByteMin,
        MutationType::ByteMax => Library::ByteMax,
        MutationType::CompareAndClear => Library::CompareAndClear,
        MutationType::SetVersionstampedKey => Library::SetVersionstampedKey,
        MutationType::SetVersionstampedValue => Library::SetVersionstampedValue,
    }
}
