//! What clusters of any shape cost, before they exist; what it costs to change one; the cheapest that will
//! do.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::organisation;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};
use crate::clock::Timestamp;
use crate::platform::cheapest::{self, MOST, Wanted};
use crate::platform::model::{Flavor, Topology, TopologyKind};
use crate::platform::pricing::{self, CURRENCY, Quote};
use crate::platform::quota::Resources;
use crate::platform::rates::Rates;
use crate::platform::shape::{NodeGroupShape, Shape};
use crate::platform::validation;
use crate::platform::what_if::{self, Difference};

/// Shapes that can be quoted at once.
const MOST_SHAPES: usize = 100;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::post(
            "/_sim/price",
            "What a cluster of a shape costs; or of several, side by side, and how each differs from the first",
        )
        .takes::<PriceRequest>()
        .answers::<PriceAnswer>(),
        price,
    )
    .add(
        Operation::post(
            "/_sim/price/cheapest",
            "The cheapest shape that has what is asked for",
        )
        .takes::<CheapestRequest>()
        .answers::<CheapestAnswer>(),
        cheapest,
    )
}

/// As in a creation.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ShapeBody {
    /// DEDICATED_COMPUTE, XS, 1 unless given.
    #[serde(default)]
    topology_config: Option<Topology>,
    #[serde(default)]
    node_groups: Vec<GroupBody>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct GroupBody {
    name: Option<String>,
    flavor: Flavor,
    /// 0 to 256.
    target_node_count: u32,
}

/// One shape, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct PriceRequest {
    #[serde(flatten)]
    shape: ShapeBody,
    /// Instead of one: 1 to 100.
    shapes: Option<Vec<ShapeBody>>,
    /// At the rates of this instant (RFC 3339) instead of the present ones.
    at: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum PriceAnswer {
    One(QuoteBody),
    Several(Quotes),
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct QuoteBody {
    currency: &'static str,
    taxes_included: bool,
    #[serde(flatten)]
    quote: ShapeQuote,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Quotes {
    currency: &'static str,
    taxes_included: bool,
    quotes: Vec<ShapeQuote>,
    /// From the first to each of the others.
    differences: Vec<Difference>,
}

/// What a shape costs, and what it is good for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ShapeQuote {
    /// As `cke price` reads it, such as `DEDICATED_COMPUTE:XS:3+web=M:3`.
    shape: String,
    #[serde(flatten)]
    quote: Quote,
    /// What counts against the quota.
    resources: Resources,
    /// What its nodes have together.
    capacity: Resources,
    /// What of that is certain to be left when any one datacenter is lost.
    capacity_after_loss: Resources,
    /// Whether the control plane goes on when any one datacenter is lost.
    survives_a_datacenter: bool,
}

impl ShapeQuote {
    fn new(shape: &Shape, quote: Quote) -> ShapeQuote {
        ShapeQuote {
            shape: shape.to_string(),
            quote,
            resources: shape.resources(),
            capacity: shape.capacity(),
            capacity_after_loss: shape.capacity_after_loss(),
            survives_a_datacenter: shape.survives_a_datacenter(),
        }
    }
}

fn shape_of(body: ShapeBody, field: &str) -> Result<Shape, ApiError> {
    let topology = body.topology_config;
    let topology = topology.unwrap_or(validation::DEFAULT_TOPOLOGY);
    let groups = body.node_groups.into_iter().map(|group| NodeGroupShape {
        name: group.name,
        flavor: group.flavor,
        count: group.target_node_count,
    });
    let shape = Shape::new(topology, groups.collect());
    shape.check(field)?;
    Ok(shape)
}

/// An instant in a field; `None` if it is absent.
pub fn instant(field: &str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| ApiError::invalid_field(field, text, error.to_string()))?;
    let ms = at.unix_timestamp_nanos().div_euclid(1_000_000);
    // Years have four digits.
    Ok(i64::try_from(ms).ok().map(Timestamp))
}

fn rates(clever: &Clever, at: Option<&str>) -> Result<Rates, ApiError> {
    Ok(clever.platform.rates(instant("at", at)?))
}

