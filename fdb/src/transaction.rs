//! A transaction: reads at one version, writes held back until commit, and the ranges that conflicts are decided on.

mod state;

use crate::{
    Error,
    embedded::{Embedded, View, too_old},
    limits::{KEY_SIZE_LIMIT, MAX_KEY, TRANSACTION_SIZE_LIMIT},
    mutation::{self, Mutation, MutationType, VERSIONSTAMP_LENGTH},
    range::{KeySelector, Keys, RangeOption, RangeResult, key_after},
    watch::Watch,
};
use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use state::{Patience, State, check_key, check_range, check_value, clamped};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::oneshot;

/// The first wait of [`Transaction::on_error`]; doubles with every retry.
const INITIAL_BACKOFF: Duration = Duration::from_millis(10);
/// The longest one, unless [`TransactionOption::MaxRetryDelay`] says otherwise.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How long 1007 and 1009 wait at most: a new read version is all they need.
const FUTURE_VERSION_RETRY_DELAY: Duration = Duration::from_millis(10);

/// One unit of work on the database; see the crate's documentation for the rules.
///
/// Methods take `&self`, as FoundationDB's do, so that reads may run concurrently. A write that breaks a limit does
/// not fail by itself: the error comes from the next read or from `commit`.
///
/// The first read takes the read version and keeps its view of the store until the transaction ends; drop what is
/// no longer needed.
#[derive(Debug)]
pub struct Transaction {
    engine: Arc<Embedded>,
    /// Shared with the handle that [`Database::transact`](crate::Database::transact) lends to its closure.
    state: Arc<Mutex<State>>,
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
pub struct Versionstamp(oneshot::Receiver<Result<[u8; VERSIONSTAMP_LENGTH], Error>>);

impl Future for Versionstamp {
    type Output = Result<[u8; VERSIONSTAMP_LENGTH], Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|stamp| stamp.unwrap_or(Err(Error::TRANSACTION_CANCELLED)))
    }
}

impl Transaction {
    pub(crate) fn new(engine: Arc<Embedded>) -> Self {
        let patience = Patience {
            created: engine.shared.time.now(),
            timeout: None,
            retry_limit: None,
            retries: 0,
            backoff: INITIAL_BACKOFF,
            max_backoff: MAX_BACKOFF,
            size_limit: TRANSACTION_SIZE_LIMIT,
        };
        Transaction {
            engine,
            state: Arc::new(Mutex::new(State::new(patience))),
        }
    }

    /// Another handle of the same transaction.
    pub(crate) fn share(&self) -> Self {
        Transaction {
            engine: self.engine.clone(),
            state: self.state.clone(),
        }
    }

    /// The version that the transaction reads at. Taken by the first call of this or of a read.
    ///
    /// # Errors
    /// 1007, 1009, 1031, 1043 after the database was closed, 1510 after its disk failed.
    pub async fn get_read_version(&self) -> Result<i64, Error> {
        self.view().await.map(|view| view.version)
    }

    /// The view to read, if the transaction may still read.
    async fn view(&self) -> Result<Arc<View>, Error> {
        if let Some(faults) = &self.engine.shared.faults {
            faults.delay().await;
            if let Some(error) = faults.read_error() {
                return Err(error);
            }
        }
        let mut state = self.state.lock();
        let now = self.engine.shared.time.now();
        self.check_alive(&state, now)?;
        match &state.view {
            Some((_, taken)) if too_old(*taken, now) => Err(Error::TRANSACTION_TOO_OLD),
            Some((view, _)) => Ok(view.clone()),
            None => {
                let view = self.engine.view()?;
                match state.pinned {
                    Some((version, _)) if version < view.version => {
                        return Err(Error::TRANSACTION_TOO_OLD);
                    }
                    Some((version, _)) if version > view.version => {
                        return Err(Error::FUTURE_VERSION);
                    }
                    _ => {}
                }
                state.view = Some((view.clone(), now));
                Ok(view)
            }
        }
    }

    /// Sets the version to read at, and from which on nothing of what is read may change: that of a commit, or of another
    /// transaction's reads, less than five seconds ago. Has no effect after the first read.
    ///
    /// The embedded engine keeps no old versions: unless it is the newest one, reads fail with 1007.
    pub fn set_read_version(&self, version: i64) {
        let mut state = self.state.lock();
        if state.view.is_none() {
            state.pinned = Some((version, self.engine.shared.time.now()));
        }
    }

