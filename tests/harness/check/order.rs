//! Strict serializability of the whole store, from the revisions in the answers.
//!
//! A write at revision r stands at position 2r, a read that was answered at r at 2r + 1: among
//! those at one position the order does not matter. So all that is left to check is that each
//! answer is the model's at its position, that each revision has one cause, and that an operation
//! called after another one had returned does not stand before it.
//!
//! Worked example. A put was answered at revision 5 (position 10); a read called later was answered
//! at 4 (position 9): stale. Had the read been serializable, it would be in order.
//!
//! A revision that no answer claims was caused by a call whose outcome is unknown, or by the end of
//! a lease. Each such call can have caused one revision: the one whose changes are those that the
//! model gives for it. Where several calls could have caused several revisions, a matching decides.

use std::collections::HashMap;

use super::log::{FIRST, Log};
use super::model;
use super::{Compactions, Rule, Violation};
use crate::history::{Answer, Call, Change, History, Nanos, Outcome, Request, Said, show_changes};
use crate::request::{KvAnswer, KvRequest, Op};

/// etcd's refusals that a history may hold.
pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
pub const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
pub const NO_LEASE: &str = "etcdserver: requested lease not found";

/// Something that stands at a position.
struct Placed {
    called: Nanos,
    returned: Nanos,
    position: i64,
    /// The call, or 0-based watch, for a message.
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Call(usize),
    Watch(usize),
}

/// When each revision was first heard of.
pub struct FirstSeen {
    /// By revision, from [`FIRST`] on.
    at: Vec<Nanos>,
}

impl FirstSeen {
    pub fn of(history: &History, log: &Log) -> FirstSeen {
        let len = usize::try_from(log.last() - FIRST + 1).unwrap_or(0);
        let mut at = vec![Nanos::MAX; len];
        let mut see = |revision: i64, when: Nanos| {
            // A revision implies all before it; what is beyond the log is told elsewhere.
            let last = usize::try_from(revision - FIRST).ok();
            if let Some(seen) = last.and_then(|last| at.get_mut(last)) {
                *seen = (*seen).min(when);
            }
        };
        for call in &history.calls {
            match &call.outcome {
                Outcome::Answered(Answer::Kv(answer)) => see(answer.revision, call.returned),
                Outcome::Answered(Answer::Revoked { revision }) => see(*revision, call.returned),
                _ => {}
            }
        }
        for watch in &history.watches {
            for heard in &watch.heard {
                see(heard.revision, heard.at);
            }
        }
        for index in (1..at.len()).rev() {
            at[index - 1] = at[index - 1].min(at[index]);
        }
        FirstSeen { at }
    }

    pub fn get(&self, revision: i64) -> Nanos {
        let index = usize::try_from(revision - FIRST).ok();
        let seen = index.and_then(|index| self.at.get(index));
        seen.copied().unwrap_or(Nanos::MAX)
    }
}

pub fn check(
    history: &History,
    log: &Log,
    compactions: &Compactions,
    violations: &mut Vec<Violation>,
) {
    let seen = FirstSeen::of(history, log);
    let mut placed = Vec::new();
    let mut causes: HashMap<i64, usize> = HashMap::new();
    // First what belongs to the key-value store: the end of a lease may look like a deletion of its keys.
    let (revokes, others): (Vec<_>, Vec<_>) = history
        .calls
        .iter()
        .enumerate()
        .partition(|(_, call)| matches!(call.request, Request::Revoke { .. }));
    for (at, call) in others.into_iter().chain(revokes) {
        let claim = match (&call.request, &call.outcome) {
            (Request::Kv(request), Outcome::Answered(Answer::Kv(answer))) => {
                check_past_reads(call, request, compactions, violations);
                check_answer(log, request, answer)
            }
            (Request::Revoke { id }, Outcome::Answered(Answer::Revoked { revision })) => {
                let free = !causes.contains_key(revision) && call.called < seen.get(*revision);
                check_revoke(log, *id, *revision, free)
            }
            (_, Outcome::Refused(why)) => {
                check_refusal(history, call, why, compactions, violations);
                continue;
            }
            _ => continue,
        };
        match claim {
            Ok((revision, writes)) => {
                if writes && let Some(other) = causes.insert(revision, at) {
                    let detail = format!(
                        "revision {revision} was given out twice:\n  {}\n  {call}",
                        history.calls[other]
                    );
                    violations.push(Violation::new(Rule::Cause, detail));
                }
                let serializable = matches!(&call.request, Request::Kv(kv) if kv.serializable);
                if !serializable {
                    placed.push(Placed {
                        called: call.called,
                        returned: call.returned,
                        position: 2 * revision + i64::from(!writes),
                        what: What::Call(at),
                    });
                }
            }
            Err(detail) => {
                violations.push(Violation::new(Rule::Answer, format!("{call}\n  {detail}")));
            }
        }
    }
    // Whoever is told of an event has read it.
    for (at, watch) in history.watches.iter().enumerate() {
        let heard = watch.heard.iter();
        placed.extend(
            heard
                .filter(|heard| !matches!(heard.said, Said::Canceled { .. }))
                .map(|heard| Placed {
                    called: watch.at,
                    returned: heard.at,
                    position: 2 * heard.revision,
                    what: What::Watch(at),
                }),
        );
    }
    check_real_time(history, placed, violations);
    check_causes(history, log, &seen, &causes, violations);
}

