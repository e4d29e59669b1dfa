//! The rates in effect, and those that are to come: see [`super::rates`].

use super::rates::{RateTable, Rates, RatesChange};
use super::store::{self, Change, Record};
use super::{ATTEMPTS, Platform, Result, contention};
use crate::clock::Timestamp;

impl Platform {
    /// All of them, as they are seen.
    pub fn rate_table(&self) -> RateTable {
        match self.store().view.get(store::RATES) {
            Some(stored) => match stored.record.as_ref() {
                Record::Rates(table) => table.clone(),
                _ => RateTable::default(),
            },
            None => RateTable::default(),
        }
    }

    /// Those in effect at an instant; now, unless given.
    pub fn rates(&self, at: Option<Timestamp>) -> Rates {
        let at = at.unwrap_or_else(|| self.now());
        self.store().view.with(|records| {
            match records.get(store::RATES).map(|it| it.record.as_ref()) {
                Some(Record::Rates(table)) => table.at(at),
                _ => RateTable::default().at(at),
            }
        })
    }

    /// Replaces all changes that have not taken effect yet.
    pub async fn plan_rates(
        &self,
        changes: &[(Option<Timestamp>, RatesChange)],
    ) -> Result<RateTable> {
        for _ in 0..ATTEMPTS {
            let before = self.store().rates().await?;
            let next = before.value.plan(self.now(), changes)?;
            if next == before.value {
                return Ok(next);
            }
            let mut change = Change::new();
            change.rates(&next, before.revision)?;
            if self.store().commit(change).await? {
                return Ok(next);
            }
        }
        Err(contention("the table of rates"))
    }
}
