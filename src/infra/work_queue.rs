//! Keys that something must be done about: each worked on by one worker at a time.
//!
//! A key that is pushed while it waits is in the queue once; pushed while it is worked on, it is worked
//! on again. So a burst of changes costs one or two rounds, and what waits is bounded by the number of
//! keys. Keys are taken in their own order: under a manual clock, with one worker, the order of work
//! does not depend on how threads are scheduled. Those that come together may be worked on together:
//! see [`WorkQueue::start_together`].
//!
//! While the queue is not empty, or somebody works, it is busy at its [`Place`]: a manual clock stands
//! still. A timer is armed before the round that asked for it ends, so the clock cannot step over it. While the clock
//! is manual, the rounds of all queues take turns: see [`Place`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};

use crate::clock::{Clock, Place, TimeScale, Timestamp, Turn};
use crate::leader::Term;

/// Simulated time before the first repetition of a round that failed; doubles with each failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Rounds at once when time runs by itself. While the clock is manual it is one, for the order's sake.
const WORKERS: usize = 8;

/// Cheap to clone.
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue {
            inner: Arc::clone(&self.inner),
        }
    }
}

struct Inner<K> {
    clock: Clock,
    term: Term,
    state: Mutex<State<K>>,
    place: Place,
}

/// Who works on a queue. Dropped, it stops at once.
pub struct Workers {
    close: Box<dyn Fn() + Send + Sync>,
    tasks: JoinSet<()>,
    /// What runs as long as they do, and may be ended anywhere.
    beside: JoinSet<()>,
}

impl Workers {
    /// Has `task` run as long as they do. However they end, it ends at once.
    pub fn beside(mut self, task: impl Future<Output = ()> + Send + 'static) -> Workers {
        self.beside.spawn(task);
        self
    }

    /// Ends after the rounds under way.
    pub async fn finish(mut self) {
        (self.close)();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a worker had died");
            }
        }
        self.beside.shutdown().await;
    }

    /// Ends at once, wherever each round is, as a kill would.
    pub async fn abort(mut self) {
        (self.close)();
        self.tasks.shutdown().await;
        self.beside.shutdown().await;
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        (self.close)();
    }
}

struct State<K> {
    waiting: BTreeSet<K>,
    /// Keys being worked on, and whether they were pushed meanwhile.
    working: BTreeMap<K, bool>,
    /// When keys are to be looked at again, both ways round.
    timers: BTreeMap<K, Timestamp>,
    due: BTreeSet<(Timestamp, K)>,
    /// Sleeps until the first of them: one sleeper for all keys, so that those that are due at one instant come
    /// together.
    alarm: Option<(Timestamp, AbortHandle)>,
    /// How many rounds of a key have failed in a row.
    failures: BTreeMap<K, u32>,
    /// Exactly while `waiting` or `working` is not empty.
    busy: bool,
    closed: bool,
}

