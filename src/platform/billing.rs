//! What an organisation's use costs: the meter's time at the rates of that time.
//!
//! An amount is kept as a whole number, fine enough that none is ever rounded: so costs add up whatever the
//! time is divided into, and only what is shown is rounded, half up.
//!
//! What is paid for is when a VM ran and was well (see [`crate::infra::metering`]): not while it boots, not
//! once its deletion is asked for, not while it does not answer. While a VM is replaced, the rule is:
//!
//! - one that failed is paid until its probes say so, and its successor from when it runs: nobody pays for
//!   the same service twice;
//! - one that works, and is only renewed (an update, a redeployment), is paid until it is taken down, and its
//!   successor from when it runs: for as long as both run, both are paid;
//! - the quota counts what is asked for, never the successor.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::clock::Timestamp;
use crate::infra::metering::{HOUR_MS, Metered, Run, Usage, hour_of};

use super::catalog::{Billed, HOURS_PER_MONTH};
use super::model::{Cluster, ClusterId, Flavor, NodeGroupId, Topology, TopologyKind};
use super::pricing::shown;
use super::rates::{Rate, RateTable, Rates};
use super::store::CloudOwner;

/// Milliseconds of the month that rates are for.
const MONTH_MS: u128 = HOURS_PER_MONTH as u128 * 3_600_000;
/// A GB of storage, in the meter's units.
const MIB_PER_GB: u128 = 1024;
/// What a euro is in units of [`Cost`].
const EURO: u128 = MONTH_MS * MIB_PER_GB * 1_000_000;

/// Euro, exactly, without taxes. In units of a millionth of a euro a month, for a millisecond of a 1024th:
/// finer than any rate times any use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u128);

impl Cost {
    /// Of so many units at a rate, each for a millisecond.
    fn of(unit_ms: u64, rate: Rate) -> Cost {
        Cost(u128::from(unit_ms) * u128::from(rate.micros()) * MIB_PER_GB)
    }

    /// Of MiB at the rate of a GB.
    fn of_storage(mib_ms: u64, rate: Rate) -> Cost {
        Cost(u128::from(mib_ms) * u128::from(rate.micros()))
    }

    /// Of VMs.
    pub fn of_vms(usage: Usage, billed: Billed, rates: &Rates) -> Cost {
        let rates = rates.of(billed);
        Cost::of(usage.vcpu_ms, rates.vcpu) + Cost::of(usage.ram_gb_ms, rates.ram_gb)
    }

    /// Euro with `places` decimals, half up.
    pub fn shown(self, places: u32) -> Decimal {
        shown(self.0, EURO, places)
    }

    /// What is to be paid: whole cents, half up.
    pub fn cents(self) -> u64 {
        u64::try_from(self.shown(2).mantissa()).unwrap_or(u64::MAX)
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
        serializer.collect_str(&self.shown(2))
    }
}

impl JsonSchema for Cost {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Euro without taxes, to the cent; sums are of what is behind it, which is exact",
        })
    }
}

/// What a cluster's VMs of one kind are: its control plane, or one of its node groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub cluster: ClusterId,
    pub node_group: Option<NodeGroupId>,
}

impl Item {
    /// Whose path in the cloud it is; `None` of what is not the platform's.
    fn of(owner: &str) -> Option<Item> {
        let owner = CloudOwner::parse(owner)?;
        Some(Item {
            cluster: owner.cluster,
            node_group: owner.node_group,
        })
    }
}

/// Use within some hours: `[from, until)`, less than an hour or all of it.
type Hours = BTreeMap<Timestamp, Usage>;

