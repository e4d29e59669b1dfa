//! Everything that happens: each change of a record of the cloud or of the platform, in order, with a
//! number.
//!
//! While the clock is manual, what follows from one request, and what happens at one instant of an advance, is told
//! when that is done, ordered by source and key, and for each key in the order in which it happened. So the history
//! of a run does not depend on which of two threads was faster. While the clock runs by itself, a change is told as
//! soon as it is seen.
//!
//! Worked example: at 60 s the cloud's thread records that VM b runs, then VM a; the platform's that
//! cluster c goes on, twice. The history then says: infra a, infra b, platform c, platform c.
//!
//! The last [`KEPT`] changes are kept; who is further behind is told how many are lost.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::clock::{Clock, TimeScale, Timestamp};
use crate::infra::{self, Cloud};
use crate::platform::{self, Platform};

/// Changes that are kept for who asks later.
pub const KEPT: usize = 32_768;

/// One change, as it is told.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Happening {
    /// Counts from 1 in a world; the next change has the next number.
    pub sequence: u64,
    /// RFC 3339, on the simulated clock.
    pub at: String,
    pub source: Source,
    /// Such as `vm`, `hypervisor`, `clusters`, `node-groups`; `events` are deployment events.
    pub kind: String,
    /// Of the record that changed.
    pub key: String,
    pub change: ChangeKind,
    /// The record after the change; before it, if it is gone. Of a hypervisor, how much of it is used.
    pub record: Value,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    Infra,
    Platform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    Created,
    Changed,
    Deleted,
}

/// A record as it was: written as JSON only for who asks.
#[derive(Clone)]
enum Recorded {
    Infra(Arc<infra::record::Record>),
    Platform(Arc<platform::store::Record>),
    /// What is told instead of a record that would be large.
    Summary(Value),
}

#[derive(Clone)]
struct Entry {
    at: Timestamp,
    source: Source,
    key: String,
    change: ChangeKind,
    recorded: Recorded,
}

#[derive(Default)]
struct Log {
    /// What happens at the present instant of a manual clock, as it came.
    pending: Vec<Entry>,
    kept: VecDeque<Entry>,
    /// Number of the first entry that is kept, minus one.
    forgotten: u64,
    /// Counts the worlds that this history was begun anew for.
    world: u64,
    /// Whether there ever was a world.
    begun: bool,
    /// Whether what is seen is told: not while a world is put up.
    recording: bool,
}

impl Log {
    fn told(&self) -> u64 {
        self.forgotten + self.kept.len() as u64
    }

    /// The pending changes become history.
    fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_by(|a, b| (a.source, &a.key).cmp(&(b.source, &b.key)));
        for entry in pending {
            self.keep(entry);
        }
    }

    fn keep(&mut self, entry: Entry) {
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
            self.forgotten += 1;
        }
        self.kept.push_back(entry);
    }
}

/// What is read from a history at once.
pub struct Page {
    pub world: u64,
    /// How many changes between what was asked for and the first of these are forgotten.
    pub lost: u64,
    pub happenings: Vec<Happening>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct History {
    /// Of the present world.
    clock: Arc<Mutex<Clock>>,
    log: Arc<Mutex<Log>>,
    /// World and number of the last change told.
    head: Arc<watch::Sender<(u64, u64)>>,
}

impl History {
    /// Without a world to follow yet.
    pub fn new() -> History {
        History {
            clock: Arc::new(Mutex::new(Clock::new(TimeScale::Manual, Timestamp(0)))),
            log: Arc::default(),
            head: Arc::new(watch::Sender::new((0, 0))),
        }
    }

