//! The rates: those in effect, those before, and those to come.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::simulation::price::instant;
use crate::clever::transport::{Json, JsonBody};
use crate::platform::catalog::{HOURS_PER_MONTH, RATES};
use crate::platform::pricing::CURRENCY;
use crate::platform::rates::{RateTable, Rates, RatesChange};

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get("/_sim/rates", "What a unit of each resource costs, and from when on")
            .answers::<RatesBody>(),
        read,
    )
    .add(
        Operation::put(
            "/_sim/rates",
            "Replace every change of rates that has not taken effect yet. Those in effect, and before, stay",
        )
        .takes::<Plan>()
        .answers::<RatesBody>(),
        plan,
    )
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RatesBody {
    currency: &'static str,
    taxes_included: bool,
    /// Of the month that rates are for.
    hours_per_month: u32,
    /// In effect now.
    now: Rates,
    /// In the order of time; the first has always been.
    periods: Vec<PeriodBody>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct PeriodBody {
    /// RFC 3339. `null`: always.
    from: Option<String>,
    rates: Rates,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plan {
    changes: Vec<PlannedChange>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PlannedChange {
    /// RFC 3339. Now, unless given; never past.
    from: Option<String>,
    /// What is absent stays as it is before.
    rates: RatesChange,
}

fn body(clever: &Clever, table: &RateTable) -> RatesBody {
    let first = PeriodBody {
        from: None,
        rates: RATES,
    };
    let changes = table.changes.iter().map(|(at, rates)| PeriodBody {
        from: Some(at.to_rfc3339()),
        rates: *rates,
    });
    RatesBody {
        currency: CURRENCY,
        taxes_included: false,
        hours_per_month: HOURS_PER_MONTH,
        now: table.at(clever.clock.now()),
        periods: std::iter::once(first).chain(changes).collect(),
    }
}

async fn read(State(clever): State<Clever>) -> Json<RatesBody> {
    Json(body(&clever, &clever.platform.rate_table()))
}

async fn plan(
    State(clever): State<Clever>,
    JsonBody(plan): JsonBody<Plan>,
) -> Result<Json<RatesBody>, ApiError> {
    let mut changes = Vec::new();
    for (index, change) in plan.changes.iter().enumerate() {
        let field = format!("changes[{index}].from");
        changes.push((instant(&field, change.from.as_deref())?, change.rates));
    }
    let table = clever.platform.plan_rates(&changes).await?;
    Ok(Json(body(&clever, &table)))
}
