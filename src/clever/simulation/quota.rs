//! What the vendor's support does to an organisation's quota.

use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::organisation;
use crate::clever::quota::QuotaBody;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};
use crate::platform::quota::Limits;

/// Far more than the simulated datacenters have, and far from where sums could overflow.
const MOST: u64 = 1_000_000;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::put(
            "/_sim/organisations/{organisation}/quota",
            "Change an organisation's quota. What it holds over that stays, and cannot grow",
        )
        .takes::<NewLimits>()
        .answers::<QuotaBody>(),
        set,
    )
}

/// What is absent stays as it is. Each at most 1000000.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewLimits {
    vcpus: Option<u64>,
    /// Units of 1024³ bytes.
    ram_gb: Option<u64>,
    /// Public addresses; two make one load balancer.
    ips: Option<u32>,
}

async fn set(
    State(clever): State<Clever>,
    Path(organisation): Path<String>,
    JsonBody(new): JsonBody<NewLimits>,
) -> Result<Json<QuotaBody>, ApiError> {
    let id = organisation::known(&clever, &organisation)?;
    let asked = [
        ("vcpus", new.vcpus),
        ("ramGb", new.ram_gb),
        ("ips", new.ips.map(u64::from)),
    ];
    for (field, asked) in asked {
        if let Some(asked) = asked.filter(|asked| *asked > MOST) {
            let reason = format!("must be between 0 and {MOST}");
            return Err(ApiError::invalid_field(field, asked.to_string(), reason));
        }
    }
    let change = |limits: Limits| Limits {
        vcpus: new.vcpus.unwrap_or(limits.vcpus),
        ram_gb: new.ram_gb.unwrap_or(limits.ram_gb),
        ips: new.ips.unwrap_or(limits.ips),
    };
    Ok(Json(
        clever.platform.change_limits(&id, change).await?.into(),
    ))
}
