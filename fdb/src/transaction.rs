//! A transaction, whichever the engine.

use crate::{
    Error, embedded,
    mutation::{MutationType, VERSIONSTAMP_LENGTH},
    range::{KeySelector, RangeOption, RangeResult, key_after},
    watch::Watch,
};
use bytes::Bytes;
use futures::Stream;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// One unit of work on the database; see the crate's documentation for the rules.
///
/// Methods take `&self`, as FoundationDB's do, so that reads may run concurrently. A write that breaks a limit does
/// not fail by itself: the error comes from the next read or from `commit`.
///
/// The first read takes the read version and keeps its view of the store until the transaction ends; drop what is
/// no longer needed.
#[derive(Debug)]
pub struct Transaction(pub(crate) Engine);

/// A transaction of one engine.
#[derive(Debug)]
pub(crate) enum Engine {
    Embedded(embedded::Transaction),
    #[cfg(feature = "foundationdb")]
    FoundationDb(crate::foundationdb::Transaction),
}

/// Does the same with the transaction of either engine.
macro_rules! on_engine {
    ($self:expr, $transaction:ident => $body:expr) => {
        match &$self.0 {
            Engine::Embedded($transaction) => $body,
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb($transaction) => $body,
        }
    };
}

/// How a transaction behaves; see [`Transaction::set_option`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionOption {
    /// Milliseconds from the transaction's creation until it fails with 1031; 0 is never. Retries do not extend it.
    Timeout(u64),
    /// [`Transaction::on_error`] gives the error back after so many retries; negative is no limit.
    RetryLimit(i64),
    /// The longest wait between retries, in milliseconds. Default 1,000.
    MaxRetryDelay(u64),
    /// Bytes, 32 to 10,000,000, above which the commit fails with 2101.
    SizeLimit(usize),
    /// The next write does not count as a write for the conflicts of other transactions.
    NextWriteNoWriteConflictRange,
    /// The commit may block the thread that polls it for as long as an fsync takes on a fast disk, up to about a
    /// millisecond: a lone commit is done sooner so. For who commits one transaction at a time. Not FoundationDB's.
    CommitMayBlock,
}

/// A transaction that has been committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The version at which its writes became readable; -1 for a read-only transaction, as in FoundationDB.
    pub version: i64,
    /// The versionstamp; none for a read-only transaction.
    pub versionstamp: Option<[u8; VERSIONSTAMP_LENGTH]>,
}

/// A commit that failed. It holds the transaction, for [`Transaction::on_error`]; until then the transaction
/// answers everything with the same error.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct CommitError {
    /// The transaction, empty of its writes.
    pub transaction: Transaction,
    /// What went wrong.
    #[source]
    pub error: Error,
}

impl From<CommitError> for Error {
    fn from(failed: CommitError) -> Self {
        failed.error
    }
}

/// Resolves to the transaction's versionstamp when it has committed. Errors: 1025 if it was dropped or reset, 2021
/// if it wrote nothing, the commit's own error if that failed.
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Versionstamp(oneshot::Receiver<Stamped>);

/// What a [`Versionstamp`] resolves to.
pub(crate) type Stamped = Result<[u8; VERSIONSTAMP_LENGTH], Error>;

impl Versionstamp {
    /// A versionstamp, and where to put it.
    pub(crate) fn new() -> (oneshot::Sender<Stamped>, Versionstamp) {
        let (promise, versionstamp) = oneshot::channel();
        (promise, Versionstamp(versionstamp))
    }
}

impl Future for Versionstamp {
    type Output = Result<[u8; VERSIONSTAMP_LENGTH], Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|stamp| stamp.unwrap_or(Err(Error::TRANSACTION_CANCELLED)))
    }
}

impl Transaction {
    /// Another handle of the same transaction.
    pub(crate) fn share(&self) -> Self {
        Transaction(match &self.0 {
            Engine::Embedded(transaction) => Engine::Embedded(transaction.share()),
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(transaction) => Engine::FoundationDb(transaction.share()),
        })
    }

