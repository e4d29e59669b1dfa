//! The one source of time.
//!
//! A [`Clock`] either runs at real time times a factor, or stands still until it is advanced by
//! hand. Advancing fires timers in the order of their instants, one instant at a time, and goes on
//! to the next instant only when the platform has gone quiet: nobody holds an [`Activity`], and
//! every [`Idle`] participant says so. That makes the whole platform deterministic under a manual
//! clock although its parts run concurrently.
//!
//! Worked example (manual clock at 0, timers at 10 s and 20 s, `advance(30 s)`): the clock reads
//! 10 s, the first timer fires, its owner works while it holds an `Activity`; only when that is
//! dropped does the clock read 20 s and fire the second; then it reads 30 s and `advance` returns.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::{Notify, oneshot};

/// Milliseconds since the Unix epoch, on the clock's own time line.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn saturating_add(self, duration: Duration) -> Timestamp {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_add(millis))
    }

    /// How long until `later`; zero if that is past.
    pub fn until(self, later: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC with exactly three decimals, as the REST API writes dates.
    pub fn to_rfc3339(self) -> String {
        let format = time::macros::format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        );
        self.to_date_time()
            .format(&format)
            .unwrap_or_else(|_| String::from("1970-01-01T00:00:00.000Z"))
    }

    pub fn to_date_time(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// How the clock runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TimeScale {
    /// So many simulated seconds a real second; 1.0 is real time.
    Factor(f64),
    /// Only [`Clock::advance`] moves it.
    Manual,
}

impl std::str::FromStr for TimeScale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "manual" {
            return Ok(TimeScale::Manual);
        }
        match text.parse::<f64>() {
            Ok(factor) if factor.is_finite() && (0.001..=100_000.0).contains(&factor) => {
                Ok(TimeScale::Factor(factor))
            }
            _ => Err(format!(
                "`{text}` is neither `manual` nor a factor from 0.001 to 100000"
            )),
        }
    }
}

impl std::fmt::Display for TimeScale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TimeScale::Factor(factor) => write!(f, "{factor}"),
            TimeScale::Manual => f.write_str("manual"),
        }
    }
}

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
    scale: TimeScale,
    /// The clock's reading when `started` was taken.
    origin: Timestamp,
    started: Instant,
    manual: Mutex<Manual>,
    activities: AtomicUsize,
    quiet: Notify,
    participants: Mutex<Vec<Arc<dyn Idle>>>,
    /// Advances are serial: two callers must not fire one another's instants out of order.
    advancing: tokio::sync::Mutex<()>,
}

struct Manual {
    now: Timestamp,
    next_timer: u64,
    timers: BTreeMap<(Timestamp, u64), oneshot::Sender<Activity>>,
}

/// Held while its owner has work to do at the present instant; see [`Clock::activity`].
pub struct Activity {
    inner: Arc<Inner>,
}

impl Drop for Activity {
    fn drop(&mut self) {
        if self.inner.activities.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inner.quiet.notify_waiters();
        }
    }
}

