//! What an organisation's use costs: the meter's time at the catalog's rates.
//!
//! An amount is kept as a whole number of euro a month, times milliseconds: exact for any time, where an
//! hour's price may have no end of decimals. So costs add up whatever the time is divided into, and only
//! what is shown is rounded, half up.
//!
//! What is paid for is when a VM ran (see [`crate::infra::metering`]): not while it boots, not once its
//! deletion is asked for.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::clock::Timestamp;
use crate::infra::metering::{Metered, Run, Usage};

use super::catalog::{Billed, HOURS_PER_MONTH};
use super::model::{Cluster, ClusterId, NodeGroupId, Topology, TopologyKind};
use super::store::CloudOwner;

/// Milliseconds of the month that prices are for.
const MONTH_MS: u128 = HOURS_PER_MONTH as u128 * 3_600_000;

/// Euro, exactly, without taxes. In units of a euro a month for a millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u128);

impl Cost {
    pub fn of(usage: Usage, billed: Billed) -> Cost {
        let rates = billed.rates();
        Cost(
            u128::from(usage.vcpu_ms) * u128::from(rates.vcpu)
                + u128::from(usage.ram_gb_ms) * u128::from(rates.ram_gb),
        )
    }

    /// Euro with `places` decimals, half up.
    pub fn shown(self, places: u32) -> String {
        let scale = 10u128.pow(places);
        let rounded = (self.0 * scale * 2 + MONTH_MS) / (MONTH_MS * 2);
        let (whole, part) = (rounded / scale, rounded % scale);
        let width = usize::try_from(places).unwrap_or(0);
        format!("{whole}.{part:0width$}")
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |sum, cost| sum + cost)
    }
}

/// To the cent, in decimal.
impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown(2))
    }
}

/// What a cluster's VMs of one kind are: its control plane, or one of its node groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub cluster: ClusterId,
    pub node_group: Option<NodeGroupId>,
}

/// Use within some hours: `[from, until)`, less than an hour or all of it.
type Hours = BTreeMap<Timestamp, Usage>;

/// Each item's use between two full hours, hour by hour, where there was any.
pub fn hourly(metered: &Metered, from: Timestamp, until: Timestamp) -> BTreeMap<Item, Hours> {
    let mut items: BTreeMap<Item, Hours> = BTreeMap::new();
    let mut add = |owner: &str, at: Timestamp, usage: Usage| {
        if usage.is_nothing() {
            return;
        }
        let Some(owner) = CloudOwner::parse(owner) else {
            return;
        };
        let item = Item {
            cluster: owner.cluster,
            node_group: owner.node_group,
        };
        let hour = crate::infra::metering::hour_of(at);
        *items.entry(item).or_default().entry(hour).or_default() += usage;
    };
    for interval in &metered.intervals {
        let end = interval.ended_at.min(until);
        let mut at = interval.started_at.max(from);
        while at < end {
            let hour = crate::infra::metering::hour_of(at);
            let next = Timestamp(hour.0 + crate::infra::metering::HOUR_MS).min(end);
            add(&interval.owner, at, interval.level.between(at, next));
            at = next;
        }
    }
    for rolled_up in &metered.rolled_up {
        let steps = rolled_up.runs.iter().flat_map(Run::steps);
        for step in steps.filter(|step| from <= step.from && step.from < until) {
            add(&rolled_up.owner, step.from, step.usage);
        }
    }
    items
}

/// Each item's use in all, between two full hours.
pub fn totals(metered: &Metered, from: Timestamp, until: Timestamp) -> BTreeMap<Item, Usage> {
    let items = hourly(metered, from, until);
    let sum = |hours: Hours| hours.into_values().sum();
    items
        .into_iter()
        .map(|(item, hours)| (item, sum(hours)))
        .collect()
}

/// What the VMs of a control plane are billed as.
pub fn billed_as(topology: &Topology, is_node_group: bool) -> Billed {
    match topology.kind() {
        _ if is_node_group => Billed::Compute,
        TopologyKind::AllInOne => Billed::Compute,
        TopologyKind::DedicatedCompute | TopologyKind::Distributed => Billed::ControlPlane,
    }
}

