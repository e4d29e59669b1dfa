//! The one source of time.
//!
//! A [`Clock`] either runs at real time times a factor, or stands still until it is advanced by
//! hand. Advancing fires timers in the order of their instants, one instant at a time, and goes on
//! to the next instant only when the platform has gone quiet: nobody holds an [`Activity`], no queue is
//! busy at its [`Place`], and every [`Idle`] participant says so. With the queues taking turns at each
//! instant, that makes the whole platform deterministic under a manual clock although its parts run
//! concurrently.
//!
//! Worked example (manual clock at 0, timers at 10 s and 20 s, `advance(30 s)`): the clock reads
//! 10 s, the first timer fires, its owner works while it holds an `Activity`; only when that is
//! dropped does the clock read 20 s and fire the second; then it reads 30 s and `advance` returns.
//!
//! How it runs can change at any time, also from running to standing still and back: timers hold
//! deadlines, and sleepers look again at every change. A pause is a manual clock that remembers its
//! factor.

mod scale;
mod timestamp;
mod work;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::{oneshot, watch};

use work::Work;

pub use scale::TimeScale;
pub use timestamp::Timestamp;
pub use work::{Place, QuietObserver, Turn};

/// A part of the platform that can tell when it has nothing left to do at the present instant.
pub trait Idle: Send + Sync {
    /// Resolves once the part has no work left. May resolve at once.
    /// The answer is whether it had to wait: then everybody is asked again.
    fn idle(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

#[derive(Clone)]
pub struct Clock {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Counts the changes of the scale and of the reading by hand: sleepers then look again.
    changes: watch::Sender<u64>,
    work: Arc<Work>,
    participants: Mutex<Vec<Arc<dyn Idle>>>,
    /// Advances, and changes of the scale, are serial: two callers must not fire one another's instants
    /// out of order.
    serial: Arc<tokio::sync::Mutex<()>>,
    /// An advance is under way.
    moving: AtomicBool,
}

struct State {
    scale: TimeScale,
    /// What the clock read at `since`; what it reads, if it is manual.
    origin: Timestamp,
    since: Instant,
    /// The factor that was in force before the clock became manual.
    last_factor: Option<f64>,
    next_timer: u64,
    /// Every sleeper, in the order of deadlines, and then of arming.
    timers: BTreeMap<(Timestamp, u64), oneshot::Sender<Activity>>,
}

impl State {
    fn now(&self) -> Timestamp {
        match self.scale {
            TimeScale::Manual => self.origin,
            TimeScale::Factor(factor) => self
                .origin
                .saturating_add(self.since.elapsed().mul_f64(factor)),
        }
    }

    /// From here on the clock reads `now`, and runs at `scale`.
    fn rebase(&mut self, now: Timestamp, scale: TimeScale) {
        if let (TimeScale::Factor(factor), TimeScale::Manual) = (self.scale, scale) {
            self.last_factor = Some(factor);
        }
        self.origin = now;
        self.since = Instant::now();
        self.scale = scale;
    }
}

/// Held while its owner has work to do at the present instant; see [`Clock::activity`].
pub struct Activity {
    work: Arc<Work>,
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.work.end();
    }
}

/// As long as it is held, the clock reads the same and nobody can move it. See [`Clock::stand_still`].
pub struct StandStill {
    clock: Clock,
    scale: TimeScale,
    last_factor: Option<f64>,
    _serial: tokio::sync::OwnedMutexGuard<()>,
}

impl StandStill {
    /// Sets the reading, also back. Whoever sleeps still wakes up at the deadline that it asked for.
    pub fn set(&self, now: Timestamp) {
        self.clock.rebase(|_| (now, TimeScale::Manual));
    }
}

impl Drop for StandStill {
    fn drop(&mut self) {
        self.clock.rebase(|state| (state.now(), self.scale));
        self.clock.inner.state.lock().last_factor = self.last_factor;
    }
}

impl Clock {
    /// A clock that reads `origin` now.
    pub fn new(scale: TimeScale, origin: Timestamp) -> Clock {
        Clock {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    scale,
                    origin,
                    since: Instant::now(),
                    last_factor: None,
                    next_timer: 0,
                    timers: BTreeMap::new(),
                }),
                changes: watch::Sender::new(0),
                work: Arc::default(),
                participants: Mutex::new(Vec::new()),
                serial: Arc::default(),
                moving: AtomicBool::new(false),
            }),
        }
    }

    /// Real time.
    pub fn real() -> Clock {
        Clock::new(TimeScale::Factor(1.0), Clock::system_time())
    }

    /// The machine's time, for the origin of a new clock.
    pub fn system_time() -> Timestamp {
        let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
        Timestamp(i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX))
    }

    pub fn scale(&self) -> TimeScale {
        self.inner.state.lock().scale
    }

    /// The factor that a manual clock had before, if it ever ran by itself.
    pub fn last_factor(&self) -> Option<f64> {
        self.inner.state.lock().last_factor
    }

    pub fn now(&self) -> Timestamp {
        self.inner.state.lock().now()
    }

    /// Changes how the clock runs, from its present reading on. Resolves when an advance under way has
    /// ended; timers keep their deadlines. A clock that becomes manual still lets the work of the present
    /// instant go on: [`Clock::quiesce`] waits for it.
    pub async fn set_scale(&self, scale: TimeScale) {
        let _serial = self.inner.serial.lock().await;
        self.rebase(|state| (state.now(), scale));
    }

    /// Resolves when an advance under way has ended, and then keeps the clock from moving.
    pub async fn stand_still(&self) -> StandStill {
        let serial = Arc::clone(&self.inner.serial).lock_owned().await;
        let (scale, last_factor) = {
            let state = self.inner.state.lock();
            (state.scale, state.last_factor)
        };
        self.rebase(|state| (state.now(), TimeScale::Manual));
        StandStill {
            clock: self.clone(),
            scale,
            last_factor,
            _serial: serial,
        }
    }

    fn rebase(&self, to: impl FnOnce(&State) -> (Timestamp, TimeScale)) {
        {
            let mut state = self.inner.state.lock();
            let (now, scale) = to(&state);
            state.rebase(now, scale);
        }
        self.inner.changes.send_modify(|count| *count += 1);
        // Queues take turns, or no longer do.
        self.inner.work.tell_all();
    }

    /// See [`Clock::sleep_until`].
    pub async fn sleep(&self, duration: Duration) -> Activity {
        self.sleep_until(self.now().saturating_add(duration)).await
    }

    /// Resolves when the clock reads `deadline` or more. Dropping the future drops the timer.
    ///
    /// The sleeper wakes up with an [`Activity`]: a manual clock goes on only once that is dropped,
    /// so hold it for as long as the awakening causes work.
    pub async fn sleep_until(&self, deadline: Timestamp) -> Activity {
        let mut changes = self.inner.changes.subscribe();
        let (fire, mut fired) = oneshot::channel();
        let _timer = {
            let mut state = self.inner.state.lock();
            if deadline <= state.now() {
                return self.activity();
            }
            let key = (deadline, state.next_timer);
            state.next_timer += 1;
            state.timers.insert(key, fire);
            TimerGuard {
                inner: &self.inner,
                key,
            }
        };
        loop {
            changes.mark_unchanged();
            let real = self.real_time_until(deadline);
            tokio::select! {
                biased;
                // The sender is dropped only by firing: without one the timer is due all the same.
                activity = &mut fired => return activity.unwrap_or_else(|_| self.activity()),
                () = real_sleep(real) => {
                    // The clock may have stopped or slowed down at the last moment.
                    if self.now() >= deadline {
                        return self.activity();
                    }
                }
                // The other end lives as long as `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// How long a clock that runs by itself takes to `deadline`.
    fn real_time_until(&self, deadline: Timestamp) -> Option<Duration> {
        /// The factor is applied in floating point: do not wake up a nanosecond early.
        const ROUNDING: Duration = Duration::from_micros(1);
        let state = self.inner.state.lock();
        match state.scale {
            TimeScale::Manual => None,
            TimeScale::Factor(factor) => {
                Some(state.now().until(deadline).div_f64(factor) + ROUNDING)
            }
        }
    }

    /// Says that the holder has work to do at the present instant: a manual clock waits for it.
    /// Take it before whatever woke you can be seen as done.
    pub fn activity(&self) -> Activity {
        self.inner.work.begin();
        Activity {
            work: Arc::clone(&self.inner.work),
        }
    }

    /// A place in the order in which queues have their turns, after those that were given before.
    pub fn place(&self) -> Place {
        self.inner.work.place()
    }

    /// Calls `observer` whenever nothing is under way any more.
    pub fn on_quiet(&self, observer: QuietObserver) {
        self.inner.work.observe(observer);
    }

    /// Has `participant` asked before every step of a manual clock.
    pub fn register(&self, participant: Arc<dyn Idle>) {
        self.inner.participants.lock().push(participant);
    }

    /// Resolves once nobody has work left at the present instant.
    pub async fn quiesce(&self) {
        loop {
            self.inner.work.quiet().await;
            let participants = self.inner.participants.lock().clone();
            let mut waited = false;
            for participant in participants {
                waited |= participant.idle().await;
            }
            if !waited && self.inner.work.is_quiet() {
                return;
            }
        }
    }

    /// Resolves when an advance under way has ended and nobody has work left at the present instant; a
    /// manual clock does not move as long as the answer is held.
    pub async fn at_rest(&self) -> tokio::sync::OwnedMutexGuard<()> {
        let serial = Arc::clone(&self.inner.serial).lock_owned().await;
        self.quiesce().await;
        serial
    }

    /// Ends the work of somebody who asked from outside: resolves when all that follows from it at the present
    /// instant of a manual clock is done. At once while the clock runs by itself, and for what a queue's round
    /// asked for, which is not over itself.
    pub async fn conclude(&self, activity: Activity) {
        // No round begins as long as the activity is held: one that is under way was before.
        let waits = self.scale() == TimeScale::Manual && !self.inner.work.has_turn();
        drop(activity);
        if waits {
            self.inner.work.next_quiet().await;
        }
    }

    /// Whether an advance is under way.
    pub fn is_moving(&self) -> bool {
        self.inner.moving.load(Ordering::Acquire)
    }

    /// Moves a manual clock forward, firing every timer on the way in order. `false`, and nothing
    /// moves, on a clock that runs by itself.
    pub async fn advance(&self, duration: Duration) -> bool {
        self.advance_while(duration, || true).await
    }

    /// As [`Clock::advance`], but stops after the first instant at whose end `go_on` says no; the clock
    /// then reads that instant. It is also asked before the first step.
    pub async fn advance_while(&self, duration: Duration, mut go_on: impl FnMut() -> bool) -> bool {
        let _serial = self.inner.serial.lock().await;
        if self.scale() != TimeScale::Manual {
            return false;
        }
        let _moving = Moving::begin(&self.inner.moving);
        let target = self.now().saturating_add(duration);
        loop {
            self.quiesce().await;
            if !go_on() {
                return true;
            }
            let due: Vec<oneshot::Sender<Activity>> = {
                let mut state = self.inner.state.lock();
                let next = state.timers.first_key_value().map(|((at, _), _)| *at);
                match next {
                    Some(at) if at <= target => {
                        state.origin = state.origin.max(at);
                        let later = state.timers.split_off(&(Timestamp(at.0 + 1), 0));
                        let due = std::mem::replace(&mut state.timers, later);
                        due.into_values().collect()
                    }
                    _ => {
                        state.origin = target;
                        return true;
                    }
                }
            };
            for fire in due {
                // One owner at a time, in the order in which the timers were set.
                let _ = fire.send(self.activity());
                self.inner.work.quiet().await;
            }
        }
    }
}

async fn real_sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// Says that an advance is under way, also to its end if it is given up.
struct Moving<'a>(&'a AtomicBool);

impl Moving<'_> {
    fn begin(moving: &AtomicBool) -> Moving<'_> {
        moving.store(true, Ordering::Release);
        Moving(moving)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

struct TimerGuard<'a> {
    inner: &'a Inner,
    key: (Timestamp, u64),
}

