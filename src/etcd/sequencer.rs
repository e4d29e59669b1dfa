//! The sequencer: gives every write of a keyspace its place in the one order.
//!
//! One task per keyspace takes the requests that wait, evaluates them as a [`Batch`], commits the
//! batch as one store transaction, applies it to the index, tells the watchers, and answers. While
//! a batch is being made durable, the next one gathers in the queue: the more clients, the
//! larger the batches, the fewer fsyncs per request. Nothing is readable before it is durable, since the
//! index changes only after the commit.
//!
//! Per put of n bytes: one store key of 18 bytes and n + about 30 bytes, 1/batch of a 33-byte head
//! and of an fsync; three allocations (record, key if it is new, event); no lock held across an await.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::auth::Proof;
use super::batch::{Answer, Batch, Command, Context};
use super::cache::CachedValues;
use super::encoding::Head;
use super::error::Error;
use super::event::{Event, RevisionEvents};
use super::keyspace::Keyspace;
use super::record::{Revision, SharedRecord};
use super::store::{Outcome, StoreError};
use super::view::{Fault, Fetched, View as _};

/// Requests that wait for the sequencer; more senders wait for room.
pub const QUEUE_LEN: usize = 4096;
/// Most requests in a batch.
const BATCH_LEN: usize = 1024;
/// A batch ends with the request that brings its writes to this many bytes.
const BATCH_BYTES: usize = 4_000_000;
/// Leases that are revoked in one batch because they ran out.
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
    values: CachedValues,
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
            values,
        }
    }

    /// Runs until the keyspace is closed. What still waits then is answered with an error.
    pub async fn run(mut self) {
        let mut waiting = Vec::new();
        let closed = self.keyspace.closed.clone();
        loop {
            let deadline = self.keyspace.leases.lock().next_deadline();
            let clock = self.keyspace.clock.clone();
            let expiry = async {
                match deadline {
                    Some(deadline) => clock.sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = closed.cancelled() => return,
                received = self.queue.recv_many(&mut waiting, BATCH_LEN) => {
                    if received == 0 {
                        return;
                    }
                }
                activity = expiry => drop(activity),
            }
            if waiting.len() == 1 {
                // Requests that have arrived and were not read yet share the fsync.
                tokio::task::yield_now().await;
                while waiting.len() < BATCH_LEN
                    && let Ok(queued) = self.queue.try_recv()
                {
                    waiting.push(queued);
                }
            }
            let expired = self
                .keyspace
                .leases
                .lock()
                .expired(self.keyspace.clock.now(), EXPIRIES);
            waiting.extend(expired.into_iter().map(|id| Queued {
                command: Command::Expire(id),
                proof: Proof::Trusted,
                reply: None,
            }));
            let mut rest = std::mem::take(&mut waiting).into();
            while !VecDeque::is_empty(&rest) {
                self.run_batch(&mut rest).await;
            }
            waiting = rest.into();
        }
    }

    /// Takes requests off the front until the batch is full, and sees the batch through.
    async fn run_batch(&mut self, waiting: &mut VecDeque<Queued>) {
        let mut taken: Vec<Queued> = Vec::new();
        loop {
            let (batch, answers) = self.evaluate(&mut taken, waiting).await;
            let alone = taken.len() == 1 && waiting.is_empty() && self.queue.is_empty();
            match self.commit(&batch, alone).await {
                Ok(Outcome::Committed) => {
                    let metrics = &self.keyspace.metrics.server;
                    let commands = taken.iter().map(|queued| &queued.command);
                    metrics.count_batch(&batch, commands.zip(&answers));
                    self.apply(batch);
                    for (queued, answer) in taken.into_iter().zip(answers) {
                        if let Some(reply) = queued.reply {
                            // Whoever asked may have gone.
                            let _ = reply.send(answer);
                        }
                    }
                    return;
                }
                Ok(Outcome::Foreign(head)) => {
                    if let Err(error) = self.catch_up(head).await {
                        return self.fail(taken, &error).await;
                    }
                }
                Err(error) => return self.fail(taken, &error).await,
            }
        }
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

    /// Evaluates `taken` again, or fills it from `waiting`.
    async fn evaluate(
        &self,
        taken: &mut Vec<Queued>,
        waiting: &mut VecDeque<Queued>,
    ) -> (Batch, Vec<Result<Answer, Error>>) {
        let mut batch = Batch::new(&self.keyspace.state.read());
        let mut answers = Vec::new();
        let again = !taken.is_empty();
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
                        if again || batch.writes.size_bytes() > BATCH_BYTES {
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

    async fn commit(&mut self, batch: &Batch, alone: bool) -> Result<Outcome, StoreError> {
        if batch.is_read_only(&self.keyspace.state.read()) {
            return Ok(Outcome::Committed);
        }
        let next = Head {
            revision: batch.revision,
            compacted: batch.compacted,
            batch: rand::random(),
            spilled: false,
        };
        let store = &self.keyspace.store;
        // Measured for the metrics, never decided upon.
        let started = Instant::now();
        let outcome = store
            .commit(&self.head, &next, &batch.writes, alone)
            .await?;
        self.keyspace.metrics.server.count_commit(started);
        if outcome == Outcome::Committed {
            self.head = next;
        }
        Ok(outcome)
    }

    fn apply(&mut self, batch: Batch) {
        self.apply_events(&batch.events);
        self.apply_compaction(batch.compacted);
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
        self.keyspace.hub.notify(&batch.events);
    }

    fn apply_compaction(&self, compacted: i64) {
        let mut state = self.keyspace.state.write();
        if compacted > state.compacted {
            state.compacted = compacted;
            drop(state);
            Keyspace::spawn_compaction(&self.keyspace, compacted);
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

    /// Takes over what the log says between this keyspace's revision and the head: another server
    /// has written, or a commit of ours that we knew nothing of is in.
    async fn catch_up(&mut self, head: Head) -> Result<(), StoreError> {
        let store = self.keyspace.store.clone();
        let mut from = Some(Revision {
            main: self.keyspace.state.read().revision + 1,
            sub: 0,
        });
        let mut records: Vec<SharedRecord> = Vec::new();
        while let Some(start) = from {
            let (page, next) = store.read_log(start, head.revision).await?;
            records.extend(page.into_iter().map(Arc::new));
            from = next;
        }
        let mut granted = store.leases().await?;
        let alarms = store.alarms().await?;
        let auth = Arc::new(store.auth().await?);
        {
            let mut state = self.keyspace.state.write();
            state.alarms = alarms;
            state.auth = auth;
        }
        {
            let now = self.keyspace.clock.now();
            let mut leases = self.keyspace.leases.lock();
            for id in leases.ids() {
                if granted.iter().all(|(other, _)| *other != id) {
                    leases.revoke(id);
                }
            }
            granted.retain(|(id, _)| !leases.contains(*id));
            for (id, ttl) in granted {
                leases.grant(id, ttl, now);
            }
        }
        for revision in records.chunk_by(|a, b| a.revision.main == b.revision.main) {
            let main = revision[0].revision.main;
            let events = {
                let state = self.keyspace.state.read();
                let previous = |record: &SharedRecord| state.get(&record.key, main - 1);
                let event = |record: &SharedRecord| Event::new(record.clone(), previous(record));
                revision.iter().map(event).collect()
            };
            let events = [Arc::new(RevisionEvents::new(main, events))];
            self.apply_events(&events);
            self.keyspace.leases.lock().apply(&events[0]);
            self.keyspace.hub.notify(&events);
        }
        // A compacted log may lack the newest revisions' records.
        {
            let mut state = self.keyspace.state.write();
            state.revision = state.revision.max(head.revision);
        }
        self.apply_compaction(head.compacted);
        self.keyspace.hub.advance(head.revision);
        self.head = head;
        Ok(())
    }
}
