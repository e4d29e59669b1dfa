//! Closes the months of the meter: what was used in one is rolled up an hour after its end, so that the
//! meter's intervals are those of the present month alone.

use std::time::Duration;

use time::{OffsetDateTime, Time};

use crate::clock::Timestamp;
use crate::infra;
use crate::infra::reflector::Change as Observed;
use crate::platform::store::{CloudOwner, Record};

use super::{Context, Controller, Round};

/// After the end of a month: what was due within it is on record by then.
const GRACE: Duration = Duration::from_secs(3600);

pub(super) struct MeteringController {
    context: Context,
}

impl MeteringController {
    pub(super) fn new(context: Context) -> MeteringController {
        MeteringController { context }
    }
}

/// Start of the month, in UTC, in which `at` is.
fn month_of(at: Timestamp) -> Timestamp {
    let at = at.to_date_time();
    let first = at.replace_day(1).unwrap_or(at).replace_time(Time::MIDNIGHT);
    timestamp(first)
}

/// Start of the month after the one in which `at` is.
fn month_after(at: Timestamp) -> Timestamp {
    // The longest month has 31 days, the shortest 28.
    month_of(month_of(at).saturating_add(Duration::from_secs(32 * 86_400)))
}

fn timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp(at.unix_timestamp().saturating_mul(1000))
}

impl Controller for MeteringController {
    fn name(&self) -> &'static str {
        "metering"
    }

    /// Whoever holds something has a ledger.
    fn on_record(&self, change: &Observed<'_, Record>) -> Vec<String> {
        match (change.old, change.new.map(AsRef::as_ref)) {
            (None, Some(Record::Ledger(ledger))) => vec![ledger.owner.to_string()],
            _ => Vec::new(),
        }
    }

    fn on_cloud(
        &self,
        _owner: Option<&CloudOwner>,
        _change: &Observed<'_, infra::record::Record>,
    ) -> Vec<String> {
        // Time alone closes a month.
        Vec::new()
    }

    fn reconcile<'a>(&'a self, owner: &'a str) -> Round<'a> {
        Box::pin(async move {
            let Context { cloud, store, .. } = &self.context;
            let now = store.clock.now();
            let grace = i64::try_from(GRACE.as_millis()).unwrap_or(i64::MAX);
            // The last month's end that is as long past.
            let until = month_of(Timestamp(now.0.saturating_sub(grace)));
            let prefix = format!("{owner}/");
            for path in cloud.owners_metered_before(&prefix, until).await? {
                // Later changes of rates are after `until`: what is past cannot be changed.
                let cuts = store.rates().await?.value.cuts();
                cloud.roll_up(&path, until, &cuts).await?;
            }
            Ok(Some(month_after(until).saturating_add(GRACE)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::metering::{Metered, Run, Usage};
    use crate::platform::testing::{SMALL, World};

    #[test]
    fn months_are_those_of_the_calendar() {
        let check = |at: OffsetDateTime, start: OffsetDateTime, next: OffsetDateTime| {
            let at = timestamp(at);
            assert_eq!(
                (month_of(at), month_after(at)),
                (timestamp(start), timestamp(next))
            );
        };
        use time::macros::datetime;
        check(
            datetime!(2028-02-29 23:59:59 UTC),
            datetime!(2028-02-01 0:00 UTC),
            datetime!(2028-03-01 0:00 UTC),
        );
        check(
            datetime!(2026-12-01 0:00 UTC),
            datetime!(2026-12-01 0:00 UTC),
            datetime!(2027-01-01 0:00 UTC),
        );
    }

    fn total(metered: &Metered) -> Usage {
        let intervals = metered.intervals.iter();
        let intervals = intervals.map(|it| it.level.between(it.started_at, it.ended_at));
        let runs = metered.rolled_up.iter().flat_map(|it| &it.runs);
        intervals
            .chain(runs.flat_map(Run::steps).map(|step| step.usage))
            .sum()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_month_is_rolled_up_once_it_is_over_and_nothing_is_lost() {
        let month = timestamp(time::macros::datetime!(2026-02-01 0:00 UTC));
        let world = World::from(Timestamp(month.0 - 2 * 3_600_000)).await;
        world.active_cluster(SMALL).await;
        let vm = world.cloud.list_vms()[0].clone();
        let since = vm.metered_since.unwrap();
        let used = |now| crate::infra::metering::Level::of_vm(&vm).between(since, now);
        // To an hour after the end of the month, and just not there.
        let left = world.clock.now().until(month) + GRACE - Duration::from_secs(1);
        world.advance(left.as_secs()).await;
        let before = world.cloud.metered("").await.unwrap();
        assert_eq!(before.rolled_up, []);
        assert_eq!(total(&before), used(world.clock.now()));
        for _ in 0..3 {
            world.advance(3600).await;
            let metered = world.cloud.metered("").await.unwrap();
            assert_eq!(total(&metered), used(world.clock.now()));
            let [rolled_up] = &metered.rolled_up[..] else {
                panic!("{metered:?}");
            };
            assert_eq!(rolled_up.until, month);
            assert_eq!(metered.intervals[0].started_at, month);
            // The hour in which it began, and the other.
            assert_eq!(rolled_up.runs.len(), 2);
        }
        world.check_invariants().await;
        world.shutdown().await;
    }
}
