//! The hub: hands each revision's events to the watch streams that they concern.
//!
//! A put costs one lookup of its key among the single keys watched and one among the ranges
//! watched, and a push for each watcher concerned: watchers of other keys cost nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use super::interval::IntervalMap;
use super::pace::{Pace, Wakes};
use super::queue::Queue;
use crate::etcd::event::{Event, RevisionEvents};
use crate::etcd::key_range::{End, KeyRange};

/// Events of recent revisions that are kept for watchers that lag behind, in bytes.
const RECENT_BYTES: usize = 16 << 20;

/// Tells one watcher from all others of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherKey(pub u64);

/// What a watcher wants to see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub no_put: bool,
    pub no_delete: bool,
}

impl Filter {
    pub fn passes(self, event: &Event) -> bool {
        if event.record.is_tombstone() {
            !self.no_delete
        } else {
            !self.no_put
        }
    }
}

/// One watcher's share of one revision's events.
pub struct Delivery {
    pub watcher: WatcherKey,
    pub events: Arc<RevisionEvents>,
    /// Which of them; `None` is all.
    pub selected: Option<Vec<u32>>,
}

impl Delivery {
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        let all = self.selected.is_none().then_some(&self.events.events);
        let some = self.selected.iter().flatten();
        all.into_iter()
            .flatten()
            .chain(some.filter_map(|at| self.events.events.get(*at as usize)))
    }
}

/// Of `events`, those of the range that pass the filter. `None` if there are none.
pub fn select(
    events: &Arc<RevisionEvents>,
    range: &KeyRange,
    filter: Filter,
) -> Option<Option<Vec<u32>>> {
    let matches: Vec<u32> = (0..)
        .zip(&events.events)
        .filter(|(_, event)| range.contains(&event.record.key) && filter.passes(event))
        .map(|(at, _)| at)
        .collect();
    if matches.is_empty() {
        None
    } else if matches.len() == events.events.len() {
        Some(None)
    } else {
        Some(Some(matches))
    }
}

/// A synced watcher.
pub struct Subscription {
    pub watcher: WatcherKey,
    pub queue: Arc<Queue>,
    pub filter: Filter,
    /// Earlier revisions are not for it.
    pub from_revision: i64,
}

pub struct Hub {
    state: Mutex<HubState>,
    pace: Arc<Pace>,
}

struct HubState {
    /// Everything up to this revision was handed out.
    revision: i64,
    /// Consecutive in what they changed, the newest last.
    recent: VecDeque<Arc<RevisionEvents>>,
    recent_bytes: usize,
    /// Revisions from this one on are in `recent`, if they changed anything.
    recent_from: i64,
    keys: HashMap<Bytes, Vec<Subscription>>,
    ranges: IntervalMap<Vec<Subscription>>,
    next_watcher: u64,
}

/// What a lagging watcher gets when it asks to be synced.
pub enum CatchUp {
    /// It is synced: everything before was delivered or is none of its business.
    Synced,
    /// These come next, all up to and including revision `upto`.
    Recent {
        events: Vec<Arc<RevisionEvents>>,
        upto: i64,
    },
    /// The log has them, up to and including this revision.
    InLog { upto: i64 },
}

/// Revisions that a lagging watcher takes from memory at a time.
const CATCH_UP_LEN: usize = 256;

impl Hub {
    pub fn new(revision: i64) -> Hub {
        Hub {
            state: Mutex::new(HubState {
                revision,
                recent: VecDeque::new(),
                recent_bytes: 0,
                recent_from: revision + 1,
                keys: HashMap::new(),
                ranges: IntervalMap::default(),
                next_watcher: 0,
            }),
            pace: Arc::default(),
        }
    }

    /// Everything up to this revision was handed to the streams.
    pub fn revision(&self) -> i64 {
        self.state.lock().revision
    }

    pub fn new_watcher(&self) -> WatcherKey {
        let mut state = self.state.lock();
        state.next_watcher += 1;
        WatcherKey(state.next_watcher)
    }

