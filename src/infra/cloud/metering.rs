//! The meter's records: read, and rolled up. What is metered, and how, is in [`crate::infra::metering`].

use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::RequestOp;

use crate::clock::Timestamp;
use crate::etcd::client::{delete, mod_revision_is};
use crate::infra::metering::{self, Interval, Metered, RolledUp, Steps, UnderWay};
use crate::infra::record::Record;
use crate::infra::vm::Vm;

use super::{ATTEMPTS, Cloud, CloudError, Result, encode};

/// Intervals taken into a rolled-up record at once: each needs an operation of the same transaction, and
/// etcd allows 128 by default.
const ROLLED_AT_ONCE: usize = 100;

/// What has time on the meter before some instant, with the key and revision of its record.
enum Open {
    Closed(Interval),
    Running(Arc<Record>, Interval),
}

impl Cloud {
    /// Brings the meter to what the VM has become: an operation to be kept together with the VM.
    pub(super) fn meter(before: &Vm, after: &mut Vm, now: Timestamp) -> Result<Vec<RequestOp>> {
        let closed = metering::follow(before, after, now);
        closed
            .map(|interval| encode(&interval.key(), &interval))
            .into_iter()
            .collect()
    }

    /// Everything on the meter of the owners whose names start with `prefix`, up to now.
    pub async fn metered(&self, prefix: &str) -> Result<Metered> {
        let now = self.inner.clock.now();
        for _ in 0..ATTEMPTS {
            self.inner.records.catch_up().await?;
            // The view that is read next is at least at this revision.
            let revision = self.inner.records.revision();
            let intervals = self.inner.records.with(|records| {
                let mut intervals = Vec::new();
                for stored in records.values() {
                    match stored.record.as_ref() {
                        Record::Interval(interval) if interval.owner.starts_with(prefix) => {
                            intervals.push(interval.clone());
                        }
                        record => {
                            let own = UnderWay::of(record)
                                .filter(|under_way| under_way.owner.starts_with(prefix));
                            intervals.extend(own.and_then(|under_way| under_way.until(now)));
                        }
                    }
                }
                intervals
            });
            let key = format!("{}{prefix}", metering::ROLLED_UP);
            let listed = self.inner.client.list(key).await?.value;
            // Rolled up meanwhile: it would count twice.
            if listed.iter().any(|kv| kv.mod_revision > revision) {
                continue;
            }
            let rolled_up = listed
                .iter()
                .map(|kv| read(&kv.key, &kv.value))
                .collect::<Result<_>>()?;
            return Ok(Metered {
                intervals,
                rolled_up,
            });
        }
        Err(CloudError::Contention(prefix.to_owned()))
    }

    /// Owners that have time on the meter before `until`, of those whose names start with `prefix`.
    pub async fn owners_metered_before(
        &self,
        prefix: &str,
        until: Timestamp,
    ) -> Result<std::collections::BTreeSet<String>> {
        self.inner.records.catch_up().await?;
        Ok(self.inner.records.with(|records| {
            let owners = records.values().filter_map(|stored| {
                let (owner, since) = match stored.record.as_ref() {
                    Record::Interval(interval) => (interval.owner.clone(), interval.started_at),
                    record => {
                        let under_way = UnderWay::of(record)?;
                        (under_way.owner, under_way.since)
                    }
                };
                (since < until && owner.starts_with(prefix)).then_some(owner)
            });
            owners.collect()
        }))
    }

