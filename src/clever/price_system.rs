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

/// The nearest double to the decimal, which reads back as written.
fn as_number<S: serde::Serializer>(price: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
    let nearest: f64 = price
        .to_string()
        .parse()
        .map_err(serde::ser::Error::custom)?;
    serializer.serialize_f64(nearest)
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

fn price_system(owner_id: Option<OwnerId>) -> PriceSystem {
    let countable = SERVICES
        .iter()
        .flat_map(|(service, billed)| {
            let rates = billed.rates();
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
    monthly: u32,
) -> CountablePolicy {
    let hourly = Decimal::from(monthly) / Decimal::from(HOURS_PER_MONTH);
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

async fn get_public(parameters: Parameters) -> Result<Json<PriceSystem>, ApiError> {
    check(&parameters)?;
    Ok(Json(price_system(None)))
}

async fn get_of_owner(
    State(_): State<Clever>,
    owner: Owner,
    parameters: Parameters,
) -> Result<Json<PriceSystem>, ApiError> {
    check(&parameters)?;
    Ok(Json(price_system(Some(owner.id))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_prices_are_those_that_karpenter_knows() {
        let written = serde_json::to_value(price_system(None)).unwrap();
        let check = |service: &str, unit: &str, quantity: u64, price: f64| {
            let policies = written["countable"].as_array().unwrap();
            let policy = policies
                .iter()
                .find(|policy| policy["service"] == service)
                .unwrap();
            assert_eq!(policy["data_unit"], unit);
            assert_eq!(policy["data_quantity_for_price"]["quantity"], quantity);
            assert_eq!(policy["price_plans"][0]["price"], price);
        };
        check("kubernetes.node.vcpu", "vcpu", 1, 0.00277777777);
        check("kubernetes.node.ram", "B", 1_000_000_000, 0.00555555555);
        check(
            "kubernetes.controlPlane.distributed.vcpu",
            "vcpu",
            1,
            0.00416666666,
        );
    }
}
