//! Clever Cloud's REST API: the paths, bodies, states and errors that every client of Clever
//! Kubernetes Engine knows.
//!
//! One file per resource, each with its wire types and its routes; what all have in common is in
//! [`transport`] and [`authentication`]. This layer translates and guards: it knows the wire and who
//! may do what. It decides nothing about clusters, which is the platform's, and it never reaches
//! below the platform, except for its own API tokens in etcd.

pub mod account;
mod api_token;
mod authentication;
mod cli_token;
mod cluster;
mod cluster_event;
pub mod cluster_token;
mod consumption;
mod deployment_event;
pub mod error;
mod kubeconfig;
mod load_balancer;
mod node_group;
mod organisation;
mod plugin;
mod price_system;
mod product;
mod profile;
mod quota;
mod server;
mod simulation;
mod standalone_node;
mod storage;
mod summary;
mod transport;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};

use crate::clever::account::Accounts;
use crate::clever::cli_token::Grants;
use crate::clever::cluster_token::ClusterTokens;
use crate::clever::simulation::Simulation;
use crate::clever::transport::RequestIds;
use crate::clock::Clock;
use crate::etcd::client::{Client, SharedKeyspaces};
use crate::platform::Platform;

pub use server::serve;
pub use simulation::document as control_api;
pub use simulation::{
    History, NextWorld, SimulationConfig, Storage, WorldChange, WorldIs, Worlds, WriteSnapshot,
};

/// What the API stands on.
pub struct CleverConfig {
    pub platform: Platform,
    pub clock: Clock,
    pub accounts: Accounts,
    /// As what the clusters' own components ask.
    pub cluster_tokens: ClusterTokens,
    /// Where clients reach this API, such as `http://127.0.0.1:8080`; without a slash at the end.
    pub public_url: String,
    /// Where API tokens are kept; in a keyspace of their own.
    pub keyspaces: SharedKeyspaces,
    pub simulation: SimulationConfig,
}

/// What every handler can reach. Cheap to clone.
#[derive(Clone)]
struct Clever {
    platform: Platform,
    clock: Clock,
    accounts: Arc<Accounts>,
    cluster_tokens: ClusterTokens,
    public_url: Arc<str>,
    grants: Grants,
    store: Client,
    simulation: Simulation,
}

/// The whole API.
pub fn router(config: CleverConfig) -> Router {
    let request_ids = RequestIds::new(config.clock.clone());
    let simulation = Simulation::start(config.simulation, &config.platform, &config.clock);
    let clever = Clever {
        simulation,
        platform: config.platform,
        clock: config.clock,
        accounts: Arc::new(config.accounts),
        cluster_tokens: config.cluster_tokens,
        public_url: config.public_url.into(),
        grants: Grants::default(),
        store: config.keyspaces.client(api_token::KEYSPACE),
    };
    let resources = Router::new()
        .merge(profile::routes())
        .merge(summary::routes())
        .merge(cli_token::routes())
        .merge(api_token::routes())
        .merge(product::routes())
        .merge(plugin::routes())
        .merge(consumption::routes())
        .merge(price_system::routes())
        .merge(cluster::routes())
        .merge(node_group::routes())
        .merge(standalone_node::routes())
        .merge(kubeconfig::routes())
        .merge(load_balancer::routes())
        .merge(deployment_event::routes())
        .merge(cluster_event::routes())
        .merge(version::routes())
        .merge(quota::routes())
        .merge(storage::routes())
        .merge(simulation::routes())
        .fallback(transport::unknown_path)
        .method_not_allowed_fallback(transport::wrong_method)
        .layer(DefaultBodyLimit::max(transport::BODY_LIMIT_BYTES))
        .layer(from_fn(transport::outlive_the_client))
        .layer(from_fn_with_state(clever.clone(), simulation::inject))
        .layer(from_fn_with_state(clever.clone(), simulation::guard))
        .layer(from_fn_with_state(request_ids, transport::finish))
        .with_state(clever);
    Router::new().fallback_service(transport::rewriting(resources))
}
