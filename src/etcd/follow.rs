//! Several servers on one store: seeing what the others have written.
//!
//! Every server follows the head by a watch of the store, and takes over what the log says beyond its own revision (see
//! [`super::sequencer`]), so its watchers see the events of all. A linearizable read first asks for the head as it is
//! now: one look serves all reads that wait, and costs one read of the store, no write. Keep-alives are gathered
//! likewise: one transaction for all that wait.
//!
//! Whoever may be behind says so by [`Follow::behind`]; the sequencer alone changes the index, and tells here how far
//! it has come.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::encoding::Head;
use super::error::Error;
use super::lease::Stamp;
use super::store::{Store, StoreError};

/// The head is looked at this often even if the store's watch says nothing.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Pause between two watches of the head. While others write all the time, what they write is taken over in larger
/// parts; a single write is seen at once.
const WATCH_PAUSE: Duration = Duration::from_millis(5);
/// Pause after a failure of the store.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// Most leases that one transaction keeps alive.
const KEEP_ALIVES: usize = 1000;

type Look = oneshot::Sender<Result<(), Error>>;
type KeepAlive = (i64, oneshot::Sender<Result<Option<Stamp>, Error>>);

/// What is asked of the tasks that follow. Dropped with the keyspace.
pub struct Follow {
    /// The head up to which everything is applied.
    applied: watch::Sender<Head>,
    /// The store has more than the index.
    pub behind: Notify,
    looks: Mutex<Vec<Look>>,
    look: Notify,
    keep_alives: Mutex<Vec<KeepAlive>>,
    keep_alive: Notify,
    /// While a test holds it, the server falls behind.
    #[cfg(test)]
    pub held: tokio::sync::Mutex<()>,
}

/// Whether whoever has applied `applied` knows everything that `head` tells of.
fn covers(applied: &Head, head: &Head) -> bool {
    applied.revision >= head.revision
        && applied.compacted >= head.compacted
        && applied.changes >= head.changes
}

impl Follow {
    /// Starts to follow; ends when `closed` is cancelled.
    pub fn start(head: Head, store: &Store, closed: &CancellationToken) -> Arc<Follow> {
        let follow = Arc::new(Follow {
            applied: watch::Sender::new(head),
            behind: Notify::new(),
            looks: Mutex::default(),
            look: Notify::new(),
            keep_alives: Mutex::default(),
            keep_alive: Notify::new(),
            #[cfg(test)]
            held: tokio::sync::Mutex::default(),
        });
        let tasks = [
            tokio::spawn(watch_head(Arc::clone(&follow), store.clone())),
            tokio::spawn(answer_looks(
                Arc::clone(&follow),
                store.clone(),
                closed.clone(),
            )),
            tokio::spawn(answer_keep_alives(Arc::clone(&follow), store.clone())),
        ];
        let closed = closed.clone();
        tokio::spawn(async move {
            closed.cancelled().await;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
        });
        follow
    }

    /// Everything up to this head is applied.
    pub fn applied(&self, head: Head) {
        self.applied.send_replace(head);
    }

    /// Resolves when everything is applied that was acknowledged, by whichever server, before the call.
    pub async fn current(&self) -> Result<(), Error> {
        let (reply, looked) = oneshot::channel();
        self.looks.lock().push(reply);
        self.look.notify_one();
        looked.await.unwrap_or(Err(Error::Stopped))
    }

    /// Notes in the store that the lease was kept alive; `None` if there is no such lease.
    pub async fn keep_alive(&self, id: i64) -> Result<Option<Stamp>, Error> {
        let (reply, kept) = oneshot::channel();
        self.keep_alives.lock().push((id, reply));
        self.keep_alive.notify_one();
        kept.await.unwrap_or(Err(Error::Stopped))
    }
}

async fn watch_head(follow: Arc<Follow>, store: Store) {
    loop {
        match store.watch_head().await {
            Ok((head, changed)) => {
                if !covers(&follow.applied.borrow(), &head) {
                    follow.behind.notify_one();
                }
                // A watch that fails is made again, like one that has fired.
                let _ = tokio::time::timeout(LOOK_INTERVAL, changed).await;
                tokio::time::sleep(WATCH_PAUSE).await;
            }
            Err(error) => {
                tracing::warn!(%error, "the head of a keyspace cannot be watched");
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
    }
}

async fn answer_looks(follow: Arc<Follow>, store: Store, closed: CancellationToken) {
    loop {
        follow.look.notified().await;
        let waiting = std::mem::take(&mut *follow.looks.lock());
        if waiting.is_empty() {
            continue;
        }
        let answer = |outcome: Result<(), Error>, waiting: Vec<Look>| {
            for reply in waiting {
                // Whoever asked may have gone.
                let _ = reply.send(outcome);
            }
        };
        let head = match store.head().await {
            Ok(head) => head,
            Err(error) => {
                answer(Err(error.into()), waiting);
                continue;
            }
        };
        if covers(&follow.applied.borrow(), &head) {
            answer(Ok(()), waiting);
            continue;
        }
        follow.behind.notify_one();
        // Others that come meanwhile may wait for more.
        let mut applied = follow.applied.subscribe();
        let closed = closed.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                found = applied.wait_for(|applied| covers(applied, &head)) => found.is_ok(),
                () = closed.cancelled() => false,
            };
            let outcome = if outcome { Ok(()) } else { Err(Error::Stopped) };
            answer(outcome, waiting);
        });
    }
}

async fn answer_keep_alives(follow: Arc<Follow>, store: Store) {
    loop {
        follow.keep_alive.notified().await;
        let waiting = std::mem::take(&mut *follow.keep_alives.lock());
        let mut waiting = waiting.into_iter();
        loop {
            let part: Vec<KeepAlive> = waiting.by_ref().take(KEEP_ALIVES).collect();
            if part.is_empty() {
                break;
            }
            let ids: Vec<i64> = part.iter().map(|(id, _)| *id).collect();
            let kept = store.keep_alive(&ids).await;
            for (id, reply) in part {
                let outcome = match &kept {
                    Ok(kept) => Ok(kept.get(&id).copied()),
                    Err(error) => Err(StoreError::clone(error).into()),
                };
                let _ = reply.send(outcome);
            }
        }
    }
}
