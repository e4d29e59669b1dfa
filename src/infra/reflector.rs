//! A keyspace held in memory: listed once, then followed by a watch.
//!
//! It is how a part of the program observes. Decisions read from here; changes go to etcd with a
//! compare on the revision seen here, so a stale view can only make a change fail, never go wrong.
//!
//! Worked example: the list at revision 7 holds `/vm/a`. Somebody puts `/vm/b` at revision 8. The watch
//! delivers it: first the record is in the map, then every observer has been told, and only then does
//! [`Reflector::revision`] read 8. So whoever waits for revision 8 sees the record, and finds the work
//! that it causes already queued. The whole keyspace is followed, whatever part of it is decoded:
//! otherwise the revision seen would lag behind the head for ever.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use etcd_proto::mvccpb::event::EventType;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Idle};
use crate::etcd::client::{Client, ClientError};

/// Between attempts to reach an etcd that is away. Real time on purpose: under a manual clock nothing
/// moves before the view has caught up.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How far the keyspace's history may grow before it is compacted, in revisions.
const COMPACT_EVERY: i64 = 20_000;
/// What a compaction leaves for watches of others that are a little behind, in revisions.
const RETAINED: i64 = 5_000;

/// A decoded record and the revision of its last change.
#[derive(Debug)]
pub struct Stored<R> {
    pub record: Arc<R>,
    pub mod_revision: i64,
}

impl<R> Clone for Stored<R> {
    fn clone(&self) -> Self {
        Stored {
            record: Arc::clone(&self.record),
            mod_revision: self.mod_revision,
        }
    }
}

pub type Records<R> = BTreeMap<String, Stored<R>>;

/// A record came, changed or went.
pub struct Change<'a, R> {
    pub key: &'a str,
    pub old: Option<&'a Arc<R>>,
    pub new: Option<&'a Arc<R>>,
    /// All records as they are after the change.
    pub records: &'a Records<R>,
}

/// Told of every change, in order, under the view's lock: it must not call the reflector.
/// `false` says that it wants to hear no more.
pub type Observer<R> = Box<dyn Fn(&Change<'_, R>) -> bool + Send + Sync>;

/// Reads a record; `None` for keys that are not of interest.
pub type Decode<R> = fn(key: &str, value: &[u8]) -> Option<R>;

/// Whether a record is held in the view. One that is not is told of when it comes, and forgotten.
pub type Keep<R> = fn(&R) -> bool;

/// Cheap to clone.
pub struct Reflector<R> {
    shared: Arc<Shared<R>>,
}

impl<R> Clone for Reflector<R> {
    fn clone(&self) -> Self {
        Reflector {
            shared: Arc::clone(&self.shared),
        }
    }
}

struct Shared<R> {
    client: Client,
    decode: Decode<R>,
    keep: Keep<R>,
    view: RwLock<View<R>>,
    revision: watch::Sender<i64>,
    cancel: CancellationToken,
}

struct View<R> {
    records: Records<R>,
    observers: Vec<Observer<R>>,
}

impl<R: Send + Sync + 'static> Reflector<R> {
    /// Lists the keyspace, then follows it until `cancel`. A manual `clock` waits for the view.
    pub async fn start(
        client: Client,
        decode: Decode<R>,
        clock: &Clock,
        cancel: CancellationToken,
    ) -> Result<Reflector<R>, ClientError> {
        Reflector::start_keeping(client, decode, |_| true, clock, cancel).await
    }

    /// As [`Reflector::start`], for a keyspace of which not everything is held.
    pub async fn start_keeping(
        client: Client,
        decode: Decode<R>,
        keep: Keep<R>,
        clock: &Clock,
        cancel: CancellationToken,
    ) -> Result<Reflector<R>, ClientError> {
        let shared = Arc::new(Shared {
            client,
            decode,
            keep,
            view: RwLock::new(View {
                records: BTreeMap::new(),
                observers: Vec::new(),
            }),
            revision: watch::Sender::new(0),
            cancel,
        });
        shared.list().await?;
        clock.register(Arc::new(CaughtUp(Arc::downgrade(&shared))));
        tokio::spawn(Arc::clone(&shared).follow());
        Ok(Reflector { shared })
    }

    /// Tells `observer` of every record that there is, and then of every change.
    pub fn observe(&self, observer: Observer<R>) {
        let mut view = self.shared.view.write();
        let keep = view.records.iter().all(|(key, stored)| {
            observer(&Change {
                key,
                old: None,
                new: Some(&stored.record),
                records: &view.records,
            })
        });
        if keep {
            view.observers.push(observer);
        }
    }

    pub fn get(&self, key: &str) -> Option<Stored<R>> {
        self.shared.view.read().records.get(key).cloned()
    }

    /// Calls `read` with all records of one revision. It must be quick: the watch waits.
    pub fn with<T>(&self, read: impl FnOnce(&Records<R>) -> T) -> T {
        read(&self.shared.view.read().records)
    }

    /// Every record under `prefix`, in the order of keys.
    pub fn list(&self, prefix: &str) -> Vec<(String, Stored<R>)> {
        self.with(|records| {
            under(records, prefix)
                .map(|(key, stored)| (key.clone(), stored.clone()))
                .collect()
        })
    }

    /// Up to where the keyspace is seen.
    pub fn revision(&self) -> i64 {
        *self.shared.revision.borrow()
    }

    /// Ends the view: from now on nobody is told of anything.
    pub fn close(&self) {
        self.shared.cancel.cancel();
        self.shared.view.write().observers.clear();
    }

    /// Resolves once the view shows `revision`, or the reflector is shut down.
    pub async fn wait_for(&self, revision: i64) {
        self.shared.wait_for(revision).await;
    }

    /// Resolves once the view shows everything that was written before the call.
    pub async fn catch_up(&self) -> Result<(), ClientError> {
        let head = self.shared.head().await?;
        self.shared.wait_for(head).await;
        Ok(())
    }
}

