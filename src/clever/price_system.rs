//! `GET /v4/billing/price-system`, public: what an hour of vCPU and memory costs. Karpenter reads it.
//!
//! The wire is in `snake_case` here, unlike everywhere else. The names of the node services are the
//! real ones; of the control planes' only `kubernetes.controlPlane.distributed.vcpu` is known, the
//! others follow its pattern.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use rust_decimal::{Decimal, RoundingStrategy};
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::authentication::Owner;
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, Parameters};
use crate::platform::catalog::{Billed, HOURS_PER_MONTH, LOCATION};
use crate::platform::model::OwnerId;
use crate::platform::rates::{Rate, Rates};

pub fn routes() -> Router<Clever> {
    Router::new()
        .route("/v4/billing/price-system", get(get_public))
        .route(
            "/v4/billing/organisations/{owner}/price-system",
            get(get_of_owner),
        )
}

#[derive(Debug, Serialize)]
pub struct PriceSystem {
    pub owner_id: Option<OwnerId>,
    pub zone_id: &'static str,
    pub currency: &'static str,
    pub start: Option<String>,
    pub end: Option<String>,
    /// Prices of applications: there are none here.
    pub runtime: Vec<()>,
    pub countable: Vec<CountablePolicy>,
}

#[derive(Debug, Serialize)]
pub struct CountablePolicy {
    pub countable_policy_id: String,
    pub service: String,
    pub data_unit: &'static str,
    pub data_quantity_for_price: Quantity,
    pub time_interval_for_price: Interval,
    /// Exactly one.
    pub price_plans: Vec<PricePlan>,
}

#[derive(Debug, Serialize)]
pub struct Quantity {
    pub secability: &'static str,
    pub quantity: u64,
}

#[derive(Debug, Serialize)]
pub struct Interval {
    pub secability: &'static str,
    pub interval: &'static str,
}

#[derive(Debug, Serialize)]
pub struct PricePlan {
    pub plan_id: String,
    pub max_quantity: Option<u64>,
    /// Euro, eleven decimals.
    #[serde(serialize_with = "as_number")]
    pub price: Decimal,
}

/// A JSON number of exactly these digits.
pub fn as_number<S: serde::Serializer>(number: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::Error;
    serde_json::value::RawValue::from_string(number.normalize().to_string())
        .map_err(S::Error::custom)?
        .serialize(serializer)
}

/// What each service is billed as.
const SERVICES: [(&str, Billed); 4] = [
    ("kubernetes.node", Billed::Compute),
    ("kubernetes.controlPlane.allInOne", Billed::Compute),
    (
        "kubernetes.controlPlane.dedicatedCompute",
        Billed::ControlPlane,
    ),
    ("kubernetes.controlPlane.distributed", Billed::ControlPlane),
];

/// Memory is billed by 10⁹ bytes.
const BYTES_PER_BILLED_GB: u64 = 1_000_000_000;

/// As of now: a client asks again.
fn price_system(owner_id: Option<OwnerId>, rates: &Rates) -> PriceSystem {
    let countable = SERVICES
        .iter()
        .flat_map(|(service, billed)| {
            let rates = rates.of(*billed);
            [
                policy(format!("{service}.vcpu"), "vcpu", 1, rates.vcpu),
                policy(
                    format!("{service}.ram"),
                    "B",
                    BYTES_PER_BILLED_GB,
                    rates.ram_gb,
                ),
            ]
        })
        .collect();
    PriceSystem {
        owner_id,
        zone_id: LOCATION,
        currency: "EUR",
        start: None,
        end: None,
        runtime: Vec::new(),
        countable,
    }
}

fn policy(
    service: String,
    data_unit: &'static str,
    quantity: u64,
    monthly: Rate,
) -> CountablePolicy {
    let hourly = monthly.decimal() / Decimal::from(HOURS_PER_MONTH);
    CountablePolicy {
        countable_policy_id: format!("countable_policy_{service}"),
        data_unit,
        data_quantity_for_price: Quantity {
            secability: "SECABLE",
            quantity,
        },
        time_interval_for_price: Interval {
            secability: "INSECABLE",
            interval: "PT1H",
        },
        price_plans: vec![PricePlan {
            plan_id: format!("price_plan_{service}"),
            max_quantity: None,
            price: hourly.round_dp_with_strategy(11, RoundingStrategy::ToZero),
        }],
        service,
    }
}

