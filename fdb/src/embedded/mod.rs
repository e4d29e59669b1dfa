//! The embedded engine: FoundationDB's semantics on a local directory.

mod committer;
mod journal;
mod resolver;
mod storage;
mod transaction;

use crate::{
    Error, OpenError, Watch,
    faults::{FaultSource, Faults},
    limits::TRANSACTION_LIFE,
    range::Keys,
    time::{MonotonicTime, TimeSource},
    watch::{Unarmed, Watches},
};
use bytes::Bytes;
pub(crate) use committer::CommitRequest;
use committer::Committer;
use parking_lot::{Mutex, RwLock};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{fmt, path::Path, sync::Arc, thread::JoinHandle, time::Duration};
pub(crate) use storage::Pair;
use storage::Storage;
use tokio::sync::{Semaphore, mpsc};
pub(crate) use transaction::Transaction;

/// Commits that wait for the committer; a caller of `commit` waits when there are as many.
const QUEUED_COMMITS: usize = 4_096;
/// Bytes of commits that wait or are being written; a caller of `commit` waits when there are as many.
const QUEUED_COMMIT_BYTES: usize = 64 << 20;

/// A disk that took longer for the last batch is not waited for on a caller's thread.
const LONGEST_BLOCK: Duration = Duration::from_millis(1);

/// How the embedded engine is opened.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Memory for blocks read from disk. Default 64 MiB.
    pub cache_bytes: u64,
    /// Commits wait for fsync. Default true; false is for tests alone: a power loss then loses acknowledged commits
    /// (the death of the process does not).
    pub fsync: bool,
    /// Fault mode.
    pub faults: Option<Faults>,
    /// What the age of transactions and the advance of versions are measured by. Default [`MonotonicTime`].
    pub time: Arc<dyn TimeSource>,
    /// Seeds the jitter of retries.
    pub seed: u64,
    /// Called around each write of a batch, to measure it; an error is taken as the disk's (for tests).
    pub write_hook: Option<WriteHook>,
}

/// See [`EmbeddedOptions::write_hook`].
pub type WriteHook = Arc<dyn Fn(WriteStage) -> std::io::Result<()> + Send + Sync>;

/// When a [`WriteHook`] is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteStage {
    /// Nothing of the batch has been written.
    Before,
    /// The batch is on disk; nobody has been told.
    After,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            cache_bytes: 64 << 20,
            fsync: true,
            faults: None,
            time: Arc::new(MonotonicTime::default()),
            seed: 0,
            write_hook: None,
        }
    }
}

impl fmt::Debug for EmbeddedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedOptions")
            .field("cache_bytes", &self.cache_bytes)
            .field("fsync", &self.fsync)
            .field("faults", &self.faults)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// The database as of one version: what a transaction reads.
pub(crate) struct View {
    pub(crate) version: i64,
    snapshot: fjall::Snapshot,
    storage: Arc<Storage>,
}

impl View {
    /// A read is served in place, on the caller's thread: from memory it takes about a microsecond, less than
    /// handing it to another thread would; from disk, one block.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.storage.get(&self.snapshot, key).map_err(read_error)
    }

    pub(crate) fn range(
        &self,
        begin: &Bytes,
        end: &Bytes,
    ) -> impl DoubleEndedIterator<Item = Result<Pair, Error>> + Send + use<> {
        self.storage
            .range(&self.snapshot, begin, end)
            .map(|pair| pair.map_err(read_error))
    }
}

fn read_error(error: fjall::Error) -> Error {
    tracing::error!(%error, "cannot read from the store");
    Error::IO_ERROR
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({})", self.version)
    }
}

/// What the committer and the readers share.
pub(crate) struct Shared {
    /// The newest durable version; an error when nothing can be read any more (closed, or the disk failed).
    published: RwLock<Result<Arc<View>, Error>>,
    pub(crate) watches: Arc<Watches>,
    pub(crate) time: Arc<dyn TimeSource>,
    pub(crate) faults: Option<FaultSource>,
}

/// One open store.
pub(crate) struct Embedded {
    pub(crate) shared: Arc<Shared>,
    /// None once the store is closed.
    committer: Arc<Mutex<Option<Committer>>>,
    queue: Mutex<Option<mpsc::Sender<CommitRequest>>>,
    queued_bytes: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
    jitter: Mutex<ChaCha8Rng>,
}

impl Embedded {
    pub(crate) fn open(directory: &Path, options: EmbeddedOptions) -> Result<Embedded, OpenError> {
        let io_error = |source| OpenError::Io {
            directory: directory.to_path_buf(),
            source,
        };
        let (storage, version) = Storage::open(directory, &options)?;
        let shared = Arc::new(Shared {
            published: RwLock::new(Err(Error::SHUTDOWN_IN_PROGRESS)),
            watches: Arc::default(),
            time: options.time.clone(),
            faults: options.faults.clone().map(FaultSource::new),
        });
        let (queue, requests) = mpsc::channel(QUEUED_COMMITS);
        let committer = Committer::recover(
            shared.clone(),
            Arc::new(storage),
            version,
            options.write_hook,
        )
        .map_err(io_error)?;
        let committer = Arc::new(Mutex::new(Some(committer)));
        let thread = std::thread::Builder::new()
            .name("fdb-committer".to_owned())
            .spawn({
                let committer = committer.clone();
                move || committer::run(&committer, requests)
            })
            .map_err(io_error)?;
        Ok(Embedded {
            shared,
            committer,
            queue: Mutex::new(Some(queue)),
            queued_bytes: Arc::new(Semaphore::new(QUEUED_COMMIT_BYTES)),
            thread: Mutex::new(Some(thread)),
            jitter: Mutex::new(ChaCha8Rng::seed_from_u64(options.seed)),
        })
    }

