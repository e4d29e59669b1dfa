//! What a cluster costs, exactly.
//!
//! Rates are whole euro a month of 720 hours, so a month's amount is exact, and an hour's is the exact
//! fraction of it. Nothing is rounded before it is shown; then half up, an hour to four places and a
//! month to two (spec, "Pricing"). Without taxes.

use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Serialize, Serializer};

use super::catalog::{Billed, HOURS_PER_MONTH};
use super::model::{Component, Flavor, Topology};

/// Of every amount. Taxes are never included.
pub const CURRENCY: &str = "EUR";

/// Euro. Kept as what a full month of it costs, which is exact where an hour's price is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price {
    monthly: Decimal,
}

impl Price {
    /// `amount` euro a month.
    pub fn monthly(amount: impl Into<Decimal>) -> Price {
        Price {
            monthly: amount.into(),
        }
    }

    /// Of one VM.
    pub fn of(flavor: Flavor, billed: Billed) -> Price {
        let (size, rates) = (flavor.size(), billed.rates());
        Price::monthly(size.vcpus * rates.vcpu + size.ram_gb * rates.ram_gb)
    }

    pub fn times(self, count: u32) -> Price {
        Price {
            monthly: self.monthly * Decimal::from(count),
        }
    }

    /// Euro a month, to the cent.
    pub fn shown_monthly(self) -> Decimal {
        shown(self.monthly, 2)
    }

    /// Euro an hour, to four places.
    pub fn shown_hourly(self) -> Decimal {
        shown(self.monthly / Decimal::from(HOURS_PER_MONTH), 4)
    }

    /// Euro for `milliseconds` of use, to the cent.
    pub fn shown_for_milliseconds(self, milliseconds: u64) -> Decimal {
        let month = Decimal::from(HOURS_PER_MONTH) * Decimal::from(3_600_000);
        shown(self.monthly * Decimal::from(milliseconds) / month, 2)
    }
}

/// Half up, with as many places as asked for even if they are zeros.
fn shown(amount: Decimal, places: u32) -> Decimal {
    let mut rounded = amount.round_dp_with_strategy(places, RoundingStrategy::MidpointAwayFromZero);
    rounded.rescale(places);
    rounded
}

impl std::iter::Sum for Price {
    fn sum<I: Iterator<Item = Price>>(prices: I) -> Price {
        Price {
            monthly: prices.map(|price| price.monthly).sum(),
        }
    }
}

impl Serialize for Price {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown {
            hourly: String,
            monthly: String,
        }
        Shown {
            hourly: self.shown_hourly().to_string(),
            monthly: self.shown_monthly().to_string(),
        }
        .serialize(serializer)
    }
}

/// What a line of a quote is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum QuotedItem {
    /// ALL_IN_ONE: control plane and worker in one.
    Bundle,
    /// DEDICATED_COMPUTE: all components together.
    ControlPlane,
    /// DISTRIBUTED: one component.
    Component {
        component: &'static str,
    },
    NodeGroup {
        name: Option<String>,
    },
}

impl std::fmt::Display for QuotedItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            QuotedItem::Bundle => f.pad("bundle"),
            QuotedItem::ControlPlane => f.pad("control plane"),
            QuotedItem::Component { component } => f.pad(component),
            QuotedItem::NodeGroup { name: None } => f.pad("node group"),
            QuotedItem::NodeGroup { name: Some(name) } => f.pad(&format!("node group {name}")),
        }
    }
}

/// A line of a quote: so many VMs of one flavor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuoteItem {
    pub item: QuotedItem,
    pub flavor: Flavor,
    pub count: u32,
    /// Of one VM.
    pub unit: Price,
    pub price: Price,
}

impl QuoteItem {
    fn new(item: QuotedItem, flavor: Flavor, count: u32, billed: Billed) -> QuoteItem {
        let unit = Price::of(flavor, billed);
        QuoteItem {
            item,
            flavor,
            count,
            unit,
            price: unit.times(count),
        }
    }
}

/// A node group to be quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotedGroup {
    pub name: Option<String>,
    pub flavor: Flavor,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quote {
    pub items: Vec<QuoteItem>,
    /// The exact sum, not the sum of what the items show.
    pub total: Price,
}

/// What a control plane of this shape and these node groups cost.
pub fn quote(topology: &Topology, node_groups: &[QuotedGroup]) -> Quote {
    let mut items = match topology {
        Topology::AllInOne {
            flavor,
            replication_factor,
        } => vec![QuoteItem::new(
            QuotedItem::Bundle,
            *flavor,
            u32::from(*replication_factor),
            Billed::Compute,
        )],
        Topology::DedicatedCompute {
            flavor,
            replication_factor,
        } => vec![QuoteItem::new(
            QuotedItem::ControlPlane,
            *flavor,
            u32::from(*replication_factor),
            Billed::ControlPlane,
        )],
        Topology::Distributed { components } => Component::ALL
            .into_iter()
            .map(|component| {
                let config = components.get(component);
                QuoteItem::new(
                    QuotedItem::Component {
                        component: component.name(),
                    },
                    config.flavor,
                    u32::from(config.replication_factor),
                    Billed::ControlPlane,
                )
            })
            .collect(),
    };
    items.extend(node_groups.iter().map(|group| {
        QuoteItem::new(
            QuotedItem::NodeGroup {
                name: group.name.clone(),
            },
            group.flavor,
            group.count,
            Billed::Compute,
        )
    }));
    let total = items.iter().map(|item| item.price).sum();
    Quote { items, total }
}