    fn check_alive(&self, state: &State, now: Duration) -> Result<(), Error> {
        if let Some(error) = state.error {
            return Err(error);
        }
        match self.remaining(state, now) {
            Some(Duration::ZERO) => Err(Error::TRANSACTION_TIMED_OUT),
            _ => Ok(()),
        }
    }

    /// The time that is left to the transaction; none if it has no timeout.
    fn remaining(&self, state: &State, now: Duration) -> Option<Duration> {
        let timeout = state.patience.timeout?;
        Some((state.patience.created + timeout).saturating_sub(now))
    }

    /// The value of `key`, with the transaction's own writes.
    ///
    /// A snapshot read does not make the transaction conflict with later writers of the key. The value may share
    /// memory with the block that it was read from; copy what is kept for long.
    ///
    /// # Errors
    /// As [`Transaction::get_read_version`], and 2004, 1036.
    pub async fn get(&self, key: &[u8], snapshot: bool) -> Result<Option<Bytes>, Error> {
        if key >= MAX_KEY {
            return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
        }
        let view = self.view().await?;
        if key.len() > KEY_SIZE_LIMIT {
            return Ok(None); // nobody can have written it
        }
        self.state.lock().get(&view, key, snapshot)
    }

    /// The key that `selector` names; `""` if that would be before the first, `"\xff"` if after the last.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn get_key(&self, selector: &KeySelector, snapshot: bool) -> Result<Bytes, Error> {
        let view = self.view().await?;
        self.state.lock().get_key(&view, selector, snapshot)
    }

    /// One batch of a range read; [`RangeResult::more`] says whether a limit ended it. What was read up to there,
    /// and no more, must be unchanged at commit unless it is a snapshot read.
    ///
    /// An inverted range is empty, as in FoundationDB.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn get_range(&self, range: RangeOption) -> Result<RangeResult, Error> {
        let view = self.view().await?;
        self.state.lock().get_range(&view, &range)
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
        let (key, value) = (key.into(), value.into());
        let checked = check_key(&key).and_then(|()| check_value(&value));
        self.state
            .lock()
            .write(checked.map(|()| Mutation::Set { key, value }));
    }

    /// Removes `key`. Limits: 2004; a key that is too long to exist is ignored.
    pub fn clear(&self, key: impl Into<Bytes>) {
        let key = key.into();
        let mut state = self.state.lock();
        match check_key(&key) {
            Err(Error::KEY_TOO_LARGE) => state.next_write_conflicts = true,
            checked => state.write(checked.map(|()| Mutation::Clear { key })),
        }
    }

    /// Removes the keys from `begin` up to, not including, `end`. Limits: 2004, 2005.
    ///
    /// Costs the embedded engine about a microsecond and 100 bytes of memory per key that exists in the range.
    pub fn clear_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        let (begin, end) = (begin.into(), end.into());
        let mut state = self.state.lock();
        if begin == end && end.as_ref() <= MAX_KEY {
            state.next_write_conflicts = true;
            return;
        }
        let checked = check_range(&begin, &end);
        state.write(checked.map(|()| Mutation::ClearRange {
            begin: clamped(begin),
            end: clamped(end),
        }));
    }

    /// Changes the value of `key` by an operation on whatever it is at commit. Limits: 2004, 2102, 2103, and 2000
    /// for a versionstamp operation without room for the stamp.
    pub fn atomic_op(&self, key: impl Into<Bytes>, param: impl Into<Bytes>, op: MutationType) {
        let (key, param) = (key.into(), param.into());
        let operand = match op {
            MutationType::SetVersionstampedKey => mutation::split_offset(&key).map(drop),
            MutationType::SetVersionstampedValue => mutation::split_offset(&param).map(drop),
            _ => Ok(()),
        };
        let checked = check_key(&key)
            .and_then(|()| check_value(&param))
            .and(operand);
        self.state
            .lock()
            .write(checked.map(|()| Mutation::Atomic { key, param, op }));
    }

    /// Makes the transaction conflict with later writers of the range, as if it had read it. Limits: 2004, 2005.
    pub fn add_read_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        let (begin, end) = (begin.into(), end.into());
        let mut state = self.state.lock();
        match check_range(&begin, &end) {
            Ok(()) => {
                if state.view.is_none()
                    && state.pinned.is_none()
                    && let Ok(view) = self.engine.view()
                {
                    // FoundationDB takes the read version at commit at the latest; here it costs nothing now.
                    state.view = Some((view, self.engine.shared.time.now()));
                }
                let version = state.view.as_ref().map_or(0, |(view, _)| view.version);
                let State {
                    overlay, mutations, ..
                } = &mut *state;
                overlay.catch_up(mutations, version);
                state.depend_on(&clamped(begin), &clamped(end));
            }
            Err(error) => {
                state.error.get_or_insert(error);
            }
        }
    }

    /// Makes others that read the range conflict with this transaction, as if it had written it. Limits: 2004, 2005.
    pub fn add_write_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        let (begin, end) = (begin.into(), end.into());
        let mut state = self.state.lock();
        match check_range(&begin, &end) {
            Ok(()) if begin == end => {}
            Ok(()) => {
                let keys = Keys::Range(clamped(begin), clamped(end));
                state.written_bytes += keys.size_bytes();
                state.writes.push(keys);
            }
            Err(error) => {
                state.error.get_or_insert(error);
            }
        }
    }

    /// Watches `key`: see [`Watch`]. It compares with the value as the transaction sees it now, its own writes
    /// included.
    ///
    /// At most [`MAX_WATCHES`](crate::MAX_WATCHES) at a time in one database: 1032.
    pub fn watch(&self, key: impl Into<Bytes>) -> Watch {
        let key = key.into();
        match self.try_watch(key) {
            Ok(watch) => watch,
            Err(error) => Watch::failed(error),
        }
    }

    fn try_watch(&self, key: Bytes) -> Result<Watch, Error> {
        check_key(&key)?;
        let now = self.engine.shared.time.now();
        let mut state = self.state.lock();
        self.check_alive(&state, now)?;
        let view = match &state.view {
            Some((_, taken)) if too_old(*taken, now) => return Err(Error::TRANSACTION_TOO_OLD),
            Some((view, _)) => view.clone(),
            None => {
                let view = self.engine.view()?;
                state.view = Some((view.clone(), now));
                view
            }
        };
        let seen = state.get(&view, &key, false)?;
        let (watch, unarmed) = self.engine.watch(key, seen)?;
        state.watches.push(unarmed);
        Ok(watch)
    }

    /// The versionstamp that the transaction will have: see [`Versionstamp`].
    pub fn get_versionstamp(&self) -> Versionstamp {
        let (promise, versionstamp) = oneshot::channel();
        self.state.lock().versionstamps.push(promise);
        Versionstamp(versionstamp)
    }

    /// Bytes that count towards the transaction's size limit.
    #[must_use]
    pub fn get_approximate_size(&self) -> usize {
        let state = self.state.lock();
        state.written_bytes + state.read_bytes
    }

    /// Commits; returns when the writes are durable and readable.
    ///
    /// # Errors
    /// 1020, 1007, 1021 (it may or may not have happened), 1031 (likewise, if it passes during the commit), 2101,
    /// 1043, 1510, and the first error of the writes.
    pub async fn commit(self) -> Result<Committed, CommitError> {
        match self.try_commit().await {
            Ok(committed) => Ok(committed),
            Err(error) => {
                let mut state = self.state.lock();
                state.error = Some(error);
                state.watches.drain(..).for_each(|watch| watch.fail(error));
                for promise in state.versionstamps.drain(..) {
                    let _ = promise.send(Err(error));
                }
                drop(state);
                Err(CommitError {
                    transaction: self,
                    error,
                })
            }
        }
    }

    async fn try_commit(&self) -> Result<Committed, Error> {
        if let Some(faults) = &self.engine.shared.faults {
            faults.delay().await;
        }
        let now = self.engine.shared.time.now();
        let (parts, remaining, may_block) = {
            let mut state = self.state.lock();
            let may_block = state.commit_may_block;
            self.check_alive(&state, now)?;
            if state.written_bytes + state.read_bytes > state.patience.size_limit {
                return Err(Error::TRANSACTION_TOO_LARGE);
            }
            state.error = Some(Error::USED_DURING_COMMIT);
            if state.mutations.is_empty() && state.writes.is_empty() {
                (None, None, false)
            } else {
                let remaining = self.remaining(&state, now);
                (Some(state.take_commit()), remaining, may_block)
            }
        };
        let committed = match parts {
            None => Committed {
                version: -1,
                versionstamp: None,
            },
            Some(parts) => {
                let commit = self.engine.commit(parts, may_block);
                let (version, order) = match remaining {
                    None => commit.await?,
                    Some(remaining) => tokio::time::timeout(remaining, commit)
                        .await
                        .unwrap_or(Err(Error::TRANSACTION_TIMED_OUT))?,
                };
                Committed {
                    version,
                    versionstamp: Some(mutation::versionstamp(version, order)),
                }
            }
        };
        let (watches, promises) = {
            let mut state = self.state.lock();
            (
                std::mem::take(&mut state.watches),
                std::mem::take(&mut state.versionstamps),
            )
        };
        for promise in promises {
            let _ = promise.send(committed.versionstamp.ok_or(Error::NO_COMMIT_VERSION));
        }
        self.engine.arm(watches);
        Ok(committed)
    }

    /// Prepares another attempt after `error`: waits as FoundationDB does (10 ms, doubling to a second, times a
    /// random share) and gives the transaction back empty, its options and timeout kept.
    ///
    /// # Errors
    /// The same `error` if it is not retryable or the retry limit is reached; 1031 if the timeout passes.
    pub async fn on_error(self, error: Error) -> Result<Transaction, Error> {
        if !error.is_retryable() {
            return Err(error);
        }
        let (wait, remaining, patience) = {
            let mut state = self.state.lock();
            let now = self.engine.shared.time.now();
            let remaining = self.remaining(&state, now);
            if remaining == Some(Duration::ZERO) {
                return Err(Error::TRANSACTION_TIMED_OUT);
            }
            let patience = &mut state.patience;
            if patience
                .retry_limit
                .is_some_and(|limit| patience.retries >= limit)
            {
                return Err(error);
            }
            patience.retries += 1;
            let wait = if matches!(error, Error::TRANSACTION_TOO_OLD | Error::FUTURE_VERSION) {
                FUTURE_VERSION_RETRY_DELAY.min(patience.max_backoff)
            } else {
                let wait = patience.backoff.min(patience.max_backoff);
                patience.backoff = (wait * 2).min(patience.max_backoff);
                wait
            };
            (
                wait.mul_f64(self.engine.jitter()),
                remaining,
                patience.clone(),
            )
        };
        if remaining.is_some_and(|remaining| remaining <= wait) {
            return Err(Error::TRANSACTION_TIMED_OUT);
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.abandon();
        Ok(Transaction {
            engine: self.engine,
            state: Arc::new(Mutex::new(State::new(patience))),
        })
    }

    /// Sets an option. A value outside its range makes the transaction fail with 2006.
    pub fn set_option(&self, option: TransactionOption) {
        let mut state = self.state.lock();
        let patience = &mut state.patience;
        match option {
            TransactionOption::Timeout(ms) => {
                patience.timeout = (ms > 0).then(|| Duration::from_millis(ms));
            }
            TransactionOption::RetryLimit(limit) => {
                patience.retry_limit = u64::try_from(limit).ok();
            }
            TransactionOption::MaxRetryDelay(ms) => {
                patience.max_backoff = Duration::from_millis(ms);
            }
            TransactionOption::SizeLimit(bytes)
                if (32..=TRANSACTION_SIZE_LIMIT).contains(&bytes) =>
            {
                patience.size_limit = bytes;
            }
            TransactionOption::SizeLimit(_) => {
                state.error.get_or_insert(Error::INVALID_OPTION_VALUE);
            }
            TransactionOption::NextWriteNoWriteConflictRange => state.next_write_conflicts = false,
            TransactionOption::CommitMayBlock => state.commit_may_block = true,
        }
    }

    /// Forgets everything, options included, as if the transaction had just been created. What waits on it (watches
    /// that are not armed, versionstamps) ends with 1025.
    pub fn reset(&mut self) {
        self.abandon();
        *self = Transaction::new(self.engine.clone());
    }

    /// Other handles of this attempt, if a closure kept one, get 1025 from now on.
    fn abandon(&self) {
        let mut state = self.state.lock();
        let patience = state.patience.clone();
        *state = State::new(patience);
        state.error = Some(Error::TRANSACTION_CANCELLED);
    }
}
