//! What the billing engine reads: consumptions by the hour, and names of resources for invoices
//! (contract cke-models 8.3). It authenticates as a machine, with HTTP Basic.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clever::Clever;
use crate::clever::authentication::same_secret;
use crate::clever::error::{ApiError, CLUSTER};
use crate::clever::organisation;
use crate::clever::price_system::as_number;
use crate::clever::transport::{Json, Parameters};
use crate::clock::Timestamp;
use crate::infra::metering::{HOUR_MS, Usage, hour_of};
use crate::platform::consumption::Consumption;
use crate::platform::model::{ClusterId, OwnerId, TopologyKind};

/// The billing engine's own, the same on every server, as the seed's other credentials.
pub const MACHINE_CREDENTIALS: &str = "cke-billing:cke-billing-secret";

/// Start of a query that says none: 2025-01-01T00:00:00Z.
const FIRST: Timestamp = Timestamp(1_735_689_600_000);

/// Numbers in one answer; a query for more is refused.
const MOST_QUANTITIES: i64 = 2_000_000;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route(
            "/v4/kubernetes/organisations/{owner}/kubernetes/consumptions",
            get(list),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/kubernetes/resources/{resource}",
            get(name),
        )
}

/// A machine that may read what is billed.
struct Machine;

impl FromRequestParts<Clever> for Machine {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Clever) -> Result<Self, ApiError> {
        let header = parts.headers.get(AUTHORIZATION);
        let given = header
            .and_then(|header| header.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, credentials)| BASE64.decode(credentials.trim()).ok())
            .and_then(|credentials| String::from_utf8(credentials).ok());
        match given {
            Some(given) if same_secret(&given, MACHINE_CREDENTIALS) => Ok(Machine),
            _ => Err(ApiError::unauthorized()),
        }
    }
}

/// An exact decimal, a JSON number on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Number(Decimal);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        as_number(&self.0, serializer)
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceConsumption {
    owner_id: OwnerId,
    product_id: &'static str,
    region_id: &'static str,
    /// Id of the cluster.
    resource_id: ClusterId,
    since: String,
    until: String,
    version: u32,
    consumptions: Vec<ConsumptionItem>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConsumptionItem {
    reference: String,
    unit: &'static str,
    /// Sum of the quantities.
    quantity: Number,
    /// Id of the node group; `null` for the control plane.
    resource_id: Option<String>,
    details: Details,
}

#[derive(Debug, Serialize)]
struct Details {
    interval: &'static str,
    /// One for each hour, also where there is none: what was used on average.
    quantities: Vec<Number>,
}

/// Full hours of the clock, from the one in which `since` is to the one in which `until` is.
#[derive(Clone, Copy)]
struct Hours {
    since: Timestamp,
    until: Timestamp,
}

impl Hours {
    fn of(parameters: &Parameters) -> Result<Hours, ApiError> {
        let read = |name: &str| -> Result<Option<Timestamp>, ApiError> {
            let Some(text) = parameters.get(name) else {
                return Ok(None);
            };
            let at = OffsetDateTime::parse(text, &Rfc3339)
                .map_err(|error| ApiError::invalid_field(name, text, error.to_string()))?;
            let ms = at.unix_timestamp_nanos().div_euclid(1_000_000);
            // Years have four digits.
            Ok(i64::try_from(ms).ok().map(Timestamp))
        };
        let since = read("since")?.unwrap_or(FIRST);
        let until = read("until")?
            .ok_or_else(|| ApiError::invalid_field("until", "", "until is required"))?;
        if since > until {
            return Err(ApiError::bad_request(
                "Since date must be before until date.",
            ));
        }
        Ok(Hours {
            since: hour_of(since),
            until: hour_of(Timestamp(until.0 + HOUR_MS - 1)),
        })
    }

    fn count(self) -> i64 {
        (self.until.0 - self.since.0) / HOUR_MS
    }

    /// The average level in each hour, from what `of` takes of its use.
    fn quantities(
        self,
        used: &BTreeMap<Timestamp, Usage>,
        of: fn(&Usage) -> Decimal,
    ) -> Vec<Number> {
        (0..self.count())
            .map(|hour| {
                let at = Timestamp(self.since.0 + hour * HOUR_MS);
                Number(used.get(&at).map_or(Decimal::ZERO, of))
            })
            .collect()
    }
}

/// Half up, to twelve places: a third of an hour has no end.
fn per_hour(ms: u64) -> Decimal {
    let average = Decimal::from(ms) / Decimal::from(HOUR_MS);
    average.round_dp_with_strategy(12, RoundingStrategy::MidpointAwayFromZero)
}

fn vcpus(usage: &Usage) -> Decimal {
    per_hour(usage.vcpu_ms)
}

/// Memory is billed by 10⁹ bytes.
fn bytes(usage: &Usage) -> Decimal {
    per_hour(usage.ram_gb_ms) * Decimal::from(1_000_000_000u32)
}

fn reference(topology: TopologyKind, is_node_group: bool) -> &'static str {
    match topology {
        _ if is_node_group => "kubernetes.node",
        TopologyKind::AllInOne => "kubernetes.control-plane.all-in-one",
        TopologyKind::DedicatedCompute => "kubernetes.control-plane.dedicated-compute",
        TopologyKind::Distributed => "kubernetes.control-plane.distributed",
    }
}