    /// Moves what `owner` used before `until` from its intervals into one rolled-up record, for good. An
    /// interval that goes on after `until` begins there from now on. `cuts` (sorted) are where hours must
    /// be divisible. Idempotent; a kill in between leaves every millisecond in exactly one place.
    pub async fn roll_up(&self, owner: &str, until: Timestamp, cuts: &[Timestamp]) -> Result<()> {
        let key = format!("{}{owner}/{:015}", metering::ROLLED_UP, until.0);
        self.inner.records.catch_up().await?;
        let mut refused = 0;
        while refused < ATTEMPTS {
            let open = self.metered_before(owner, until);
            if open.is_empty() {
                return Ok(());
            }
            let stored = self.inner.client.get(key.clone()).await?.value;
            let (runs, revision) = match &stored {
                Some(kv) => (read::<RolledUp>(&kv.key, &kv.value)?.runs, kv.mod_revision),
                None => (Vec::new(), 0),
            };
            let mut steps = Steps::of_runs(&runs);
            let mut compare = vec![mod_revision_is(key.clone(), revision)];
            let mut changes = Vec::new();
            for (at, seen, open) in open {
                compare.push(mod_revision_is(at.clone(), seen));
                let (Open::Closed(interval) | Open::Running(_, interval)) = &open;
                let end = interval.ended_at.min(until);
                steps.add(interval.level, interval.started_at, end, cuts);
                match open {
                    Open::Closed(interval) => {
                        changes.push(delete(at));
                        if until < interval.ended_at {
                            let rest = Interval {
                                started_at: until,
                                ..interval
                            };
                            changes.push(encode(&rest.key(), &rest)?);
                        }
                    }
                    Open::Running(record, _) => changes.extend(begin_anew(&at, &record, until)?),
                }
            }
            let rolled_up = RolledUp {
                owner: owner.to_owned(),
                until,
                runs: steps.runs(),
            };
            changes.push(encode(&key, &rolled_up)?);
            if !self.commit(compare, changes).await? {
                refused += 1;
            }
        }
        Err(CloudError::Contention(key))
    }

    fn metered_before(&self, owner: &str, until: Timestamp) -> Vec<(String, i64, Open)> {
        self.inner.records.with(|records| {
            let mut found = Vec::new();
            let mut operations = 0;
            for (key, stored) in records {
                let open = match stored.record.as_ref() {
                    Record::Interval(interval)
                        if interval.owner == owner && interval.started_at < until =>
                    {
                        Open::Closed(interval.clone())
                    }
                    record => {
                        let own = UnderWay::of(record).filter(|it| it.owner == owner);
                        match own.and_then(|under_way| under_way.until(until)) {
                            Some(interval) => Open::Running(Arc::clone(&stored.record), interval),
                            None => continue,
                        }
                    }
                };
                // A closed one that goes on is deleted and put.
                operations += match open {
                    Open::Closed(_) => 2,
                    Open::Running(..) => 1,
                };
                if operations > ROLLED_AT_ONCE {
                    break;
                }
                found.push((key.clone(), stored.mod_revision, open));
            }
            found
        })
    }
}

/// What ends the time that the record has on the meter: to be kept in the transaction that ends it.
pub(super) fn close(record: &Record, now: Timestamp) -> Result<Option<RequestOp>> {
    let interval = UnderWay::of(record).and_then(|under_way| under_way.until(now));
    interval
        .map(|interval| encode(&interval.key(), &interval))
        .transpose()
}

/// The record, on the meter from `at` on.
fn begin_anew(key: &str, record: &Record, at: Timestamp) -> Result<Option<RequestOp>> {
    let since = Some(at);
    Ok(Some(match record {
        Record::Vm(vm) => {
            let mut vm = Vm::clone(vm);
            vm.metered_since = since;
            encode(key, &vm)?
        }
        Record::LoadBalancer(load_balancer) => {
            let mut load_balancer = load_balancer.clone();
            load_balancer.metered_since = since;
            encode(key, &load_balancer)?
        }
        Record::Volume(volume) => {
            let mut volume = volume.clone();
            volume.metered_since = since;
            encode(key, &volume)?
        }
        // Nothing else is ever under way.
        _ => return Ok(None),
    }))
}

fn read<T: serde::de::DeserializeOwned>(key: &Bytes, value: &Bytes) -> Result<T> {
    serde_json::from_slice(value).map_err(|source| CloudError::Encode {
        key: String::from_utf8_lossy(key).into_owned(),
        source,
    })
}
