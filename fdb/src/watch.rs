//! Watches: a future that resolves when a key's value is no longer what a transaction saw.

use crate::{Error, limits::MAX_WATCHES};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// Resolves when a commit has changed the key's value from what the transaction saw that created the watch.
///
/// It is armed when that transaction commits (a read-only one, too) and outlives it. A value that changes and
/// changes back may go unnoticed. Dropping it cancels it. Errors: 1025 if the transaction was dropped or reset
/// before it committed, the commit's own error if that failed, 1101 if the database was closed, 1510 if its disk
/// failed.
#[must_use = "a watch that is dropped is cancelled"]
#[derive(Debug)]
pub struct Watch {
    fired: oneshot::Receiver<Result<(), Error>>,
    registration: Option<Registration>,
    /// What waits for FoundationDB's watch.
    task: Option<tokio::task::AbortHandle>,
}

#[derive(Debug)]
struct Registration {
    watches: Arc<Watches>,
    key: Bytes,
    id: u64,
}

impl Watch {
    /// A watch that could not be made.
    pub(crate) fn failed(error: Error) -> Watch {
        let (fire, fired) = oneshot::channel();
        let _ = fire.send(Err(error));
        Watch {
            fired,
            registration: None,
            task: None,
        }
    }

    /// A watch that another one is behind.
    #[cfg(feature = "foundationdb")]
    pub(crate) fn of(watch: impl Future<Output = Result<(), Error>> + Send + 'static) -> Watch {
        let (fire, fired) = oneshot::channel();
        let task = tokio::spawn(async move {
            let _ = fire.send(watch.await);
        });
        Watch {
            fired,
            registration: None,
            task: Some(task.abort_handle()),
        }
    }
}

impl Future for Watch {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.fired)
            .poll(context)
            .map(|fired| fired.unwrap_or(Err(Error::TRANSACTION_CANCELLED)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(Registration { watches, key, id }) = self.registration.take() {
            watches.remove(&key, id);
        }
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// A watch of a transaction that has not committed yet.
#[derive(Debug)]
pub(crate) struct Unarmed {
    id: u64,
    pub(crate) key: Bytes,
    seen: Option<Bytes>,
    fire: oneshot::Sender<Result<(), Error>>,
}

impl Unarmed {
    pub(crate) fn fail(self, error: Error) {
        let _ = self.fire.send(Err(error));
    }
}

/// The watches of one database, at most [`MAX_WATCHES`].
#[derive(Debug, Default)]
pub(crate) struct Watches {
    armed: Mutex<HashMap<Bytes, Vec<Unarmed>>>,
    /// How many keys are in `armed`: lets a commit that nobody watches skip the lock.
    watched_keys: AtomicUsize,
    /// Watches that exist, armed or not.
    count: AtomicUsize,
    next_id: AtomicU64,
}

impl Watches {
    /// Makes a watch on `key`, whose value the transaction sees as `seen`.
    ///
    /// # Errors
    /// [`Error::TOO_MANY_WATCHES`].
    pub(crate) fn create(
        self: &Arc<Self>,
        key: Bytes,
        seen: Option<Bytes>,
    ) -> Result<(Watch, Unarmed), Error> {
        let room = self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < MAX_WATCHES).then_some(count + 1)
            });
        if room.is_err() {
            return Err(Error::TOO_MANY_WATCHES);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (fire, fired) = oneshot::channel();
        let watch = Watch {
            fired,
            registration: Some(Registration {
                watches: self.clone(),
                key: key.clone(),
                id,
            }),
            task: None,
        };
        Ok((
            watch,
            Unarmed {
                id,
                key,
                seen,
                fire,
            },
        ))
    }

    /// Arms a watch. The caller then looks at the value once more and calls [`Watches::notify`], because a commit
    /// may have passed by between the transaction's read and now.
    pub(crate) fn arm(&self, watch: Unarmed) {
        let mut armed = self.armed.lock();
        if watch.fire.is_closed() {
            return;
        }
        armed.entry(watch.key.clone()).or_default().push(watch);
        self.watched_keys.store(armed.len(), Ordering::SeqCst);
    }

    /// Fires the watches of `key` that saw something else.
    pub(crate) fn notify(&self, key: &Bytes, value: Option<&Bytes>) {
        let mut armed = self.armed.lock();
        let Some(watches) = armed.get_mut(key) else {
            return;
        };
        for watch in watches.extract_if(.., |watch| watch.seen.as_ref() != value) {
            let _ = watch.fire.send(Ok(()));
        }
        if watches.is_empty() {
            armed.remove(key);
        }
        self.watched_keys.store(armed.len(), Ordering::SeqCst);
    }

    /// Fires what a batch of commits changed; called after the batch has become readable.
    pub(crate) fn notify_all(&self, changes: &BTreeMap<Bytes, Option<Bytes>>) {
        if self.watched_keys.load(Ordering::SeqCst) == 0 {
            return;
        }
        for (key, value) in changes {
            self.notify(key, value.as_ref());
        }
    }

    /// Ends all watches with an error.
    pub(crate) fn fail_all(&self, error: Error) {
        let armed = std::mem::take(&mut *self.armed.lock());
        self.watched_keys.store(0, Ordering::SeqCst);
        for watch in armed.into_values().flatten() {
            watch.fail(error);
        }
    }

    fn remove(&self, key: &Bytes, id: u64) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        let mut armed = self.armed.lock();
        if let Some(watches) = armed.get_mut(key) {
            watches.retain(|watch| watch.id != id);
            if watches.is_empty() {
                armed.remove(key);
            }
        }
        self.watched_keys.store(armed.len(), Ordering::SeqCst);
    }
}