impl Clock {
    /// A clock that reads `origin` now.
    pub fn new(scale: TimeScale, origin: Timestamp) -> Clock {
        Clock {
            inner: Arc::new(Inner {
                scale,
                origin,
                started: Instant::now(),
                manual: Mutex::new(Manual {
                    now: origin,
                    next_timer: 0,
                    timers: BTreeMap::new(),
                }),
                activities: AtomicUsize::new(0),
                quiet: Notify::new(),
                participants: Mutex::new(Vec::new()),
                advancing: tokio::sync::Mutex::new(()),
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
        self.inner.scale
    }

    pub fn now(&self) -> Timestamp {
        match self.inner.scale {
            TimeScale::Manual => self.inner.manual.lock().now,
            TimeScale::Factor(factor) => self
                .inner
                .origin
                .saturating_add(self.inner.started.elapsed().mul_f64(factor)),
        }
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
        match self.inner.scale {
            TimeScale::Factor(factor) => {
                let wait = self.now().until(deadline).div_f64(factor);
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                self.activity()
            }
            TimeScale::Manual => {
                let (fire, fired) = oneshot::channel();
                let guard = {
                    let mut manual = self.inner.manual.lock();
                    if deadline <= manual.now {
                        return self.activity();
                    }
                    let key = (deadline, manual.next_timer);
                    manual.next_timer += 1;
                    manual.timers.insert(key, fire);
                    TimerGuard {
                        inner: &self.inner,
                        key,
                    }
                };
                let activity = fired.await;
                drop(guard);
                // The sender is dropped only by firing: without one the timer is due all the same.
                activity.unwrap_or_else(|_| self.activity())
            }
        }
    }

    /// Says that the holder has work to do at the present instant: a manual clock waits for it.
    /// Take it before whatever woke you can be seen as done.
    pub fn activity(&self) -> Activity {
        self.inner.activities.fetch_add(1, Ordering::AcqRel);
        Activity {
            inner: Arc::clone(&self.inner),
        }
    }

    /// Has `participant` asked before every step of a manual clock.
    pub fn register(&self, participant: Arc<dyn Idle>) {
        self.inner.participants.lock().push(participant);
    }

    /// Resolves once nobody has work left at the present instant.
    pub async fn quiesce(&self) {
        loop {
            self.no_activity().await;
            let participants = self.inner.participants.lock().clone();
            let mut waited = false;
            for participant in participants {
                waited |= participant.idle().await;
            }
            if !waited && self.inner.activities.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    async fn no_activity(&self) {
        loop {
            let quiet = self.inner.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if self.inner.activities.load(Ordering::Acquire) == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Moves a manual clock forward, firing every timer on the way in order. `false`, and nothing
    /// moves, on a clock that runs by itself.
    pub async fn advance(&self, duration: Duration) -> bool {
        if self.inner.scale != TimeScale::Manual {
            return false;
        }
        let _serial = self.inner.advancing.lock().await;
        let target = self.now().saturating_add(duration);
        loop {
            self.quiesce().await;
            let due: Vec<oneshot::Sender<Activity>> = {
                let mut manual = self.inner.manual.lock();
                let next = manual.timers.first_key_value().map(|((at, _), _)| *at);
                match next {
                    Some(at) if at <= target => {
                        manual.now = manual.now.max(at);
                        let later = manual.timers.split_off(&(Timestamp(at.0 + 1), 0));
                        let due = std::mem::replace(&mut manual.timers, later);
                        due.into_values().collect()
                    }
                    _ => {
                        manual.now = target;
                        return true;
                    }
                }
            };
            for fire in due {
                // One owner at a time, in the order in which the timers were set.
                let _ = fire.send(self.activity());
                self.no_activity().await;
            }
        }
    }
}

struct TimerGuard<'a> {
    inner: &'a Inner,
    key: (Timestamp, u64),
}

impl Drop for TimerGuard<'_> {
    fn drop(&mut self) {
        self.inner.manual.lock().timers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_scale_is_a_factor_or_manual() {
        let check = |text: &str, expect: Option<TimeScale>| {
            assert_eq!(text.parse::<TimeScale>().ok(), expect, "{text}");
        };
        check("manual", Some(TimeScale::Manual));
        check("20", Some(TimeScale::Factor(20.0)));
        check("0.5", Some(TimeScale::Factor(0.5)));
        check("0", None);
        check("-1", None);
        check("inf", None);
        check("NaN", None);
        check("", None);
    }

    #[test]
    fn dates_have_three_decimals() {
        assert_eq!(
            Timestamp(1_767_225_600_007).to_rfc3339(),
            "2026-01-01T00:00:00.007Z"
        );
    }

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

    #[tokio::test]
    async fn a_running_clock_cannot_be_advanced() {
        assert!(!Clock::real().advance(Duration::from_secs(1)).await);
    }
}
