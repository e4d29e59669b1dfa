//! A transaction of the embedded engine: reads at one version, writes held back until commit, and the ranges that
//! conflicts are decided on.

mod state;

use super::{Embedded, View, too_old};
use crate::{
    Committed, Error, TransactionOption, Versionstamp,
    limits::{
        KEY_SIZE_LIMIT, MAX_KEY, TRANSACTION_SIZE_LIMIT, check_key, check_range, check_value,
        clamped,
    },
    mutation::{self, Mutation, MutationType},
    range::{KeySelector, Keys, RangeOption, RangeResult},
    watch::Watch,
};
use bytes::Bytes;
use parking_lot::Mutex;
use state::{Patience, State};
use std::{sync::Arc, time::Duration};

/// The first wait of [`Transaction::on_error`]; doubles with every retry.
const INITIAL_BACKOFF: Duration = Duration::from_millis(10);
/// The longest one, unless [`TransactionOption::MaxRetryDelay`] says otherwise.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How long 1007 and 1009 wait at most: a new read version is all they need.
const FUTURE_VERSION_RETRY_DELAY: Duration = Duration::from_millis(10);

/// What each method does, and which errors it gives, is told of [`crate::Transaction`].
#[derive(Debug)]
pub(crate) struct Transaction {
    engine: Arc<Embedded>,
    /// Shared with the handle that [`Database::transact`](crate::Database::transact) lends to its closure.
    state: Arc<Mutex<State>>,
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

    pub(crate) async fn get_read_version(&self) -> Result<i64, Error> {
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

    pub(crate) fn set_read_version(&self, version: i64) {
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

    pub(crate) async fn get(&self, key: &[u8], snapshot: bool) -> Result<Option<Bytes>, Error> {
        if key >= MAX_KEY {
            return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
        }
        let view = self.view().await?;
        if key.len() > KEY_SIZE_LIMIT {
            return Ok(None); // nobody can have written it
        }
        self.read(|state| state.get(&view, key, snapshot))
    }

    /// Reads, and remembers if that failed.
    fn read<T>(&self, read: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.state.lock();
        let read = read(&mut state);
        if let Err(error) = read
            && error != Error::KEY_OUTSIDE_LEGAL_RANGE
        {
            state.failed_read.get_or_insert(error);
        }
        read
    }

    pub(crate) async fn get_key(
        &self,
        selector: &KeySelector,
        snapshot: bool,
    ) -> Result<Bytes, Error> {
        let view = self.view().await?;
        self.read(|state| state.get_key(&view, selector, snapshot))
    }

    pub(crate) async fn get_range(&self, range: RangeOption) -> Result<RangeResult, Error> {
        let view = self.view().await?;
        self.read(|state| state.get_range(&view, &range))
    }

    pub(crate) fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        let checked = check_key(&key).and_then(|()| check_value(&value));
        self.state
            .lock()
            .write(checked.map(|()| Mutation::Set { key, value }));
    }

    pub(crate) fn clear(&self, key: impl Into<Bytes>) {
        let key = key.into();
        let mut state = self.state.lock();
        match check_key(&key) {
            Err(Error::KEY_TOO_LARGE) => state.next_write_conflicts = true,
            checked => state.write(checked.map(|()| Mutation::Clear { key })),
        }
    }

    pub(crate) fn clear_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
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
        self.state
            .lock()
            .write(checked.map(|()| Mutation::Atomic { key, param, op }));
    }

    pub(crate) fn add_read_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
        let (begin, end) = (begin.into(), end.into());
        let mut state = self.state.lock();
        match check_range(&begin, &end) {
            Ok(()) => {
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

    pub(crate) fn add_write_conflict_range(&self, begin: impl Into<Bytes>, end: impl Into<Bytes>) {
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

    pub(crate) fn watch(&self, key: impl Into<Bytes>) -> Watch {
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

    pub(crate) fn get_versionstamp(&self) -> Versionstamp {
        let (promise, versionstamp) = Versionstamp::new();
        self.state.lock().versionstamps.push(promise);
        versionstamp
    }

    pub(crate) fn get_approximate_size(&self) -> usize {
        let state = self.state.lock();
        state.written_bytes + state.read_bytes
    }

    pub(crate) async fn commit(self) -> Result<Committed, (Transaction, Error)> {
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
                Err((self, error))
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
            if let Some(error) = state.failed_read {
                return Err(error);
            }
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

    pub(crate) async fn on_error(self, error: Error) -> Result<Transaction, Error> {
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

    pub(crate) fn set_option(&self, option: TransactionOption) {
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

    pub(crate) fn reset(&mut self) {
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