impl<K: Ord + Clone + Debug + Send + Sync + 'static> WorkQueue<K> {
    /// No round begins after `term`.
    pub fn new(clock: Clock, term: Term) -> WorkQueue<K> {
        WorkQueue {
            inner: Arc::new(Inner {
                place: clock.place(),
                clock,
                term,
                state: Mutex::new(State {
                    waiting: BTreeSet::new(),
                    working: BTreeMap::new(),
                    timers: BTreeMap::new(),
                    due: BTreeSet::new(),
                    alarm: None,
                    failures: BTreeMap::new(),
                    busy: false,
                    closed: false,
                }),
            }),
        }
    }

    pub fn push(&self, key: K) {
        self.put(&mut self.inner.state.lock(), key);
    }

    fn put(&self, state: &mut State<K>, key: K) {
        if state.closed {
            return;
        }
        if let Some(again) = state.working.get_mut(&key) {
            *again = true;
            return;
        }
        state.waiting.insert(key);
        if !state.busy {
            state.busy = true;
            self.inner.place.enter();
        }
        self.inner.place.ready().notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.inner.state.lock().closed
    }

    /// Forgets everything; nothing can be pushed any more.
    pub fn close(&self) {
        let mut state = self.inner.state.lock();
        state.closed = true;
        state.waiting.clear();
        state.timers.clear();
        state.due.clear();
        if let Some((_, sleeper)) = state.alarm.take() {
            sleeper.abort();
        }
        state.busy = false;
        self.inner.place.leave();
        drop(state);
        self.inner.place.ready().notify_waiters();
    }

    /// Starts workers, which end when the queue is closed: each after the round it is at.
    ///
    /// A round returns when the key wants to be looked at again without a push, if at all. A failed
    /// round is repeated after a pause.
    pub fn start<E, F>(&self, round: impl Fn(K) -> F + Send + Sync + 'static) -> Workers
    where
        E: std::fmt::Display + Send + 'static,
        F: Future<Output = Result<Option<Timestamp>, E>> + Send + 'static,
    {
        let alone = |_: &K, _: &K| false;
        self.start_together(1, alone, move |keys: Vec<K>| {
            let rounds: Vec<F> = keys.into_iter().map(&round).collect();
            futures::future::join_all(rounds)
        })
    }

    /// As [`WorkQueue::start`], with rounds of several keys: while the clock is manual, up to `most` that follow one
    /// another and belong `together`. Who has a thousand keys at one instant can then do for many at once what each
    /// would wait for. A round returns an outcome for each key, in their order.
    pub fn start_together<E, F>(
        &self,
        most: usize,
        together: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
        round: impl Fn(Vec<K>) -> F + Send + Sync + 'static,
    ) -> Workers
    where
        E: std::fmt::Display + Send + 'static,
        F: Future<Output = Vec<Result<Option<Timestamp>, E>>> + Send + 'static,
    {
        let (round, together) = (Arc::new(round), Arc::new(together));
        let mut tasks = JoinSet::new();
        for _ in 0..WORKERS {
            let (queue, round) = (self.clone(), Arc::clone(&round));
            let together = Arc::clone(&together);
            tasks.spawn(async move {
                while let Some((keys, turn)) = queue.take(most, together.as_ref()).await {
                    let outcomes = round(keys.clone()).await;
                    for (key, outcome) in keys.iter().zip(outcomes) {
                        queue.settle(key, outcome);
                    }
                    drop(turn);
                }
            });
        }
        let queue = self.clone();
        Workers {
            close: Box::new(move || queue.close()),
            tasks,
            beside: JoinSet::new(),
        }
    }

    /// The next keys, and the turn to be held during their round if the clock is manual.
    async fn take(
        &self,
        most: usize,
        together: impl Fn(&K, &K) -> bool,
    ) -> Option<(Vec<K>, Option<Turn>)> {
        let ready = self.inner.place.ready();
        loop {
            let told = ready.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let mut state = self.inner.state.lock();
                if state.closed || !self.inner.term.holds() {
                    return None;
                }
                let manual = self.inner.clock.scale() == TimeScale::Manual;
                let (at_once, most) = if manual { (1, most) } else { (WORKERS, 1) };
                if state.working.len() < at_once && !state.waiting.is_empty() {
                    let turn = manual.then(|| self.inner.place.turn());
                    // On a clock that runs, no turn is needed.
                    if turn.as_ref().is_none_or(Option::is_some)
                        && let Some(first) = state.waiting.pop_first()
                    {
                        let mut keys = vec![first];
                        while keys.len() < most
                            && let Some(next) = state.waiting.first()
                            && together(&keys[0], next)
                        {
                            keys.extend(state.waiting.pop_first());
                        }
                        for key in &keys {
                            state.working.insert(key.clone(), false);
                        }
                        if !state.waiting.is_empty() {
                            // One permit is kept at most: pass it on to the next worker.
                            ready.notify_one();
                        }
                        return Some((keys, turn.flatten()));
                    }
                }
            }
            told.await;
        }
    }

    fn settle<E: std::fmt::Display>(&self, key: &K, outcome: Result<Option<Timestamp>, E>) {
        let wake = match outcome {
            Ok(wake) => {
                self.inner.state.lock().failures.remove(key);
                wake
            }
            Err(error) => {
                let failures = {
                    let mut state = self.inner.state.lock();
                    let failures = state.failures.entry(key.clone()).or_insert(0);
                    *failures = failures.saturating_add(1);
                    *failures
                };
                let pause = FIRST_BACKOFF
                    .saturating_mul(1 << (failures - 1).min(10))
                    .min(LONGEST_BACKOFF);
                tracing::warn!(?key, %error, ?pause, "a round failed; it will be repeated");
                Some(self.inner.clock.now().saturating_add(pause))
            }
        };
        self.wake(key, wake);
        let mut state = self.inner.state.lock();
        let again = state.working.remove(key).unwrap_or(false);
        if again && !state.closed {
            state.waiting.insert(key.clone());
        }
        if !state.waiting.is_empty() {
            self.inner.place.ready().notify_one();
        } else if state.working.is_empty() && state.busy {
            state.busy = false;
            self.inner.place.leave();
        }
    }

    /// Replaces the key's timer.
    fn wake(&self, key: &K, at: Option<Timestamp>) {
        let mut state = self.inner.state.lock();
        if state.closed {
            return;
        }
        let before = match at {
            Some(at) => state.timers.insert(key.clone(), at),
            None => state.timers.remove(key),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            state.due.remove(&(before, key.clone()));
        }
        if let Some(at) = at {
            state.due.insert((at, key.clone()));
        }
        self.set_alarm(&mut state);
    }

    /// The sleeper has woken up: takes every key that is due, and sleeps until the next one is.
    fn ring(&self, at: Timestamp) {
        let mut state = self.inner.state.lock();
        if state.alarm.as_ref().is_some_and(|(armed, _)| *armed == at) {
            state.alarm = None;
        }
        self.set_alarm(&mut state);
    }

    /// Arms the sleeper for the first key that is due; keys that are due already are taken.
    fn set_alarm(&self, state: &mut State<K>) {
        while !state.closed {
            let first = state.due.first().map(|(at, _)| *at);
            if state.alarm.as_ref().map(|(at, _)| *at) == first {
                return;
            }
            if let Some((_, sleeper)) = state.alarm.take() {
                sleeper.abort();
            }
            let Some(at) = first else { return };
            let clock = self.inner.clock.clone();
            let mut sleep = Box::pin(async move { clock.sleep_until(at).await });
            // The first poll arms the timer, before anybody can see the present round as done.
            if let Some(_activity) = sleep.as_mut().now_or_never() {
                while let Some((due, _)) = state.due.first()
                    && *due <= at
                    && let Some((_, key)) = state.due.pop_first()
                {
                    state.timers.remove(&key);
                    self.put(state, key);
                }
                continue;
            }
            let queue = self.clone();
            let sleeper = tokio::spawn(async move {
                let _activity = sleep.await;
                queue.ring(at);
            });
            state.alarm = Some((at, sleeper.abort_handle()));
        }
    }
}

