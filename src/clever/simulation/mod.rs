//! `/_sim`: control over the simulation: its clock, its faults, its whole state, and what happens in it.
//!
//! Without authentication: whoever reaches the port owns the simulation. Only a web page of somebody
//! else's must not, by way of a browser that can reach the port: see [`origin`].
//!
//! Alone in this layer it knows the cloud below the platform, for what it does there no customer can.

mod certificates;
mod clock;
mod cloud;
mod credit;
mod events;
mod history;
mod injection;
mod invoice;
mod invoice_page;
mod openapi;
mod origin;
mod price;
mod quota;
mod rates;
mod versions;
mod volumes;
mod world;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use tokio_util::sync::CancellationToken;

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::transport::Json;
use crate::clock::Clock;
use crate::infra::Cloud;
use crate::platform::Platform;
use crate::platform::invariant::Violation;

use injection::Injections;
use openapi::{Api, Operation};

pub use history::History;
pub use injection::inject;
pub use origin::guard;
pub use world::{NextWorld, Storage, WorldChange, WorldIs, Worlds, WriteSnapshot};

/// What the control API stands on.
pub struct SimulationConfig {
    pub cloud: Cloud,
    pub seed: u64,
    /// Servers that share a store have one time line, which nobody can change.
    pub shared_store: bool,
    /// Host that clients reach this server by, besides `localhost` and addresses.
    pub public_host: String,
    /// What happens in all worlds.
    pub history: History,
    /// How another world is asked for.
    pub worlds: Worlds,
    /// Faults of the REST API, as a snapshot keeps them.
    pub api_faults: serde_json::Value,
    /// Ends the streams of events, which would hold up the end of the server.
    pub shutdown: CancellationToken,
}

/// The control API's own state. Cheap to clone.
#[derive(Clone)]
pub struct Simulation {
    inner: Arc<Inner>,
}

struct Inner {
    cloud: Cloud,
    seed: u64,
    shared_store: bool,
    public_host: String,
    shutdown: CancellationToken,
    worlds: Worlds,
    history: History,
    injections: Injections,
    document: serde_json::Value,
}

impl Simulation {
    /// Follows what happens from now on.
    pub fn start(config: SimulationConfig, platform: &Platform, clock: &Clock) -> Simulation {
        let history = config.history;
        history.follow(&config.cloud, platform, clock);
        Simulation {
            inner: Arc::new(Inner {
                cloud: config.cloud,
                seed: config.seed,
                shared_store: config.shared_store,
                public_host: config.public_host,
                shutdown: config.shutdown,
                worlds: config.worlds,
                history,
                injections: Injections::restored(config.seed, &config.api_faults),
                document: document(),
            }),
        }
    }
}

pub fn routes() -> Router<Clever> {
    api().router()
}

/// The OpenAPI document of the control API.
pub fn document() -> serde_json::Value {
    api().document()
}

/// Every operation, with what is documented of it.
fn api() -> Api {
    let api = Api::default()
        .add(
            Operation::get("/_sim/openapi.json", "This document").answers::<serde_json::Value>(),
            get_document,
        )
        .add(
            Operation::get(
                "/_sim/invariants",
                "What is wrong with the platform's state: nothing, at rest",
            )
            .answers::<Vec<Violation>>(),
            get_invariants,
        );
    let api = clock::operations(api);
    let api = events::operations(api);
    let api = injection::operations(api);
    let api = versions::operations(api);
    let api = certificates::operations(api);
    let api = world::operations(api);
    let api = quota::operations(api);
    let api = price::operations(api);
    let api = rates::operations(api);
    let api = invoice::operations(api);
    let api = credit::operations(api);
    let api = volumes::operations(api);
    cloud::operations(api)
}

async fn get_document(State(clever): State<Clever>) -> Json<serde_json::Value> {
    Json(clever.simulation.inner.document.clone())
}

async fn get_invariants(State(clever): State<Clever>) -> Result<Json<Vec<Violation>>, ApiError> {
    Ok(Json(clever.platform.check_invariants().await?))
}
