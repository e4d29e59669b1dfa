//! Credits: what an organisation need not pay.

use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::organisation;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};
use crate::platform::credit::{Credits, Euro};
use crate::platform::pricing::CURRENCY;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get(
            "/_sim/organisations/{organisation}/credits",
            "What an organisation was given, in the order of time",
        )
        .answers::<CreditsBody>(),
        list,
    )
    .add(
        Operation::put(
            "/_sim/organisations/{organisation}/credits/{name}",
            "Give an organisation a credit now, under a name of its own. Doing it again changes nothing",
        )
        .takes::<NewCredit>()
        .answers::<CreditsBody>(),
        give,
    )
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewCredit {
    /// 0.01 to 1000000 euro.
    amount: Euro,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CreditsBody {
    currency: &'static str,
    credits: Vec<CreditBody>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CreditBody {
    name: String,
    amount: Euro,
    reason: String,
    /// It is there from this month on.
    given_at: String,
}

impl From<Credits> for CreditsBody {
    fn from(credits: Credits) -> CreditsBody {
        let credits = credits.given.into_iter().map(|credit| CreditBody {
            name: credit.name,
            amount: Euro(credit.cents),
            reason: credit.reason,
            given_at: credit.given_at.to_rfc3339(),
        });
        CreditsBody {
            currency: CURRENCY,
            credits: credits.collect(),
        }
    }
}

async fn list(
    State(clever): State<Clever>,
    Path(organisation): Path<String>,
) -> Result<Json<CreditsBody>, ApiError> {
    let owner = organisation::known(&clever, &organisation)?;
    Ok(Json(clever.platform.credits(&owner).await?.into()))
}

async fn give(
    State(clever): State<Clever>,
    Path((organisation, name)): Path<(String, String)>,
    JsonBody(credit): JsonBody<NewCredit>,
) -> Result<Json<CreditsBody>, ApiError> {
    let owner = organisation::known(&clever, &organisation)?;
    let (Euro(cents), reason) = (credit.amount, &credit.reason);
    let credits = clever.platform.give_credit(&owner, &name, cents, reason);
    Ok(Json(credits.await?.into()))
}