fn body(owner: &OwnerId, hours: Hours, consumption: Consumption) -> ResourceConsumption {
    let topology = consumption.cluster.topology.kind();
    let mut consumptions = Vec::new();
    for (item, used) in &consumption.items {
        let reference = reference(topology, item.node_group.is_some());
        let kinds: [(&str, &str, fn(&Usage) -> Decimal); 2] =
            [("vcpu", "vcpu", vcpus), ("ram", "byte", bytes)];
        for (suffix, unit, of) in kinds {
            let quantities = hours.quantities(used, of);
            consumptions.push(ConsumptionItem {
                reference: format!("{reference}.{suffix}"),
                unit,
                quantity: Number(quantities.iter().map(|it| it.0).sum()),
                resource_id: item.node_group.as_ref().map(ToString::to_string),
                details: Details {
                    interval: "PT1H",
                    quantities,
                },
            });
        }
    }
    ResourceConsumption {
        owner_id: owner.clone(),
        product_id: "kubernetes",
        region_id: "eu-fr-1",
        resource_id: consumption.cluster.id,
        since: hours.since.to_rfc3339(),
        until: hours.until.to_rfc3339(),
        version: 1,
        consumptions,
    }
}

async fn list(
    State(clever): State<Clever>,
    _: Machine,
    Path(owner): Path<String>,
    parameters: Parameters,
) -> Result<Json<Vec<ResourceConsumption>>, ApiError> {
    let owner = organisation::known(&clever, &owner)?;
    let hours = Hours::of(&parameters)?;
    let wanted: Vec<ClusterId> = parameters.parse_all("resourceId")?;
    let platform = &clever.platform;
    let mut found = platform
        .consumptions(&owner, hours.since, hours.until)
        .await?;
    found.retain(|it| wanted.is_empty() || wanted.contains(&it.cluster.id));
    let lines: usize = found.iter().map(|it| 2 * it.items.len()).sum();
    let lines = i64::try_from(lines).unwrap_or(i64::MAX);
    if hours.count().saturating_mul(lines) > MOST_QUANTITIES {
        let reason = format!("More than {MOST_QUANTITIES} quantities: ask for a shorter time");
        return Err(ApiError::bad_request(reason));
    }
    let bodies = found.into_iter().map(|it| body(&owner, hours, it));
    Ok(Json(bodies.collect()))
}

#[derive(Debug, Serialize)]
struct ResourceInfo {
    name: String,
}

async fn name(
    State(clever): State<Clever>,
    _: Machine,
    Path((owner, resource)): Path<(String, String)>,
) -> Result<Json<ResourceInfo>, ApiError> {
    let owner = organisation::known(&clever, &owner)?;
    let id: ClusterId = resource
        .parse()
        .map_err(|error: crate::platform::InvalidId| {
            ApiError::invalid_field("resourceId", resource.as_str(), error.to_string())
        })?;
    let view = clever.platform.get_cluster(&owner, &id).await;
    let view = view.map_err(|error| match error {
        crate::platform::PlatformError::ClusterNotFound(_) => {
            ApiError::resource_not_found(CLUSTER, id.as_str())
        }
        other => other.into(),
    })?;
    Ok(Json(ResourceInfo {
        name: view.cluster.name,
    }))
}