#[cfg(test)]
mod tests {
    use super::super::model::{ComponentConfig, Components};
    use super::*;

    use proptest::prelude::*;

    /// Rows of the specification's tables: flavor, resources, hourly, monthly.
    fn check_table(golden: &str, billed: Billed, flavors: &[Flavor]) {
        let computed: String = flavors
            .iter()
            .map(|flavor| {
                let (size, price) = (flavor.size(), Price::of(*flavor, billed));
                format!(
                    "{flavor}\t{} vCPU / {} GB\t{}\t{}\n",
                    size.vcpus,
                    size.ram_gb,
                    price.shown_hourly(),
                    price.shown_monthly()
                )
            })
            .collect();
        assert_eq!(computed, golden);
    }

    #[test]
    fn the_specification_s_tables_follow_from_the_rates() {
        use super::super::model::TopologyKind::*;
        let table = |name| match name {
            "all_in_one" => include_str!("../../testdata/pricing/all_in_one.tsv"),
            "dedicated_compute" => include_str!("../../testdata/pricing/dedicated_compute.tsv"),
            "distributed" => include_str!("../../testdata/pricing/distributed.tsv"),
            _ => include_str!("../../testdata/pricing/node_group.tsv"),
        };
        check_table(table("all_in_one"), Billed::Compute, AllInOne.flavors());
        check_table(
            table("dedicated_compute"),
            Billed::ControlPlane,
            DedicatedCompute.flavors(),
        );
        check_table(
            table("distributed"),
            Billed::ControlPlane,
            Distributed.flavors(),
        );
        check_table(table("node_group"), Billed::Compute, &Flavor::ALL);
    }

    #[test]
    fn a_minimal_distributed_cluster_costs_180_euro() {
        let components = Components::uniform(ComponentConfig {
            flavor: Flavor::Xxs,
            replication_factor: 1,
        });
        let quote = quote(&Topology::Distributed { components }, &[]);
        assert_eq!(quote.items.len(), 5);
        assert_eq!(quote.total.shown_monthly().to_string(), "180.00");
        assert_eq!(quote.total.shown_hourly().to_string(), "0.2500");
    }

    #[test]
    fn a_sum_is_rounded_once() {
        let check = |count: u32, hourly: &str, monthly: &str| {
            let topology = Topology::AllInOne {
                flavor: Flavor::S,
                replication_factor: 1,
            };
            let group = QuotedGroup {
                name: None,
                flavor: Flavor::Xs,
                count,
            };
            let total = quote(&topology, &[group]).total;
            assert_eq!(total.shown_hourly().to_string(), hourly);
            assert_eq!(total.shown_monthly().to_string(), monthly);
        };
        check(0, "0.0889", "64.00");
        // 64 + 7 × 44 = 372; / 720 = 0.51666…, while 0.0889 + 7 × 0.0611 = 0.5166.
        check(7, "0.5167", "372.00");
    }

    /// Money is decimal or whole everywhere.
    #[test]
    fn no_floating_point_is_near_money() {
        let sources = [
            include_str!("pricing.rs"),
            include_str!("billing.rs"),
            include_str!("catalog.rs"),
            include_str!("consumption.rs"),
            include_str!("controller/metering.rs"),
            include_str!("../clever/consumption.rs"),
            include_str!("../clever/invoice.rs"),
            include_str!("quota.rs"),
            include_str!("../price.rs"),
            include_str!("../infra/metering.rs"),
            include_str!("../infra/cloud/metering.rs"),
            include_str!("../clever/price.rs"),
            include_str!("../clever/price_system.rs"),
        ];
        let types = ["32", "64"].map(|bits| format!("f{bits}"));
        for source in sources {
            for line in source.lines() {
                let words = line.split(|c: char| !c.is_alphanumeric());
                let mut floats = words.filter(|word| types.iter().any(|it| word.contains(it)));
                assert_eq!(floats.next(), None, "{line}");
            }
        }
    }

    #[test]
    fn half_is_rounded_up() {
        let check = |monthly: &str, hourly: &str| {
            let price = Price::monthly(monthly.parse::<Decimal>().unwrap());
            assert_eq!(price.shown_hourly().to_string(), hourly);
        };
        check("0.036", "0.0001");
        check("0.0359999", "0.0000");
        check("0.18", "0.0003");
    }

    proptest! {
        #[test]
        fn a_total_is_the_sum_of_its_items(
            counts in proptest::collection::vec((0usize..6, 0u32..300), 0..8),
            factor in 1u8..=5,
        ) {
            let groups: Vec<QuotedGroup> = counts
                .iter()
                .map(|(flavor, count)| QuotedGroup { name: None, flavor: Flavor::ALL[*flavor], count: *count })
                .collect();
            let topology = Topology::DedicatedCompute { flavor: Flavor::M, replication_factor: factor };
            let quote = quote(&topology, &groups);
            let euro: u64 = 126 * u64::from(factor)
                + groups.iter().map(|g| {
                    let size = g.flavor.size();
                    u64::from(g.count) * u64::from(2 * size.vcpus + 4 * size.ram_gb)
                }).sum::<u64>();
            prop_assert_eq!(quote.total, Price::monthly(euro));
            // A month of 720 hours costs the monthly price.
            prop_assert_eq!(
                quote.total.shown_for_milliseconds(720 * 3_600_000),
                quote.total.shown_monthly()
            );
        }
    }
}
