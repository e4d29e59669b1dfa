//! `GET /v4/kubernetes-product`, public: what can be created. The CLI validates against it.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::transport::Json;
use crate::platform::model::{Flavor, TopologyKind};

pub fn routes() -> Router<Clever> {
    Router::new().route("/v4/kubernetes-product", get(get_product))
}

#[derive(Debug, Serialize)]
pub struct Product {
    pub topologies: Vec<TopologyConstraints>,
    pub versions: Versions,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopologyConstraints {
    pub topology: TopologyKind,
    pub available_flavors: Vec<Flavor>,
    pub replication_factor: ReplicationFactor,
}

#[derive(Debug, Serialize)]
pub struct ReplicationFactor {
    pub min: u8,
    pub max: u8,
}

#[derive(Debug, Serialize)]
pub struct Versions {
    pub available: Vec<String>,
    pub default: String,
}

async fn get_product(State(clever): State<Clever>) -> Json<Product> {
    let catalog = clever.platform.catalog();
    let topologies = catalog
        .topologies()
        .into_iter()
        .map(|offer| TopologyConstraints {
            topology: offer.topology,
            available_flavors: offer.flavors.to_vec(),
            replication_factor: ReplicationFactor {
                min: *offer.replication_factor.start(),
                max: *offer.replication_factor.end(),
            },
        })
        .collect();
    Json(Product {
        topologies,
        versions: Versions {
            available: catalog.versions(),
            default: catalog.default_version(),
        },
    })
}