/// There is one zone and one currency.
fn check(parameters: &Parameters) -> Result<(), ApiError> {
    match parameters.get("zone_id") {
        None | Some(LOCATION) => {}
        Some(zone) => {
            return Err(ApiError::invalid_field(
                "zone_id",
                zone,
                format!("The only zone is {LOCATION}"),
            ));
        }
    }
    match parameters.get("currency") {
        None | Some("EUR") => Ok(()),
        Some(currency) => Err(ApiError::invalid_field(
            "currency",
            currency,
            "The only currency is EUR",
        )),
    }
}

async fn get_public(
    State(clever): State<Clever>,
    parameters: Parameters,
) -> Result<Json<PriceSystem>, ApiError> {
    check(&parameters)?;
    Ok(Json(price_system(None, &clever.platform.rates(None))))
}

async fn get_of_owner(
    State(clever): State<Clever>,
    owner: Owner,
    parameters: Parameters,
) -> Result<Json<PriceSystem>, ApiError> {
    check(&parameters)?;
    let rates = clever.platform.rates(None);
    Ok(Json(price_system(Some(owner.id), &rates)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::catalog::RATES;
    use crate::platform::model::Flavor;
    use crate::platform::pricing::Price;

    /// The number in the JSON text itself.
    fn written_price(written: &str, service: &str) -> Decimal {
        let (_, policy) = written
            .split_once(&format!(r#""plan_id":"price_plan_{service}""#))
            .unwrap();
        let (_, price) = policy.split_once(r#""price":"#).unwrap();
        let (price, _) = price.split_once('}').unwrap();
        price.parse().unwrap()
    }

    #[test]
    fn node_prices_are_those_that_karpenter_knows() {
        let written = serde_json::to_string(&price_system(None, &RATES)).unwrap();
        let check = |service: &str, unit: &str, quantity: u64, price: &str| {
            let body: serde_json::Value = serde_json::from_str(&written).unwrap();
            let policies = body["countable"].as_array().unwrap();
            let policy = policies
                .iter()
                .find(|policy| policy["service"] == service)
                .unwrap();
            assert_eq!(policy["data_unit"], unit);
            assert_eq!(policy["data_quantity_for_price"]["quantity"], quantity);
            assert_eq!(policy["price_plans"].as_array().unwrap().len(), 1);
            assert_eq!(written_price(&written, service).to_string(), price);
        };
        check("kubernetes.node.vcpu", "vcpu", 1, "0.00277777777");
        check("kubernetes.node.ram", "B", 1_000_000_000, "0.00555555555");
        check(
            "kubernetes.controlPlane.distributed.vcpu",
            "vcpu",
            1,
            "0.00416666666",
        );
        assert!(written.len() < 1 << 20);
    }

    /// A client multiplies the unit prices with what a flavor has, for an hour or 720, and rounds.
    #[test]
    fn a_client_that_multiplies_finds_the_specification_s_prices() {
        let written = serde_json::to_string(&price_system(None, &RATES)).unwrap();
        for (service, billed) in SERVICES {
            let vcpu = written_price(&written, &format!("{service}.vcpu"));
            let ram = written_price(&written, &format!("{service}.ram"));
            for flavor in Flavor::ALL {
                let (size, price) = (flavor.size(), Price::of(flavor, billed, &RATES));
                let hour = Decimal::from(size.vcpus) * vcpu + Decimal::from(size.ram_gb) * ram;
                let half_up = RoundingStrategy::MidpointAwayFromZero;
                let shown =
                    |amount: Decimal, places| amount.round_dp_with_strategy(places, half_up);
                assert_eq!(shown(hour, 4), price.shown_hourly(), "{service} {flavor}");
                let month = hour * Decimal::from(HOURS_PER_MONTH);
                assert_eq!(shown(month, 2), price.shown_monthly(), "{service} {flavor}");
            }
        }
    }
}
