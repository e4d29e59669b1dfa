//! What waits for one watch stream, and whether the stream has been told so.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::hub::{Delivery, WatcherKey};

/// Deliveries that wait in one stream's queue before its watchers lag. They share their events
/// with everybody else's.
const QUEUE_LEN: usize = 1024;
/// The same in bytes; one delivery always fits.
const QUEUE_BYTES: usize = 8 << 20;
/// A stream for which so much waits is not held back, whatever the pace.
const URGENT_LEN: usize = 128;
const URGENT_BYTES: usize = 64 << 10;

/// Room for deliveries that a stream keeps while nothing waits.
const KEPT_LEN: usize = 64;

/// What the stream knows of what waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Signal {
    /// Nothing: it has taken everything, or nothing came yet.
    #[default]
    None,
    /// It will be woken.
    Held,
    /// It was woken, and has not come yet.
    Woken,
}

/// What is to be done for the stream after a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nothing: somebody has seen to it.
    Seen,
    Now,
    /// The stream is not to be woken before.
    At(Instant),
}

/// What waits for one stream.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    /// Something waits.
    pub notify: Notify,
    /// Whether the stream may be held back; see [`super::pace`].
    paced: bool,
}

#[derive(Default)]
pub struct Waiting {
    pub deliveries: VecDeque<Delivery>,
    /// Watchers that did not fit any more, with the first revision they have missed.
    pub lagging: Vec<(WatcherKey, i64)>,
    size_bytes: usize,
    signal: Signal,
    hold_until: Option<Instant>,
}

impl Queue {
    pub fn new(paced: bool) -> Queue {
        Queue {
            paced,
            ..Queue::default()
        }
    }

    /// Takes everything that waits. What `into` has allocated is used again.
    pub fn take(&self, into: &mut Waiting) {
        into.deliveries.clear();
        into.deliveries.shrink_to(KEPT_LEN);
        into.lagging.clear();
        let mut waiting = self.waiting.lock();
        std::mem::swap(&mut waiting.deliveries, &mut into.deliveries);
        std::mem::swap(&mut waiting.lagging, &mut into.lagging);
        waiting.size_bytes = 0;
        waiting.signal = Signal::None;
    }

    /// The watcher has missed a revision.
    pub fn lag(&self, watcher: WatcherKey, missed: i64) {
        self.waiting.lock().lagging.push((watcher, missed));
        self.notify.notify_one();
    }

    /// The first value is false if the watcher lags from now on.
    pub fn push(&self, delivery: Delivery, now: Instant) -> (bool, Wake) {
        let mut waiting = self.waiting.lock();
        let fits = waiting.deliveries.len() < QUEUE_LEN && waiting.size_bytes < QUEUE_BYTES;
        if fits {
            waiting.size_bytes += delivery.events.size_bytes;
            waiting.deliveries.push_back(delivery);
        } else {
            let missed = delivery.events.revision;
            waiting.lagging.push((delivery.watcher, missed));
        }
        let urgent = waiting.deliveries.len() >= URGENT_LEN || waiting.size_bytes >= URGENT_BYTES;
        let hold = waiting
            .hold_until
            .filter(|until| self.paced && !urgent && *until > now);
        let wake = match (waiting.signal, hold) {
            (Signal::Woken, _) | (Signal::Held, Some(_)) => Wake::Seen,
            (Signal::None, Some(until)) => {
                waiting.signal = Signal::Held;
                Wake::At(until)
            }
            (Signal::None | Signal::Held, None) => {
                waiting.signal = Signal::Woken;
                Wake::Now
            }
        };
        (fits, wake)
    }

    /// Wakes the stream, and not again before `hold_until`.
    pub fn wake(&self, hold_until: Option<Instant>) {
        if self.paced {
            let mut waiting = self.waiting.lock();
            waiting.hold_until = hold_until;
            if waiting.signal == Signal::Held {
                waiting.signal = Signal::Woken;
            }
        }
        self.notify.notify_one();
    }
}
