//! A keyspace: one whole etcd, with its own revisions, leases, watchers and compaction.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::auth::{Proof, Tokens};
use super::auto_compaction::{self, AutoCompaction};
use super::batch::{Answer, Command};
use super::cache::{CachedBytes, CachedValues};
use super::encoding::Head;
use super::error::Error;
use super::follow::Follow;
use super::key_range::{End, KeyRange};
use super::lease::{Granted, LeaseBook};
use super::metrics::{KeyspaceMetrics, Metrics};
use super::record::Revision;
use super::sequencer::{QUEUE_LEN, Queued, Sequencer};
use super::store::{Store, StoreError};
use super::view::{Fetched, State};
use super::watch::hub::Hub;
use crate::clock::Clock;

/// Blocks of the index that compaction works on while readers wait.
const COMPACTION_BLOCKS: usize = 8;

/// What one keyspace may have, and is given.
#[derive(Debug)]
pub struct Limits {
    /// Memory for values, at first.
    pub cache_bytes: usize,
    /// Requests that wait for the sequencer.
    pub pending: usize,
    /// Compacts by itself.
    pub auto_compaction: Option<AutoCompaction>,
    pub tokens: Tokens,
}

pub struct Keyspace {
    pub name: Arc<str>,
    pub store: Store,
    pub clock: Clock,
    /// Durable, and changed only by the sequencer and, where nobody can see it, by compaction.
    pub state: RwLock<State>,
    pub leases: Mutex<LeaseBook>,
    pub tokens: Tokens,
    pub hub: Hub,
    pub cached_bytes: CachedBytes,
    pub metrics: KeyspaceMetrics,
    /// Where several servers share the store.
    pub follow: Option<Arc<Follow>>,
    /// Ends everything that works for this keyspace.
    pub closed: CancellationToken,
    queue: mpsc::Sender<Queued>,
    /// A permit for each request that waits.
    room: Semaphore,
    /// One compaction at a time.
    compacting: tokio::sync::Mutex<()>,
}

impl Keyspace {
    /// Loads the keyspace from its log and starts its sequencer. The second value resolves when
    /// the sequencer has ended.
    pub async fn open(
        name: Arc<str>,
        store: Store,
        clock: Clock,
        limits: Limits,
        metrics: Arc<Metrics>,
        closed: CancellationToken,
    ) -> Result<(Arc<Keyspace>, tokio::task::JoinHandle<()>), StoreError> {
        let cached_bytes = CachedBytes::new(limits.cache_bytes);
        let Loaded {
            head,
            state,
            leases,
            values,
        } = load(&store, &clock, &cached_bytes).await?;
        if store.is_shared() {
            store.clear_leftovers(clock.now().0).await?;
        }
        let follow = store
            .is_shared()
            .then(|| Follow::start(head, &store, &closed));
        let (queue, waiting) = mpsc::channel(QUEUE_LEN);
        let keyspace = Arc::new(Keyspace {
            name,
            hub: Hub::new(head.revision),
            store,
            clock,
            state: RwLock::new(state),
            leases: Mutex::new(leases),
            tokens: limits.tokens,
            cached_bytes,
            metrics: KeyspaceMetrics::new(metrics),
            follow,
            closed,
            queue,
            room: Semaphore::new(limits.pending.min(Semaphore::MAX_PERMITS)),
            compacting: tokio::sync::Mutex::new(()),
        });
        if head.compacted > 0 {
            // The last run may have ended in the middle of it.
            Keyspace::spawn_compaction(&keyspace, head.compacted, true);
        }
        let sequencer = Sequencer::new(Arc::clone(&keyspace), waiting, head, values);
        let task = tokio::spawn(sequencer.run());
        if let Some(mode) = limits.auto_compaction {
            tokio::spawn(auto_compaction::run(Arc::downgrade(&keyspace), mode));
        }
        Ok((keyspace, task))
    }

    /// As [`Keyspace::submit_as`], for the server itself.
    pub async fn submit(&self, command: Command) -> Result<Answer, Error> {
        self.submit_as(command, Proof::Trusted).await
    }

