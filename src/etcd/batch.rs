//! A batch: requests evaluated one after the other, each against what those before it left, to be
//! made durable together.
//!
//! Worked example. At revision 7 three requests wait: a put of `a`, a delete of nothing, a put of
//! `b`. The batch evaluates them to revisions 8, 8 and 9, writes `log/8/0`, `log/9/0` and a head of
//! 9 in one store transaction, and only then are the three answered.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::{AlarmType, DeleteRangeRequest, PutRequest, TxnRequest};
use parking_lot::Mutex;

use super::alarm::{self, Alarms};
use super::auth::{AuthState, Change, Proof};
use super::encoding::Subspace;
use super::error::Error;
use super::event::RevisionEvents;
use super::lease::{self, Granted, LeaseBook};
use super::store::Writes;
use super::txn::{self, DeleteAnswer, Execution, PutAnswer, TxnAnswer};
use super::view::{Fault, Fetched, Overlay, Staged, State, View as _};
use crate::clock::Timestamp;

/// What the sequencer is asked to do. Validated already.
#[derive(Debug)]
pub enum Command {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(i64),
    /// With id 0 the lease gets a random one.
    Grant {
        id: i64,
        ttl: i64,
    },
    Revoke(i64),
    /// Revokes the lease if it has run out.
    Expire(i64),
    /// Writes down how many seconds the lease has left, or that it has its whole TTL again.
    Checkpoint {
        id: i64,
        left: Option<i64>,
    },
    /// Changes users, roles or permissions.
    Auth(Change),
    /// Raises or disarms an alarm.
    Alarm {
        kind: AlarmType,
        active: bool,
    },
}

impl Command {
    /// Whether there must be room for it.
    fn takes_space(&self) -> bool {
        match self {
            Command::Put(_) | Command::Grant { .. } => true,
            Command::Txn(request) => alarm::txn_cost(request) > 0,
            _ => false,
        }
    }
}

#[derive(Debug)]
pub enum Answer {
    Put(PutAnswer),
    Delete(DeleteAnswer),
    Txn(TxnAnswer),
    /// The revision now.
    Done {
        revision: i64,
    },
    /// TTL in seconds.
    Granted {
        revision: i64,
        id: i64,
        ttl: i64,
    },
    /// The alarm was active before.
    Alarm {
        was_active: bool,
    },
}

/// What happens to leases, in order.
#[derive(Clone, Copy, Debug)]
pub enum LeaseChange {
    Grant { id: i64, ttl: i64 },
    Revoke { id: i64 },
    Checkpoint { id: i64, left: Option<i64> },
}

/// What a batch is evaluated in.
pub struct Context<'a> {
    pub state: &'a State,
    pub leases: &'a Mutex<LeaseBook>,
    pub space: Subspace,
    pub now: Timestamp,
}

pub struct Batch {
    overlay: Overlay,
    pub revision: i64,
    pub compacted: i64,
    pub alarms: Alarms,
    pub auth: Arc<AuthState>,
    pub events: Vec<Arc<RevisionEvents>>,
    pub writes: Writes,
    /// In order, each with the number of [`Batch::events`] before it.
    pub lease_changes: Vec<(usize, LeaseChange)>,
    /// Leases granted (true) or revoked in this batch.
    staged_leases: HashMap<i64, bool>,
}

impl Batch {
    pub fn new(state: &State) -> Batch {
        Batch {
            overlay: Overlay::default(),
            revision: state.revision,
            compacted: state.compacted,
            alarms: state.alarms,
            auth: Arc::clone(&state.auth),
            events: Vec::new(),
            writes: Writes::default(),
            lease_changes: Vec::new(),
            staged_leases: HashMap::new(),
        }
    }

    /// Whether nothing has to be made durable.
    pub fn is_read_only(&self, state: &State) -> bool {
        self.writes.is_empty()
            && self.revision == state.revision
            && self.compacted == state.compacted
    }