/// The revision that the answer stands at, and whether it is a write there.
fn check_answer(log: &Log, request: &KvRequest, answer: &KvAnswer) -> Result<(i64, bool), String> {
    let revision = answer.revision;
    if revision > log.last() {
        return Err(format!("the last revision of the log is {}", log.last()));
    }
    if revision < 1 {
        return Err(String::from("there is no such revision"));
    }
    let (expected, changes) = model::evaluate(log, revision - 1, request);
    if !changes.is_empty() && expected == *answer {
        if changes == log.changes(revision) {
            return Ok((revision, true));
        }
        return Err(format!(
            "revision {revision} is {}",
            show_changes(log.changes(revision))
        ));
    }
    let (read, changed) = model::evaluate(log, revision, request);
    if changed.is_empty() && read == *answer {
        return Ok((revision, false));
    }
    let expected = if changes.is_empty() { read } else { expected };
    Err(format!("expected {expected}"))
}

/// `free` tells whether the revision can be the revocation's own.
fn check_revoke(log: &Log, lease: i64, revision: i64, free: bool) -> Result<(i64, bool), String> {
    if revision > log.last() {
        return Err(format!("the last revision of the log is {}", log.last()));
    }
    let changes = model::end_of_lease(log, revision - 1, lease);
    if free && !changes.is_empty() && changes == log.changes(revision) {
        return Ok((revision, true));
    }
    let left = model::end_of_lease(log, revision, lease);
    if left.is_empty() {
        Ok((revision, false))
    } else {
        Err(format!("it leaves keys: {}", show_changes(&left)))
    }
}

/// A read at a revision that had been compacted must have been refused.
fn check_past_reads(
    call: &Call,
    request: &KvRequest,
    compactions: &Compactions,
    violations: &mut Vec<Violation>,
) {
    let (Some((_, answer)), certain) = (call.as_kv(), compactions.certain(call.called)) else {
        return;
    };
    for op in request.branch(answer.succeeded) {
        if let Op::Range { revision, .. } = op
            && *revision > 0
            && *revision < certain
        {
            let detail = format!("{certain} had been compacted: {call}");
            violations.push(Violation::new(Rule::Answer, detail));
        }
    }
}

fn check_refusal(
    history: &History,
    call: &Call,
    why: &str,
    compactions: &Compactions,
    violations: &mut Vec<Violation>,
) {
    let past = |request: &KvRequest| {
        let ops = request.success.iter().chain(&request.failure);
        let revisions = ops.filter_map(|op| match op {
            Op::Range { revision, .. } if *revision > 0 => Some(*revision),
            _ => None,
        });
        revisions.collect::<Vec<_>>()
    };
    let is_just = match (&call.request, why) {
        (Request::Kv(request), COMPACTED) => {
            let possible = compactions.possible(call.returned);
            past(request).iter().any(|revision| *revision < possible)
        }
        (Request::Compact { revision }, COMPACTED) => {
            // It has been asked for before, or this is a second try of one that was cut off.
            *revision <= compactions.possible(call.returned)
        }
        (Request::Kv(request), FUTURE) => {
            let newest = past(request).into_iter().max().unwrap_or(0);
            let answered = history
                .calls
                .iter()
                .filter(|other| other.returned < call.called);
            !answered
                .filter_map(Call::as_kv)
                .any(|(_, answer)| answer.revision >= newest)
        }
        // Those that name leases are checked with the leases.
        (Request::Kv(request), NO_LEASE) => request
            .success
            .iter()
            .chain(&request.failure)
            .any(|op| matches!(op, Op::Put { lease, .. } if *lease != 0)),
        (Request::Revoke { .. }, NO_LEASE) => true,
        _ => false,
    };
    if !is_just {
        violations.push(Violation::new(Rule::Refusal, call.to_string()));
    }
}