    /// The newest durable version.
    pub(crate) fn view(&self) -> Result<Arc<View>, Error> {
        self.shared.published.read().clone()
    }

    /// A number in 0..1 for the jitter of a retry.
    pub(crate) fn jitter(&self) -> f64 {
        self.jitter.lock().random()
    }

    /// Hands a commit over and waits for its result.
    ///
    /// With `may_block`, and if no other commit is waiting or under way and the disk is fast, does it here, on the
    /// caller's thread.
    pub(crate) async fn commit(
        &self,
        commit: CommitRequestParts,
        may_block: bool,
    ) -> Result<(i64, u16), Error> {
        let commit = if may_block {
            match self.commit_here(commit) {
                Ok(result) => return result,
                Err(commit) => commit,
            }
        } else {
            commit
        };
        // Why nothing is committed any more; `closed` unless the disk failed.
        let gone = |closed| {
            let published = self.shared.published.read();
            published.as_ref().err().copied().unwrap_or(closed)
        };
        let Some(queue) = self.queue.lock().clone() else {
            return Err(gone(Error::SHUTDOWN_IN_PROGRESS));
        };
        let permits =
            u32::try_from(commit.size_bytes.clamp(1, QUEUED_COMMIT_BYTES)).unwrap_or(u32::MAX);
        let Ok(permit) = self.queued_bytes.clone().acquire_many_owned(permits).await else {
            return Err(gone(Error::SHUTDOWN_IN_PROGRESS));
        };
        let (reply, result) = tokio::sync::oneshot::channel();
        let request = CommitRequest {
            parts: commit,
            reply,
            permit: Some(permit),
        };
        if queue.send(request).await.is_err() {
            return Err(gone(Error::IO_ERROR));
        }
        drop(queue);
        // The committer answers every request that it has taken, unless it dies.
        result.await.unwrap_or(Err(Error::COMMIT_UNKNOWN_RESULT))
    }

    /// The commit's result, or the commit back if it should be queued.
    fn commit_here(
        &self,
        parts: CommitRequestParts,
    ) -> Result<Result<(i64, u16), Error>, CommitRequestParts> {
        let idle = {
            let queue = self.queue.lock();
            queue
                .as_ref()
                .is_some_and(|queue| queue.capacity() == queue.max_capacity())
        };
        let mut held = idle.then(|| self.committer.try_lock()).flatten();
        let Some(committer) = held.as_mut().and_then(|held| held.as_mut()) else {
            return Err(parts);
        };
        if committer.last_write() > LONGEST_BLOCK {
            return Err(parts);
        }
        let (reply, mut result) = tokio::sync::oneshot::channel();
        let request = CommitRequest {
            parts,
            reply,
            permit: None,
        };
        committer.commit_all(&mut std::iter::once(request));
        drop(held);
        Ok(result
            .try_recv()
            .unwrap_or(Err(Error::COMMIT_UNKNOWN_RESULT)))
    }

    /// Arms a committed transaction's watches.
    pub(crate) fn arm(&self, watches: Vec<Unarmed>) {
        for watch in watches {
            let key = watch.key.clone();
            self.shared.watches.arm(watch);
            match self.view().and_then(|view| view.get(&key)) {
                Ok(value) => self.shared.watches.notify(&key, value.as_ref()),
                Err(error) => self.shared.watches.fail_all(error),
            }
        }
    }

    pub(crate) fn watch(&self, key: Bytes, seen: Option<Bytes>) -> Result<(Watch, Unarmed), Error> {
        self.shared.watches.create(key, seen)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.view().map_or(0, |view| view.storage.size_bytes())
    }

    pub(crate) fn defragment(&self) -> Result<(), Error> {
        let view = self.view()?;
        view.storage.defragment().map_err(|error| {
            tracing::error!(%error, "cannot rewrite the store's files");
            Error::IO_ERROR
        })
    }

    /// Stops taking commits, lets the committer finish the queue and waits for it.
    pub(crate) fn stop(&self) {
        self.queue.lock().take();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the committer panicked");
        }
        // Its files, and their lock.
        self.committer.lock().take();
        let mut published = self.shared.published.write();
        if published.is_ok() {
            *published = Err(Error::SHUTDOWN_IN_PROGRESS);
        }
        drop(published);
        self.shared.watches.fail_all(Error::OPERATION_CANCELLED);
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embedded({:?})", self.shared.published.read())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a transaction commits.
pub(crate) struct CommitRequestParts {
    /// The version that was read and when it was taken; `None` if nothing was read that must still hold.
    pub(crate) read: Option<(i64, Duration)>,
    pub(crate) reads: Vec<Keys>,
    /// Beyond what the mutations themselves write.
    pub(crate) writes: Vec<Keys>,
    /// In order; the flag says whether it counts as a write for others' conflicts.
    pub(crate) mutations: Vec<crate::mutation::Mutation>,
    pub(crate) size_bytes: usize,
}

/// Is a read version that was taken at `taken` too old to be used at `now`?
pub(crate) fn too_old(taken: Duration, now: Duration) -> bool {
    taken.saturating_add(TRANSACTION_LIFE) < now
}