    /// Evaluates one command. If it is refused, or needs values first, the batch is as before.
    pub fn evaluate(
        &mut self,
        context: &Context<'_>,
        command: &Command,
        proof: &Proof,
        fetched: &Fetched,
    ) -> Result<Answer, Fault> {
        self.check_permission(context, command, proof)?;
        self.check_alarms(command)?;
        match command {
            Command::Put(request) => self.execute(context, fetched, |execution| {
                execution.put(request).map(Answer::Put)
            }),
            Command::Delete(request) => self.execute(context, fetched, |execution| {
                Ok(Answer::Delete(execution.delete(request)))
            }),
            Command::Txn(request) => self.execute(context, fetched, |execution| {
                execution.txn(request).map(Answer::Txn)
            }),
            Command::Compact(revision) => Ok(self.compact(*revision)?),
            Command::Grant { id, ttl } => Ok(self.grant(context, *id, *ttl)?),
            Command::Revoke(id) => {
                if !self.lease_exists(context, *id) {
                    return Err(Error::LeaseNotFound.into());
                }
                self.revoke(context, *id)
            }
            Command::Auth(change) => Ok(self.change_auth(context, change)?),
            Command::Alarm { kind, active } => {
                let was_active = self.alarms.is_active(*kind);
                if was_active != *active {
                    self.alarms = self.alarms.with(*kind, *active);
                    self.writes.alarms(context.space, self.alarms);
                }
                Ok(Answer::Alarm { was_active })
            }
            Command::Expire(id) => {
                let stamp = {
                    let leases = context.leases.lock();
                    if self.staged_leases.contains_key(id) || !leases.is_expired(*id, context.now) {
                        return Ok(self.done());
                    }
                    leases.stamp(*id)
                };
                let answer = self.revoke(context, *id)?;
                self.writes.expire(*id, stamp);
                Ok(answer)
            }
            Command::Checkpoint { id, left } => {
                let ttl = context.leases.lock().ttl(*id);
                if let Some(ttl) = ttl
                    && !self.staged_leases.contains_key(id)
                {
                    let granted = Granted { ttl, left: *left };
                    self.writes.checkpoint(context.space, *id, granted);
                    self.change_lease(LeaseChange::Checkpoint {
                        id: *id,
                        left: *left,
                    });
                }
                Ok(self.done())
            }
        }
    }

    /// What was checked when the request came must hold now. The keys of a lease are no part of the revision that was
    /// checked, so whoever ends or lengthens the life of a lease's keys is checked against those that it has now.
    fn check_permission(
        &mut self,
        context: &Context<'_>,
        command: &Command,
        proof: &Proof,
    ) -> Result<(), Error> {
        match command {
            Command::Auth(_) | Command::Compact(_) => return proof.check_root(&self.auth),
            _ => proof.check(&self.auth)?,
        }
        let auth = Arc::clone(&self.auth);
        let Some(user) = proof.limited(&auth) else {
            return Ok(());
        };
        let mut leases = BTreeSet::new();
        match command {
            Command::Put(request) => leases.extend([request.lease]),
            Command::Txn(request) => txn::leases(request, &mut leases),
            Command::Revoke(id) => leases.extend([*id]),
            _ => {}
        }
        leases.remove(&0);
        for lease in leases {
            let keys = self.keys_of_lease(context, lease);
            if !keys.iter().all(|key| auth.may_write(user, key, &[])) {
                return Err(Error::PermissionDenied);
            }
        }
        Ok(())
    }

    fn keys_of_lease(&mut self, context: &Context<'_>, id: i64) -> BTreeSet<Bytes> {
        let mut keys: BTreeSet<Bytes> = context.leases.lock().keys(id).into_iter().collect();
        keys.extend(self.overlay.keys_of_lease(id).cloned());
        let view = Staged {
            state: context.state,
            overlay: &mut self.overlay,
            revision: self.revision,
            compacted: self.compacted,
        };
        keys.retain(|key| {
            let record = view.get(key, view.revision);
            record.is_some_and(|record| record.lease == id)
        });
        keys
    }

    /// Without room nothing is added; of damaged data nothing is changed.
    fn check_alarms(&self, command: &Command) -> Result<(), Error> {
        if self.alarms.is_active(AlarmType::Nospace) && command.takes_space() {
            return Err(Error::NoSpace);
        }
        let exempt = matches!(
            command,
            Command::Alarm { .. } | Command::Expire(_) | Command::Checkpoint { .. }
        );
        if self.alarms.is_active(AlarmType::Corrupt) && !exempt {
            return Err(Error::Corrupt);
        }
        Ok(())
    }

