//! The sequencer: gives every write of a keyspace its place in the one order.
//!
//! One task per keyspace takes the requests that wait, evaluates them as a [`Batch`], commits the
//! batch as one store transaction, applies it to the index, tells the watchers, and answers. While
//! a batch is being made durable, the next one gathers in the queue: the more clients, the
//! larger the batches, the fewer fsyncs per request. Nothing is readable before it is durable, since the
//! index changes only after the commit.
//!
//! Where several servers share the store, each has a sequencer, and the head in the store decides: a batch is written
//! only if the head is the one it was evaluated against, else what others have written is taken over first
//! ([`catch_up`]) and the batch evaluated again. See [`turns`] for who gives way to whom.
//!
//! Per put of n bytes: one store key of 18 bytes and n + about 30 bytes, 1/batch of a 33-byte head
//! and of an fsync; three allocations (record, key if it is new, event); no lock held across an await.

mod catch_up;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use self::turns::Turns;
use super::auth::Proof;
use super::batch::{Answer, Batch, Command, Context};
use super::cache::CachedValues;
use super::encoding::Head;
use super::error::Error;
use super::event::RevisionEvents;
use super::keyspace::Keyspace;
use super::store::{CommitRequest, Outcome, StoreError};
use super::view::{Fault, Fetched};
use super::watch::pace::Wakes;

/// Requests that wait for the sequencer; more senders wait for room.
pub const QUEUE_LEN: usize = 4096;
/// Most requests in a batch.
const BATCH_LEN: usize = 1024;
/// A batch ends with the request that brings its writes to this many bytes.
const BATCH_BYTES: usize = 4_000_000;
/// Leases that are revoked in one batch because they ran out, and that are checkpointed in one.
const EXPIRIES: usize = 256;
/// Readers wait at most for so many revisions to be applied at a time.
const APPLY_LEN: usize = 64;
/// Pause after a failure of the store.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// How often values that are not in memory are fetched for one request before something is wrong.
const FETCHES: usize = 3;

pub type Reply = oneshot::Sender<Result<Answer, Error>>;

/// A request that waits for its place.
pub struct Queued {
    pub command: Command,
    /// What whoever asks was checked against.
    pub proof: Proof,
    /// `None` for what the sequencer asks of itself.
    pub reply: Option<Reply>,
}

pub struct Sequencer {
    keyspace: Arc<Keyspace>,
    queue: mpsc::Receiver<Queued>,
    head: Head,
    /// The store's version at which the head was this one.
    known_at: Option<i64>,
    values: CachedValues,
    turns: Turns,
}

impl Sequencer {
    pub fn new(
        keyspace: Arc<Keyspace>,
        queue: mpsc::Receiver<Queued>,
        head: Head,
        values: CachedValues,
    ) -> Sequencer {
        Sequencer {
            keyspace,
            queue,
            head,
            known_at: None,
            values,
            turns: Turns::default(),
        }
    }

