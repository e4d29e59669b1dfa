//! `POST /_sim/price`: what a cluster of any shape costs, before it exists.

use axum::Router;
use axum::routing::post;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, JsonBody};
use crate::platform::model::{Flavor, Topology};
use crate::platform::pricing::{self, CURRENCY, Quote, QuotedGroup};
use crate::platform::validation;

/// Groups of a shape: more than any quota allows of one node each.
const MOST_GROUPS: usize = 1000;

pub fn routes() -> Router<Clever> {
    Router::new().route("/_sim/price", post(quote))
}

/// As in a creation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    topology_config: Option<Topology>,
    #[serde(default)]
    node_groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: Option<String>,
    flavor: Flavor,
    target_node_count: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct QuoteBody {
    currency: &'static str,
    taxes_included: bool,
    #[serde(flatten)]
    quote: Quote,
}

async fn quote(JsonBody(shape): JsonBody<Shape>) -> Result<Json<QuoteBody>, ApiError> {
    let topology = shape
        .topology_config
        .unwrap_or(validation::DEFAULT_TOPOLOGY);
    validation::topology_fits("topologyConfig", &topology)?;
    if shape.node_groups.len() > MOST_GROUPS {
        let reason = format!("at most {MOST_GROUPS} can be quoted at once");
        let groups = shape.node_groups.len().to_string();
        return Err(ApiError::invalid_field("nodeGroups", groups, reason));
    }
    let mut groups = Vec::new();
    for (index, group) in shape.node_groups.into_iter().enumerate() {
        let field = format!("nodeGroups[{index}].");
        let most = validation::MAX_NODES;
        validation::node_counts(&field, group.target_node_count, 0, most)?;
        groups.push(QuotedGroup {
            name: group.name,
            flavor: group.flavor,
            count: group.target_node_count,
        });
    }
    Ok(Json(QuoteBody {
        currency: CURRENCY,
        taxes_included: false,
        quote: pricing::quote(&topology, &groups),
    }))
}