    /// Follows another world from now on: numbers begin anew.
    pub fn follow(&self, cloud: &Cloud, platform: &Platform, clock: &Clock) {
        let world = {
            let mut log = self.log.lock();
            let world = log.world + u64::from(log.begun);
            *log = Log {
                world,
                begun: true,
                ..Log::default()
            };
            *self.clock.lock() = clock.clone();
            world
        };
        let (history, time) = (self.clone(), clock.clone());
        cloud.observe(Box::new(move |change| {
            let recorded = |record: &Arc<infra::record::Record>| match summary(record) {
                Some(summary) => Recorded::Summary(summary),
                None => Recorded::Infra(Arc::clone(record)),
            };
            let (old, new) = (change.old.map(recorded), change.new.map(recorded));
            history.append(world, &time, Source::Infra, change.key, old, new)
        }));
        let (history, time) = (self.clone(), clock.clone());
        platform.observe(Box::new(move |change| {
            let recorded = |record: &Arc<_>| Recorded::Platform(Arc::clone(record));
            let (old, new) = (change.old.map(recorded), change.new.map(recorded));
            history.append(world, &time, Source::Platform, change.key, old, new)
        }));
        let (history, time) = (self.clone(), clock.clone());
        clock.on_quiet(Box::new(move || {
            // An instant of an advance is over when the next one begins.
            time.is_moving() || history.tell_of(world)
        }));
        // What was there before is not news.
        let mut log = self.log.lock();
        log.recording = true;
        self.announce(&log);
    }

    /// Called with the lock of a view held: must be quick. Returns whether the world is still followed.
    fn append(
        &self,
        world: u64,
        clock: &Clock,
        source: Source,
        key: &str,
        old: Option<Recorded>,
        new: Option<Recorded>,
    ) -> bool {
        let (change, recorded) = match (old, new) {
            (None, Some(new)) => (ChangeKind::Created, new),
            (Some(_), Some(new)) => (ChangeKind::Changed, new),
            (Some(old), None) => (ChangeKind::Deleted, old),
            (None, None) => return true,
        };
        let mut log = self.log.lock();
        if log.world != world {
            return false;
        }
        if !log.recording {
            return true;
        }
        let entry = Entry {
            at: clock.now(),
            source,
            key: key.to_owned(),
            change,
            recorded,
        };
        let earlier = log.pending.last().is_some_and(|last| last.at != entry.at);
        let runs = clock.scale() != TimeScale::Manual;
        if earlier || runs {
            log.flush();
        }
        if runs {
            log.keep(entry);
        } else {
            log.pending.push(entry);
        }
        self.announce(&log);
        true
    }

    fn announce(&self, log: &Log) {
        let head = (log.world, log.told());
        self.head.send_if_modified(|seen| {
            let news = *seen != head;
            *seen = head;
            news
        });
    }

    /// Waits until the present instant's work is done, and tells what happened at it.
    pub async fn settle(&self) {
        let (clock, world) = {
            let log = self.log.lock();
            (self.clock.lock().clone(), log.world)
        };
        tokio::select! {
            _rest = clock.at_rest() => {
                self.tell_of(world);
            }
            // What ended is not waited for.
            () = self.another_than(world) => {}
        }
    }

    /// Tells what is pending in `world`. Returns whether that is still followed.
    fn tell_of(&self, world: u64) -> bool {
        let mut log = self.log.lock();
        if log.world != world {
            return false;
        }
        log.flush();
        self.announce(&log);
        true
    }

    /// Resolves when another world is followed.
    async fn another_than(&self, world: u64) {
        let mut head = self.head.subscribe();
        drop(head.wait_for(|(followed, _)| *followed != world).await);
    }

    /// How many changes were seen in this world.
    pub fn count(&self) -> u64 {
        let log = self.log.lock();
        log.told() + log.pending.len() as u64
    }

    /// Changes by number: those after `since`, at most `limit`.
    pub fn after(&self, since: u64, limit: usize) -> Page {
        let (world, first, entries) = {
            let log = self.log.lock();
            let skip = since.saturating_sub(log.forgotten);
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            let entries: Vec<Entry> = log.kept.iter().skip(skip).take(limit).cloned().collect();
            (log.world, log.forgotten.max(since), entries)
        };
        let tell = |(sequence, entry): (u64, Entry)| entry.tell(sequence);
        Page {
            world,
            lost: first - since,
            happenings: (first + 1..).zip(entries).map(tell).collect(),
        }
    }