/// The records whose keys start with `prefix`.
pub fn under<'a, R>(
    records: &'a Records<R>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a Stored<R>)> {
    records
        .range::<str, _>((
            std::ops::Bound::Included(prefix),
            std::ops::Bound::Unbounded,
        ))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

impl<R: Send + Sync + 'static> Shared<R> {
    async fn head(&self) -> Result<i64, ClientError> {
        Ok(self.client.get(Bytes::from_static(b"/")).await?.revision)
    }

    async fn wait_for(&self, revision: i64) {
        let mut seen = self.revision.subscribe();
        tokio::select! {
            // The sender lives as long as `self`.
            _ = seen.wait_for(|seen| *seen >= revision) => {}
            () = self.cancel.cancelled() => {}
        }
    }

    /// Takes the keyspace as it is now, and tells the observers what differs from the view.
    async fn list(&self) -> Result<(), ClientError> {
        let listed = self.client.list(Bytes::new()).await?;
        let mut keys = std::collections::BTreeSet::new();
        for kv in &listed.value {
            if let Some(key) = self.put(&kv.key, &kv.value, kv.mod_revision) {
                keys.insert(key);
            }
        }
        let gone: Vec<String> = {
            let view = self.view.read();
            let is_gone = |key: &&String| !keys.contains(*key);
            view.records.keys().filter(is_gone).cloned().collect()
        };
        for key in gone {
            self.remove(&key);
        }
        self.revision.send_replace(listed.revision);
        Ok(())
    }

    async fn follow(self: Arc<Self>) {
        loop {
            let error = tokio::select! {
                error = self.watch() => error,
                () = self.cancel.cancelled() => break,
            };
            tracing::debug!(%error, "a watch ended; listing again");
            while let Err(error) = self.list().await {
                tracing::warn!(%error, "cannot list the keyspace");
                tokio::select! {
                    () = tokio::time::sleep(RECONNECT_PAUSE) => {}
                    () = self.cancel.cancelled() => break,
                }
            }
        }
        // Observers hold what would otherwise never be freed.
        self.view.write().observers.clear();
    }

    /// Follows the keyspace from the revision seen, until something goes wrong.
    async fn watch(&self) -> ClientError {
        let seen = *self.revision.borrow();
        let mut watch = match self.client.watch_prefix(Bytes::new(), seen + 1).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        let mut compacted = seen;
        loop {
            let response = match watch.next().await {
                Ok(response) => response,
                Err(error) => return error,
            };
            // Not the header's revision: that may be ahead of the events.
            let mut seen = *self.revision.borrow();
            for event in response.events {
                let is_delete = event.r#type() == EventType::Delete;
                let Some(kv) = event.kv else { continue };
                if is_delete {
                    if let Ok(key) = std::str::from_utf8(&kv.key) {
                        self.remove(key);
                    }
                } else {
                    self.put(&kv.key, &kv.value, kv.mod_revision);
                }
                seen = seen.max(kv.mod_revision);
            }
            self.revision.send_replace(seen);
            if seen - compacted > COMPACT_EVERY {
                compacted = seen;
                let client = self.client.clone();
                tokio::spawn(async move {
                    // Another process may have compacted further: nothing is lost by that.
                    if let Err(error) = client.compact(seen - RETAINED).await {
                        tracing::debug!(%error, "cannot compact");
                    }
                });
            }
        }
    }

    /// Takes a record into the view. Returns its key if it is of interest.
    fn put(&self, key: &[u8], value: &[u8], mod_revision: i64) -> Option<String> {
        let key = std::str::from_utf8(key).ok()?;
        let record = Arc::new((self.decode)(key, value)?);
        let mut view = self.view.write();
        let view = &mut *view;
        if !(self.keep)(&record) {
            // A list also brings what was told of long ago.
            if mod_revision > *self.revision.borrow() {
                let change = Change {
                    key,
                    old: None,
                    new: Some(&record),
                    records: &view.records,
                };
                view.observers.retain(|observer| observer(&change));
            }
            return None;
        }
        let old = match view.records.get(key) {
            Some(stored) if stored.mod_revision == mod_revision => return Some(key.to_owned()),
            stored => stored.map(|stored| Arc::clone(&stored.record)),
        };
        let stored = Stored {
            record: Arc::clone(&record),
            mod_revision,
        };
        view.records.insert(key.to_owned(), stored);
        let change = Change {
            key,
            old: old.as_ref(),
            new: Some(&record),
            records: &view.records,
        };
        view.observers.retain(|observer| observer(&change));
        Some(key.to_owned())
    }

    fn remove(&self, key: &str) {
        let mut view = self.view.write();
        let view = &mut *view;
        let Some(old) = view.records.remove(key) else {
            return;
        };
        let change = Change {
            key,
            old: Some(&old.record),
            new: None,
            records: &view.records,
        };
        view.observers.retain(|observer| observer(&change));
    }
}

