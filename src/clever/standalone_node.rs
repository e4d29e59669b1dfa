//! Standalone nodes: `…/clusters/{cluster}/nodes`, and how a cluster shows them; `contracts/cke-models.md` 6.8.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::get;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::cluster::{OwnedCluster, path_parameter};
use crate::clever::error::{ApiError, NODE};
use crate::clever::transport::{Json, JsonBody};
use crate::platform::model::{
    ClusterId, Flavor, NodeGroup, NodeGroupId, NodeGroupStatus, NodeStatus, OwnerId, Taint,
};
use crate::platform::standalone_nodes::{self, CreateStandaloneNode};

pub fn routes() -> Router<Clever> {
    Router::new()
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/nodes",
            get(list).post(create),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/nodes/{node}",
            get(read).delete(remove),
        )
}

/// The owner, the cluster and the node in the path.
struct OwnedNode {
    owner: OwnerId,
    cluster: ClusterId,
    node: NodeGroupId,
}

impl FromRequestParts<Clever> for OwnedNode {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let OwnedCluster { owner, cluster } =
            OwnedCluster::from_request_parts(parts, clever).await?;
        let id = path_parameter(parts, "node").await?;
        let node = id
            .parse()
            .map_err(|_| ApiError::resource_not_found(NODE, &id))?;
        Ok(OwnedNode {
            owner,
            cluster,
            node,
        })
    }
}

/// A standalone node on the wire. Its id is that of the group of one that it is kept as.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StandaloneNodeBody {
    id: NodeGroupId,
    cluster_id: ClusterId,
    name: String,
    description: Option<String>,
    tag: Option<String>,
    flavor: Flavor,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    status: NodeStatus,
}

impl From<NodeGroup> for StandaloneNodeBody {
    fn from(group: NodeGroup) -> Self {
        StandaloneNodeBody {
            status: standalone_nodes::status(&group),
            id: group.id,
            cluster_id: group.cluster,
            name: group.name,
            description: group.description,
            tag: group.tag,
            flavor: group.flavor,
            labels: group.labels,
            taints: group.taints,
        }
    }
}

/// A standalone node inside a cluster's body.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStandaloneNode {
    pub id: NodeGroupId,
    pub name: String,
    pub status: NodeGroupStatus,
    pub flavor: Flavor,
    pub current_node_count: u32,
    pub target_node_count: u32,
}

impl From<NodeGroup> for ClusterStandaloneNode {
    fn from(group: NodeGroup) -> Self {
        ClusterStandaloneNode {
            id: group.id,
            name: group.name,
            status: group.status,
            flavor: group.flavor,
            current_node_count: group.current_node_count,
            target_node_count: group.target_node_count,
        }
    }
}

/// A request for a node. Every optional value may also be `null`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeCreation {
    name: String,
    flavor: Flavor,
    description: Option<String>,
    tag: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    taints: Option<Vec<Taint>>,
}

async fn list(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
) -> Result<Json<Vec<StandaloneNodeBody>>, ApiError> {
    let nodes = clever
        .platform
        .list_standalone_nodes(&owner, &cluster)
        .await?;
    Ok(Json(nodes.into_iter().map(Into::into).collect()))
}

async fn create(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
    JsonBody(creation): JsonBody<NodeCreation>,
) -> Result<(StatusCode, Json<StandaloneNodeBody>), ApiError> {
    let request = CreateStandaloneNode {
        name: creation.name,
        description: creation.description,
        tag: creation.tag,
        flavor: creation.flavor,
        labels: creation.labels.unwrap_or_default(),
        taints: creation.taints.unwrap_or_default(),
    };
    let made = clever
        .platform
        .create_standalone_node(&owner, &cluster, request)
        .await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

async fn read(
    State(clever): State<Clever>,
    OwnedNode {
        owner,
        cluster,
        node,
    }: OwnedNode,
) -> Result<Json<StandaloneNodeBody>, ApiError> {
    let found = clever.platform.get_standalone_node(&owner, &cluster, &node);
    Ok(Json(found.await?.into()))
}

async fn remove(
    State(clever): State<Clever>,
    OwnedNode {
        owner,
        cluster,
        node,
    }: OwnedNode,
) -> Result<Json<StandaloneNodeBody>, ApiError> {
    let gone = clever
        .platform
        .delete_standalone_node(&owner, &cluster, &node);
    Ok(Json(gone.await?.into()))
}
