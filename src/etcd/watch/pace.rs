//! How often a stream is woken.
//!
//! To wake a stream and send it an answer costs the server and the client some ten microseconds, hardly more if there
//! are several events in it. While many streams watch what a fast writer writes, that is all the two do, the writer
//! waits for its turn, and nobody is told sooner for it. So wide fan-out is paced: of n streams that are woken
//! together, none is woken again for n times [`STREAM_COST`], [`HOLD_MAX`] at most; what comes meanwhile gathers in
//! their queues and goes out together, whole revisions in their order. A stream that had nothing to hear for so
//! long is woken at once, and what concerns few streams holds nobody back.
//!
//! Worked example: 100 streams are woken for revision 7, at 0 us. Revisions 8, 9 and 10, at 300, 600 and 900 us, only
//! join the queues; revision 11, at 1,200 us, finds the hold over and wakes all: each gets 8 to 11 in one answer.
//! Were there no revision 11, a timer would wake them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::queue::{Queue, Wake};

/// What one stream's answer costs.
const STREAM_COST: Duration = Duration::from_micros(10);
/// Longest hold.
const HOLD_MAX: Duration = Duration::from_millis(1);
/// A shorter hold is none: timers are too coarse for it.
const HOLD_MIN: Duration = Duration::from_micros(200);

/// How long so many streams that were woken together are left alone.
fn hold(streams: usize) -> Option<Duration> {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    let hold = STREAM_COST.saturating_mul(streams).min(HOLD_MAX);
    (hold >= HOLD_MIN).then_some(hold)
}

/// Streams that are held back.
#[derive(Default)]
pub struct Pace {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    queues: Vec<(Instant, Arc<Queue>)>,
    /// When the first of them is due.
    due: Option<Instant>,
    /// Somebody wakes up at that time or before.
    has_timer: bool,
}

impl Held {
    fn take_due(&mut self, now: Instant) -> Vec<Arc<Queue>> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let due = self.queues.extract_if(.., |(at, _)| *at <= now);
        let due = due.map(|(_, queue)| queue).collect();
        self.due = self.queues.iter().map(|(at, _)| *at).min();
        due
    }
}

/// Streams for which something waits, to be woken.
#[must_use = "nobody else wakes them"]
#[derive(Default)]
pub struct Wakes {
    now: Vec<Arc<Queue>>,
    later: Vec<(Instant, Arc<Queue>)>,
}

impl Wakes {
    pub fn add(&mut self, queue: &Arc<Queue>, wake: Wake) {
        match wake {
            Wake::Seen => {}
            Wake::Now => self.now.push(Arc::clone(queue)),
            Wake::At(at) => self.later.push((at, Arc::clone(queue))),
        }
    }
}

fn wake_all(queues: &[Arc<Queue>], now: Instant) {
    let hold_until = hold(queues.len()).map(|hold| now + hold);
    for queue in queues {
        queue.wake(hold_until);
    }
}

impl Pace {
    /// Wakes the streams, those at once whose time has come. Call it inside a tokio runtime.
    pub fn wake(
        self: &Arc<Pace>,
        Wakes {
            now: mut due,
            later,
        }: Wakes,
    ) {
        let now = Instant::now();
        let timer = {
            let mut held = self.held.lock();
            let first = later.iter().map(|(at, _)| *at).min();
            held.due = held.due.into_iter().chain(first).min();
            held.queues.extend(later);
            due.extend(held.take_due(now));
            let timer = held.due.filter(|_| !held.has_timer);
            held.has_timer |= timer.is_some();
            timer
        };
        wake_all(&due, now);
        if let Some(due) = timer {
            tokio::spawn(Arc::clone(self).wait(due));
        }
    }