/// Does the same for each, all at once, and returns what came of it in their order. Dropped, all of it ends.
pub async fn side_by_side<I, T, F>(items: Vec<I>, work: impl Fn(I) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (index, item) in items.into_iter().enumerate() {
        let work = work(item);
        tasks.spawn(async move { (index, work.await) });
    }
    let mut done = BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok((index, outcome)) => {
                done.insert(index, outcome);
            }
            // As if it had been done here.
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    done.into_values().collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_key_is_worked_on_once_for_many_pushes_and_in_order() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let queue = WorkQueue::new(clock.clone(), Term::for_ever());
        let log = Arc::new(Mutex::new(Vec::new()));
        for key in [3, 1, 2, 1, 3] {
            queue.push(key);
        }
        let seen = Arc::clone(&log);
        let _workers = queue.start(move |key: i32| {
            seen.lock().push(key);
            async { Ok::<_, String>(None) }
        });
        clock.quiesce().await;
        assert_eq!(*log.lock(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn what_belongs_together_is_worked_on_together_and_each_has_its_outcome() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let queue = WorkQueue::new(clock.clone(), Term::for_ever());
        let log = Arc::new(Mutex::new(Vec::new()));
        for key in [1, 2, 3, 4, 11, 12] {
            queue.push(key);
        }
        let (seen, time) = (Arc::clone(&log), clock.clone());
        let decade = |a: &i32, b: &i32| a / 10 == b / 10;
        let _workers = queue.start_together(3, decade, move |keys: Vec<i32>| {
            let now = time.now().0;
            seen.lock().push((now, keys.clone()));
            // At first 2 fails, and 11 and 12 want to be looked at again.
            let outcomes = keys.into_iter().map(move |key| match (now, key) {
                (0, 2) => Err("no"),
                (0, 11 | 12) => Ok(Some(Timestamp(700))),
                _ => Ok(None),
            });
            std::future::ready(outcomes.collect::<Vec<_>>())
        });
        clock.advance(Duration::from_secs(1)).await;
        let expect = [
            (0, vec![1, 2, 3]),
            (0, vec![4]),
            (0, vec![11, 12]),
            (500, vec![2]),
            (700, vec![11, 12]),
        ];
        assert_eq!(*log.lock(), expect);
    }

    #[tokio::test]
    async fn a_failed_round_is_repeated_and_pauses_grow() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let queue = WorkQueue::new(clock.clone(), Term::for_ever());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, time) = (Arc::clone(&log), clock.clone());
        let _workers = queue.start(move |_: ()| {
            let mut seen = seen.lock();
            seen.push(time.now().0);
            let outcome = if seen.len() < 4 { Err("no") } else { Ok(None) };
            async move { outcome }
        });
        queue.push(());
        clock.advance(Duration::from_secs(100)).await;
        assert_eq!(*log.lock(), [0, 500, 1_500, 3_500]);
    }

    #[tokio::test]
    async fn a_timer_brings_the_key_back_and_the_last_one_counts() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let queue = WorkQueue::new(clock.clone(), Term::for_ever());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, time) = (Arc::clone(&log), clock.clone());
        let _workers = queue.start(move |_: ()| {
            let now = time.now();
            seen.lock().push(now.0);
            let wake = (now.0 < 30).then(|| Timestamp(now.0 + 10));
            async move { Ok::<_, String>(wake) }
        });
        queue.push(());
        clock.advance(Duration::from_millis(5)).await;
        queue.push(());
        clock.advance(Duration::from_millis(95)).await;
        assert_eq!(*log.lock(), [0, 5, 15, 25, 35]);
    }

    #[tokio::test]
    async fn finishing_lets_the_round_end_and_begins_no_other() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let queue = WorkQueue::new(clock.clone(), Term::for_ever());
        let log = Arc::new(Mutex::new(Vec::new()));
        let begun = Arc::new(Notify::new());
        let (seen, first) = (Arc::clone(&log), Arc::clone(&begun));
        let workers = queue.start(move |key: i32| {
            let (seen, first) = (Arc::clone(&seen), Arc::clone(&first));
            async move {
                first.notify_one();
                tokio::task::yield_now().await;
                seen.lock().push(key);
                Ok::<_, String>(None)
            }
        });
        queue.push(1);
        queue.push(2);
        begun.notified().await;
        workers.finish().await;
        assert_eq!(*log.lock(), [1]);
        assert!(queue.is_closed());
    }

    #[tokio::test]
    async fn a_closed_queue_does_not_hold_the_clock() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let queue = WorkQueue::new(clock.clone(), Term::for_ever());
        queue.push(1);
        queue.close();
        queue.push(2);
        assert!(clock.advance(Duration::from_secs(1)).await);
    }
}
