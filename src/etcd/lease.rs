//! Leases: keys that live while somebody keeps them alive.
//!
//! The store holds a lease's id and TTL; which keys hang on it, the keys' own records say. When a
//! lease runs out lives in memory alone, so that keeping a lease alive costs no write. What a long
//! lease has left is written down now and then, its checkpoint; a restart gives every lease what its
//! checkpoint says, or its whole TTL, and that is at least what it had left. A keep-alive takes the
//! checkpoint back before it is answered.
//!
//! Where several servers share the store, each counts for itself, and a keep-alive leaves a stamp in the
//! store: before a server lets a lease run out, it looks whether the stamp is still the one it has seen, and
//! counts anew if it is not. So no server depends on another's clock. There are no checkpoints then.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;

use super::error::Error;
use super::event::RevisionEvents;
use crate::clock::Timestamp;

/// Shorter TTLs are raised to this, as etcd does with its default timing of elections, in seconds.
pub const MIN_TTL: i64 = 2;
/// Longer TTLs are refused, in seconds.
pub const MAX_TTL: i64 = 9_000_000_000;

/// A lease is checkpointed after so long without keep-alive, and again and again, while it has more than that left.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);

/// What a keep-alive leaves in a shared store.
pub type Stamp = [u8; 8];

/// The TTL that a lease gets when `requested` was asked for, in seconds.
pub fn granted_ttl(requested: i64) -> Result<i64, Error> {
    if requested > MAX_TTL {
        return Err(Error::LeaseTtlTooLarge);
    }
    Ok(requested.max(MIN_TTL))
}

#[derive(Debug)]
struct Lease {
    /// Seconds.
    ttl: i64,
    /// When it runs out; the pair is in [`LeaseBook::deadlines`].
    deadline: Timestamp,
    /// Seconds that were left at the checkpoint that the store holds.
    checkpoint: Option<i64>,
    /// When the next checkpoint is due; the pair is in [`LeaseBook::checkpoints`].
    checkpoint_at: Option<Timestamp>,
    /// The stamp of the last keep-alive that this server knows of.
    stamp: Option<Stamp>,
    keys: BTreeSet<Bytes>,
}

/// The keyspace's durable leases.
#[derive(Debug, Default)]
pub struct LeaseBook {
    leases: HashMap<i64, Lease>,
    /// Every lease once.
    deadlines: BTreeSet<(Timestamp, i64)>,
    checkpoints: BTreeSet<(Timestamp, i64)>,
    /// There are no checkpoints.
    shared: bool,
}

/// A keep-alive's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its whole TTL again, in seconds.
    Renewed(i64),
    /// The same, but a restart would give it less: its checkpoint must go before the client hears of it.
    Checkpointed(i64),
    /// It has run out, but its keys may still be there.
    Expired,
    Missing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    pub remaining: Duration,
    /// Seconds.
    pub granted: i64,
    pub keys: Vec<Bytes>,
}

/// A lease as the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Seconds.
    pub ttl: i64,
    /// Seconds that were left at its checkpoint, if there is one.
    pub left: Option<i64>,
}

impl Granted {
    pub fn encode(self) -> Bytes {
        let mut value = self.ttl.to_be_bytes().to_vec();
        if let Some(left) = self.left {
            value.extend_from_slice(&left.to_be_bytes());
        }
        Bytes::from(value)
    }

    pub fn decode(value: &[u8]) -> Option<Granted> {
        let (ttl, left) = value.split_at_checked(8)?;
        let left = match left {
            [] => None,
            left => Some(i64::from_be_bytes(left.try_into().ok()?)),
        };
        Some(Granted {
            ttl: i64::from_be_bytes(ttl.try_into().ok()?),
            left,
        })
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.unsigned_abs())
}

impl LeaseBook {
    /// For a store that several servers share, or for one server's own.
    pub fn new(shared: bool) -> LeaseBook {
        LeaseBook {
            shared,
            ..LeaseBook::default()
        }
    }

    pub fn grant(&mut self, id: i64, ttl: i64, now: Timestamp) {
        self.restore(id, Granted { ttl, left: None }, now);
    }

    /// Adds a lease as the store has it.
    pub fn restore(&mut self, id: i64, Granted { ttl, left }: Granted, now: Timestamp) {
        self.revoke(id);
        let deadline = now.saturating_add(seconds(left.unwrap_or(ttl)));
        let lease = Lease {
            ttl,
            deadline,
            checkpoint: left,
            checkpoint_at: None,
            stamp: None,
            keys: BTreeSet::new(),
        };
        self.leases.insert(id, lease);
        self.deadlines.insert((deadline, id));
        self.schedule_checkpoint(id, now);
    }