/// Each item's use hour by hour, where there was any. What is rolled up must be divided at both ends.
pub fn hourly(metered: &Metered, from: Timestamp, until: Timestamp) -> BTreeMap<Item, Hours> {
    let mut items: BTreeMap<Item, Hours> = BTreeMap::new();
    let mut add = |owner: &str, at: Timestamp, usage: Usage| {
        if let Some(item) = Item::of(owner).filter(|_| !usage.is_nothing()) {
            let hours = items.entry(item).or_default();
            *hours.entry(hour_of(at)).or_default() += usage;
        }
    };
    for interval in &metered.intervals {
        let end = interval.ended_at.min(until);
        let mut at = interval.started_at.max(from);
        while at < end {
            let next = Timestamp(hour_of(at).0 + HOUR_MS).min(end);
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

/// Each item's use in all, of a time that is divided as [`hourly`] says.
pub fn totals(metered: &Metered, from: Timestamp, until: Timestamp) -> BTreeMap<Item, Usage> {
    let mut items: BTreeMap<Item, Usage> = BTreeMap::new();
    let mut add = |owner: &str, usage: Usage| {
        if let Some(item) = Item::of(owner).filter(|_| !usage.is_nothing()) {
            *items.entry(item).or_default() += usage;
        }
    };
    for it in &metered.intervals {
        let (start, end) = (it.started_at.max(from), it.ended_at.min(until));
        add(&it.owner, it.level.between(start, end));
    }
    for rolled_up in &metered.rolled_up {
        let steps = rolled_up.runs.iter().flat_map(Run::steps);
        let within = steps.filter(|step| from <= step.from && step.from < until);
        add(&rolled_up.owner, within.map(|step| step.usage).sum());
    }
    items
}

/// What the VMs of a control plane are billed as.
pub fn billed_as(topology: &Topology, is_node_group: bool) -> Billed {
    match topology.kind() {
        _ if is_node_group => Billed::Compute,
        TopologyKind::AllInOne => Billed::Compute,
        TopologyKind::DedicatedCompute | TopologyKind::Distributed => Billed::ControlPlane,
    }
}

/// What a line of an invoice is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LineKind {
    ControlPlane,
    NodeGroup,
    /// Of the cluster's Services.
    LoadBalancers,
    /// Persistent volumes.
    Storage,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    Vcpu,
    /// 1024³ bytes of memory.
    RamGb,
    LoadBalancer,
    /// 1024³ bytes of volumes.
    StorageGb,
}

/// So much of something at a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Charge {
    pub unit: Unit,
    /// Units times milliseconds, exactly, in decimal.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub unit_ms: Decimal,
    /// Units times hours, to four places.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub unit_hours: Decimal,
    /// Euro for a unit a month of 720 hours.
    pub monthly_rate: Rate,
    pub amount: Cost,
}

fn as_text<S: Serializer>(number: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

impl Charge {
    /// `count` is in parts of a unit, of which there are `parts`.
    fn new(unit: Unit, count: u64, parts: u128, monthly_rate: Rate, amount: Cost) -> Charge {
        let count = u128::from(count);
        let hour = parts * u128::from(HOUR_MS.unsigned_abs());
        let exact = Decimal::from(count) / Decimal::from(parts);
        Charge {
            unit,
            unit_ms: exact.normalize(),
            unit_hours: shown(count, hour, 4),
            monthly_rate,
            amount,
        }
    }
}

/// A line of an invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvoiceLine {
    pub kind: LineKind,
    #[schemars(with = "String")]
    pub cluster_id: ClusterId,
    pub cluster_name: String,
    /// `null`: not of a node group.
    #[schemars(with = "Option<String>")]
    pub node_group_id: Option<NodeGroupId>,
    pub node_group_name: Option<String>,
    /// Of the node group's nodes.
    pub flavor: Option<Flavor>,
    /// The line is for what was used from then...
    #[serde(serialize_with = "as_date")]
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// ... until then: a part of the month where rates changed within it.
    #[serde(serialize_with = "as_date")]
    #[schemars(with = "String")]
    pub until: Timestamp,
    pub charges: Vec<Charge>,
    /// The exact sum of the charges; shown to the cent.
    pub amount: Cost,
}

fn as_date<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.to_rfc3339())
}

/// What an organisation used in a month, or in what of it is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Invoice {
    /// In the order of the clusters' and node groups' creation.
    pub lines: Vec<InvoiceLine>,
    /// The exact sum of the lines; shown to the cent.
    pub total: Cost,
}

/// What a node group is, or was, for its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BilledGroup {
    pub name: String,
    pub flavor: Flavor,
}

/// What an organisation has, or had.
#[derive(Clone, Debug, Default)]
pub struct Billable {
    pub clusters: BTreeMap<ClusterId, Cluster>,
    pub node_groups: BTreeMap<NodeGroupId, BilledGroup>,
}

