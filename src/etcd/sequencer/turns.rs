//! Who writes next, where several servers want to.
//!
//! Of two servers that commit at a time one is overtaken, has caught up and evaluated in vain, and must do so again: left
//! alone, servers would spend their time on that, and whoever has just committed, and so starts earlier, would win for ever. So those
//! that want to write form a line in the store. Whoever was overtaken, or sees others in line, takes a ticket, whose
//! order is the store's own (a versionstamp), and writes when nobody is before it. Each watches the ticket of the one
//! before it, so that the end of a turn wakes one server.
//!
//! A turn is [`SLICE`] long, not one batch: a server's commits in sequence need no look at what others wrote, and while
//! its clients are answered and ask again, the other servers' requests gather for larger batches. The commit that
//! ends a turn takes the ticket back, or moves it to the end of the line: that costs no transaction. A server whose turn it is and that has
//! nothing to write lets the next one go, after [`IDLE`] at most.
//!
//! The line is advice. The head alone decides what is written, so a server that is wrong about its place only
//! conflicts; and one that is gone, or stuck, holds the others up for [`PATIENCE`], once.

use std::time::{Duration, Instant};

use super::Sequencer;
use crate::etcd::encoding::{Head, ServerId};
use crate::etcd::store::{CommitRequest, Intents, Leave, Outcome, Store, StoreError, Writes};

/// How long a server goes on writing while others wait.
const SLICE: Duration = Duration::from_millis(8);
/// How long a server whose turn it is waits for something to write.
const IDLE: Duration = Duration::from_millis(2);
/// How long the line may stand still before its first server is put out of it.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a server that writes alone looks whether others are in line.
const LOOK_INTERVAL: Duration = Duration::from_millis(4);

#[derive(Default)]
pub(super) struct Turns {
    /// We are in line.
    in_line: bool,
    /// Servers that write before we do; all that are in line if we are not.
    ahead: Intents,
    /// Others are in line, before us or after.
    contended: bool,
    /// When we first committed in this turn.
    began: Option<Instant>,
    /// When we last committed.
    last: Option<Instant>,
    /// Requests came soon after the last commit: they will again.
    busy: bool,
    /// When we last looked who is in line.
    looked: Option<Instant>,
}

impl Turns {
    /// The line as it is in the store.
    pub(super) fn observe(&mut self, line: Intents, own: ServerId) {
        let place = line.iter().position(|(server, _)| *server == own);
        self.in_line = place.is_some();
        self.contended = line.len() > usize::from(self.in_line);
        self.looked = Some(Instant::now());
        self.ahead = line;
        self.ahead.truncate(place.unwrap_or(usize::MAX));
    }

    /// Requests have come.
    pub(super) fn asked(&mut self) {
        self.busy = self.last.is_some_and(|last| last.elapsed() < IDLE);
    }

    /// It is our turn while others wait.
    fn keeps_others_waiting(&self) -> bool {
        self.in_line && self.ahead.is_empty()
    }

    /// What the commit that is about to be made does with our place in the line; `more` waits to be written.
    pub(super) fn leave(&mut self, more: bool) -> Leave {
        if !self.in_line {
            return Leave::Stay;
        }
        if !self.contended || !(more || self.busy) {
            return Leave::Out;
        }
        let began = *self.began.get_or_insert_with(Instant::now);
        if began.elapsed() < SLICE {
            Leave::Stay
        } else {
            Leave::ToTheEnd
        }
    }

    /// Sees a commit through, and looks for others in line meanwhile, if it is time to.
    pub(super) async fn watch<T>(
        &self,
        store: &Store,
        commit: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<(T, Option<Intents>), StoreError> {
        let recent = self.looked.is_some_and(|it| it.elapsed() < LOOK_INTERVAL);
        // Whoever is in line must know who comes next.
        if !store.is_shared() || (recent && !self.in_line) {
            return Ok((commit.await?, None));
        }
        let (outcome, line) = tokio::join!(commit, store.intents());
        // To be fair is not worth a failure.
        let mut others = line.unwrap_or_default();
        others.retain(|(server, _)| *server != store.server());
        Ok((outcome?, Some(others)))
    }

    /// We have committed; `others` were in line meanwhile, if we looked.
    pub(super) fn committed(&mut self, leave: Leave, others: Option<Intents>) {
        let now = Instant::now();
        self.last = Some(now);
        let Some(others) = others else { return };
        self.looked = Some(now);
        self.contended = !others.is_empty();
        match leave {
            Leave::Stay if self.in_line => {}
            Leave::Stay => self.ahead = others,
            Leave::Out | Leave::ToTheEnd => {
                self.began = None;
                self.in_line = leave == Leave::ToTheEnd && self.contended;
                self.ahead = others;
            }
        }
    }
}

impl Sequencer {
    /// We were overtaken: gets in line, and takes over what others have written.
    pub(super) async fn overtaken(&mut self) -> Result<(), StoreError> {
        let store = self.keyspace.store.clone();
        if store.is_shared() && !self.turns.in_line {
            store.announce().await?;
        }
        // Only then, so that it sees the ticket.
        self.catch_up().await
    }

    /// Resolves when nobody is before us in line, or the keyspace is closed.
    pub(super) async fn wait_for_turn(&mut self) -> Result<(), StoreError> {
        if self.turns.ahead.is_empty() {
            return Ok(());
        }
        let store = self.keyspace.store.clone();
        let closed = self.keyspace.closed.clone();
        while let (Some(first), Some(before)) = (self.turns.ahead.first(), self.turns.ahead.last())
        {
            if !self.turns.in_line {
                self.overtaken().await?;
                continue;
            }
            let (first, batch) = (first.clone(), self.head.batch);
            let moved = match store.watch_intent(before).await? {
                None => true,
                Some(moved) => tokio::select! {
                    () = closed.cancelled() => return Ok(()),
                    moved = tokio::time::timeout(PATIENCE, moved) => moved.is_ok(),
                },
            };
            self.catch_up().await?;
            let stuck = self.head.batch == batch && self.turns.ahead.first() == Some(&first);
            if !moved && stuck {
                tracing::debug!(keyspace = %self.keyspace.name, "a server did not use its turn");
                store.forget_intent(&first).await?;
            }
        }
        Ok(())
    }

    /// Resolves when others have waited long enough for us to write something.
    pub(super) fn idle(&self) -> impl Future<Output = ()> + use<> {
        let waits = self.turns.keeps_others_waiting();
        async move {
            match waits {
                true => tokio::time::sleep(IDLE).await,
                false => std::future::pending().await,
            }
        }
    }

    /// Lets the next one in line write, by a batch of nothing: whoever commits is in the order of commits.
    pub(super) async fn pass(&mut self) -> Result<(), StoreError> {
        let store = &self.keyspace.store;
        let next = Head {
            batch: store.next_batch(&self.head),
            spilled: false,
            ..self.head
        };
        let request = CommitRequest {
            expected: &self.head,
            next: &next,
            writes: &Writes::default(),
            alone: false,
            known_at: self.known_at,
            leave: Leave::Out,
            at: self.keyspace.clock.now().0,
        };
        let commit = store.commit(&request);
        let (outcome, others) = self.turns.watch(store, commit).await?;
        match outcome {
            (Outcome::Committed, known_at) => {
                self.head = next;
                self.known_at = known_at;
                self.turns.committed(Leave::Out, others);
                if let Some(follow) = &self.keyspace.follow {
                    follow.applied(next);
                }
                Ok(())
            }
            _ => self.catch_up().await,
        }
    }
}