    /// Has the sequencer do it, if `proof` still holds. Resolves when the outcome is durable. Refuses what is too much
    /// at once.
    pub async fn submit_as(&self, command: Command, proof: Proof) -> Result<Answer, Error> {
        let room = self.room.try_acquire();
        let _room = room.map_err(|_| Error::TooManyRequests)?;
        let (reply, answer) = oneshot::channel();
        let queued = Queued {
            command,
            proof,
            reply: Some(reply),
        };
        self.queue.send(queued).await.map_err(|_| Error::Stopped)?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Resolves when everything can be read that was acknowledged before, by whichever server of the store.
    pub async fn catch_up(&self) -> Result<(), Error> {
        match &self.follow {
            None => Ok(()),
            Some(follow) => follow.current().await,
        }
    }

    /// Requests that wait for the sequencer.
    pub fn pending(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// The newest durable revision.
    pub fn revision(&self) -> i64 {
        self.state.read().revision
    }

    /// Adds the records of these revisions, values included, as far as compaction has not removed them.
    pub async fn fetch(
        &self,
        revisions: &[Revision],
        into: &mut Fetched,
    ) -> Result<(), StoreError> {
        for revision in revisions {
            if let Some(record) = self.store.read_record(*revision).await? {
                into.insert(*revision, Arc::new(record));
            }
        }
        Ok(())
    }

    /// While it is held, no record is removed, and compactions wait to free what they have made unreachable.
    pub async fn hold_compaction(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.compacting.lock().await
    }

    /// Frees what compaction at `revision` has made unreachable, in the background; in the store, too, if no other
    /// server does that.
    pub fn spawn_compaction(keyspace: &Arc<Keyspace>, revision: i64, in_store: bool) {
        let keyspace = Arc::clone(keyspace);
        tokio::spawn(async move {
            let closed = keyspace.closed.clone();
            tokio::select! {
                () = closed.cancelled() => {}
                outcome = keyspace.compact_physically(revision, in_store) => {
                    if let Err(error) = outcome {
                        // Nothing is wrong but the space it takes: the next start tries again.
                        tracing::warn!(keyspace = %keyspace.name, %error, "compaction was cut short");
                    }
                }
            }
        });
    }

    /// Frees what compaction at `revision` has made unreachable: in memory, and in the store if asked to.
    pub async fn compact_physically(
        &self,
        revision: i64,
        in_store: bool,
    ) -> Result<(), StoreError> {
        let _alone = self.compacting.lock().await;
        let mut from = Bytes::new();
        loop {
            let step = {
                let mut state = self.state.write();
                state.compact(revision, &from, COMPACTION_BLOCKS)
            };
            self.cached_bytes.remove(&step.removed);
            if in_store {
                self.store.clear_records(&step.removed).await?;
            }
            match step.next {
                Some(next) => from = next,
                None => return Ok(()),
            }
            tokio::task::yield_now().await;
        }
    }
}

/// A keyspace as the store has it.
pub struct Loaded {
    pub head: Head,
    pub state: State,
    pub leases: LeaseBook,
    pub values: CachedValues,
}

/// Reads the whole keyspace. What it takes of `cached_bytes` is the caller's to give back.
pub async fn load(
    store: &Store,
    clock: &Clock,
    cached_bytes: &CachedBytes,
) -> Result<Loaded, StoreError> {
    loop {
        let head = store.head().await?;
        let state = RwLock::new(State::default());
        let mut values = CachedValues::default();
        let mut from = Some(Revision { main: 0, sub: 0 });
        while let Some(start) = from {
            let (records, next) = store.read_log(start, head.revision).await?;
            {
                let mut state = state.write();
                for record in records {
                    values.push(&record, cached_bytes);
                    state.insert(Arc::new(record));
                }
            }
            values.trim(&state, cached_bytes);
            from = next;
        }
        let alarms = store.alarms().await?;
        let auth = Arc::new(store.auth().await?);
        let granted = store.leases().await?;
        if store.is_shared() {
            // What another server has compacted meanwhile may be missing, a tombstone for one.
            let now = store.head().await?;
            if now.compacted != head.compacted {
                cached_bytes.sub(state.into_inner().cached_bytes());
                continue;
            }
        }
        let mut state = state.into_inner();
        state.revision = head.revision;
        state.compacted = head.compacted;
        state.alarms = alarms;
        state.auth = auth;
        let leases = load_leases(granted, &state, store.is_shared(), clock);
        return Ok(Loaded {
            head,
            state,
            leases,
            values,
        });
    }
}

fn load_leases(
    granted: Vec<(i64, Granted)>,
    state: &State,
    shared: bool,
    clock: &Clock,
) -> LeaseBook {
    let mut leases = LeaseBook::new(shared);
    if granted.is_empty() {
        return leases;
    }
    let now = clock.now();
    for (id, granted) in granted {
        leases.restore(id, granted, now);
    }
    let all = KeyRange {
        start: Bytes::new(),
        end: End::Open,
    };
    state.index.scan(&all, state.revision, |record| {
        leases.attach(record.lease, &record.key);
        ControlFlow::Continue(())
    });
    leases
}
