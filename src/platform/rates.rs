//! What a unit of each resource costs a month, and from when on.
//!
//! A change takes effect at an instant of the clock, to the millisecond: what is used before costs the old
//! rate, what is used from then on the new one. What is in effect cannot be changed afterwards, for it may
//! have been billed; what is yet to come can.
//!
//! Worked example: 2 euro a vCPU until 10:20, 3 from then on. A VM of 4 vCPU that runs from 10:00 to 11:00
//! costs 4 × 2 × 20 min + 4 × 3 × 40 min, over the 43,200 minutes of a month.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::catalog::{Billed, RATES};

/// Changes that a table may have: more than one a month for eighty years.
const MOST_CHANGES: usize = 1000;

/// Euro for a unit a month of 720 hours, without taxes: in millionths, at most a million euro.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

impl Rate {
    pub const ZERO: Rate = Rate(0);
    const PLACES: u32 = 6;
    const MOST: u64 = 1_000_000_000_000;

    /// Whole euro.
    pub const fn euro(euro: u32) -> Rate {
        Rate(euro as u64 * 1_000_000)
    }

    /// Millionths of a euro.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Euro, with no more places than it needs.
    pub fn decimal(self) -> Decimal {
        Decimal::from_i128_with_scale(i128::from(self.0), Rate::PLACES).normalize()
    }
}

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount of 0 to 1000000 euro with at most six decimals, such as 2 or 0.05")]
pub struct InvalidRate(String);

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Rate, InvalidRate> {
        let invalid = || InvalidRate(text.chars().take(64).collect());
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        if !digits(whole) || !digits(part) || whole.len() > 7 || part.len() > 6 {
            return Err(invalid());
        }
        let whole: u64 = whole.parse().map_err(|_| invalid())?;
        let part: u64 = format!("{part:0<6}").parse().map_err(|_| invalid())?;
        Some(whole * 1_000_000 + part)
            .filter(|micros| *micros <= Rate::MOST)
            .map(Rate)
            .ok_or_else(invalid)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.decimal().to_string())
    }
}

impl TryFrom<String> for Rate {
    type Error = InvalidRate;

    fn try_from(text: String) -> Result<Rate, InvalidRate> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        rate.to_string()
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^[0-9]{1,7}(\.[0-9]{1,6})?$",
            "description": "Euro for a unit a month of 720 hours, without taxes",
        })
    }
}

/// Of a kind of VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmRates {
    pub vcpu: Rate,
    pub ram_gb: Rate,
}

/// Everything that has a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rates {
    /// Workers, and bundles of ALL_IN_ONE clusters.
    pub compute: VmRates,
    /// Control planes of DEDICATED_COMPUTE and DISTRIBUTED clusters.
    pub control_plane: VmRates,
    /// Of a Service; the one in front of the API server is the control plane's.
    pub load_balancer: Rate,
    /// A GB (1024³ bytes) of a volume's size.
    pub storage_gb: Rate,
    /// As long as it lasts, load balancers and storage are metered, and cost nothing (spec, "Pricing").
    pub beta: bool,
}

impl Rates {
    pub fn of(&self, billed: Billed) -> VmRates {
        match billed {
            Billed::Compute => self.compute,
            Billed::ControlPlane => self.control_plane,
        }
    }

    /// What one is billed at.
    pub fn billed_load_balancer(&self) -> Rate {
        if self.beta {
            Rate::ZERO
        } else {
            self.load_balancer
        }
    }

    /// What a GB is billed at.
    pub fn billed_storage_gb(&self) -> Rate {
        if self.beta {
            Rate::ZERO
        } else {
            self.storage_gb
        }
    }

    pub fn with(self, change: &RatesChange) -> Rates {
        Rates {
            compute: change.compute.unwrap_or(self.compute),
            control_plane: change.control_plane.unwrap_or(self.control_plane),
            load_balancer: change.load_balancer.unwrap_or(self.load_balancer),
            storage_gb: change.storage_gb.unwrap_or(self.storage_gb),
            beta: change.beta.unwrap_or(self.beta),
        }
    }
}

/// What is absent stays as it was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RatesChange {
    pub compute: Option<VmRates>,
    pub control_plane: Option<VmRates>,
    pub load_balancer: Option<Rate>,
    pub storage_gb: Option<Rate>,
    pub beta: Option<bool>,
}

/// A time in which rates do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub from: Timestamp,
    pub until: Timestamp,
    pub rates: Rates,
}

/// The catalog's rates, and what follows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateTable {
    /// From each instant on, until the next.
    pub changes: BTreeMap<Timestamp, Rates>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RatesRefused {
    #[error("{} is past: what is in effect cannot be changed", .0.to_rfc3339())]
    Past(Timestamp),
    #[error("two changes take effect at {}", .0.to_rfc3339())]
    Twice(Timestamp),
    #[error("at most {MOST_CHANGES} changes are kept")]
    TooMany,
}

impl RateTable {
    pub fn at(&self, instant: Timestamp) -> Rates {
        let mut before = self.changes.range(..=instant);
        before.next_back().map_or(RATES, |(_, rates)| *rates)
    }

    /// The instants at which rates change, in order: what is metered must be divisible there.
    pub fn cuts(&self) -> Vec<Timestamp> {
        self.changes.keys().copied().collect()
    }

