//! What resources use, for whoever bills it: when each was there, to the millisecond.
//!
//! A VM is metered from when it runs until its deletion is asked for. While it boots, and while it is
//! being taken down, it is nobody's to pay. A replacement is a VM like any other: it counts from when it
//! runs, and the one that it replaces until its deletion is asked for.
//!
//! A load balancer is metered as long as the fleet has it, and a volume as long as it exists, by its size:
//! how much of it is written is nobody's to pay.
//!
//! Time on the meter is an [`Interval`]. The one under way is a field of the resource's own record,
//! `metered_since`; it is closed in the transaction that ends it, so no crash can lose or double any of
//! it. Closed intervals are kept until they are rolled up ([`RolledUp`]): hour by hour, for ever, in a
//! record whose size does not depend on how many resources came and went.
//!
//! Worked example: a VM of 4 vCPU runs at 10:30 and its deletion is asked for at 12:15. The interval
//! 10:30 to 12:15 is closed. Rolled up until 13:00 it is 2 vCPU-hours from 10:00, 4 from 11:00 and 1
//! from 12:00.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::record::Record;
use super::vm::{Health, Observed, Requested, Vm};
use super::volume::Volume;

/// Closed intervals, by owner, start and resource.
pub const INTERVAL: &str = "/metering/interval/";
/// What is rolled up, by owner and end.
pub const ROLLED_UP: &str = "/metering/rolled-up/";

pub const HOUR_MS: i64 = 3_600_000;

/// What a resource takes at any moment while it is metered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Level {
    pub vcpus: u64,
    /// Units of 1024³ bytes.
    pub ram_gb: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub load_balancers: u64,
    /// Units of 1024² bytes; a part of one counts as one.
    #[serde(skip_serializing_if = "is_zero")]
    pub storage_mib: u64,
}

/// Levels times milliseconds: what was used over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    #[serde(skip_serializing_if = "is_zero")]
    pub vcpu_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub ram_gb_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub load_balancer_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub storage_mib_ms: u64,
}

// Serde asks by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Level {
    pub fn of_vm(vm: &Vm) -> Level {
        Level {
            vcpus: u64::from(vm.spec.vcpus),
            ram_gb: u64::from(vm.spec.ram_gb),
            ..Level::default()
        }
    }

    pub fn of_volume(volume: &Volume) -> Level {
        Level {
            storage_mib: volume.size_bytes.div_ceil(1 << 20),
            ..Level::default()
        }
    }

    /// Of one.
    pub const LOAD_BALANCER: Level = Level {
        vcpus: 0,
        ram_gb: 0,
        load_balancers: 1,
        storage_mib: 0,
    };

    /// Nothing if `until` is not after `from`.
    pub fn between(self, from: Timestamp, until: Timestamp) -> Usage {
        let ms = u64::try_from(until.0.saturating_sub(from.0)).unwrap_or(0);
        Usage {
            vcpu_ms: self.vcpus.saturating_mul(ms),
            ram_gb_ms: self.ram_gb.saturating_mul(ms),
            load_balancer_ms: self.load_balancers.saturating_mul(ms),
            storage_mib_ms: self.storage_mib.saturating_mul(ms),
        }
    }
}

impl Usage {
    pub fn is_nothing(self) -> bool {
        self == Usage::default()
    }
}

impl std::ops::Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            vcpu_ms: self.vcpu_ms.saturating_add(other.vcpu_ms),
            ram_gb_ms: self.ram_gb_ms.saturating_add(other.ram_gb_ms),
            load_balancer_ms: self.load_balancer_ms.saturating_add(other.load_balancer_ms),
            storage_mib_ms: self.storage_mib_ms.saturating_add(other.storage_mib_ms),
        }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Usage>>(parts: I) -> Usage {
        parts.fold(Usage::default(), |sum, part| sum + part)
    }
}

/// Time that a resource was metered, and that is over. `started_at < ended_at`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interval {
    /// Id of the VM, load balancer or volume.
    pub resource: String,
    /// Whose it was, as [`VmSpec::owner`](super::VmSpec::owner).
    pub owner: String,
    pub level: Level,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
}

impl Interval {
    /// Of which a resource has one at a time.
    pub fn key(&self) -> String {
        format!(
            "{INTERVAL}{}/{:015}/{}",
            self.owner, self.started_at.0, self.resource
        )
    }
}

impl Vm {
    /// Whether the VM is on the meter.
    pub fn is_metered(&self) -> bool {
        self.requested == Requested::Running && self.is_running() && self.is_healthy()
    }
}