    /// The version that the transaction reads at. Taken by the first call of this or of a read.
    ///
    /// # Errors
    /// 1007, 1009, 1031, 1043 after the database was closed, 1510 after its disk failed.
    pub async fn get_read_version(&self) -> Result<i64, Error> {
        on_engine!(self, transaction => transaction.get_read_version().await)
    }

    /// Sets the version to read at, and from which on nothing of what is read may change: that of a commit, or of another
    /// transaction's reads, less than five seconds ago. Has no effect after the first read.
    ///
    /// The embedded engine keeps no old versions: unless it is the newest one, reads fail with 1007.
    pub fn set_read_version(&self, version: i64) {
        on_engine!(self, transaction => transaction.set_read_version(version));
    }

    /// The value of `key`, with the transaction's own writes.
    ///
    /// A snapshot read does not make the transaction conflict with later writers of the key. The value may share
    /// memory with the block that it was read from; copy what is kept for long.
    ///
    /// # Errors
    /// As [`Transaction::get_read_version`], and 2004, 1036.
    pub async fn get(&self, key: &[u8], snapshot: bool) -> Result<Option<Bytes>, Error> {
        on_engine!(self, transaction => transaction.get(key, snapshot).await)
    }

    /// The key that `selector` names; `""` if that would be before the first, `"\xff"` if after the last.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn get_key(&self, selector: &KeySelector, snapshot: bool) -> Result<Bytes, Error> {
        on_engine!(self, transaction => transaction.get_key(selector, snapshot).await)
    }

    /// One batch of a range read; [`RangeResult::more`] says whether a limit ended it. What was read up to there,
    /// and no more, must be unchanged at commit unless it is a snapshot read.
    ///
    /// An inverted range is empty, as in FoundationDB.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn get_range(&self, range: RangeOption) -> Result<RangeResult, Error> {
        on_engine!(self, transaction => transaction.get_range(range).await)
    }

    /// The whole range, batch by batch. [`RangeOption::target_bytes`] is the size of a batch (default 64 KiB),
    /// [`RangeOption::limit`] the number of pairs of all of them together. Ends after the first error.
    pub fn get_ranges(
        &self,
        range: RangeOption,
    ) -> impl Stream<Item = Result<RangeResult, Error>> + Send {
        let mut first = range;
        if first.target_bytes == 0 {
            first.target_bytes = 64 << 10;
        }
        futures::stream::unfold(Some(first), async move |next| {
            let mut range = next?;
            let result = match self.get_range(range.clone()).await {
                Ok(result) => result,
                Err(error) => return Some((Err(error), None)),
            };
            let rest = match (&mut range.limit, result.kvs.last()) {
                (limit, Some((last, _))) if result.more => {
                    if let Some(limit) = limit {
                        *limit = limit.saturating_sub(result.kvs.len());
                    }
                    if range.reverse {
                        range.end = KeySelector::first_greater_or_equal(last.clone());
                    } else {
                        range.begin = KeySelector::first_greater_or_equal(key_after(last));
                    }
                    (range.limit != Some(0)).then_some(range)
                }
                _ => None,
            };
            Some((Ok(result), rest))
        })
    }

    /// Writes `value`. Limits: 2004, 2102, 2103.
    pub fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        on_engine!(self, transaction => transaction.set(key, value));
    }

    /// Removes `key`. Limits: 2004; a key that is too long to exist is ignored.
    pub fn clear(&self, key: impl Into<Bytes>) {
        on_engine!(self, transaction => transaction.clear(key));
    }

    /// Removes the keys from `begin` up to, not including, `end`. Limits: 2004, 2005.
    ///
    /// Costs the embedded engine about a microsecond and 100 bytes of memory per key that exists in the range.
    pub fn clear_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        on_engine!(self, transaction => transaction.clear_range(begin, end));
    }

    /// Changes the value of `key` by an operation on whatever it is at commit. Limits: 2004, 2102, 2103, and 2000
    /// for a versionstamp operation without room for the stamp.
    pub fn atomic_op(&self, key: impl Into<Bytes>, param: impl Into<Bytes>, op: MutationType) {
        on_engine!(self, transaction => transaction.atomic_op(key, param, op));
    }

    /// Makes the transaction conflict with later writers of the range, as if it had read it. Later than the read version:
    /// without one, a transaction conflicts with nobody. Limits: 2004, 2005.
    pub fn add_read_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        on_engine!(self, transaction => transaction.add_read_conflict_range(begin, end));
    }

    /// Makes others that read the range conflict with this transaction, as if it had written it. Limits: 2004, 2005.
    pub fn add_write_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        on_engine!(self, transaction => transaction.add_write_conflict_range(begin, end));
    }

    /// Watches `key`: see [`Watch`]. It compares with the value as the transaction sees it now, its own writes
    /// included.
    ///
    /// At most [`MAX_WATCHES`](crate::MAX_WATCHES) at a time in one database: 1032.
    pub fn watch(&self, key: impl Into<Bytes>) -> Watch {
        on_engine!(self, transaction => transaction.watch(key))
    }

    /// The versionstamp that the transaction will have: see [`Versionstamp`].
    pub fn get_versionstamp(&self) -> Versionstamp {
        on_engine!(self, transaction => transaction.get_versionstamp())
    }

    /// Bytes that count towards the transaction's size limit.
    ///
    /// # Errors
    /// None by the embedded engine.
    pub async fn get_approximate_size(&self) -> Result<usize, Error> {
        match &self.0 {
            Engine::Embedded(transaction) => Ok(transaction.get_approximate_size()),
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(transaction) => transaction.get_approximate_size().await,
        }
    }

    /// Commits; returns when the writes are durable and readable.
    ///
    /// # Errors
    /// 1020, 1007, 1021 (it may or may not have happened), 1031 (likewise, if it passes during the commit), 2101,
    /// 1043, 1510, the first error of the writes, and that of a read, 1036 included.
    pub async fn commit(self) -> Result<Committed, CommitError> {
        let failed = match self.0 {
            Engine::Embedded(transaction) => match transaction.commit().await {
                Ok(committed) => return Ok(committed),
                Err((transaction, error)) => (Engine::Embedded(transaction), error),
            },
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(transaction) => match transaction.commit().await {
                Ok(committed) => return Ok(committed),
                Err((transaction, error)) => (Engine::FoundationDb(transaction), error),
            },
        };
        Err(CommitError {
            transaction: Transaction(failed.0),
            error: failed.1,
        })
    }

    /// Prepares another attempt after `error`: waits as FoundationDB does (10 ms, doubling to a second, times a
    /// random share) and gives the transaction back empty, its options and timeout kept.
    ///
    /// # Errors
    /// The same `error` if it is not retryable or the retry limit is reached; 1031 if the timeout passes.
    pub async fn on_error(self, error: Error) -> Result<Transaction, Error> {
        Ok(Transaction(match self.0 {
            Engine::Embedded(transaction) => Engine::Embedded(transaction.on_error(error).await?),
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(transaction) => {
                Engine::FoundationDb(transaction.on_error(error).await?)
            }
        }))
    }

    /// Sets an option. A value outside its range makes the transaction fail with 2006.
    pub fn set_option(&self, option: TransactionOption) {
        on_engine!(self, transaction => transaction.set_option(option));
    }

    /// Forgets everything, options included, as if the transaction had just been created. What waits on it (watches
    /// that are not armed, versionstamps) ends with 1025.
    pub fn reset(&mut self) {
        match &mut self.0 {
            Engine::Embedded(transaction) => transaction.reset(),
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(transaction) => transaction.reset(),
        }
    }
}
