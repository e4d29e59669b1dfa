//! Leases: no key goes before its time, and none is held by a lease that is gone.
//!
//! A lease lives from its grant; each answered keep-alive gives it its whole TTL again, counted from a
//! moment after the keep-alive was sent. So before `sent + TTL` nothing of it may end, unless
//! somebody revokes it. (It may end later than that: a restart gives every lease time.)

use std::collections::HashMap;

use super::log::{FIRST, Log};
use super::order::{FirstSeen, NO_LEASE, ended_lease};
use super::{Rule, Violation};
use crate::history::{Answer, Call, History, Nanos, Outcome, Request};
use crate::request::Op;

/// The server's clock has this grain.
const GRAIN: Nanos = 1_000_000;
/// The shortest TTL that is granted, in seconds.
const MIN_TTL: i64 = 2;

/// What is known of a lease.
#[derive(Default)]
struct Lease {
    /// The first time that it can exist.
    granted_from: Nanos,
    /// When it surely existed; `None` if nobody knows.
    granted_by: Option<Nanos>,
    ttl: Nanos,
    /// When renewals that were answered were sent and answered: ascending by answer.
    renewals: Vec<(Nanos, Nanos)>,
    /// The first time that somebody can have revoked it.
    revoked_from: Option<Nanos>,
    /// From when on it surely was.
    revoked_by: Option<Nanos>,
}

impl Lease {
    /// The first moment at which it can have ended by itself, for who looks at `at`.
    fn lives_until(&self, at: Nanos) -> Nanos {
        let renewed = self.renewals.iter().filter(|(_, answered)| *answered <= at);
        let sent = renewed.map(|(sent, _)| *sent).max();
        let sent = sent.unwrap_or(0).max(self.granted_from);
        (sent + self.ttl).saturating_sub(GRAIN)
    }

    /// Whether it can be gone, for who looks at `at`.
    fn can_be_gone(&self, at: Nanos) -> bool {
        self.revoked_from.is_some_and(|from| from < at) || self.lives_until(at) <= at
    }
}

fn nanos(seconds: i64) -> Nanos {
    seconds.max(MIN_TTL).unsigned_abs() * 1_000_000_000
}

fn leases(calls: &[Call]) -> HashMap<i64, Lease> {
    let mut leases: HashMap<i64, Lease> = HashMap::new();
    for call in calls {
        if let Request::Grant { id, ttl } = call.request {
            let lease = leases.entry(id).or_default();
            lease.granted_from = call.called;
            lease.ttl = nanos(ttl);
            if matches!(call.outcome, Outcome::Answered(_)) {
                lease.granted_by = Some(call.returned);
            }
        }
    }
    for call in calls {
        match (&call.request, &call.outcome) {
            (Request::KeepAlive { id }, Outcome::Answered(Answer::KeptAlive { ttl }))
                if *ttl > 0 =>
            {
                if let Some(lease) = leases.get_mut(id) {
                    lease.renewals.push((call.called, call.returned));
                }
            }
            (Request::Revoke { id }, outcome) => {
                let Some(lease) = leases.get_mut(id) else {
                    continue;
                };
                if !matches!(outcome, Outcome::Refused(_)) {
                    let from = lease
                        .revoked_from
                        .map_or(call.called, |from| from.min(call.called));
                    lease.revoked_from = Some(from);
                }
                if matches!(outcome, Outcome::Answered(_)) {
                    let by = lease
                        .revoked_by
                        .map_or(call.returned, |by| by.min(call.returned));
                    lease.revoked_by = Some(by);
                }
            }
            _ => {}
        }
    }
    leases
}

pub fn check(history: &History, log: &Log, violations: &mut Vec<Violation>) {
    let leases = leases(&history.calls);
    let seen = FirstSeen::of(history, log);
    let mut broken = |detail: String| violations.push(Violation::new(Rule::Lease, detail));
    for revision in FIRST..=log.last() {
        let Some(id) = ended_lease(log, revision) else {
            continue;
        };
        // A client may have deleted exactly its keys.
        let deleted = |call: &Call| match (&call.request, &call.outcome) {
            (Request::Kv(_), Outcome::Answered(Answer::Kv(answer))) => answer.revision == revision,
            (Request::Kv(request), Outcome::Unknown(_)) => {
                let mut ops = request.success.iter().chain(&request.failure);
                ops.any(|op| matches!(op, Op::Delete { .. }))
            }
            _ => false,
        };
        let at = seen.get(revision);
        let early = leases.get(&id).is_none_or(|lease| !lease.can_be_gone(at));
        if early && !history.calls.iter().any(deleted) {
            broken(format!(
                "lease {id:x} ended too early, with revision {revision}, heard of at {at}"
            ));
        }
    }
    for call in &history.calls {
        if let (Request::Grant { ttl, .. }, Outcome::Answered(Answer::Granted { ttl: granted })) =
            (&call.request, &call.outcome)
            && *granted != (*ttl).max(MIN_TTL)
        {
            broken(format!("the TTL is not what was asked for: {call}"));
        }
        for id in named(call) {
            let Some(lease) = leases.get(&id) else {
                continue;
            };
            let found = match &call.outcome {
                Outcome::Answered(Answer::KeptAlive { ttl }) => *ttl > 0,
                Outcome::Answered(_) => true,
                Outcome::Refused(why) if why == NO_LEASE => false,
                _ => continue,
            };
            if found && lease.revoked_by.is_some_and(|by| by < call.called) {
                broken(format!("the lease had been revoked: {call}"));
            }
            let exists = lease.granted_by.is_some_and(|by| by < call.called);
            if !found && exists && !lease.can_be_gone(call.returned) {
                broken(format!("the lease was alive: {call}"));
            }
        }
    }
}

/// The leases that the call must have found.
fn named(call: &Call) -> Vec<i64> {
    match &call.request {
        Request::Revoke { id } | Request::KeepAlive { id } => vec![*id],
        Request::Kv(request) => {
            let ops = match call.as_kv() {
                Some((_, answer)) => request.branch(answer.succeeded),
                None => request.success.as_slice(),
            };
            let leases = ops.iter().filter_map(|op| match op {
                Op::Put { lease, .. } if *lease != 0 => Some(*lease),
                _ => None,
            });
            leases.collect()
        }
        _ => Vec::new(),
    }
}
