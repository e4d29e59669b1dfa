//! The checks of a recorded history.
//!
//! 1. [`log`]: what the scribe was told becomes the log, every revision with its changes, without a gap.
//! 2. [`order`]: each answer is what the model says at its revision, each revision has exactly one
//!    cause, and revisions agree with real time: strict serializability of the whole store, in linear
//!    time, because an answer's revision says where it stands.
//! 3. [`registers`]: the same once more without trust in revisions: each key by itself is a register
//!    that the search of Wing and Gong finds a linearization for.
//! 4. [`watches`]: what each watch was told is the log's part for it, in order, once, whole and to the
//!    end, and no progress notification runs ahead.
//! 5. [`leases`]: no lease ends early, and none works once it has ended.

pub mod leases;
pub mod log;
pub mod model;
pub mod order;
pub mod registers;
#[cfg(test)]
mod tests;
pub mod watches;
pub mod wing_gong;

use crate::history::{Answer, Call, History, Nanos, Outcome, Request};

/// The guarantee that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The log has a gap, or a record that does not follow from those before it.
    Log,
    /// An answer is not what the state at its revision gives.
    Answer,
    /// Two writes at one revision, or a revision that nobody can have caused.
    Cause,
    /// Revisions contradict real time: a stale read, or a revision that went backwards.
    RealTime,
    /// A key's history has no linearization.
    Register,
    /// A watch event that is not the log's next one: out of order, twice, left out, altered.
    WatchEvents,
    /// A revision's events in more than one answer.
    WatchAtomic,
    /// A progress notification ahead of events, or before the watch's first revision.
    WatchProgress,
    /// The previous value.
    WatchPrevious,
    /// Cancelled without a reason, or served though compacted.
    WatchCompaction,
    /// Something that had to come has not come.
    Liveness,
    Lease,
    /// A refusal without a reason.
    Refusal,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub detail: String,
}

impl Violation {
    pub fn new(rule: Rule, detail: impl Into<String>) -> Violation {
        Violation {
            rule,
            detail: detail.into(),
        }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// Violations of one kind that are told; one usually brings many more after it.
const TOLD: usize = 5;

/// Everything that is wrong with the history; empty if nothing is.
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations: Vec<Violation> = history
        .missed
        .iter()
        .map(|missed| Violation::new(Rule::Liveness, missed.clone()))
        .collect();
    let log = log::Log::build(&history.scribe, &mut violations);
    let compactions = Compactions::of(&history.calls);
    order::check(history, &log, &compactions, &mut violations);
    registers::check(history, &mut violations);
    watches::check(history, &log, &compactions, &mut violations);
    leases::check(history, &log, &mut violations);
    let mut told = std::collections::BTreeMap::new();
    violations.retain(|violation| {
        let count = told.entry(violation.rule).or_insert(0);
        *count += 1;
        *count <= TOLD
    });
    violations
}

/// When which revisions were compacted, as far as anybody can know.
pub struct Compactions {
    /// Revision, asked for, answered; not those that were refused.
    calls: Vec<(i64, Nanos, Option<Nanos>)>,
}

impl Compactions {
    pub fn of(calls: &[Call]) -> Compactions {
        let calls = calls.iter().filter_map(|call| match call.request {
            Request::Compact { revision } => match &call.outcome {
                Outcome::Answered(Answer::Compacted) => {
                    Some((revision, call.called, Some(call.returned)))
                }
                Outcome::Unknown(_) => Some((revision, call.called, None)),
                _ => None,
            },
            _ => None,
        });
        Compactions {
            calls: calls.collect(),
        }
    }

    /// The highest revision that may have been compacted by then; 0 for none.
    pub fn possible(&self, by: Nanos) -> i64 {
        let asked = self.calls.iter().filter(|(_, called, _)| *called < by);
        asked.map(|(revision, ..)| *revision).max().unwrap_or(0)
    }

    /// The highest revision that is known to have been compacted by then; 0 for none.
    pub fn certain(&self, by: Nanos) -> i64 {
        let answered = self
            .calls
            .iter()
            .filter(|(_, _, answered)| answered.is_some_and(|answered| answered < by));
        answered.map(|(revision, ..)| *revision).max().unwrap_or(0)
    }
}