/// What a record has on the meter that is not over.
pub(super) struct UnderWay {
    pub resource: String,
    pub owner: String,
    pub level: Level,
    pub since: Timestamp,
}

impl UnderWay {
    /// `None` of what is not on the meter.
    pub fn of(record: &Record) -> Option<UnderWay> {
        let (resource, owner, level, since) = match record {
            Record::Vm(vm) => {
                let spec = &vm.spec;
                (&spec.id.0, &spec.owner, Level::of_vm(vm), vm.metered_since)
            }
            Record::LoadBalancer(it) => (&it.id, &it.owner, Level::LOAD_BALANCER, it.metered_since),
            Record::Volume(it) => (&it.id, &it.owner, Level::of_volume(it), it.metered_since),
            _ => return None,
        };
        Some(UnderWay {
            resource: resource.clone(),
            owner: owner.clone(),
            level,
            since: since?,
        })
    }

    /// As if it were over at `now`; `None` if it began then.
    pub fn until(self, now: Timestamp) -> Option<Interval> {
        (self.since < now).then_some(Interval {
            resource: self.resource,
            owner: self.owner,
            level: self.level,
            started_at: self.since,
            ended_at: now,
        })
    }
}

/// Brings the meter to what the VM has become. What it returns is to be kept in the transaction that
/// keeps `after`.
pub(super) fn follow(before: &Vm, after: &mut Vm, now: Timestamp) -> Option<Interval> {
    match (after.metered_since, after.is_metered()) {
        (None, true) => {
            // A boot is known to the millisecond, however late somebody looked.
            after.metered_since = Some(match (before.observed, after.observed) {
                (Observed::Running { .. }, _) => now,
                (_, Observed::Running { since }) => since,
                _ => now,
            });
            None
        }
        (Some(started_at), false) => {
            after.metered_since = None;
            // So is the probe that failed once too often.
            let ended_at = match (after.requested, after.health) {
                (Requested::Running, Health::Unhealthy { since }) => since,
                _ => now,
            };
            (started_at < ended_at).then(|| Interval {
                resource: after.spec.id.0.clone(),
                owner: after.spec.owner.clone(),
                level: Level::of_vm(after),
                started_at,
                ended_at,
            })
        }
        _ => None,
    }
}

/// What somebody used in some time, all intervals of an owner together: see [`Run`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolledUp {
    pub owner: String,
    /// What ended before this is in here, unless it was rolled up before.
    pub until: Timestamp,
    /// In order, without overlap.
    pub runs: Vec<Run>,
}

/// The same usage in each of `count` steps, one after the other. A step is an hour of the clock, or a
/// part of one that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    pub from: Timestamp,
    pub step_ms: i64,
    pub count: u32,
    /// In one step.
    pub usage: Usage,
}

/// Usage within a time that nobody needs to divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub from: Timestamp,
    pub until: Timestamp,
    pub usage: Usage,
}

/// A sum of intervals, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps(BTreeMap<Timestamp, (Timestamp, Usage)>);

impl Steps {
    /// Adds `level` from `from` until `until`. Steps end at full hours, and at each of `cuts` (sorted).
    pub fn add(&mut self, level: Level, from: Timestamp, until: Timestamp, cuts: &[Timestamp]) {
        let mut at = from;
        while at < until {
            let (step_from, step_until) = step_around(at, cuts);
            let end = step_until.min(until);
            let entry = self
                .0
                .entry(step_from)
                .or_insert((step_until, Usage::default()));
            entry.1 += level.between(at, end);
            at = end;
        }
    }

    pub fn of_runs(runs: &[Run]) -> Steps {
        Steps(
            runs.iter()
                .flat_map(Run::steps)
                .map(|step| (step.from, (step.until, step.usage)))
                .collect(),
        )
    }

    /// As few runs as there can be.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (&from, &(until, usage)) in &self.0 {
            let step_ms = until.0 - from.0;
            match runs.last_mut() {
                Some(last)
                    if last.usage == usage && last.step_ms == step_ms && last.until() == from =>
                {
                    last.count += 1;
                }
                _ => runs.push(Run {
                    from,
                    step_ms,
                    count: 1,
                    usage,
                }),
            }
        }
        runs
    }
}

impl Run {
    pub fn until(&self) -> Timestamp {
        let length = self.step_ms.saturating_mul(i64::from(self.count));
        Timestamp(self.from.0.saturating_add(length))
    }

    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let run = *self;
        (0..i64::from(run.count)).map(move |number| {
            let from = Timestamp(run.from.0 + number * run.step_ms);
            Step {
                from,
                until: Timestamp(from.0 + run.step_ms),
                usage: run.usage,
            }
        })
    }
}

