//! What a cluster costs, exactly.
//!
//! A rate is a whole number of millionths of a euro a month of 720 hours, so a month's amount is exact, and
//! an hour's is the exact fraction of it. Nothing is rounded before it is shown; then half up, an hour to
//! four places and a month to two (spec, "Pricing"). Without taxes.

use rust_decimal::Decimal;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::catalog::{Billed, HOURS_PER_MONTH};
use super::model::{Component, Flavor, Topology};
use super::rates::{Rate, Rates};
use super::shape::{NodeGroupShape, Shape};

/// Of every amount. Taxes are never included.
pub const CURRENCY: &str = "EUR";

const MICROS: u128 = 1_000_000;

/// Euro. Kept as what a full month of it costs, which is exact where an hour's price is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price {
    /// Millionths of a euro.
    monthly: u128,
}

impl Price {
    pub const fn of_rate(rate: Rate) -> Price {
        Price {
            monthly: rate.micros() as u128,
        }
    }

    /// Of one VM.
    pub fn of(flavor: Flavor, billed: Billed, rates: &Rates) -> Price {
        let (size, rates) = (flavor.size(), rates.of(billed));
        let of = |units: u32, rate: Rate| u128::from(units) * u128::from(rate.micros());
        Price {
            monthly: of(size.vcpus, rates.vcpu) + of(size.ram_gb, rates.ram_gb),
        }
    }

    pub fn times(self, count: u32) -> Price {
        Price {
            monthly: self.monthly * u128::from(count),
        }
    }

    /// Millionths of a euro a month.
    pub fn monthly_micros(self) -> u128 {
        self.monthly
    }

    /// Euro a month, to the cent.
    pub fn shown_monthly(self) -> Decimal {
        shown(self.monthly, MICROS, 2)
    }

    /// Euro an hour, to four places.
    pub fn shown_hourly(self) -> Decimal {
        shown(self.monthly, MICROS * u128::from(HOURS_PER_MONTH), 4)
    }
}

/// `amount / unit`, half up, with as many places as asked for even if they are zeros.
pub(super) fn shown(amount: u128, unit: u128, places: u32) -> Decimal {
    let scale = 10u128.pow(places);
    // Apart, so that nothing overflows that fits.
    let (whole, part) = (amount / unit, amount % unit);
    let part = (part * scale * 2 + unit) / (unit * 2);
    let rounded = whole.saturating_mul(scale).saturating_add(part);
    // Beyond that no price is, and no decimal: 79 octillions of the last place.
    let rounded = rounded.min(1 << 95);
    Decimal::from_i128_with_scale(i128::try_from(rounded).unwrap_or(i128::MAX), places)
}

impl std::iter::Sum for Price {
    fn sum<I: Iterator<Item = Price>>(prices: I) -> Price {
        Price {
            monthly: prices.map(|price| price.monthly).sum(),
        }
    }
}

/// As a price is written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Price")]
struct ShownPrice {
    /// Euro an hour, to four places.
    hourly: String,
    /// Euro a month of 720 hours, to the cent.
    monthly: String,
}

impl Serialize for Price {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ShownPrice {
            hourly: self.shown_hourly().to_string(),
            monthly: self.shown_monthly().to_string(),
        }
        .serialize(serializer)
    }
}

impl JsonSchema for Price {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        ShownPrice::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        ShownPrice::json_schema(generator)
    }
}

