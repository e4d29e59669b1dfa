//! Fault mode: seeded misbehaviour that a correct caller must survive (FoundationDB's "buggify").

use crate::Error;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// How often the store misbehaves. Probabilities are per operation, 0 to 1; all zero by default.
///
/// Equal seeds give equal decisions in equal order; which concurrent operation meets which decision is up to the
/// scheduler.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Faults {
    /// The seed of all decisions.
    pub seed: u64,
    /// A commit fails with 1020 without a conflict.
    pub not_committed: f64,
    /// A commit answers 1021; one half of these have been committed.
    pub commit_unknown_result: f64,
    /// A read, or the commit of something read, fails with 1007.
    pub transaction_too_old: f64,
    /// A read fails with 1009.
    pub future_version: f64,
    /// Reads and commits wait for a random time up to this one, so that they overtake each other. If it is not
    /// zero, commits that are queued at the same time are also put in random order.
    pub max_delay: Duration,
}

/// What fault mode does to a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommitFault {
    None,
    Refuse(Error),
    /// Commit, but say that it is not known.
    CommitUnknown,
    /// Do not commit, and say that it is not known.
    RefuseUnknown,
}

/// The seeded source of decisions.
pub(crate) struct FaultSource {
    faults: Faults,
    random: Mutex<ChaCha8Rng>,
}

impl FaultSource {
    pub(crate) fn new(faults: Faults) -> Self {
        FaultSource {
            random: Mutex::new(ChaCha8Rng::seed_from_u64(faults.seed)),
            faults,
        }
    }

    fn happens(&self, probability: f64) -> bool {
        probability > 0.0 && self.random.lock().random::<f64>() < probability
    }

    pub(crate) fn read_error(&self) -> Option<Error> {
        if self.happens(self.faults.transaction_too_old) {
            return Some(Error::TRANSACTION_TOO_OLD);
        }
        self.happens(self.faults.future_version)
            .then_some(Error::FUTURE_VERSION)
    }

    pub(crate) fn commit_fault(&self, has_reads: bool) -> CommitFault {
        if has_reads && self.happens(self.faults.transaction_too_old) {
            CommitFault::Refuse(Error::TRANSACTION_TOO_OLD)
        } else if self.happens(self.faults.not_committed) {
            CommitFault::Refuse(Error::NOT_COMMITTED)
        } else if !self.happens(self.faults.commit_unknown_result) {
            CommitFault::None
        } else if self.happens(0.5) {
            CommitFault::CommitUnknown
        } else {
            CommitFault::RefuseUnknown
        }
    }

    pub(crate) async fn delay(&self) {
        if self.faults.max_delay.is_zero() {
            return;
        }
        let share = self.random.lock().random::<f64>();
        tokio::time::sleep(self.faults.max_delay.mul_f64(share)).await;
    }

    pub(crate) fn reorder<T>(&self, queued: &mut [T]) {
        if !self.faults.max_delay.is_zero() {
            queued.shuffle(&mut *self.random.lock());
        }
    }
}