    /// Wakes streams as they are due, until none is held any more.
    async fn wait(self: Arc<Pace>, mut due: Instant) {
        loop {
            tokio::time::sleep_until(due.into()).await;
            let now = Instant::now();
            let (queues, next) = {
                let mut held = self.held.lock();
                let queues = held.take_due(now);
                held.has_timer = held.due.is_some();
                (queues, held.due)
            };
            wake_all(&queues, now);
            match next {
                Some(next) => due = next,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::hub::{Delivery, WatcherKey};
    use super::super::queue::Waiting;
    use super::*;
    use crate::etcd::event::{Event, RevisionEvents};
    use crate::etcd::record::{Record, Revision};

    const STREAMS: usize = 100;

    struct Fixture {
        pace: Arc<Pace>,
        queues: Vec<Arc<Queue>>,
        revision: i64,
    }

    impl Fixture {
        fn new(streams: usize, paced: bool) -> Fixture {
            Fixture {
                pace: Arc::default(),
                queues: (0..streams).map(|_| Arc::new(Queue::new(paced))).collect(),
                revision: 1,
            }
        }

        /// One event for every stream.
        fn happen(&mut self, value_bytes: usize) {
            self.revision += 1;
            let revision = Revision {
                main: self.revision,
                sub: 0,
            };
            let value = Bytes::from(vec![7; value_bytes]);
            let record = Record::put(&Bytes::from_static(b"k"), value, 0, revision, None);
            let event = Event::new(Arc::new(record), None);
            let events = Arc::new(RevisionEvents::new(self.revision, vec![event]));
            let (mut wakes, now) = (Wakes::default(), Instant::now());
            for queue in &self.queues {
                let delivery = Delivery {
                    watcher: WatcherKey(1),
                    events: Arc::clone(&events),
                    selected: None,
                };
                let (fits, wake) = queue.push(delivery, now);
                assert!(fits);
                wakes.add(queue, wake);
            }
            self.pace.wake(wakes);
        }

        /// Revisions that each stream takes once it is woken.
        async fn woken(&self) -> Vec<Vec<i64>> {
            let mut taken = Vec::new();
            let mut waiting = Waiting::default();
            for queue in &self.queues {
                queue.notify.notified().await;
                queue.take(&mut waiting);
                let revisions = waiting.deliveries.iter().map(|it| it.events.revision);
                taken.push(revisions.collect());
            }
            taken
        }

        fn is_woken(&self) -> bool {
            use futures::FutureExt as _;
            let mut queues = self.queues.iter();
            queues.any(|queue| queue.notify.notified().now_or_never().is_some())
        }
    }

    #[test]
    fn few_streams_are_not_held() {
        for (streams, expected) in [(0, None), (1, None), (19, None), (20, Some(200))] {
            assert_eq!(hold(streams), expected.map(Duration::from_micros));
        }
        assert_eq!(hold(1_000_000), Some(HOLD_MAX));
    }

    #[tokio::test]
    async fn many_streams_are_told_at_once_and_then_of_several_revisions_together() {
        let mut fixture = Fixture::new(STREAMS, true);
        fixture.happen(1);
        assert_eq!(fixture.woken().await, vec![vec![2]; STREAMS]);
        for _ in 0..3 {
            fixture.happen(1);
        }
        // By the timer: nothing else happens.
        assert_eq!(fixture.woken().await, vec![vec![3, 4, 5]; STREAMS]);
        assert!(!fixture.is_woken(), "once");
        assert!(fixture.pace.held.lock().queues.is_empty());
    }

    #[tokio::test]
    async fn much_is_not_held() {
        let mut fixture = Fixture::new(STREAMS, true);
        fixture.happen(1);
        assert_eq!(fixture.woken().await, vec![vec![2]; STREAMS]);
        fixture.happen(1);
        fixture.happen(100_000);
        assert!(fixture.is_woken());
    }

    #[tokio::test]
    async fn streams_of_the_process_itself_are_never_held() {
        let mut fixture = Fixture::new(STREAMS, false);
        for revision in 2..5 {
            fixture.happen(1);
            assert_eq!(fixture.woken().await, vec![vec![revision]; STREAMS]);
        }
        assert!(fixture.pace.held.lock().queues.is_empty());
    }
}