    /// World and number of the last change told, and word of every later one.
    pub fn head(&self) -> watch::Receiver<(u64, u64)> {
        self.head.subscribe()
    }
}

impl Default for History {
    fn default() -> Self {
        History::new()
    }
}

impl Entry {
    fn tell(self, sequence: u64) -> Happening {
        Happening {
            sequence,
            at: self.at.to_rfc3339(),
            source: self.source,
            kind: kind_of(&self.key).to_owned(),
            record: self.recorded.write(),
            key: self.key,
            change: self.change,
        }
    }
}

impl Recorded {
    fn write(&self) -> Value {
        match self {
            Recorded::Summary(summary) => summary.clone(),
            Recorded::Infra(record) => record.to_json(),
            // Records are kept as JSON, so they can be written as such.
            Recorded::Platform(record) => serde_json::to_value(record.as_ref()).unwrap_or_default(),
        }
    }
}

/// Records of one kind are under one prefix: `/vm/…`, `/cke/clusters/…`.
fn kind_of(key: &str) -> &str {
    let key = key.strip_prefix("/cke").unwrap_or(key);
    key.split('/').nth(1).unwrap_or_default()
}

/// A hypervisor's record lists its VMs, which have records of their own.
fn summary(record: &infra::record::Record) -> Option<Value> {
    let infra::record::Record::Hypervisor(hypervisor) = record else {
        return None;
    };
    let used = hypervisor.placed.values();
    let (vcpus, ram_gb) = used.fold((0_u64, 0_u64), |(vcpus, ram_gb), room| {
        (
            vcpus + u64::from(room.vcpus),
            ram_gb + u64::from(room.ram_gb),
        )
    });
    Some(json!({
        "name": hypervisor.name,
        "datacenter": hypervisor.datacenter,
        "vms": hypervisor.placed.len(),
        "usedVcpus": vcpus,
        "usedRamGb": ram_gb,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: i64, source: Source, key: &str, value: u64) -> Entry {
        Entry {
            at: Timestamp(at),
            source,
            key: key.to_owned(),
            change: ChangeKind::Changed,
            recorded: Recorded::Summary(json!(value)),
        }
    }

    /// The worked example.
    #[test]
    fn what_happens_at_one_instant_is_ordered_by_key() {
        let told = |order: &[usize]| {
            let came = [
                entry(60, Source::Infra, "b", 1),
                entry(60, Source::Infra, "a", 2),
                entry(60, Source::Platform, "c", 3),
                entry(60, Source::Platform, "c", 4),
            ];
            let mut log = Log {
                pending: order.iter().map(|at| came[*at].clone()).collect(),
                ..Log::default()
            };
            log.flush();
            let told = log.kept.iter().map(|entry| match &entry.recorded {
                Recorded::Summary(value) => format!("{}{value}", entry.key),
                _ => String::new(),
            });
            told.collect::<Vec<_>>()
        };
        let expect = ["a2", "b1", "c3", "c4"];
        assert_eq!(told(&[0, 1, 2, 3]), expect);
        assert_eq!(told(&[2, 0, 3, 1]), expect);
        assert_eq!(told(&[2, 3, 0, 1]), expect);
    }

    #[test]
    fn what_is_forgotten_is_counted() {
        let mut log = Log::default();
        for number in 0..KEPT as u64 + 10 {
            log.keep(entry(0, Source::Infra, "a", number));
        }
        assert_eq!(log.told(), KEPT as u64 + 10);
        let history = History {
            clock: Arc::new(Mutex::new(Clock::new(TimeScale::Manual, Timestamp(0)))),
            log: Arc::new(Mutex::new(log)),
            head: Arc::new(watch::Sender::new((0, 0))),
        };
        let check = |since: u64, lost: u64, first: Option<u64>| {
            let page = history.after(since, 2);
            let found = page.happenings.first();
            assert_eq!(page.lost, lost, "{since}");
            assert_eq!(found.map(|it| it.sequence), first, "{since}");
            // The number is the change's own, whatever was forgotten.
            assert_eq!(
                found.map(|it| it.record.clone()),
                first.map(|it| json!(it - 1))
            );
        };
        check(0, 10, Some(11));
        check(9, 1, Some(11));
        check(10, 0, Some(11));
        check(11, 0, Some(12));
        check(KEPT as u64 + 10, 0, None);
        check(KEPT as u64 + 99, 0, None);
    }
}