    fn change_auth(&mut self, context: &Context<'_>, change: &Change) -> Result<Answer, Error> {
        let mut auth = AuthState::clone(&self.auth);
        let touched = auth.apply(change)?;
        if (auth.enabled, auth.revision) != (self.auth.enabled, self.auth.revision) {
            self.writes.auth(context.space, &auth, &touched);
            self.auth = Arc::new(auth);
        }
        Ok(self.done())
    }

    fn done(&self) -> Answer {
        Answer::Done {
            revision: self.revision,
        }
    }

    fn lease_exists(&self, context: &Context<'_>, id: i64) -> bool {
        match self.staged_leases.get(&id) {
            Some(granted) => *granted,
            None => context.leases.lock().contains(id),
        }
    }

    fn execute<T>(
        &mut self,
        context: &Context<'_>,
        fetched: &Fetched,
        run: impl FnOnce(&mut Execution<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let staged_leases = &self.staged_leases;
        let lease_exists = |id: i64| match staged_leases.get(&id) {
            Some(granted) => *granted,
            None => context.leases.lock().contains(id),
        };
        let view = Staged {
            state: context.state,
            overlay: &mut self.overlay,
            revision: self.revision,
            compacted: self.compacted,
        };
        let mut execution = Execution::new(view, &lease_exists, fetched);
        let outcome = run(&mut execution);
        if outcome.is_err() {
            execution.roll_back();
            return outcome;
        }
        let revision = execution.view.revision;
        let events = std::mem::take(&mut execution.changes);
        if !events.is_empty() {
            for event in &events {
                self.writes.record(context.space, &event.record);
            }
            self.revision = revision;
            self.events
                .push(Arc::new(RevisionEvents::new(revision, events)));
        }
        outcome
    }

    fn compact(&mut self, revision: i64) -> Result<Answer, Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        Ok(self.done())
    }

    fn grant(&mut self, context: &Context<'_>, id: i64, ttl: i64) -> Result<Answer, Error> {
        let ttl = lease::granted_ttl(ttl)?;
        let id = if id == 0 {
            self.free_lease_id(context)
        } else if self.lease_exists(context, id) {
            return Err(Error::LeaseExists);
        } else {
            id
        };
        self.writes.grant(context.space, self.revision, id, ttl);
        self.staged_leases.insert(id, true);
        self.change_lease(LeaseChange::Grant { id, ttl });
        Ok(Answer::Granted {
            revision: self.revision,
            id,
            ttl,
        })
    }

    fn free_lease_id(&self, context: &Context<'_>) -> i64 {
        loop {
            // Positive, as etcd's are: some clients print them as such.
            let id = rand::random::<i64>() & i64::MAX;
            if id != 0 && !self.lease_exists(context, id) {
                return id;
            }
        }
    }

    fn revoke(&mut self, context: &Context<'_>, id: i64) -> Result<Answer, Fault> {
        let keys = self.keys_of_lease(context, id);
        self.execute(context, &Fetched::new(), |execution| {
            let view = &execution.view;
            let doomed: Vec<_> = keys
                .iter()
                .filter_map(|key| view.get(key, view.revision))
                .collect();
            execution.delete_records(&doomed);
            Ok(())
        })?;
        self.writes.revoke(context.space, self.revision, id);
        self.staged_leases.insert(id, false);
        self.change_lease(LeaseChange::Revoke { id });
        Ok(self.done())
    }

    fn change_lease(&mut self, change: LeaseChange) {
        self.lease_changes.push((self.events.len(), change));
    }

    /// Makes the book of leases what the batch has made of it.
    pub fn apply_to_leases(&self, leases: &mut LeaseBook, now: Timestamp) {
        let mut changes = self.lease_changes.iter().peekable();
        for at in 0..=self.events.len() {
            while let Some((_, change)) = changes.next_if(|(before, _)| *before == at) {
                match *change {
                    LeaseChange::Grant { id, ttl } => leases.grant(id, ttl, now),
                    LeaseChange::Revoke { id } => leases.revoke(id),
                    LeaseChange::Checkpoint { id, left } => leases.checkpoint(id, left, now),
                }
            }
            if let Some(events) = self.events.get(at) {
                leases.apply(events);
            }
        }
    }
}