    pub fn revoke(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.deadlines.remove(&(lease.deadline, id));
            if let Some(at) = lease.checkpoint_at {
                self.checkpoints.remove(&(at, id));
            }
        }
    }

    /// Sets when the lease's next checkpoint is due, if it needs one.
    fn schedule_checkpoint(&mut self, id: i64, now: Timestamp) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if let Some(at) = lease.checkpoint_at.take() {
            self.checkpoints.remove(&(at, id));
        }
        if !self.shared && now.until(lease.deadline) > CHECKPOINT_INTERVAL {
            let at = now.saturating_add(CHECKPOINT_INTERVAL);
            lease.checkpoint_at = Some(at);
            self.checkpoints.insert((at, id));
        }
    }

    /// Up to `limit` leases whose checkpoints are due, with the seconds they have left.
    pub fn due_checkpoints(&self, now: Timestamp, limit: usize) -> Vec<(i64, i64)> {
        let due = self.checkpoints.iter();
        due.take_while(|(at, _)| *at <= now)
            .take(limit)
            .filter_map(|(_, id)| {
                let left = now.until(self.leases.get(id)?.deadline);
                // Rounded up: never less than there is.
                let whole = left.as_secs() + u64::from(left.subsec_nanos() > 0);
                Some((*id, i64::try_from(whole).unwrap_or(i64::MAX)))
            })
            .collect()
    }

    /// The store holds this checkpoint now, or none.
    pub fn checkpoint(&mut self, id: i64, left: Option<i64>, now: Timestamp) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.checkpoint = left;
            self.schedule_checkpoint(id, now);
        }
    }

    /// The TTL, in seconds.
    pub fn ttl(&self, id: i64) -> Option<i64> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    /// What the store said of the lease's last keep-alive. One that this server did not know of makes it count anew.
    pub fn observe(&mut self, id: i64, stamp: Option<Stamp>, now: Timestamp) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if lease.stamp != stamp {
            lease.stamp = stamp;
            self.extend(id, now);
        }
    }

    /// The stamp of the last keep-alive that this server knows of.
    pub fn stamp(&self, id: i64) -> Option<Stamp> {
        self.leases.get(&id)?.stamp
    }

    /// Gives the lease its whole TTL from now on.
    fn extend(&mut self, id: i64, now: Timestamp) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.deadlines.remove(&(lease.deadline, id));
            lease.deadline = now.saturating_add(seconds(lease.ttl));
            self.deadlines.insert((lease.deadline, id));
            self.schedule_checkpoint(id, now);
        }
    }

    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Moves keys between leases as the events say.
    pub fn apply(&mut self, events: &RevisionEvents) {
        for event in &events.events {
            let before = event.previous.as_ref().map_or(0, |previous| previous.lease);
            let after = event.record.lease;
            if before != after {
                self.detach(before, &event.record.key);
            }
            self.attach(after, &event.record.key);
        }
    }

    pub fn attach(&mut self, id: i64, key: &Bytes) {
        if id != 0
            && let Some(lease) = self.leases.get_mut(&id)
            && !lease.keys.contains(key)
        {
            lease.keys.insert(key.clone());
        }
    }

    fn detach(&mut self, id: i64, key: &Bytes) {
        if id != 0
            && let Some(lease) = self.leases.get_mut(&id)
        {
            lease.keys.remove(key);
        }
    }

    pub fn keep_alive(&mut self, id: i64, now: Timestamp) -> Renewal {
        let Some(lease) = self.leases.get(&id) else {
            return Renewal::Missing;
        };
        if lease.deadline <= now {
            return Renewal::Expired;
        }
        let (ttl, checkpointed) = (lease.ttl, lease.checkpoint.is_some());
        self.extend(id, now);
        if checkpointed {
            Renewal::Checkpointed(ttl)
        } else {
            Renewal::Renewed(ttl)
        }
    }

    pub fn time_to_live(&self, id: i64, now: Timestamp, with_keys: bool) -> Option<TimeToLive> {
        let lease = self.leases.get(&id)?;
        if lease.deadline <= now {
            return None;
        }
        let keys = lease.keys.iter().filter(|_| with_keys);
        Some(TimeToLive {
            remaining: now.until(lease.deadline),
            granted: lease.ttl,
            keys: keys.cloned().collect(),
        })
    }

    pub fn keys(&self, id: i64) -> Vec<Bytes> {
        let keys = self.leases.get(&id).map(|lease| lease.keys.iter());
        keys.into_iter().flatten().cloned().collect()
    }

    /// Ids of all leases, the soonest to run out first.
    pub fn ids(&self) -> Vec<i64> {
        self.deadlines.iter().map(|(_, id)| *id).collect()
    }

    /// All leases with their TTLs, in seconds.
    pub fn granted(&self) -> Vec<(i64, i64)> {
        self.leases
            .iter()
            .map(|(id, lease)| (*id, lease.ttl))
            .collect()
    }

    /// Whether the lease has run out: only then may it be revoked for that.
    pub fn is_expired(&self, id: i64, now: Timestamp) -> bool {
        self.leases
            .get(&id)
            .is_some_and(|lease| lease.deadline <= now)
    }

    /// Up to `limit` leases that have run out.
    pub fn expired(&self, now: Timestamp, limit: usize) -> Vec<i64> {
        let due = self.deadlines.iter();
        due.take_while(|(deadline, _)| *deadline <= now)
            .take(limit)
            .map(|(_, id)| *id)
            .collect()
    }

    /// When a lease runs out or a checkpoint is due.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let first = |due: &BTreeSet<(Timestamp, i64)>| due.first().map(|(at, _)| *at);
        let due = [first(&self.deadlines), first(&self.checkpoints)];
        due.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttls_are_bounded() {
        for (requested, granted) in [
            (-3, Ok(MIN_TTL)),
            (0, Ok(MIN_TTL)),
            (1, Ok(MIN_TTL)),
            (60, Ok(60)),
            (MAX_TTL, Ok(MAX_TTL)),
            (MAX_TTL + 1, Err(Error::LeaseTtlTooLarge)),
            (i64::MAX, Err(Error::LeaseTtlTooLarge)),
        ] {
            assert_eq!(granted_ttl(requested), granted, "{requested}");
        }
    }

    #[test]
    fn a_lease_runs_out_unless_kept_alive() {
        let mut book = LeaseBook::default();
        let at = |seconds: i64| Timestamp(seconds * 1000);
        book.grant(7, 10, at(0));
        book.grant(8, 10, at(0));
        assert_eq!(book.keep_alive(7, at(9)), Renewal::Renewed(10));
        assert_eq!(book.keep_alive(9, at(9)), Renewal::Missing);
        assert_eq!(book.expired(at(9), 9), [0; 0]);
        assert_eq!(book.expired(at(10), 9), [8]);
        assert_eq!(book.keep_alive(8, at(10)), Renewal::Expired);
        assert_eq!(book.time_to_live(8, at(10), true), None);
        assert_eq!(book.next_deadline(), Some(at(10)));
        book.revoke(8);
        assert_eq!(book.next_deadline(), Some(at(19)));
        assert_eq!(book.ids(), [7]);
        let left = book.time_to_live(7, at(10), false).expect("alive");
        assert_eq!((left.remaining, left.granted), (Duration::from_secs(9), 10));
    }

    #[test]
    fn a_long_lease_is_checkpointed_until_it_is_kept_alive() {
        let mut book = LeaseBook::default();
        let at = |seconds: i64| Timestamp(seconds * 1000);
        book.grant(1, 300, at(0));
        book.grant(2, 1000, at(0));
        assert_eq!(book.next_deadline(), Some(at(300)));
        assert_eq!(book.due_checkpoints(at(299), 9), []);
        assert_eq!(book.due_checkpoints(at(300), 9), [(2, 700)]);
        book.checkpoint(2, Some(700), at(300));
        assert_eq!(book.due_checkpoints(at(599), 9), []);
        assert_eq!(book.due_checkpoints(at(600), 9), [(2, 400)]);
        assert_eq!(book.keep_alive(2, at(500)), Renewal::Checkpointed(1000));
        book.checkpoint(2, None, at(500));
        assert_eq!(book.keep_alive(2, at(501)), Renewal::Renewed(1000));
        assert_eq!(book.due_checkpoints(at(800), 9), []);
        assert_eq!(book.due_checkpoints(at(801), 9), [(2, 700)]);
        // As a restart finds it.
        let granted = Granted {
            ttl: 1000,
            left: Some(700),
        };
        assert_eq!(Granted::decode(&granted.encode()), Some(granted));
        book.restore(3, granted, at(2000));
        assert!(!book.is_expired(3, at(2699)));
        assert!(book.is_expired(3, at(2700)));
        book.revoke(2);
        book.revoke(3);
        assert_eq!(book.due_checkpoints(at(9000), 9), []);
    }

    #[test]
    fn an_unknown_stamp_means_that_another_server_has_kept_the_lease_alive() {
        let mut book = LeaseBook::new(true);
        let at = |seconds: i64| Timestamp(seconds * 1000);
        book.grant(1, 1000, at(0));
        assert_eq!(book.next_deadline(), Some(at(1000)));
        book.observe(1, None, at(1000));
        assert!(book.is_expired(1, at(1000)));
        book.observe(1, Some([1; 8]), at(1000));
        assert!(!book.is_expired(1, at(1999)));
        book.observe(1, Some([1; 8]), at(1999));
        assert!(book.is_expired(1, at(2000)));
    }
}
