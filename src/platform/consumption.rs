//! What an owner has used, and what that costs.

use std::collections::BTreeMap;

use time::{Date, Month};

use crate::clock::Timestamp;
use crate::infra::metering::{Metered, Usage};

use super::billing::{self, Billable, BilledGroup, Invoice, Item};
use super::credit::{Credit, Credits, Payment, pay};
use super::model::{Cluster, OwnerId};
use super::store::Change;
use super::{ATTEMPTS, Platform, Result, contention};

/// A cluster and the use of its control plane and node groups, by hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumption {
    pub cluster: Cluster,
    pub items: Vec<(Item, BTreeMap<Timestamp, Usage>)>,
}

/// A month of the calendar, in UTC: such as `2026-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BillingMonth {
    year: i32,
    month: u8,
}

impl BillingMonth {
    /// The month in which `at` is.
    pub fn of(at: Timestamp) -> BillingMonth {
        let date = at.to_date_time().date();
        BillingMonth {
            year: date.year(),
            month: date.month().into(),
        }
    }

    pub fn next(self) -> BillingMonth {
        match self.month {
            12 => BillingMonth {
                year: self.year + 1,
                month: 1,
            },
            month => BillingMonth {
                month: month + 1,
                ..self
            },
        }
    }

    pub fn start(self) -> Timestamp {
        let month = Month::try_from(self.month).unwrap_or(Month::January);
        let first = Date::from_calendar_date(self.year, month, 1);
        let first = first.unwrap_or(Date::MAX).midnight().assume_utc();
        Timestamp(first.unix_timestamp().saturating_mul(1000))
    }

    pub fn end(self) -> Timestamp {
        self.next().start()
    }
}

impl std::fmt::Display for BillingMonth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl std::str::FromStr for BillingMonth {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        const EXPECTED: &str = "must be a month, such as 2026-01";
        let (year, month) = text.split_once('-').ok_or(EXPECTED)?;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if year.len() != 4 || month.len() != 2 || !digits(year) || !digits(month) {
            return Err(EXPECTED);
        }
        let year = year.parse().ok().filter(|year| (1970..9999).contains(year));
        let month = month.parse().ok().filter(|month| (1..=12).contains(month));
        let month = year
            .zip(month)
            .map(|(year, month)| BillingMonth { year, month });
        month.ok_or(EXPECTED)
    }
}

/// An owner's month: what it used, what that costs, and what of it is to be paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    pub month: BillingMonth,
    /// Whether the month is over: until then everything may still change.
    pub is_final: bool,
    /// End of the month, or now.
    pub until: Timestamp,
    pub invoice: Invoice,
    pub payment: Payment,
}

impl Platform {
    /// Every month's, from the first in which the owner used something or was given a credit to the present
    /// one, or to `last`.
    pub async fn bills(&self, owner: &OwnerId, last: Option<BillingMonth>) -> Result<Vec<Bill>> {
        // In this order: what is on the meter has had its records before.
        let metered = self.metered(owner).await?;
        let now = self.now();
        let billable = self.billable(owner).await?;
        let credits = self.store().credits(owner).await?.value;
        let rates = self.store().rates().await?.value;
        let present = BillingMonth::of(now);
        let last = last.unwrap_or(present).min(present);
        let (mut bills, mut left) = (Vec::new(), 0);
        let Some(mut month) = first_month(&metered, &credits) else {
            return Ok(bills);
        };
        while month <= last {
            let (start, end) = (month.start(), month.end());
            let invoice = billing::invoice(&metered, &billable, &rates, start, end);
            let given = credits.given_between(start, end);
            let payment = pay(invoice.total.cents(), left, given);
            left = payment.left;
            bills.push(Bill {
                month,
                is_final: end <= now,
                until: now.min(end),
                invoice,
                payment,
            });
            month = month.next();
        }
        Ok(bills)
    }

    /// A month's; an empty one for a month without anything.
    pub async fn bill(&self, owner: &OwnerId, month: BillingMonth) -> Result<Bill> {
        let bills = self.bills(owner, Some(month)).await?;
        let left = bills.last().map_or(0, |bill| bill.payment.left);
        let found = bills.into_iter().find(|bill| bill.month == month);
        let now = self.now();
        Ok(found.unwrap_or_else(|| Bill {
            month,
            is_final: month.end() <= now,
            until: now.clamp(month.start(), month.end()),
            invoice: Invoice::default(),
            payment: pay(0, left, 0),
        }))
    }