/// Bills what was used in `[from, until)`, as far as it is past.
pub fn invoice(
    metered: &Metered,
    billable: &Billable,
    rates: &RateTable,
    from: Timestamp,
    until: Timestamp,
) -> Invoice {
    let mut lines = Vec::new();
    for period in rates.periods(from, until) {
        for (item, usage) in totals(metered, period.from, period.until) {
            let Some(cluster) = billable.clusters.get(&item.cluster) else {
                tracing::error!(cluster = %item.cluster, "used, and never recorded");
                continue;
            };
            let group = item.node_group.as_ref();
            let group = group.and_then(|id| billable.node_groups.get(id));
            let mut add = |kind, charges: &[Charge]| {
                let charges: Vec<Charge> = charges
                    .iter()
                    .copied()
                    .filter(|charge| !charge.unit_ms.is_zero())
                    .collect();
                if charges.is_empty() {
                    return;
                }
                lines.push(InvoiceLine {
                    kind,
                    cluster_id: cluster.id.clone(),
                    cluster_name: cluster.name.clone(),
                    node_group_id: item.node_group.clone(),
                    node_group_name: group.map(|group| group.name.clone()),
                    flavor: group.map(|group| group.flavor),
                    since: period.from,
                    until: period.until,
                    amount: charges.iter().map(|charge| charge.amount).sum(),
                    charges,
                });
            };
            let charge =
                |unit, count, rate| Charge::new(unit, count, 1, rate, Cost::of(count, rate));
            let rates = period.rates;
            let vms = rates.of(billed_as(&cluster.topology, item.node_group.is_some()));
            let kind = match item.node_group {
                None => LineKind::ControlPlane,
                Some(_) => LineKind::NodeGroup,
            };
            let (vcpus, ram) = (usage.vcpu_ms, usage.ram_gb_ms);
            add(
                kind,
                &[
                    charge(Unit::Vcpu, vcpus, vms.vcpu),
                    charge(Unit::RamGb, ram, vms.ram_gb),
                ],
            );
            let (count, rate) = (usage.load_balancer_ms, rates.billed_load_balancer());
            add(
                LineKind::LoadBalancers,
                &[charge(Unit::LoadBalancer, count, rate)],
            );
            let (count, rate) = (usage.storage_mib_ms, rates.billed_storage_gb());
            let cost = Cost::of_storage(count, rate);
            let storage = Charge::new(Unit::StorageGb, count, MIB_PER_GB, rate, cost);
            add(LineKind::Storage, &[storage]);
        }
    }
    lines.sort_by(|a, b| {
        let key = |it: &InvoiceLine| {
            (
                it.cluster_id.clone(),
                it.node_group_id.clone(),
                it.kind,
                it.since,
            )
        };
        key(a).cmp(&key(b))
    });
    let total = lines.iter().map(|line| line.amount).sum();
    Invoice { lines, total }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::infra::metering::{HOUR_MS, Level};
    use crate::platform::catalog::RATES;
    use crate::platform::model::Flavor;
    use crate::platform::pricing::quote;
    use crate::platform::shape::{NodeGroupShape, Shape};

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
            assert_eq!(Cost(cost).shown(places).to_string(), expect);
        };
        check(0, 2, "0.00");
        check(EURO * 64, 2, "64.00");
        check(EURO / 200, 2, "0.01");
        check(EURO / 200 - 1, 2, "0.00");
        check(EURO * 64 / 720, 4, "0.0889");
        assert_eq!(
            (Cost(EURO / 200 - 1).cents(), Cost(EURO * 64).cents()),
            (0, 6400)
        );
    }

    proptest! {
        /// A shape that runs for 720 hours costs what it was quoted, and in one hour an hour's price.
        #[test]
        fn what_runs_for_a_month_costs_what_was_quoted(
            kind in 0usize..3,
            flavor in 2usize..6,
            factor in 1u8..=5,
            unlike in proptest::array::uniform5((0usize..6, 1u8..=5)),
            groups in proptest::collection::vec((0usize..6, 0u32..257), 0..8),
        ) {
            use crate::platform::model::{Component, ComponentConfig, Components};
            let flavor = Flavor::ALL[flavor];
            let own = level(flavor, u32::from(factor));
            let (topology, levels) = match kind {
                0 => (Topology::AllInOne { flavor, replication_factor: factor }, vec![own]),
                1 => (Topology::DedicatedCompute { flavor, replication_factor: factor }, vec![own]),
                _ => {
                    let config = ComponentConfig { flavor, replication_factor: factor };
                    let mut components = Components::uniform(config);
                    let mut levels = Vec::new();
                    for (component, (flavor, replication_factor)) in Component::ALL.into_iter().zip(unlike) {
                        let flavor = Flavor::ALL[flavor];
                        *components.get_mut(component) = ComponentConfig { flavor, replication_factor };
                        levels.push(level(flavor, u32::from(replication_factor)));
                    }
                    (Topology::Distributed { components }, levels)
                }
            };
            let groups: Vec<NodeGroupShape> = groups
                .into_iter()
                .map(|(flavor, count)| NodeGroupShape { name: None, flavor: Flavor::ALL[flavor], count })
                .collect();
            let billed = billed_as(&topology, false);
            let cost = |ms: i64| -> Cost {
                let over = |level: Level| level.between(Timestamp(0), Timestamp(ms));
                let workers = groups.iter().map(|it| (level(it.flavor, it.count), Billed::Compute));
                let control_plane = levels.iter().map(|it| (*it, billed));
                control_plane
                    .chain(workers)
                    .map(|(level, billed)| Cost::of_vms(over(level), billed, &RATES))
                    .sum()
            };
            let (month, hour) = (cost(720 * HOUR_MS), cost(HOUR_MS));
            let quoted = quote(&Shape::new(topology, groups), &RATES).total;
            prop_assert_eq!(month.0, quoted.monthly_micros() * EURO / 1_000_000, "exactly");
            prop_assert_eq!(month.shown(2), quoted.shown_monthly());
            prop_assert_eq!(hour.shown(4), quoted.shown_hourly());
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
                .map(|it| Cost::of_vms(it.level.between(it.started_at, it.ended_at), Billed::Compute, &RATES))
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
                        .map(|usage| Cost::of_vms(usage, Billed::Compute, &RATES))
                        .sum()
                };
                prop_assert_eq!(cost(start, end), expect);
                prop_assert_eq!(cost(start, middle) + cost(middle, end), expect);
                let hours = hourly(&metered, start, end).into_values().flat_map(BTreeMap::into_values);
                let by_hour: Cost = hours.map(|usage| Cost::of_vms(usage, Billed::Compute, &RATES)).sum();
                prop_assert_eq!(by_hour, expect);
            }
        }
    }

    fn cluster(id: &str, topology: Topology) -> Cluster {
        use crate::platform::quota::Ledger;
        use crate::platform::{creation, validation};
        let request = crate::platform::CreateCluster {
            name: String::from("demo"),
            topology: Some(topology),
            ..crate::platform::CreateCluster::default()
        };
        let order =
            validation::cluster_order(request, &crate::platform::Catalog::default()).unwrap();
        let owner = "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap();
        let mut cluster = creation::cluster(&order, &mut Ledger::new(owner), 0, Timestamp(0));
        cluster.id = id.parse().unwrap();
        cluster
    }

    const CLUSTER: &str = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
    const GROUP: &str = "node_group_01KTREHTR6E4JEY46EPYBKY8XG";

    fn billable(topology: Topology) -> Billable {
        let cluster = cluster(CLUSTER, topology);
        let group = BilledGroup {
            name: String::from("web"),
            flavor: Flavor::Xxs,
        };
        Billable {
            clusters: [(cluster.id.clone(), cluster)].into(),
            node_groups: [(GROUP.parse().unwrap(), group)].into(),
        }
    }

    fn interval(
        node_group: bool,
        level: Level,
        from: i64,
        until: i64,
    ) -> crate::infra::metering::Interval {
        let owner = "orga_3547a882-e464-4c34-8168-add4b3e0c135";
        let group = if node_group {
            format!("/{GROUP}")
        } else {
            String::new()
        };
        crate::infra::metering::Interval {
            resource: format!("{from}-{until}"),
            owner: format!("{owner}/{CLUSTER}{group}"),
            level,
            started_at: Timestamp(from),
            ended_at: Timestamp(until),
        }
    }

    /// The example of `rates`: 2 euro a vCPU until 10:20, 3 from then on; and it is divided likewise in
    /// what is rolled up.
    #[test]
    fn a_change_of_rates_divides_an_hour() {
        use crate::infra::metering::{RolledUp, Steps};
        let change_at = Timestamp(10 * HOUR_MS + 20 * 60_000);
        let change = crate::platform::rates::RatesChange {
            compute: Some(crate::platform::rates::VmRates {
                vcpu: Rate::euro(3),
                ram_gb: Rate::euro(0),
            }),
            ..Default::default()
        };
        let rates = RateTable::default()
            .plan(Timestamp(0), &[(Some(change_at), change)])
            .unwrap();
        let vm = Level {
            vcpus: 4,
            ram_gb: 4,
            ..Level::default()
        };
        let it = interval(true, vm, 10 * HOUR_MS, 11 * HOUR_MS);
        let mut steps = Steps::default();
        steps.add(it.level, it.started_at, it.ended_at, &rates.cuts());
        let rolled_up = RolledUp {
            owner: it.owner.clone(),
            until: it.ended_at,
            runs: steps.runs(),
        };
        let billable = billable(crate::platform::validation::DEFAULT_TOPOLOGY);
        for metered in [
            Metered {
                intervals: vec![it],
                rolled_up: Vec::new(),
            },
            Metered {
                intervals: Vec::new(),
                rolled_up: vec![rolled_up],
            },
        ] {
            let invoice = invoice(
                &metered,
                &billable,
                &rates,
                Timestamp(0),
                Timestamp(24 * HOUR_MS),
            );
            let amounts: Vec<u128> = invoice.lines.iter().map(|it| it.amount.0).collect();
            let minute = 60_000 * EURO / MONTH_MS;
            assert_eq!(amounts, [20 * 4 * (2 + 4) * minute, 40 * 4 * 3 * minute]);
            assert_eq!(invoice.lines[0].until, change_at);
            assert_eq!(invoice.lines[1].charges.len(), 2, "free, and on the line");
            assert_eq!(invoice.total.0, amounts.iter().sum::<u128>());
        }
    }

    #[test]
    fn load_balancers_and_storage_are_on_the_invoice_and_free_until_the_beta_ends() {
        let level = Level {
            load_balancers: 1,
            storage_mib: 1536,
            ..Level::default()
        };
        let metered = Metered {
            intervals: vec![interval(false, level, 0, 720 * HOUR_MS)],
            rolled_up: Vec::new(),
        };
        let set = |beta| crate::platform::rates::RatesChange {
            load_balancer: Some("12.5".parse().unwrap()),
            storage_gb: Some("0.1".parse().unwrap()),
            beta: Some(beta),
            ..Default::default()
        };
        let end = Timestamp(360 * HOUR_MS);
        let rates = RateTable::default()
            .plan(Timestamp(0), &[(None, set(true)), (Some(end), set(false))])
            .unwrap();
        let billable = billable(crate::platform::validation::DEFAULT_TOPOLOGY);
        let invoice = invoice(
            &metered,
            &billable,
            &rates,
            Timestamp(0),
            Timestamp(720 * HOUR_MS),
        );
        let seen: Vec<_> = invoice
            .lines
            .iter()
            .map(|it| {
                (
                    it.kind,
                    it.charges[0].unit_hours.to_string(),
                    it.amount.shown(4).to_string(),
                )
            })
            .collect();
        let line = |kind, hours: &str, amount: &str| (kind, hours.to_owned(), amount.to_owned());
        assert_eq!(
            seen,
            [
                line(LineKind::LoadBalancers, "360.0000", "0.0000"),
                line(LineKind::LoadBalancers, "360.0000", "6.2500"),
                line(LineKind::Storage, "540.0000", "0.0000"),
                line(LineKind::Storage, "540.0000", "0.0750"),
            ]
        );
        assert_eq!(invoice.total.shown(2).to_string(), "6.33", "6.325, half up");
        assert_eq!(
            invoice.lines[2].charges[0].unit_ms.to_string(),
            "1944000000"
        );
    }

    /// 20,000 ledgers; as many as `CKE_LEDGERS` says.
    #[test]
    fn lines_add_up_to_the_total_in_every_ledger() {
        use rand::{Rng, SeedableRng};
        let count = std::env::var("CKE_LEDGERS").map_or(20_000, |it| it.parse().unwrap());
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        // The control plane and the node group of a cluster: rates of 3 and 6 euro, and of 2 and 4.
        let billable = billable(crate::platform::validation::DEFAULT_TOPOLOGY);
        let (rates, end) = (RateTable::default(), Timestamp(744 * HOUR_MS));
        for _ in 0..count {
            let mut euro = 0u128;
            let mut metered = Metered::default();
            for _ in 0..random.random_range(0..12) {
                let flavor = Flavor::ALL[random.random_range(0..6)];
                let level = level(flavor, random.random_range(0..40));
                let (from, ms) = (random.random_range(0..end.0), random.random_range(0..end.0));
                let until = end.0.min(from + ms);
                let is_group = random.random();
                let own = interval(is_group, level, from, until);
                metered.intervals.push(own);
                let ms = u128::from((until - from).unsigned_abs());
                let monthly = u128::from(2 * level.vcpus + 4 * level.ram_gb) * ms;
                // Half as much again for a control plane.
                euro += if is_group { 2 * monthly } else { 3 * monthly };
            }
            let invoice = invoice(&metered, &billable, &rates, Timestamp(0), end);
            let lines: Cost = invoice.lines.iter().map(|line| line.amount).sum();
            let charges = invoice.lines.iter().flat_map(|line| &line.charges);
            let charges: Cost = charges.map(|charge| charge.amount).sum();
            assert_eq!((lines, charges), (invoice.total, invoice.total));
            assert_eq!(invoice.total.0, euro * (EURO / MONTH_MS) / 2);
            // To the cent, half up.
            let cents = (euro * 100 / 2 + MONTH_MS / 2) / MONTH_MS;
            assert_eq!(u128::from(invoice.total.cents()), cents);
        }
    }
}
