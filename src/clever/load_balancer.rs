//! Load balancers of Services: `/v4/loadbalancers/organisations/{owner}`; `contracts/cke-models.md` 10.1.
//!
//! Each belongs to a Kubernetes cluster, its parent resource. Those in front of the clusters' API servers are
//! the platform's own, and shown with their clusters.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::authentication::Actor;
use crate::clever::error::{ApiError, CLUSTER, LOAD_BALANCER};
use crate::clever::transport::{Json, JsonBody};
use crate::platform::catalog::LOCATION;
use crate::platform::load_balancer::{
    Configuration, CreateLoadBalancer, FLAVOR, Listener, Pool, ServiceLoadBalancer, Transport,
};
use crate::platform::model::{ClusterId, OwnerId};

pub fn routes() -> Router<Clever> {
    Router::new()
        .route(
            "/v4/loadbalancers/organisations/{owner}/loadbalancers",
            get(list),
        )
        .route(
            "/v4/loadbalancers/organisations/{owner}/parents/{parent}",
            get(list_of_parent),
        )
        .route(
            "/v4/loadbalancers/organisations/{owner}/regions/{region}/loadbalancers",
            get(list_of_region).post(create),
        )
        .route(
            "/v4/loadbalancers/organisations/{owner}/regions/{region}/loadbalancers/{id}",
            get(read).delete(remove),
        )
        .route(
            "/v4/loadbalancers/organisations/{owner}/regions/{region}/loadbalancers/{id}/configuration",
            get(read_configuration).put(configure),
        )
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerBody {
    pub id: String,
    pub owner_id: OwnerId,
    pub region_id: String,
    pub flavor: String,
    pub domain_name: String,
    /// Two, once it is served.
    pub ips: Vec<String>,
    pub listeners: Vec<Listener>,
    pub clusters: Vec<PoolBody>,
    pub co_owners: Vec<OwnerId>,
    pub created_at: String,
    /// Being deleted.
    pub frozen: bool,
    /// The fleet is shared.
    pub mutualized: bool,
    pub tags: Vec<String>,
    /// Absent until it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_config_version: Option<u64>,
    pub loadbalancer_parent_resource_id: ClusterId,
}

/// Where connections go: a "cluster" in the words of the API.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolBody {
    pub id: String,
    pub owner_id: OwnerId,
    pub backends: Backends,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Backends {
    pub servers: Vec<String>,
    pub transport: Transport,
}

fn pools(owner: &OwnerId, pools: Vec<Pool>) -> Vec<PoolBody> {
    pools
        .into_iter()
        .map(|pool| PoolBody {
            id: pool.id,
            owner_id: owner.clone(),
            backends: Backends {
                servers: pool.servers,
                transport: pool.transport,
            },
        })
        .collect()
}

impl From<ServiceLoadBalancer> for LoadBalancerBody {
    fn from(found: ServiceLoadBalancer) -> Self {
        let served = !found.ips.is_empty();
        LoadBalancerBody {
            id: found.id,
            region_id: found.region,
            flavor: found.flavor,
            domain_name: found.domain_name,
            ips: found.ips,
            listeners: found.configuration.listeners,
            clusters: pools(&found.owner, found.configuration.pools),
            co_owners: Vec::new(),
            created_at: found.created_at.to_rfc3339(),
            frozen: found.deleting,
            mutualized: true,
            tags: found.tags,
            applied_config_version: served.then_some(found.configuration_version),
            loadbalancer_parent_resource_id: found.cluster,
            owner_id: found.owner,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ConfigurationBody {
    pub listeners: Vec<Listener>,
    pub clusters: Vec<PoolBody>,
    pub version: u64,
}

impl From<ServiceLoadBalancer> for ConfigurationBody {
    fn from(found: ServiceLoadBalancer) -> Self {
        ConfigurationBody {
            listeners: found.configuration.listeners,
            clusters: pools(&found.owner, found.configuration.pools),
            version: found.configuration_version,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct WantedConfiguration {
    listeners: Option<Vec<Listener>>,
    clusters: Option<Vec<WantedPool>>,
}

#[derive(Debug, Deserialize)]
struct WantedPool {
    id: String,
    backends: Backends,
}

impl WantedConfiguration {
    fn configuration(self) -> Configuration {
        let pools = self.clusters.unwrap_or_default().into_iter();
        Configuration {
            listeners: self.listeners.unwrap_or_default(),
            pools: pools
                .map(|pool| Pool {
                    id: pool.id,
                    transport: pool.backends.transport,
                    servers: pool.backends.servers,
                })
                .collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Creation {
    flavor: Option<String>,
    configuration: Option<WantedConfiguration>,
    loadbalancer_parent_resource_id: Option<String>,
    tags: Option<Vec<String>>,
}

impl Creation {
    fn request(self) -> Result<CreateLoadBalancer, ApiError> {
        let parent = self.loadbalancer_parent_resource_id.unwrap_or_default();
        if parent.is_empty() {
            return Err(ApiError::invalid_field(
                "loadbalancerParentResourceId",
                parent,
                "A load balancer belongs to a Kubernetes cluster",
            ));
        }
        let cluster = parent
            .parse()
            .map_err(|_| ApiError::resource_not_found(CLUSTER, &parent))?;
        Ok(CreateLoadBalancer {
            cluster,
            flavor: self.flavor.unwrap_or_else(|| FLAVOR.to_owned()),
            tags: self.tags.unwrap_or_default(),
            configuration: self.configuration.unwrap_or_default().configuration(),
        })
    }
}

/// What who asks can see.
async fn reachable(clever: &Clever, actor: &Actor) -> Result<Vec<ServiceLoadBalancer>, ApiError> {
    let mut found = clever.platform.list_load_balancers(&actor.owner).await?;
    found.retain(|one| actor.may_reach(&one.cluster));
    Ok(found)
}

async fn list(
    State(clever): State<Clever>,
    actor: Actor,
) -> Result<Json<Vec<LoadBalancerBody>>, ApiError> {
    let found = reachable(&clever, &actor).await?;
    Ok(Json(found.into_iter().map(Into::into).collect()))
}

async fn list_of_parent(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, parent)): Path<(String, String)>,
) -> Result<Json<Vec<LoadBalancerBody>>, ApiError> {
    let found = match parent.parse() {
        // A cluster's own components ask so: what others have is not looked through for them.
        Ok(cluster) if actor.may_reach(&cluster) => {
            let owner = &actor.owner;
            clever.platform.load_balancers_of(owner, &cluster).await?
        }
        Ok(_) => Vec::new(),
        Err(_) => {
            let mut found = reachable(&clever, &actor).await?;
            found.retain(|one| one.region == parent);
            found
        }
    };
    Ok(Json(found.into_iter().map(Into::into).collect()))
}

async fn list_of_region(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, region)): Path<(String, String)>,
) -> Result<Json<Vec<LoadBalancerBody>>, ApiError> {
    let mut found = reachable(&clever, &actor).await?;
    found.retain(|one| one.region == region);
    Ok(Json(found.into_iter().map(Into::into).collect()))
}

async fn create(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, region)): Path<(String, String)>,
    JsonBody(creation): JsonBody<Creation>,
) -> Result<(StatusCode, Json<LoadBalancerBody>), ApiError> {
    if region != LOCATION {
        let reason = format!("Load balancers of Kubernetes clusters are in {LOCATION}");
        return Err(ApiError::invalid_field("regionId", region, reason));
    }
    let request = creation.request()?;
    if !actor.may_reach(&request.cluster) {
        let id = request.cluster.as_str();
        return Err(ApiError::resource_not_found(CLUSTER, id));
    }
    let created = clever
        .platform
        .create_load_balancer(&actor.owner, request)
        .await?;
    Ok((StatusCode::CREATED, Json(created.into())))
}

/// The owner's load balancer of that id, in that region, if who asks can see it.
async fn find(
    clever: &Clever,
    actor: &Actor,
    region: &str,
    id: &str,
) -> Result<ServiceLoadBalancer, ApiError> {
    let found = clever.platform.get_load_balancer(&actor.owner, id).await?;
    if found.region == region && actor.may_reach(&found.cluster) {
        return Ok(found);
    }
    Err(ApiError::resource_not_found(LOAD_BALANCER, id))
}

async fn read(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, region, id)): Path<(String, String, String)>,
) -> Result<Json<LoadBalancerBody>, ApiError> {
    Ok(Json(find(&clever, &actor, &region, &id).await?.into()))
}

async fn remove(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, region, id)): Path<(String, String, String)>,
) -> Result<Json<LoadBalancerBody>, ApiError> {
    find(&clever, &actor, &region, &id).await?;
    let going = clever
        .platform
        .delete_load_balancer(&actor.owner, &id)
        .await?;
    Ok(Json(going.into()))
}

async fn read_configuration(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, region, id)): Path<(String, String, String)>,
) -> Result<Json<ConfigurationBody>, ApiError> {
    Ok(Json(find(&clever, &actor, &region, &id).await?.into()))
}

async fn configure(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, region, id)): Path<(String, String, String)>,
    JsonBody(wanted): JsonBody<WantedConfiguration>,
) -> Result<Json<ConfigurationBody>, ApiError> {
    find(&clever, &actor, &region, &id).await?;
    let configured = clever
        .platform
        .configure_load_balancer(&actor.owner, &id, wanted.configuration())
        .await?;
    Ok(Json(configured.into()))
}