/// What a manual clock asks: has the view seen everything that was written?
struct CaughtUp<R>(Weak<Shared<R>>);

impl<R: Send + Sync + 'static> Idle for CaughtUp<R> {
    fn idle(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async {
            let Some(shared) = self.0.upgrade() else {
                return false;
            };
            if shared.cancel.is_cancelled() {
                return false;
            }
            // An etcd that cannot be asked does not bring work either.
            let Ok(head) = shared.head().await else {
                return false;
            };
            if *shared.revision.borrow() >= head {
                return false;
            }
            shared.wait_for(head).await;
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::super::testing::MemoryKeyspaces;
    use super::*;
    use crate::clock::{TimeScale, Timestamp};
    use crate::etcd::client::{Keyspaces, delete};
    use etcd_proto::etcdserverpb::TxnRequest;

    fn decode(key: &str, value: &[u8]) -> Option<String> {
        key.starts_with("/a/")
            .then(|| String::from_utf8_lossy(value).into_owned())
    }

    #[tokio::test]
    async fn a_view_survives_the_end_of_its_watch() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let keyspaces = MemoryKeyspaces::default();
        let client = keyspaces.client("x");
        client.put("/a/1", "one").await.unwrap();
        client.put("/b/1", "not of interest").await.unwrap();
        let cancel = CancellationToken::new();
        let view = Reflector::start(client.clone(), decode, &clock, cancel)
            .await
            .unwrap();
        let told = Arc::new(Mutex::new(BTreeMap::new()));
        let log = Arc::clone(&told);
        view.observe(Box::new(move |change| {
            let mut told = log.lock();
            match change.new {
                Some(new) => told.insert(change.key.to_owned(), new.as_str().to_owned()),
                None => told.remove(change.key),
            };
            true
        }));
        let check = async |expect: &[(&str, &str)]| {
            view.catch_up().await.unwrap();
            let seen = view.list("/a/");
            let seen = seen.iter().map(|(k, s)| (k.as_str(), s.record.as_str()));
            assert_eq!(seen.collect::<Vec<_>>(), expect);
            let told = told.lock();
            let told = told.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            assert_eq!(told.collect::<Vec<_>>(), expect);
        };
        check(&[("/a/1", "one")]).await;
        for round in 0..20 {
            keyspaces.cut_watches();
            client.put("/a/2", "two").await.unwrap();
            client.put("/a/1", format!("{round}")).await.unwrap();
            check(&[("/a/1", &round.to_string()), ("/a/2", "two")]).await;
            keyspaces.cut_watches();
            let request = TxnRequest {
                success: vec![delete("/a/2")],
                ..TxnRequest::default()
            };
            client.txn(request).await.unwrap();
            check(&[("/a/1", &round.to_string())]).await;
        }
    }
}