/// The full hour in which `at` is.
pub fn hour_of(at: Timestamp) -> Timestamp {
    Timestamp(at.0.div_euclid(HOUR_MS) * HOUR_MS)
}

/// The hour of the clock around `at`, or the part of it between two cuts.
fn step_around(at: Timestamp, cuts: &[Timestamp]) -> (Timestamp, Timestamp) {
    let hour = hour_of(at);
    let next = cuts.partition_point(|cut| *cut <= at);
    let from = match next.checked_sub(1).map(|last| cuts[last]) {
        Some(cut) => hour.max(cut),
        None => hour,
    };
    let end = Timestamp(hour.0 + HOUR_MS);
    let until = cuts.get(next).map_or(end, |cut| end.min(*cut));
    (from, until)
}

/// What is on the meter of an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    /// Closed and under way; the latter end at the reading's instant. What is rolled up is not in here.
    pub intervals: Vec<Interval>,
    pub rolled_up: Vec<RolledUp>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEVEL: Level = Level {
        vcpus: 4,
        ram_gb: 8,
        load_balancers: 0,
        storage_mib: 0,
    };

    fn at(hours: i64, minutes: i64) -> Timestamp {
        Timestamp(hours * HOUR_MS + minutes * 60_000)
    }

    #[test]
    fn an_interval_is_rolled_up_hour_by_hour() {
        let mut steps = Steps::default();
        steps.add(LEVEL, at(10, 30), at(12, 15), &[]);
        let vcpu_minutes = |run: &Run| (run.from, run.count, run.usage.vcpu_ms / 60_000);
        let runs = steps.runs();
        let seen: Vec<_> = runs.iter().map(vcpu_minutes).collect();
        assert_eq!(
            seen,
            [(at(10, 0), 1, 120), (at(11, 0), 1, 240), (at(12, 0), 1, 60)]
        );
        // Another fills the gaps: now the hours are alike.
        steps.add(LEVEL, at(10, 0), at(10, 30), &[]);
        steps.add(LEVEL, at(12, 15), at(13, 0), &[]);
        let runs = steps.runs();
        let seen: Vec<_> = runs.iter().map(vcpu_minutes).collect();
        assert_eq!(seen, [(at(10, 0), 3, 240)]);
    }

    #[test]
    fn a_cut_divides_an_hour() {
        let mut steps = Steps::default();
        steps.add(LEVEL, at(0, 0), at(3, 0), &[at(1, 20), at(1, 20), at(7, 0)]);
        let seen: Vec<_> = steps
            .runs()
            .iter()
            .map(|run| (run.from, run.step_ms / 60_000, run.usage.vcpu_ms / 60_000))
            .collect();
        assert_eq!(
            seen,
            [
                (at(0, 0), 60, 240),
                (at(1, 0), 20, 80),
                (at(1, 20), 40, 160),
                (at(2, 0), 60, 240)
            ]
        );
    }

    proptest! {
        /// Rolling up loses nothing, in whatever order and pieces it is done; and what is written can be
        /// read back and added to.
        #[test]
        fn rolling_up_keeps_every_millisecond(
            intervals in proptest::collection::vec((0i64..200_000_000, 0i64..90_000_000, 1u64..20), 0..20),
            cuts in proptest::collection::btree_set(0i64..250_000_000, 0..5),
            split in 0i64..300_000_000,
        ) {
            let cuts: Vec<Timestamp> = cuts.into_iter().map(Timestamp).collect();
            let mut whole = Steps::default();
            let mut pieces = Steps::default();
            let mut total = Usage::default();
            for (from, length, vcpus) in intervals {
                let level = Level { vcpus, ram_gb: 2 * vcpus, ..Level::default() };
                let (from, until) = (Timestamp(from), Timestamp(from + length));
                total += level.between(from, until);
                whole.add(level, from, until, &cuts);
                pieces.add(level, from, until.min(Timestamp(split)), &cuts);
                pieces = Steps::of_runs(&pieces.runs());
                pieces.add(level, from.max(Timestamp(split)), until, &cuts);
            }
            prop_assert_eq!(&whole, &pieces);
            let runs = whole.runs();
            prop_assert_eq!(runs.iter().flat_map(Run::steps).map(|step| step.usage).sum::<Usage>(), total);
            for pair in runs.windows(2) {
                prop_assert!(pair[0].until() <= pair[1].from);
            }
        }
    }
}