    pub async fn credits(&self, owner: &OwnerId) -> Result<Credits> {
        Ok(self.store().credits(owner).await?.value)
    }

    /// Gives a credit now. Doing it again changes nothing.
    pub async fn give_credit(
        &self,
        owner: &OwnerId,
        name: &str,
        cents: u64,
        reason: &str,
    ) -> Result<Credits> {
        for _ in 0..ATTEMPTS {
            let mut credits = self.store().credits(owner).await?;
            let is_new = credits.value.give(Credit {
                name: name.to_owned(),
                cents,
                reason: reason.to_owned(),
                given_at: self.now(),
            })?;
            if !is_new {
                return Ok(credits.value);
            }
            let mut change = Change::new();
            change.credits(&credits)?;
            if self.store().commit(change).await? {
                return Ok(credits.value);
            }
        }
        Err(contention(owner))
    }

    /// Every cluster that used something between two full hours, in the order of creation.
    pub async fn consumptions(
        &self,
        owner: &OwnerId,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Consumption>> {
        let metered = self.metered(owner).await?;
        let mut by_cluster: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (item, hours) in billing::hourly(&metered, from, until) {
            let cluster = by_cluster.entry(item.cluster.clone()).or_default();
            cluster.push((item, hours));
        }
        let clusters = self.store().clusters(owner).await?;
        let consumed = clusters.into_iter().filter_map(|cluster| {
            let items = by_cluster.remove(&cluster.id)?;
            Some(Consumption { cluster, items })
        });
        Ok(consumed.collect())
    }

    async fn metered(&self, owner: &OwnerId) -> Result<Metered> {
        let cloud = &self.inner.context.cloud;
        Ok(cloud.metered(&format!("{owner}/")).await?)
    }

    /// All that the owner has and had.
    pub(super) async fn billable(&self, owner: &OwnerId) -> Result<Billable> {
        let mut billable = Billable::default();
        for cluster in self.store().clusters(owner).await? {
            // In this order: one that goes meanwhile is among those that are removed.
            let present = self.store().node_groups(&cluster.id).await?;
            let removed = self.store().removed_node_groups(&cluster.id).await?;
            let present = present.into_iter().map(|it| (it.id, it.name, it.flavor));
            let removed = removed.into_iter().map(|it| (it.id, it.name, it.flavor));
            for (id, name, flavor) in present.chain(removed) {
                let group = BilledGroup { name, flavor };
                billable.node_groups.insert(id, group);
            }
            billable.clusters.insert(cluster.id.clone(), cluster);
        }
        Ok(billable)
    }
}

fn first_month(metered: &Metered, credits: &Credits) -> Option<BillingMonth> {
    let intervals = metered.intervals.iter().map(|it| it.started_at);
    let runs = metered.rolled_up.iter().flat_map(|it| &it.runs);
    let given = credits.given.iter().map(|it| it.given_at);
    let all = intervals.chain(runs.map(|run| run.from)).chain(given);
    all.min().map(BillingMonth::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_one_of_the_calendar() {
        let check = |text: &str, expect: Option<(&str, &str)>| {
            let month: Option<BillingMonth> = text.parse().ok();
            let found = month.map(|it| (it.start().to_rfc3339(), it.end().to_rfc3339()));
            let found = found.as_ref().map(|(a, b)| (&a[..10], &b[..10]));
            assert_eq!(found, expect, "{text}");
            if let Some(month) = month {
                assert_eq!(month.to_string(), text);
                assert_eq!(BillingMonth::of(month.start()), month);
                assert_eq!(BillingMonth::of(Timestamp(month.end().0 - 1)), month);
            }
        };
        check("2028-02", Some(("2028-02-01", "2028-03-01")));
        check("2026-12", Some(("2026-12-01", "2027-01-01")));
        for text in [
            "",
            "2026",
            "2026-13",
            "2026-00",
            "2026-1",
            "26-01",
            "2026-01-01",
            "-001-01",
            "2026-+1",
        ] {
            check(text, None);
        }
    }
}
