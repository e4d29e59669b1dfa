//! Where the store takes its time from.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// A monotonic clock. The store asks it how old a transaction is and how far versions advance; it never asks for
/// the time of day. Tests pass [`ManualTime`], so that none of them sleeps to see a transaction grow old.
pub trait TimeSource: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;
}

/// Real time.
#[derive(Debug)]
pub struct MonotonicTime(Instant);

impl Default for MonotonicTime {
    fn default() -> Self {
        MonotonicTime(Instant::now())
    }
}

impl TimeSource for MonotonicTime {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Time that stands still until it is advanced.
#[derive(Debug, Default)]
pub struct ManualTime(Mutex<Duration>);

impl ManualTime {
    /// Lets `by` pass.
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl TimeSource for ManualTime {
    fn now(&self) -> Duration {
        *self.0.lock()
    }
}