    /// Runs until the keyspace is closed. What still waits then is answered with an error.
    pub async fn run(mut self) {
        let mut waiting = Vec::new();
        // Requests that the last batches were made of.
        let mut gathered = 0;
        let closed = self.keyspace.closed.clone();
        let follow = self.keyspace.follow.clone();
        loop {
            let deadline = self.keyspace.leases.lock().next_deadline();
            let clock = self.keyspace.clock.clone();
            let expiry = async {
                match deadline {
                    Some(deadline) => clock.sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let behind = async {
                match &follow {
                    Some(follow) => follow.behind.notified().await,
                    None => std::future::pending().await,
                }
            };
            let idle = self.idle();
            tokio::select! {
                biased;
                () = closed.cancelled() => return,
                () = behind => {
                    if let Err(error) = self.catch_up().await {
                        self.pause(&error).await;
                        // What was told of is still to be seen.
                        follow.iter().for_each(|follow| follow.behind.notify_one());
                    }
                    continue;
                }
                received = self.queue.recv_many(&mut waiting, BATCH_LEN) => {
                    if received == 0 {
                        return;
                    }
                }
                activity = expiry => drop(activity),
                () = idle => {
                    if let Err(error) = self.pass().await {
                        self.pause(&error).await;
                    }
                    continue;
                }
            }
            if waiting.len() == 1 && gathered > 1 {
                // Requests that have arrived and were not read yet share the fsync. A lone client has none, and to
                // look costs it a tenth of its time.
                tokio::task::yield_now().await;
            }
            self.turns.asked();
            if let Err(error) = self.wait_for_turn().await {
                // The commit will tell whoever asked.
                tracing::debug!(keyspace = %self.keyspace.name, %error, "cannot wait for a turn");
            }
            while waiting.len() < BATCH_LEN
                && let Ok(queued) = self.queue.try_recv()
            {
                waiting.push(queued);
            }
            gathered = waiting.len();
            match self.due().await {
                Ok(due) => waiting.extend(due.into_iter().map(|command| Queued {
                    command,
                    proof: Proof::Trusted,
                    reply: None,
                })),
                Err(error) => self.pause(&error).await,
            }
            let mut rest = std::mem::take(&mut waiting).into();
            while !VecDeque::is_empty(&rest) {
                self.run_batch(&mut rest).await;
            }
            waiting = rest.into();
        }
    }

    /// What leases ask for by themselves.
    async fn due(&self) -> Result<Vec<Command>, StoreError> {
        let Keyspace { leases, clock, .. } = &*self.keyspace;
        let mut expired = leases.lock().expired(clock.now(), EXPIRIES);
        if !expired.is_empty() && self.keyspace.store.is_shared() {
            let stamps = self.keyspace.store.stamps(&expired).await?;
            let mut leases = leases.lock();
            for (id, stamp) in expired.iter().zip(stamps) {
                leases.observe(*id, stamp, clock.now());
            }
            expired.retain(|id| leases.is_expired(*id, clock.now()));
        }
        let checkpoints = leases.lock().due_checkpoints(clock.now(), EXPIRIES);
        let checkpoints = checkpoints.into_iter().map(|(id, left)| {
            let left = Some(left);
            Command::Checkpoint { id, left }
        });
        let expired = expired.into_iter().map(Command::Expire);
        Ok(expired.chain(checkpoints).collect())
    }

    /// Takes requests off the front until the batch is full, and sees the batch through.
    async fn run_batch(&mut self, waiting: &mut VecDeque<Queued>) {
        let mut taken: Vec<Queued> = Vec::new();
        loop {
            let (batch, answers) = self.evaluate(&mut taken, waiting).await;
            let more = !(waiting.is_empty() && self.queue.is_empty());
            let alone = taken.len() == 1 && !more;
            match self.commit(&batch, alone, more).await {
                Ok(Outcome::Committed) => {
                    let metrics = &self.keyspace.metrics.server;
                    let commands = taken.iter().map(|queued| &queued.command);
                    metrics.count_batch(&batch, commands.zip(&answers));
                    let wakes = self.apply(batch);
                    for (queued, answer) in taken.into_iter().zip(answers) {
                        if let Some(reply) = queued.reply {
                            // Whoever asked may have gone.
                            let _ = reply.send(answer);
                        }
                    }
                    // Whoever has written does not wait for all that are told.
                    self.keyspace.hub.wake(wakes);
                    return;
                }
                Ok(Outcome::Foreign(_)) => {
                    let caught_up = match self.overtaken().await {
                        Ok(()) => self.wait_for_turn().await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = caught_up {
                        return self.fail(taken, &error).await;
                    }
                    while taken.len() + waiting.len() < BATCH_LEN
                        && let Ok(queued) = self.queue.try_recv()
                    {
                        waiting.push_back(queued);
                    }
                }
                Ok(Outcome::KeptAlive(stamps)) => {
                    let now = self.keyspace.clock.now();
                    let mut leases = self.keyspace.leases.lock();
                    for (id, stamp) in stamps {
                        leases.observe(id, stamp, now);
                    }
                }
                Err(error) => return self.fail(taken, &error).await,
            }
        }
    }

    async fn pause(&self, error: &StoreError) {
        tracing::error!(keyspace = %self.keyspace.name, %error, "the store cannot be read");
        drop(self.keyspace.clock.sleep(FAILURE_PAUSE).await);
    }

    /// Nobody knows whether the batch is in. If it is, the next batch finds its head.
    async fn fail(&self, taken: Vec<Queued>, error: &StoreError) {
        tracing::error!(keyspace = %self.keyspace.name, %error, "a batch could not be committed");
        self.keyspace.metrics.server.count_failed(taken.len());
        for reply in taken.into_iter().filter_map(|queued| queued.reply) {
            let _ = reply.send(Err(error.clone().into()));
        }
        // Leases that have run out ask again at once.
        drop(self.keyspace.clock.sleep(FAILURE_PAUSE).await);
    }

    /// Evaluates `taken`, again if there is something in it, and fills it from `waiting`.
    async fn evaluate(
        &self,
        taken: &mut Vec<Queued>,
        waiting: &mut VecDeque<Queued>,
    ) -> (Batch, Vec<Result<Answer, Error>>) {
        let mut batch = Batch::new(&self.keyspace.state.read());
        let mut answers = Vec::new();
        let mut fetched = Fetched::new();
        let mut fetches = 0;
        loop {
            let needed = {
                let state = self.keyspace.state.read();
                let context = Context {
                    state: &state,
                    leases: &self.keyspace.leases,
                    space: self.keyspace.store.space,
                    now: self.keyspace.clock.now(),
                };
                loop {
                    if answers.len() == taken.len() {
                        if batch.writes.size_bytes() > BATCH_BYTES {
                            return (batch, answers);
                        }
                        match waiting.pop_front() {
                            Some(queued) => taken.push(queued),
                            None => return (batch, answers),
                        }
                    }
                    let Queued { command, proof, .. } = &taken[answers.len()];
                    let answer = match batch.evaluate(&context, command, proof, &fetched) {
                        Ok(answer) => Ok(answer),
                        Err(Fault::Refused(error)) => Err(error),
                        Err(Fault::Needs(_)) if fetches == FETCHES => Err(Error::Corrupt),
                        Err(Fault::Needs(needed)) => break needed,
                    };
                    answers.push(answer);
                    fetches = 0;
                    fetched.clear();
                }
            };
            fetches += 1;
            if let Err(error) = self.keyspace.fetch(&needed, &mut fetched).await {
                tracing::error!(keyspace = %self.keyspace.name, %error, "values could not be read");
                answers.push(Err(error.into()));
                fetches = 0;
            }
        }
    }

    /// `alone`: nobody waits for anything else. `more`: there is more to be written.
    async fn commit(
        &mut self,
        batch: &Batch,
        alone: bool,
        more: bool,
    ) -> Result<Outcome, StoreError> {
        let store = &self.keyspace.store;
        if batch.is_read_only(&self.keyspace.state.read()) {
            if store.is_shared() {
                // What it was evaluated against may be the past.
                let head = store.head().await?;
                if head.batch != self.head.batch {
                    return Ok(Outcome::Foreign(head));
                }
            }
            return Ok(Outcome::Committed);
        }
        let noted = store.is_shared() && batch.writes.has_notes();
        let next = Head {
            revision: batch.revision,
            compacted: batch.compacted,
            batch: store.next_batch(&self.head),
            spilled: false,
            changes: self.head.changes + u64::from(noted),
        };
        // Measured for the metrics, never decided upon.
        let started = Instant::now();
        let leave = self.turns.leave(more);
        let request = CommitRequest {
            expected: &self.head,
            next: &next,
            writes: &batch.writes,
            alone,
            known_at: self.known_at,
            leave,
            at: self.keyspace.clock.now().0,
        };
        let commit = store.commit(&request);
        let ((outcome, known_at), others) = self.turns.watch(store, commit).await?;
        self.keyspace.metrics.server.count_commit(started);
        if outcome == Outcome::Committed {
            self.head = next;
            self.known_at = known_at.filter(|_| store.is_shared());
            self.turns.committed(leave, others);
        }
        Ok(outcome)
    }

    /// Makes the batch visible. The streams it concerns are still to be woken.
    fn apply(&mut self, batch: Batch) -> Wakes {
        self.apply_events(&batch.events);
        self.apply_compaction(batch.compacted, true);
        let (alarms, auth) = {
            let state = self.keyspace.state.read();
            (
                batch.alarms != state.alarms,
                !Arc::ptr_eq(&batch.auth, &state.auth),
            )
        };
        if alarms || auth {
            let mut state = self.keyspace.state.write();
            state.alarms = batch.alarms;
            state.auth = Arc::clone(&batch.auth);
        }
        if !(batch.events.is_empty() && batch.lease_changes.is_empty()) {
            let now = self.keyspace.clock.now();
            batch.apply_to_leases(&mut self.keyspace.leases.lock(), now);
        }
        let wakes = self.keyspace.hub.notify(&batch.events);
        if let Some(follow) = &self.keyspace.follow {
            follow.applied(self.head);
        }
        wakes
    }

    /// Whoever has compacted clears the store.
    fn apply_compaction(&self, compacted: i64, ours: bool) {
        let mut state = self.keyspace.state.write();
        if compacted > state.compacted {
            state.compacted = compacted;
            drop(state);
            Keyspace::spawn_compaction(&self.keyspace, compacted, ours);
        }
    }

    fn apply_events(&mut self, events: &[Arc<RevisionEvents>]) {
        for part in events.chunks(APPLY_LEN) {
            let mut state = self.keyspace.state.write();
            for revision in part {
                for event in &revision.events {
                    self.values.push(&event.record, &self.keyspace.cached_bytes);
                    state.insert(Arc::clone(&event.record));
                }
                state.revision = revision.revision;
            }
        }
        let keyspace = &self.keyspace;
        self.values.trim(&keyspace.state, &keyspace.cached_bytes);
    }
}