    /// `[from, until)`, without a gap.
    pub fn periods(&self, from: Timestamp, until: Timestamp) -> Vec<Period> {
        let inner = self.changes.keys().filter(|at| from < **at && **at < until);
        let starts: Vec<Timestamp> = std::iter::once(from).chain(inner.copied()).collect();
        let ends = starts.iter().skip(1).copied().chain([until]);
        let both = starts.iter().zip(ends);
        both.map(|(&from, until)| Period {
            from,
            until,
            rates: self.at(from),
        })
        .collect()
    }

    /// From `now` on these changes, in place of all that are yet to take effect. One without an instant
    /// takes effect now.
    ///
    /// # Errors
    /// [`RatesRefused`]; the table is then as it was.
    pub fn plan(
        &self,
        now: Timestamp,
        changes: &[(Option<Timestamp>, RatesChange)],
    ) -> Result<RateTable, RatesRefused> {
        let mut next = RateTable {
            changes: self
                .changes
                .range(..now)
                .map(|(at, it)| (*at, *it))
                .collect(),
        };
        let mut planned = BTreeMap::new();
        for (at, change) in changes {
            let at = at.unwrap_or(now);
            if at < now {
                return Err(RatesRefused::Past(at));
            }
            if planned.insert(at, change).is_some() {
                return Err(RatesRefused::Twice(at));
            }
        }
        for (at, change) in planned {
            let rates = next.at(at).with(change);
            next.changes.insert(at, rates);
        }
        if next.changes.len() > MOST_CHANGES {
            return Err(RatesRefused::TooMany);
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_decimal_of_six_places() {
        let check = |text: &str, expect: Option<u64>| {
            let rate: Option<Rate> = text.parse().ok();
            assert_eq!(rate.map(Rate::micros), expect, "{text}");
        };
        check("2", Some(2_000_000));
        check("0.05", Some(50_000));
        check("1.000001", Some(1_000_001));
        check("1000000", Some(1_000_000_000_000));
        for text in [
            "",
            ".",
            ".5",
            "5.",
            "-1",
            "+1",
            "1e3",
            "0.0000001",
            "1000000.1",
            "99999999",
            " 1",
        ] {
            check(text, None);
        }
        assert_eq!("0.050".parse::<Rate>().unwrap().to_string(), "0.05");
        assert_eq!(Rate::euro(20).to_string(), "20");
    }

    fn vcpu(euro: u32) -> RatesChange {
        let ram_gb = RATES.compute.ram_gb;
        RatesChange {
            compute: Some(VmRates {
                vcpu: Rate::euro(euro),
                ram_gb,
            }),
            ..RatesChange::default()
        }
    }

    #[test]
    fn what_is_in_effect_stays_and_what_is_to_come_is_replaced() {
        let at = Timestamp;
        let vcpu_at =
            |table: &RateTable, instant| table.at(at(instant)).compute.vcpu.micros() / 1_000_000;
        let table = RateTable::default()
            .plan(at(10), &[(None, vcpu(3)), (Some(at(20)), vcpu(4))])
            .unwrap();
        assert_eq!([9, 10, 19, 20].map(|it| vcpu_at(&table, it)), [2, 3, 3, 4]);
        // What is absent stays as it was before.
        let beta = RatesChange {
            beta: Some(false),
            ..RatesChange::default()
        };
        let next = table.plan(at(15), &[(Some(at(30)), beta)]).unwrap();
        assert_eq!([14, 20, 30].map(|it| vcpu_at(&next, it)), [3, 3, 3]);
        assert!(next.at(at(29)).beta && !next.at(at(30)).beta);
        // What takes effect at this instant has not been used yet.
        let again = next.plan(at(30), &[(None, vcpu(9))]).unwrap();
        assert_eq!((vcpu_at(&again, 30), again.at(at(30)).beta), (9, true));
        let refused =
            |changes: &[(Option<Timestamp>, RatesChange)]| table.plan(at(15), changes).unwrap_err();
        assert_eq!(
            refused(&[(Some(at(14)), vcpu(1))]),
            RatesRefused::Past(at(14))
        );
        assert_eq!(
            refused(&[(None, vcpu(1)), (Some(at(15)), vcpu(1))]),
            RatesRefused::Twice(at(15))
        );
        let many: Vec<_> = (0..1001).map(|it| (Some(at(100 + it)), vcpu(1))).collect();
        assert_eq!(refused(&many), RatesRefused::TooMany);
    }

    #[test]
    fn periods_have_no_gap() {
        let at = Timestamp;
        let table = RateTable::default()
            .plan(at(0), &[(Some(at(10)), vcpu(3)), (Some(at(20)), vcpu(4))])
            .unwrap();
        let check = |from, until, expect: &[(i64, i64, u64)]| {
            let periods = table.periods(at(from), at(until));
            let seen: Vec<_> = periods
                .iter()
                .map(|it| {
                    (
                        it.from.0,
                        it.until.0,
                        it.rates.compute.vcpu.micros() / 1_000_000,
                    )
                })
                .collect();
            assert_eq!(seen, expect);
        };
        check(0, 30, &[(0, 10, 2), (10, 20, 3), (20, 30, 4)]);
        check(10, 20, &[(10, 20, 3)]);
        check(12, 25, &[(12, 20, 3), (20, 25, 4)]);
        check(0, 10, &[(0, 10, 2)]);
    }
}
