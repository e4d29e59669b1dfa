//! One of several servers on one store acts for all of them.
//!
//! The one that acts holds a key under a lease that it renews: as long as it does, its [`Term`] lasts.
//! A server that is killed loses the key when the lease runs out, and another of those that wait for
//! it takes over. One that cannot reach the store stops by its own clock before that: a term counts
//! from before the grant or renewal was *asked for*, and ends [`MARGIN`] early.
//!
//! Worked example (lease of 5 s): A asks for the lease at 0.0 s and has the key at 0.1 s: its term lasts
//! to 4.5 s, and with each renewal, asked for every second, so much longer. A is cut off at 10.0 s: its
//! last renewal was asked for at 9.2 s, so it stops at 13.7 s. The store ends the lease at 14.2 s or later
//! and deletes the key; B sees that and takes it.
//!
//! A term is a promise about time, so it cannot rule out that a process that was stopped and continued
//! sends a write too late. What acts under a term therefore compares in each write what it decided from,
//! and that is what keeps such a write from doing harm.
//!
//! May use `etcd::client` and `clock`. Must never know what is done during a term.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use etcd_proto::etcdserverpb::watch_create_request::FilterType;
use etcd_proto::etcdserverpb::{TxnRequest, WatchCreateRequest};
use tokio_util::sync::CancellationToken;

use crate::clock::{Activity, Clock, Timestamp};
use crate::etcd::client::{Client, ClientError, mod_revision_is, put_with_lease};

/// Time to live of the leader's lease, in seconds: how long nobody acts after the leader was killed.
pub const LEASE_TTL: i64 = 5;
const RENEWAL: Duration = Duration::from_secs(1);
/// By how much a term ends before its lease may, as seen by the leader's own clock.
const MARGIN: Duration = Duration::from_millis(500);
/// Between looks at the key of somebody who waits for it, should the watch have died without a word;
/// and between attempts while the store does not answer.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The leader's key, for the servers that want it.
#[derive(Clone)]
pub struct Election {
    client: Client,
    clock: Clock,
    key: Bytes,
}

/// How an attempt to become the leader went.
pub enum Attempt {
    Won(Term),
    /// Somebody else holds the key.
    Lost(Leader),
}

/// What the present leader wrote.
pub struct Leader {
    pub value: Bytes,
    /// Revision of the keyspace at which this was read.
    revision: i64,
}

impl Election {
    /// `clock` measures terms: it must run as the etcd's own does.
    pub fn new(client: Client, clock: Clock, key: impl Into<Bytes>) -> Election {
        Election {
            client,
            clock,
            key: key.into(),
        }
    }

    /// Takes the key with `value` if nobody holds it.
    pub async fn try_win(&self, value: Bytes) -> Result<Attempt, ClientError> {
        let found = self.client.get(self.key.clone()).await?;
        if let Some(kv) = found.value {
            return Ok(Attempt::Lost(Leader {
                value: kv.value,
                revision: found.revision,
            }));
        }
        let asked = self.clock.now();
        let lease = self.client.lease_grant(LEASE_TTL).await?;
        let taken = self
            .client
            .txn(TxnRequest {
                compare: vec![mod_revision_is(self.key.clone(), 0)],
                success: vec![put_with_lease(self.key.clone(), value, lease)],
                failure: vec![],
            })
            .await;
        match taken {
            Ok(answer) if answer.succeeded => {}
            // Lost, or not known: the lease takes the key along if it was put.
            outcome => {
                if let Err(error) = self.client.lease_revoke(lease).await {
                    tracing::debug!(%error, "an unused lease is left to run out");
                }
                outcome?;
                let found = self.client.get(self.key.clone()).await?;
                return Ok(Attempt::Lost(Leader {
                    value: found.value.map(|kv| kv.value).unwrap_or_default(),
                    revision: found.revision,
                }));
            }
        }
        let held = Held {
            client: self.client.clone(),
            clock: self.clock.clone(),
            key: self.key.clone(),
            lease,
            until: AtomicI64::new(end_of(asked, LEASE_TTL).0),
            over: CancellationToken::new(),
            resigned: CancellationToken::new(),
        };
        let held = Arc::new(held);
        tokio::spawn(Arc::clone(&held).renew());
        Ok(Attempt::Won(Term { held: Some(held) }))
    }

