//! Leases: keys that live while somebody keeps them alive.
//!
//! The store holds a lease's id and TTL; which keys hang on it, the keys' own records say. When a
//! lease runs out lives in memory alone, so that keeping a lease alive costs no write; a restart
//! gives every lease its whole TTL again, which is at least what it had left.

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
    keys: BTreeSet<Bytes>,
}

/// The keyspace's durable leases.
#[derive(Debug, Default)]
pub struct LeaseBook {
    leases: HashMap<i64, Lease>,
    /// Every lease once.
    deadlines: BTreeSet<(Timestamp, i64)>,
}

/// A keep-alive's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its whole TTL again, in seconds.
    Renewed(i64),
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

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.unsigned_abs())
}

impl LeaseBook {
    pub fn grant(&mut self, id: i64, ttl: i64, now: Timestamp) {
        let deadline = now.saturating_add(seconds(ttl));
        let lease = Lease {
            ttl,
            deadline,
            keys: BTreeSet::new(),
        };
        if let Some(old) = self.leases.insert(id, lease) {
            self.deadlines.remove(&(old.deadline, id));
        }
        self.deadlines.insert((deadline, id));
    }

    pub fn revoke(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.deadlines.remove(&(lease.deadline, id));
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
        let Some(lease) = self.leases.get_mut(&id) else {
            return Renewal::Missing;
        };
        if lease.deadline <= now {
            return Renewal::Expired;
        }
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now.saturating_add(seconds(lease.ttl));
        self.deadlines.insert((lease.deadline, id));
        Renewal::Renewed(lease.ttl)
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

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
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
}