    /// Hands out consecutive revisions. The streams have them in their queues then, but do not know yet: see
    /// [`Hub::wake`].
    pub fn notify(&self, revisions: &[Arc<RevisionEvents>]) -> Wakes {
        let mut wakes = Wakes::default();
        if revisions.is_empty() {
            return wakes;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        for events in revisions {
            state.hand_out(events, now, &mut wakes);
            state.revision = events.revision;
            state.recent_bytes += events.size_bytes;
            state.recent.push_back(Arc::clone(events));
            while state.recent_bytes > RECENT_BYTES {
                let Some(oldest) = state.recent.pop_front() else {
                    break;
                };
                state.recent_bytes -= oldest.size_bytes;
                state.recent_from = oldest.revision + 1;
            }
        }
        wakes
    }

    /// Tells the streams that something waits for them.
    pub fn wake(&self, wakes: Wakes) {
        self.pace.wake(wakes);
    }

    /// The revision moved on without events.
    pub fn advance(&self, revision: i64) {
        let mut state = self.state.lock();
        state.revision = state.revision.max(revision);
    }

    /// The revision moved on, and nobody knows with which events: every watcher lags.
    pub fn skip(&self, revision: i64) {
        let mut state = self.state.lock();
        let missed = state.revision + 1;
        let keys = std::mem::take(&mut state.keys);
        let ranges = std::mem::take(&mut state.ranges);
        for subscription in keys.into_values().chain(ranges.into_values()).flatten() {
            subscription
                .queue
                .lag(subscription.watcher, missed.max(subscription.from_revision));
        }
        state.recent.clear();
        state.recent_bytes = 0;
        state.revision = state.revision.max(revision);
        state.recent_from = state.revision + 1;
    }

    /// Registers the watcher from `next` on if nothing was handed out since, else says where the
    /// missing revisions are.
    pub fn catch_up(
        &self,
        next: i64,
        range: &KeyRange,
        subscribe: impl FnOnce() -> Subscription,
    ) -> CatchUp {
        let mut state = self.state.lock();
        if next > state.revision {
            let subscription = subscribe();
            match range.end {
                End::Single => state
                    .keys
                    .entry(range.start.clone())
                    .or_default()
                    .push(subscription),
                _ => match state.ranges.get_mut(range) {
                    Some(subscriptions) => subscriptions.push(subscription),
                    None => state.ranges.insert(range.clone(), vec![subscription]),
                },
            }
            return CatchUp::Synced;
        }
        if next < state.recent_from {
            return CatchUp::InLog {
                upto: state.revision.min(state.recent_from - 1),
            };
        }
        let start = state
            .recent
            .partition_point(|events| events.revision < next);
        let events: Vec<_> = state
            .recent
            .range(start..)
            .take(CATCH_UP_LEN)
            .cloned()
            .collect();
        let upto = if events.len() == CATCH_UP_LEN {
            events.last().map_or(next, |last| last.revision)
        } else {
            state.revision
        };
        CatchUp::Recent { events, upto }
    }

    /// Forgets a watcher. Its deliveries may still wait in its stream's queue.
    pub fn unsubscribe(&self, range: &KeyRange, watcher: WatcherKey) {
        let mut state = self.state.lock();
        match range.end {
            End::Single => {
                if let Some(subscriptions) = state.keys.get_mut(&range.start) {
                    subscriptions.retain(|subscription| subscription.watcher != watcher);
                    if subscriptions.is_empty() {
                        state.keys.remove(&range.start);
                    }
                }
            }
            _ => {
                if let Some(subscriptions) = state.ranges.get_mut(range) {
                    subscriptions.retain(|subscription| subscription.watcher != watcher);
                    if subscriptions.is_empty() {
                        state.ranges.remove(range);
                    }
                }
            }
        }
    }
}

impl HubState {
    fn hand_out(&mut self, events: &Arc<RevisionEvents>, now: Instant, wakes: &mut Wakes) {
        if let [event] = events.events.as_slice() {
            // Nearly every revision: no need to gather.
            let mut deliver = |subscription: &Subscription| {
                if !concerns(subscription, events, event) {
                    return true;
                }
                let delivery = Delivery {
                    watcher: subscription.watcher,
                    events: Arc::clone(events),
                    selected: None,
                };
                let (fits, wake) = subscription.queue.push(delivery, now);
                wakes.add(&subscription.queue, wake);
                fits
            };
            self.visit(&event.record.key, |subscriptions| {
                subscriptions.retain(&mut deliver);
            });
            return;
        }
        let mut gathered: HashMap<WatcherKey, (Arc<Queue>, Vec<u32>)> = HashMap::new();
        for (at, event) in (0..).zip(&events.events) {
            self.visit(&event.record.key, |subscriptions| {
                for subscription in subscriptions.iter() {
                    if concerns(subscription, events, event) {
                        gathered
                            .entry(subscription.watcher)
                            .or_insert_with(|| (Arc::clone(&subscription.queue), Vec::new()))
                            .1
                            .push(at);
                    }
                }
            });
        }
        let mut lagging = Vec::new();
        for (watcher, (queue, selected)) in gathered {
            let all = selected.len() == events.events.len();
            let delivery = Delivery {
                watcher,
                events: Arc::clone(events),
                selected: (!all).then_some(selected),
            };
            let (fits, wake) = queue.push(delivery, now);
            wakes.add(&queue, wake);
            if !fits {
                lagging.push(watcher);
            }
        }
        if lagging.is_empty() {
            return;
        }
        for event in &events.events {
            self.visit(&event.record.key, |subscriptions| {
                subscriptions.retain(|subscription| !lagging.contains(&subscription.watcher));
            });
        }
    }

    /// Visits the subscriptions of everything that contains `key`. Some may be left empty; they
    /// are removed when their watchers unsubscribe.
    fn visit(&mut self, key: &Bytes, mut visit: impl FnMut(&mut Vec<Subscription>)) {
        if let Some(subscriptions) = self.keys.get_mut(key) {
            visit(subscriptions);
        }
        self.ranges
            .visit(key, |_, subscriptions| visit(subscriptions));
    }
}

fn concerns(subscription: &Subscription, events: &RevisionEvents, event: &Event) -> bool {
    events.revision >= subscription.from_revision && subscription.filter.passes(event)
}
