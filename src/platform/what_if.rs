//! What changes when a cluster is of another shape: line by line, and in all.

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::catalog::HOURS_PER_MONTH;
use super::model::Flavor;
use super::pricing::{Price, Quote, QuotedItem, shown};

/// How much more something costs; less, if it is negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PriceChange {
    /// Millionths of a euro a month.
    monthly: i128,
}

impl PriceChange {
    pub fn between(before: Price, after: Price) -> PriceChange {
        let micros = |price: Price| i128::try_from(price.monthly_micros()).unwrap_or(i128::MAX);
        PriceChange {
            monthly: micros(after).saturating_sub(micros(before)),
        }
    }

    /// With its sign; half is rounded away from zero, as it is in prices.
    fn shown(self, unit: u128, places: u32) -> String {
        let amount = shown(self.monthly.unsigned_abs(), unit, places);
        let sign = match self.monthly {
            _ if amount.is_zero() => "",
            ..0 => "-",
            _ => "+",
        };
        format!("{sign}{amount}")
    }

    /// Euro a month, to the cent.
    pub fn shown_monthly(self) -> String {
        self.shown(1_000_000, 2)
    }

    /// Euro an hour, to four places.
    pub fn shown_hourly(self) -> String {
        self.shown(1_000_000 * u128::from(HOURS_PER_MONTH), 4)
    }
}

impl std::iter::Sum for PriceChange {
    fn sum<I: Iterator<Item = PriceChange>>(changes: I) -> PriceChange {
        PriceChange {
            monthly: changes.map(|change| change.monthly).sum(),
        }
    }
}

/// As it is written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PriceChange")]
struct Shown {
    /// Euro an hour, to four places, with its sign.
    hourly: String,
    /// Euro a month of 720 hours, to the cent, with its sign.
    monthly: String,
}

impl Serialize for PriceChange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Shown {
            hourly: self.shown_hourly(),
            monthly: self.shown_monthly(),
        }
        .serialize(serializer)
    }
}

impl JsonSchema for PriceChange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Shown::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Shown::json_schema(generator)
    }
}

/// One side of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    pub flavor: Flavor,
    pub count: u32,
    pub price: Price,
}

/// A line of either quote, or of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemChange {
    pub item: QuotedItem,
    /// `null`: it is new.
    pub before: Option<Side>,
    /// `null`: it goes.
    pub after: Option<Side>,
    pub change: PriceChange,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What there was, then what is new, each in the order of its quote. Unnamed node groups are matched in
    /// the order in which they come.
    pub items: Vec<ItemChange>,
    /// The exact sum.
    pub total: PriceChange,
}

pub fn difference(before: &Quote, after: &Quote) -> Difference {
    let mut left: Vec<Option<&_>> = after.items.iter().map(Some).collect();
    let mut pairs = Vec::new();
    for old in &before.items {
        let found = left
            .iter_mut()
            .find(|new| new.is_some_and(|new| new.item == old.item));
        pairs.push((Some(old), found.and_then(Option::take)));
    }
    pairs.extend(left.into_iter().flatten().map(|new| (None, Some(new))));
    let mut items = Vec::with_capacity(pairs.len());
    for (old, new) in pairs {
        let Some(either) = old.or(new) else { continue };
        let price = |item: Option<&super::pricing::QuoteItem>| {
            item.map(|item| item.price).unwrap_or_default()
        };
        let side = |item: &super::pricing::QuoteItem| Side {
            flavor: item.flavor,
            count: item.count,
            price: item.price,
        };
        items.push(ItemChange {
            item: either.item.clone(),
            change: PriceChange::between(price(old), price(new)),
            before: old.map(side),
            after: new.map(side),
        });
    }
    let total = items.iter().map(|item| item.change).sum();
    Difference { items, total }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;
    use crate::platform::catalog::RATES;
    use crate::platform::pricing::quote;
    use crate::platform::shape::Shape;

    fn of(text: &str) -> Quote {
        quote(&text.parse::<Shape>().unwrap(), &RATES)
    }

    #[test]
    fn a_change_is_told_line_by_line() {
        let check = |before: &str, after: &str, expect: expect_test::Expect| {
            let difference = difference(&of(before), &of(after));
            let side = |side: Option<Side>| {
                side.map_or(String::from("none"), |it| {
                    format!("{}x{}", it.count, it.flavor)
                })
            };
            let mut text = String::new();
            for it in &difference.items {
                let change = (it.change.shown_hourly(), it.change.shown_monthly());
                text += &format!(
                    "{}: {} to {}: {change:?}\n",
                    it.item,
                    side(it.before),
                    side(it.after)
                );
            }
            let total = difference.total;
            text += &format!("{} {}\n", total.shown_hourly(), total.shown_monthly());
            expect.assert_eq(&text);
        };
        check(
            "ALL_IN_ONE:S:1+web=XS:2",
            "DEDICATED_COMPUTE:XS:3+web=XS:3+M:1",
            expect![[r#"
                bundle: 1xS to none: ("-0.0889", "-64.00")
                node group web: 2xXS to 3xXS: ("+0.0611", "+44.00")
                control plane: none to 3xXS: ("+0.2750", "+198.00")
                node group: none to 1xM: ("+0.1167", "+84.00")
                +0.3639 +262.00
            "#]],
        );
        check(
            "DISTRIBUTED:2XS:1+S:1+S:2",
            "DISTRIBUTED:2XS:1,apiserver=S:1+S:2+S:1",
            expect![[r#"
                apiserver: 1x2XS to 1xS: ("+0.0833", "+60.00")
                controller-manager: 1x2XS to 1x2XS: ("0.0000", "0.00")
                scheduler: 1x2XS to 1x2XS: ("0.0000", "0.00")
                node-group-operator: 1x2XS to 1x2XS: ("0.0000", "0.00")
                cloud-controller-manager: 1x2XS to 1x2XS: ("0.0000", "0.00")
                node group: 1xS to 2xS: ("+0.0889", "+64.00")
                node group: 2xS to 1xS: ("-0.0889", "-64.00")
                +0.0833 +60.00
            "#]],
        );
    }

    proptest! {
        /// There and back again costs nothing, and every line is there once.
        #[test]
        fn a_change_and_its_reverse_cancel(
            before in proptest::collection::vec((0usize..6, 0u32..300, 0u8..3), 0..6),
            after in proptest::collection::vec((0usize..6, 0u32..300, 0u8..3), 0..6),
        ) {
            let quote = |groups: &[(usize, u32, u8)]| {
                let groups: String = groups
                    .iter()
                    .map(|(flavor, count, name)| {
                        let name = match name { 0 => "", 1 => "a=", _ => "b=" };
                        format!("+{name}{}:{count}", Flavor::ALL[*flavor])
                    })
                    .collect();
                of(&format!("ALL_IN_ONE:S:1{groups}"))
            };
            let (before, after) = (quote(&before), quote(&after));
            let (there, back) = (difference(&before, &after), difference(&after, &before));
            prop_assert_eq!(there.total.monthly, -back.total.monthly);
            prop_assert_eq!(there.total, PriceChange::between(before.total, after.total));
            let sides = |of: fn(&ItemChange) -> Option<Side>| there.items.iter().filter_map(of).count();
            prop_assert_eq!(sides(|it| it.before), before.items.len());
            prop_assert_eq!(sides(|it| it.after), after.items.len());
        }
    }
}