impl Drop for TimerGuard<'_> {
    fn drop(&mut self) {
        self.inner.state.lock().timers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_manual_clock_fires_in_order_and_waits_for_the_work_of_each_instant() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let log = Arc::new(Mutex::new(Vec::new()));
        let sleepers: Vec<_> = [(2, 20), (1, 10), (3, 20)]
            .into_iter()
            .map(|(name, seconds)| {
                let (clock, log) = (clock.clone(), Arc::clone(&log));
                let armed = clock.activity();
                tokio::spawn(async move {
                    let sleep = clock.sleep(Duration::from_secs(seconds));
                    tokio::pin!(sleep);
                    assert!(futures::poll!(sleep.as_mut()).is_pending());
                    drop(armed);
                    let _activity = sleep.await;
                    // Work that takes several turns of the executor: the clock stands still.
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                    }
                    log.lock().push((name, clock.now()));
                })
            })
            .collect();
        clock.quiesce().await;
        assert!(clock.advance(Duration::from_secs(15)).await);
        assert_eq!(clock.now(), Timestamp(15_000));
        assert_eq!(*log.lock(), [(1, Timestamp(10_000))]);
        clock.advance(Duration::from_secs(15)).await;
        let mut fired = log.lock().clone();
        fired.sort();
        assert_eq!(
            fired,
            [
                (1, Timestamp(10_000)),
                (2, Timestamp(20_000)),
                (3, Timestamp(20_000))
            ]
        );
        for sleeper in sleepers {
            sleeper.await.expect("a sleeper panicked");
        }
    }

    /// A sleeper that logs when it woke up. It has armed its timer when this returns.
    fn sleeper(
        clock: &Clock,
        seconds: u64,
        log: &Arc<Mutex<Vec<Timestamp>>>,
    ) -> tokio::task::JoinHandle<()> {
        let (clock, log) = (clock.clone(), Arc::clone(log));
        let mut sleep = Box::pin({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(seconds)).await }
        });
        assert!(futures::FutureExt::now_or_never(sleep.as_mut()).is_none());
        tokio::spawn(async move {
            let _activity = sleep.await;
            log.lock().push(clock.now());
        })
    }

    #[tokio::test]
    async fn a_change_of_scale_keeps_the_reading_and_every_deadline() {
        // An hour a second.
        let clock = Clock::new(TimeScale::Factor(3_600.0), Timestamp(0));
        let log = Arc::new(Mutex::new(Vec::new()));
        let day = 86_400;
        let sleeper = sleeper(&clock, day, &log);
        clock.set_scale(TimeScale::Manual).await;
        assert_eq!(clock.last_factor(), Some(3_600.0));
        let paused = clock.now();
        assert!(clock.advance(Duration::from_secs(3_600)).await);
        assert_eq!(
            clock.now(),
            paused.saturating_add(Duration::from_secs(3_600))
        );
        assert!(log.lock().is_empty());
        // What was armed under another scale is fired by hand, at its deadline.
        assert!(clock.advance(Duration::from_secs(day)).await);
        sleeper.await.expect("the sleeper panicked");
        let woken = log.lock()[0];
        assert!(
            woken.0 >= 86_400_000 && woken < Timestamp(86_400_000 + 3_600_000),
            "{woken:?}"
        );
        // And back: it runs on from where it stood.
        let stood = clock.now();
        clock.set_scale(TimeScale::Factor(100_000.0)).await;
        let sleeper = self::sleeper(&clock, 100, &log);
        sleeper.await.expect("the sleeper panicked");
        assert!(clock.now() >= stood.saturating_add(Duration::from_secs(100)));
    }

    #[tokio::test]
    async fn a_manual_sleeper_wakes_up_by_itself_once_the_clock_runs() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let log = Arc::new(Mutex::new(Vec::new()));
        let sleeper = sleeper(&clock, 60, &log);
        clock.set_scale(TimeScale::Factor(100_000.0)).await;
        sleeper.await.expect("the sleeper panicked");
        assert!(log.lock()[0] >= Timestamp(60_000));
    }

    #[tokio::test]
    async fn a_clock_that_is_held_stands_still_and_can_be_set_back() {
        let clock = Clock::new(TimeScale::Factor(100_000.0), Timestamp(1_000_000_000));
        let held = clock.stand_still().await;
        let reading = clock.now();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sleeper = sleeper(&clock, 1, &log);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(clock.now(), reading);
        held.set(Timestamp(5));
        assert_eq!(clock.now(), Timestamp(5));
        assert!(log.lock().is_empty());
        sleeper.abort();
        drop(held);
        assert_eq!(clock.scale(), TimeScale::Factor(100_000.0));
        assert_eq!(clock.last_factor(), None);
        clock.sleep(Duration::from_secs(1)).await;
        assert!(clock.now() < reading);
    }

    #[tokio::test]
    async fn an_advance_ends_at_the_instant_that_was_waited_for() {
        let clock = Clock::new(TimeScale::Manual, Timestamp(0));
        let log = Arc::new(Mutex::new(Vec::new()));
        for seconds in [10, 20, 30] {
            sleeper(&clock, seconds, &log);
        }
        let seen = Arc::clone(&log);
        let hour = Duration::from_secs(3_600);
        assert!(clock.advance_while(hour, || seen.lock().len() < 2).await);
        assert_eq!(clock.now(), Timestamp(20_000));
        assert!(clock.advance_while(hour, || false).await);
        assert_eq!(clock.now(), Timestamp(20_000));
    }

    #[tokio::test]
    async fn a_running_clock_cannot_be_advanced() {
        assert!(!Clock::real().advance(Duration::from_secs(1)).await);
    }
}