/// What a line of a quote is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
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
    fn new(
        item: QuotedItem,
        flavor: Flavor,
        count: u32,
        billed: Billed,
        rates: &Rates,
    ) -> QuoteItem {
        let unit = Price::of(flavor, billed, rates);
        QuoteItem {
            item,
            flavor,
            count,
            unit,
            price: unit.times(count),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quote {
    pub items: Vec<QuoteItem>,
    /// The exact sum, not the sum of what the items show.
    pub total: Price,
}

/// What a cluster of this shape costs.
pub fn quote(shape: &Shape, rates: &Rates) -> Quote {
    let mut items = Vec::with_capacity(Component::ALL.len() + shape.node_groups.len());
    let mut add = |item, flavor, count, billed| {
        items.push(QuoteItem::new(item, flavor, count, billed, rates));
    };
    match &shape.topology {
        Topology::AllInOne {
            flavor,
            replication_factor,
        } => add(
            QuotedItem::Bundle,
            *flavor,
            u32::from(*replication_factor),
            Billed::Compute,
        ),
        Topology::DedicatedCompute {
            flavor,
            replication_factor,
        } => {
            let count = u32::from(*replication_factor);
            add(
                QuotedItem::ControlPlane,
                *flavor,
                count,
                Billed::ControlPlane,
            );
        }
        Topology::Distributed { components } => {
            for component in Component::ALL {
                let config = components.get(component);
                let item = QuotedItem::Component {
                    component: component.name(),
                };
                let count = u32::from(config.replication_factor);
                add(item, config.flavor, count, Billed::ControlPlane);
            }
        }
    }
    for NodeGroupShape {
        name,
        flavor,
        count,
    } in &shape.node_groups
    {
        let item = QuotedItem::NodeGroup { name: name.clone() };
        add(item, *flavor, *count, Billed::Compute);
    }
    let total = items.iter().map(|item| item.price).sum();
    Quote { items, total }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::RATES;
    use super::super::model::{ComponentConfig, Components};
    use super::*;

    use proptest::prelude::*;

    /// Rows of the specification's tables: flavor, resources, hourly, monthly.
    fn check_table(golden: &str, billed: Billed, flavors: &[Flavor]) {
        let computed: String = flavors
            .iter()
            .map(|flavor| {
                let (size, price) = (flavor.size(), Price::of(*flavor, billed, &RATES));
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

    /// The specification's worked example is the first of them.
    #[test]
    fn whole_shapes_cost_what_their_parts_do() {
        let golden = include_str!("../../testdata/pricing/examples.tsv");
        let computed: String = golden
            .lines()
            .map(|line| {
                let text = line.split('\t').next().unwrap_or_default();
                let total = quote(&text.parse().unwrap(), &RATES).total;
                format!(
                    "{text}\t{}\t{}\n",
                    total.shown_hourly(),
                    total.shown_monthly()
                )
            })
            .collect();
        assert_eq!(computed, golden);
    }

    #[test]
    fn a_minimal_distributed_cluster_costs_180_euro() {
        let components = Components::uniform(ComponentConfig {
            flavor: Flavor::Xxs,
            replication_factor: 1,
        });
        let quote = quote(
            &Shape::new(Topology::Distributed { components }, Vec::new()),
            &RATES,
        );
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
            let group = NodeGroupShape {
                name: None,
                flavor: Flavor::Xs,
                count,
            };
            let total = quote(&Shape::new(topology, vec![group]), &RATES).total;
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
            include_str!("cheapest.rs"),
            include_str!("consumption.rs"),
            include_str!("controller/metering.rs"),
            include_str!("credit.rs"),
            include_str!("quota.rs"),
            include_str!("rate_changes.rs"),
            include_str!("rates.rs"),
            include_str!("shape.rs"),
            include_str!("what_if.rs"),
            include_str!("../invoice.rs"),
            include_str!("../price.rs"),
            include_str!("../infra/metering.rs"),
            include_str!("../infra/cloud/load_balancers.rs"),
            include_str!("../infra/cloud/metering.rs"),
            include_str!("../infra/cloud/volumes.rs"),
            include_str!("../clever/consumption.rs"),
            include_str!("../clever/price_system.rs"),
            include_str!("../clever/simulation/credit.rs"),
            include_str!("../clever/simulation/invoice.rs"),
            include_str!("../clever/simulation/invoice_page.rs"),
            include_str!("../clever/simulation/price.rs"),
            include_str!("../clever/simulation/quota.rs"),
            include_str!("../clever/simulation/rates.rs"),
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
            let price = Price::of_rate(monthly.parse().unwrap());
            assert_eq!(price.shown_hourly().to_string(), hourly);
        };
        check("0.036", "0.0001");
        check("0.035999", "0.0000");
        check("0.18", "0.0003");
        // Far beyond any, and still a number.
        let most = Price { monthly: u128::MAX };
        assert_eq!(
            most.shown_monthly(),
            Decimal::from_i128_with_scale(1 << 95, 2)
        );
    }

    proptest! {
        #[test]
        fn a_total_is_the_sum_of_its_items(
            counts in proptest::collection::vec((0usize..6, 0u32..300), 0..8),
            factor in 1u8..=5,
        ) {
            let groups: Vec<NodeGroupShape> = counts
                .iter()
                .map(|(flavor, count)| NodeGroupShape { name: None, flavor: Flavor::ALL[*flavor], count: *count })
                .collect();
            let topology = Topology::DedicatedCompute { flavor: Flavor::M, replication_factor: factor };
            let euro: u64 = 126 * u64::from(factor)
                + groups.iter().map(|g| {
                    let size = g.flavor.size();
                    u64::from(g.count) * u64::from(2 * size.vcpus + 4 * size.ram_gb)
                }).sum::<u64>();
            let quote = quote(&Shape::new(topology, groups), &RATES);
            prop_assert_eq!(quote.total.monthly_micros(), u128::from(euro) * MICROS);
        }
    }
}