    /// Waits until the key is won. `value` is asked for at each attempt.
    pub async fn campaign(&self, value: impl Fn() -> Bytes) -> Term {
        loop {
            match self.try_win(value()).await {
                Ok(Attempt::Won(term)) => return term,
                Ok(Attempt::Lost(leader)) => {
                    tokio::select! {
                        () = self.deleted(leader.revision) => {}
                        _ = self.clock.sleep(SECOND_LOOK) => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take part in the election of a leader");
                    self.clock.sleep(SECOND_LOOK).await;
                }
            }
        }
    }

    /// Resolves when the key is deleted after `revision`; never, if that cannot be watched.
    async fn deleted(&self, revision: i64) {
        let watch = self
            .client
            .watch(WatchCreateRequest {
                key: self.key.clone(),
                start_revision: revision + 1,
                filters: vec![FilterType::Noput.into()],
                ..WatchCreateRequest::default()
            })
            .await;
        if let Ok(mut watch) = watch {
            while let Ok(answer) = watch.next().await {
                if !answer.events.is_empty() {
                    return;
                }
            }
        }
        std::future::pending::<()>().await;
    }
}

fn end_of(asked: Timestamp, ttl: i64) -> Timestamp {
    let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    asked.saturating_add(ttl.saturating_sub(MARGIN))
}

/// The time during which this server acts. Cheap to clone.
#[derive(Clone)]
pub struct Term {
    /// `None`: nobody else can be there.
    held: Option<Arc<Held>>,
}

struct Held {
    client: Client,
    clock: Clock,
    key: Bytes,
    lease: i64,
    /// When the term ends unless it is renewed.
    until: AtomicI64,
    over: CancellationToken,
    resigned: CancellationToken,
}

impl Term {
    /// Of the only server of a store, which nothing can end.
    pub fn for_ever() -> Term {
        Term { held: None }
    }

    /// Whether it lasts, by this server's own clock: asks nobody.
    pub fn holds(&self) -> bool {
        match &self.held {
            None => true,
            Some(held) => !held.over.is_cancelled() && held.clock.now() < held.until(),
        }
    }

    /// Resolves when it has ended.
    pub async fn over(&self) {
        match &self.held {
            None => std::future::pending().await,
            Some(held) => held.over.cancelled().await,
        }
    }

    /// Ends it and lets the next one begin at once. Whatever was done under it must have stopped.
    pub async fn resign(&self) {
        let Some(held) = &self.held else { return };
        held.resigned.cancel();
        held.over.cancel();
        if let Err(error) = held.client.lease_revoke(held.lease).await {
            tracing::warn!(%error, "the next leader has to wait for the lease to run out");
        }
    }

    /// Ends the renewals, as a kill would.
    #[cfg(test)]
    pub fn die(&self) {
        if let Some(held) = &self.held {
            held.resigned.cancel();
        }
    }
}

impl Held {
    fn until(&self) -> Timestamp {
        Timestamp(self.until.load(Ordering::Acquire))
    }

    /// Renews the lease until it is gone, or out of reach for too long; then the term is over.
    async fn renew(self: Arc<Self>) {
        let mut activity: Option<Activity> = None;
        loop {
            let next = self.clock.now().saturating_add(RENEWAL).min(self.until());
            let mut due = std::pin::pin!(self.clock.sleep_until(next));
            // The timer is armed before the activity of the last renewal ends.
            let armed = futures::poll!(due.as_mut());
            drop(activity.take());
            activity = match armed {
                Poll::Ready(now) => Some(now),
                Poll::Pending => tokio::select! {
                    now = due => Some(now),
                    () = self.resigned.cancelled() => return,
                },
            };
            let asked = self.clock.now();
            let renewed = tokio::select! {
                biased;
                () = self.resigned.cancelled() => return,
                renewed = self.renew_once() => renewed,
                activity = self.clock.sleep_until(self.until()) => {
                    drop(activity);
                    Ok(0)
                }
            };
            match renewed {
                Ok(0) => break,
                Ok(ttl) => self.until.store(end_of(asked, ttl).0, Ordering::Release),
                Err(error) if self.clock.now() < self.until() => {
                    tracing::warn!(%error, "cannot renew the leader's lease");
                }
                Err(_) => break,
            }
        }
        tracing::warn!("this server no longer leads");
        self.over.cancel();
    }

    /// Seconds that the lease now has; 0 if the term is over.
    async fn renew_once(&self) -> Result<i64, ClientError> {
        // An operator may have deleted the key to have another one lead.
        let found = self.client.get(self.key.clone()).await?.value;
        if found.is_none_or(|kv| kv.lease != self.lease) {
            return Ok(0);
        }
        self.client.lease_keep_alive(self.lease).await
    }
}

#[cfg(test)]
mod tests;