/// Nothing that was called after another operation had returned stands before it.
fn check_real_time(history: &History, placed: Vec<Placed>, violations: &mut Vec<Violation>) {
    let mut by_call: Vec<usize> = (0..placed.len())
        .filter(|at| matches!(placed[*at].what, What::Call(_)))
        .collect();
    by_call.sort_by_key(|at| placed[*at].called);
    let mut by_return: Vec<usize> = (0..placed.len()).collect();
    by_return.sort_by_key(|at| placed[*at].returned);
    let mut returned = by_return.into_iter().peekable();
    let mut latest: Option<usize> = None;
    let show = |placed: &Placed| match placed.what {
        What::Call(at) => history.calls[at].to_string(),
        What::Watch(at) => format!(
            "{:>12} heard of {}: {}",
            placed.returned,
            placed.position / 2,
            history.watches[at]
        ),
    };
    for at in by_call {
        let operation = &placed[at];
        while let Some(before) =
            returned.next_if(|other| placed[*other].returned < operation.called)
        {
            if latest.is_none_or(|latest| placed[latest].position < placed[before].position) {
                latest = Some(before);
            }
        }
        if let Some(before) = latest.map(|latest| &placed[latest])
            && before.position > operation.position
        {
            let detail = format!(
                "one came back:\n  {}\nthen another was sent, and stands before it:\n  {}",
                show(before),
                show(operation)
            );
            violations.push(Violation::new(Rule::RealTime, detail));
        }
    }
}

/// Every revision has a cause, called before anybody heard of it.
fn check_causes(
    history: &History,
    log: &Log,
    seen: &FirstSeen,
    causes: &HashMap<i64, usize>,
    violations: &mut Vec<Violation>,
) {
    let mut unclaimed = Vec::new();
    for revision in FIRST..=log.last() {
        match causes.get(&revision) {
            Some(call) => {
                let call = &history.calls[*call];
                if call.called > seen.get(revision) {
                    let detail = format!("revision {revision} was heard of before {call}");
                    violations.push(Violation::new(Rule::RealTime, detail));
                }
            }
            None => unclaimed.push(revision),
        }
    }
    let unknown: Vec<&Call> = history
        .calls
        .iter()
        .filter(|call| matches!(call.outcome, Outcome::Unknown(_)))
        .filter(|call| matches!(call.request, Request::Kv(_) | Request::Revoke { .. }))
        .collect();
    let can_cause = |call: &Call, revision: i64| {
        call.called < seen.get(revision)
            && match &call.request {
                Request::Kv(request) => {
                    let changes = model::evaluate(log, revision - 1, request).1;
                    changes == log.changes(revision)
                }
                Request::Revoke { id } => {
                    let changes = model::end_of_lease(log, revision - 1, *id);
                    changes == log.changes(revision)
                }
                _ => false,
            }
    };
    // The end of a lease needs no call: whether it came too early is checked with the leases.
    unclaimed.retain(|revision| ended_lease(log, *revision).is_none());
    let candidates: Vec<Vec<usize>> = unclaimed
        .iter()
        .map(|revision| {
            let fit = |at: &usize| can_cause(unknown[*at], *revision);
            (0..unknown.len()).filter(fit).collect()
        })
        .collect();
    for orphan in unmatched(&candidates, unknown.len()) {
        let revision = unclaimed[orphan];
        let detail = format!(
            "nobody can have caused revision {revision}: {}",
            show_changes(log.changes(revision))
        );
        violations.push(Violation::new(Rule::Cause, detail));
    }
}

/// The lease whose end the revision looks like.
pub fn ended_lease(log: &Log, revision: i64) -> Option<i64> {
    let changes = log.changes(revision);
    let first: &Change = changes.first()?;
    let lease = log.get(&first.key, revision - 1)?.lease;
    (lease != 0 && model::end_of_lease(log, revision - 1, lease) == changes).then_some(lease)
}

/// Those of the left side that a largest matching leaves over (Kuhn's algorithm).
fn unmatched(candidates: &[Vec<usize>], right: usize) -> Vec<usize> {
    fn place(
        left: usize,
        candidates: &[Vec<usize>],
        partner: &mut [Option<usize>],
        tried: &mut [bool],
    ) -> bool {
        for right in &candidates[left] {
            if std::mem::replace(&mut tried[*right], true) {
                continue;
            }
            let free = match partner[*right] {
                None => true,
                Some(other) => place(other, candidates, partner, tried),
            };
            if free {
                partner[*right] = Some(left);
                return true;
            }
        }
        false
    }
    let mut partner = vec![None; right];
    (0..candidates.len())
        .filter(|left| !place(*left, candidates, &mut partner, &mut vec![false; right]))
        .collect()
}