/// A line of an invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InvoiceLine {
    pub cluster_id: ClusterId,
    pub cluster_name: String,
    /// `null`: the control plane.
    pub node_group_id: Option<NodeGroupId>,
    /// vCPU times milliseconds.
    pub vcpu_ms: u64,
    /// GB times milliseconds.
    pub ram_gb_ms: u64,
    /// Euro a month of 720 hours.
    pub vcpu_monthly_rate: u32,
    pub ram_gb_monthly_rate: u32,
    /// Shown to the cent.
    pub amount: Cost,
}

/// What an organisation used in a month, or in what of it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invoice {
    pub lines: Vec<InvoiceLine>,
    /// The exact sum of the lines; shown to the cent.
    pub total: Cost,
}

/// Bills `usage`; `clusters` are all that the organisation ever had.
pub fn invoice(usage: &BTreeMap<Item, Usage>, clusters: &[Cluster]) -> Invoice {
    let by_id: BTreeMap<_, _> = clusters.iter().map(|it| (&it.id, it)).collect();
    let lines: Vec<InvoiceLine> = usage
        .iter()
        .filter_map(|(item, usage)| {
            let Some(cluster) = by_id.get(&item.cluster) else {
                tracing::error!(cluster = %item.cluster, "used, and never recorded");
                return None;
            };
            let billed = billed_as(&cluster.topology, item.node_group.is_some());
            let rates = billed.rates();
            Some(InvoiceLine {
                cluster_id: cluster.id.clone(),
                cluster_name: cluster.name.clone(),
                node_group_id: item.node_group.clone(),
                vcpu_ms: usage.vcpu_ms,
                ram_gb_ms: usage.ram_gb_ms,
                vcpu_monthly_rate: rates.vcpu,
                ram_gb_monthly_rate: rates.ram_gb,
                amount: Cost::of(*usage, billed),
            })
        })
        .collect();
    let total = lines.iter().map(|line| line.amount).sum();
    Invoice { lines, total }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::infra::metering::{HOUR_MS, Level};
    use crate::platform::catalog::Billed;
    use crate::platform::model::Flavor;
    use crate::platform::pricing::{QuotedGroup, quote};

    fn level(flavor: Flavor, count: u32) -> Level {
        let size = flavor.size();
        Level {
            vcpus: u64::from(size.vcpus * count),
            ram_gb: u64::from(size.ram_gb * count),
            ..Level::default()
        }
    }

    #[test]
    fn an_amount_is_rounded_half_up_where_it_is_shown() {
        let check = |cost: u128, places, expect: &str| {
            assert_eq!(Cost(cost).shown(places), expect);
        };
        check(0, 2, "0.00");
        check(MONTH_MS * 64, 2, "64.00");
        check(MONTH_MS / 200, 2, "0.01");
        check(MONTH_MS / 200 - 1, 2, "0.00");
        check(MONTH_MS * 64 / 720, 4, "0.0889");
    }

    proptest! {
        /// A shape that runs for 720 hours costs what it was quoted, and in one hour an hour's price.
        #[test]
        fn what_runs_for_a_month_costs_what_was_quoted(
            kind in 0usize..3,
            flavor in 2usize..6,
            factor in 1u8..=5,
            groups in proptest::collection::vec((0usize..6, 0u32..257), 0..8),
        ) {
            use crate::platform::model::{Component, ComponentConfig, Components};
            let flavor = Flavor::ALL[flavor];
            let (topology, vms) = match kind {
                0 => (Topology::AllInOne { flavor, replication_factor: factor }, 1),
                1 => (Topology::DedicatedCompute { flavor, replication_factor: factor }, 1),
                _ => {
                    let config = ComponentConfig { flavor, replication_factor: factor };
                    (Topology::Distributed { components: Components::uniform(config) }, Component::ALL.len())
                }
            };
            let groups: Vec<QuotedGroup> = groups
                .into_iter()
                .map(|(flavor, count)| QuotedGroup { name: None, flavor: Flavor::ALL[flavor], count })
                .collect();
            let vms = u32::try_from(vms).unwrap() * u32::from(factor);
            let cost = |ms: i64| -> Cost {
                let over = |level: Level| level.between(Timestamp(0), Timestamp(ms));
                let control_plane = Cost::of(over(level(flavor, vms)), billed_as(&topology, false));
                groups
                    .iter()
                    .map(|it| Cost::of(over(level(it.flavor, it.count)), Billed::Compute))
                    .sum::<Cost>() + control_plane
            };
            let quoted = quote(&topology, &groups).total;
            prop_assert_eq!(cost(720 * HOUR_MS).shown(2), quoted.shown_monthly().to_string());
            prop_assert_eq!(cost(HOUR_MS).shown(4), quoted.shown_hourly().to_string());
        }

        /// However time is split, and whether it is rolled up or not.
        #[test]
        fn cost_is_additive(
            intervals in proptest::collection::vec((0i64..100, 0i64..HOUR_MS, 1i64..50_000_000, 0usize..6), 0..20),
            split in 0i64..120,
        ) {
            use crate::infra::metering::{Interval, RolledUp, Steps};
            let owner = "orga_3547a882-e464-4c34-8168-add4b3e0c135/kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
            let intervals: Vec<Interval> = intervals
                .into_iter()
                .map(|(hour, ms, length, flavor)| Interval {
                    resource: String::from("vm"),
                    owner: owner.to_owned(),
                    level: level(Flavor::ALL[flavor], 1),
                    started_at: Timestamp(hour * HOUR_MS + ms),
                    ended_at: Timestamp(hour * HOUR_MS + ms + length),
                })
                .collect();
            let expect: Cost = intervals
                .iter()
                .map(|it| Cost::of(it.level.between(it.started_at, it.ended_at), Billed::Compute))
                .sum();
            let mut steps = Steps::default();
            for it in &intervals {
                steps.add(it.level, it.started_at, it.ended_at, &[]);
            }
            let rolled_up = RolledUp { owner: owner.to_owned(), until: Timestamp(0), runs: steps.runs() };
            let (start, middle, end) = (Timestamp(0), Timestamp(split * HOUR_MS), Timestamp(200 * HOUR_MS));
            for metered in [
                Metered { intervals, rolled_up: Vec::new() },
                Metered { intervals: Vec::new(), rolled_up: vec![rolled_up] },
            ] {
                let cost = |from, until| -> Cost {
                    totals(&metered, from, until)
                        .into_values()
                        .map(|usage| Cost::of(usage, Billed::Compute))
                        .sum()
                };
                prop_assert_eq!(cost(start, end), expect);
                prop_assert_eq!(cost(start, middle) + cost(middle, end), expect);
            }
        }
    }

    /// 20,000 ledgers; as many as `CKE_LEDGERS` says.
    #[test]
    fn lines_add_up_to_the_total_in_every_ledger() {
        use rand::{Rng, SeedableRng};
        let count = std::env::var("CKE_LEDGERS").map_or(20_000, |it| it.parse().unwrap());
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        for _ in 0..count {
            let mut total = Cost::default();
            let mut vcpu = [0u128; 2];
            let mut ram = [0u128; 2];
            for _ in 0..random.random_range(0..12) {
                let flavor = Flavor::ALL[random.random_range(0..6)];
                let ms = random.random_range(0..2_678_400_000i64);
                let usage =
                    level(flavor, random.random_range(0..40)).between(Timestamp(0), Timestamp(ms));
                let class = random.random_range(0..2);
                total = total + Cost::of(usage, [Billed::Compute, Billed::ControlPlane][class]);
                vcpu[class] += u128::from(usage.vcpu_ms);
                ram[class] += u128::from(usage.ram_gb_ms);
            }
            assert_eq!(total.0, 2 * vcpu[0] + 4 * ram[0] + 3 * vcpu[1] + 6 * ram[1]);
        }
    }
}