async fn price(
    State(clever): State<Clever>,
    JsonBody(request): JsonBody<PriceRequest>,
) -> Result<Json<PriceAnswer>, ApiError> {
    let rates = rates(&clever, request.at.as_deref())?;
    let Some(shapes) = request.shapes else {
        let shape = shape_of(request.shape, "")?;
        let quote = pricing::quote(&shape, &rates);
        return Ok(Json(PriceAnswer::One(QuoteBody {
            currency: CURRENCY,
            taxes_included: false,
            quote: ShapeQuote::new(&shape, quote),
        })));
    };
    if !(1..=MOST_SHAPES).contains(&shapes.len()) {
        let reason = format!("must be 1 to {MOST_SHAPES}");
        return Err(ApiError::invalid_field(
            "shapes",
            shapes.len().to_string(),
            reason,
        ));
    }
    let mut quotes = Vec::new();
    for (index, body) in shapes.into_iter().enumerate() {
        let shape = shape_of(body, &format!("shapes[{index}]."))?;
        let quote = pricing::quote(&shape, &rates);
        quotes.push(ShapeQuote::new(&shape, quote));
    }
    let others = quotes.iter().skip(1);
    let differences = others.map(|it| what_if::difference(&quotes[0].quote, &it.quote));
    Ok(Json(PriceAnswer::Several(Quotes {
        currency: CURRENCY,
        taxes_included: false,
        differences: differences.collect(),
        quotes,
    })))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CheapestRequest {
    /// vCPU that the nodes have together, at least: up to 4096.
    #[serde(default)]
    vcpus: u64,
    /// Memory that the nodes have together, at least, in units of 1024³ bytes: up to 8192.
    #[serde(default)]
    ram_gb: u64,
    /// The control plane, and nodes with so much, are there with any one datacenter lost.
    #[serde(default)]
    survives_a_datacenter: bool,
    /// Which will do; all of them, unless given.
    topologies: Option<Vec<TopologyKind>>,
    /// Control plane and nodes have no more than this together.
    quota: Option<Resources>,
    /// Or no more than what is left of the quota of the organisation with this id.
    organisation: Option<String>,
    /// At the rates of this instant (RFC 3339) instead of the present ones.
    at: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CheapestAnswer {
    currency: &'static str,
    taxes_included: bool,
    /// `null`: nothing has what is asked for, within the quota.
    cheapest: Option<ShapeQuote>,
}

async fn cheapest(
    State(clever): State<Clever>,
    JsonBody(request): JsonBody<CheapestRequest>,
) -> Result<Json<CheapestAnswer>, ApiError> {
    let rates = rates(&clever, request.at.as_deref())?;
    let bounds = [
        ("vcpus", request.vcpus, MOST.vcpus),
        ("ramGb", request.ram_gb, MOST.ram_gb),
    ];
    for (field, asked, most) in bounds {
        if asked > most {
            let reason = format!("must be between 0 and {most}");
            return Err(ApiError::invalid_field(field, asked.to_string(), reason));
        }
    }
    let within = match (request.quota, request.organisation) {
        (Some(_), Some(organisation)) => {
            let reason = "is given together with a quota";
            return Err(ApiError::invalid_field(
                "organisation",
                organisation,
                reason,
            ));
        }
        (None, Some(organisation)) => {
            let owner = organisation::known(&clever, &organisation)?;
            Some(clever.platform.quota_left(&owner).await?)
        }
        (quota, None) => quota,
    };
    let wanted = Wanted {
        capacity: Resources {
            vcpus: request.vcpus,
            ram_gb: request.ram_gb,
        },
        survives_a_datacenter: request.survives_a_datacenter,
        within,
        topologies: request.topologies.unwrap_or(TopologyKind::ALL.to_vec()),
    };
    // Tens of milliseconds at the most: see its own sketch.
    let found = cheapest::cheapest(&wanted, &rates);
    Ok(Json(CheapestAnswer {
        currency: CURRENCY,
        taxes_included: false,
        cheapest: found.map(|(shape, quote)| ShapeQuote::new(&shape, quote)),
    }))
}
