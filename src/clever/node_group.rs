//! Node groups: `…/clusters/{cluster}/node-groups`, and how a cluster shows them.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::cluster::{ActedCluster, path_parameter};
use crate::clever::error::{ApiError, NODE_GROUP};
use crate::clever::transport::{Json, JsonBody, Parameters, nullable};
use crate::platform::model::{
    ClusterId, CreateNodeGroup, Flavor, NodeGroup, NodeGroupId, NodeGroupPatch, NodeGroupStatus,
    NodeId, NodeStatus, OwnerId, Taint,
};

pub fn routes() -> Router<Clever> {
    Router::new()
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/node-groups",
            get(list).post(create),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/node-groups/{node_group}",
            get(read).patch(update).delete(remove),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/node-groups/{node_group}/resume",
            post(resume),
        )
}

/// The owner, the cluster and the node group in the path.
struct OwnedNodeGroup {
    owner: OwnerId,
    cluster: ClusterId,
    node_group: NodeGroupId,
}

impl FromRequestParts<Clever> for OwnedNodeGroup {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let ActedCluster { owner, cluster } =
            ActedCluster::from_request_parts(parts, clever).await?;
        let id = path_parameter(parts, "node_group").await?;
        let node_group = id
            .parse()
            .map_err(|_| ApiError::resource_not_found(NODE_GROUP, &id))?;
        Ok(OwnedNodeGroup {
            owner,
            cluster,
            node_group,
        })
    }
}

/// A node group on the wire; `contracts/cke-models.md` 6.1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeGroupBody {
    pub id: NodeGroupId,
    pub cluster_id: ClusterId,
    pub name: String,
    pub description: Option<String>,
    pub tag: Option<String>,
    pub flavor: Flavor,
    pub current_node_count: u32,
    pub target_node_count: u32,
    pub min_node_count: u32,
    pub max_node_count: u32,
    pub autoscaling_enabled: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub created_at: String,
    pub updated_at: Option<String>,
    pub status: NodeGroupStatus,
}

impl From<NodeGroup> for NodeGroupBody {
    fn from(group: NodeGroup) -> Self {
        NodeGroupBody {
            id: group.id,
            cluster_id: group.cluster,
            name: group.name,
            description: group.description,
            tag: group.tag,
            flavor: group.flavor,
            current_node_count: group.current_node_count,
            target_node_count: group.target_node_count,
            min_node_count: group.min_node_count,
            max_node_count: group.max_node_count,
            autoscaling_enabled: group.autoscaling_enabled,
            labels: group.labels,
            taints: group.taints,
            created_at: group.created_at.to_rfc3339(),
            updated_at: group.updated_at.map(|at| at.to_rfc3339()),
            status: group.status,
        }
    }
}

/// A node group inside a cluster's body.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNodeGroup {
    pub id: NodeGroupId,
    pub name: String,
    pub status: NodeGroupStatus,
    pub flavor: Flavor,
    pub current_node_count: u32,
    pub target_node_count: u32,
    pub nodes: Vec<ClusterNode>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNode {
    pub id: NodeId,
    pub name: String,
    pub status: NodeStatus,
    pub v_cpus: u32,
    pub ram_bytes: u64,
}

impl ClusterNodeGroup {
    pub fn of(group: NodeGroup) -> ClusterNodeGroup {
        let size = group.flavor.size();
        let nodes = group
            .nodes
            .into_iter()
            .map(|node| ClusterNode {
                id: node.id,
                name: node.name,
                status: node.status,
                v_cpus: size.vcpus,
                ram_bytes: u64::from(size.ram_gb) << 30,
            })
            .collect();
        ClusterNodeGroup {
            id: group.id,
            name: group.name,
            status: group.status,
            flavor: group.flavor,
            current_node_count: group.current_node_count,
            target_node_count: group.target_node_count,
            nodes,
        }
    }
}

/// A request for a node group. Every optional value may also be `null`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeGroupCreation {
    name: String,
    flavor: Flavor,
    target_node_count: u32,
    description: Option<String>,
    tag: Option<String>,
    min_node_count: Option<u32>,
    max_node_count: Option<u32>,
    autoscaling_enabled: Option<bool>,
    labels: Option<BTreeMap<String, String>>,
    taints: Option<Vec<Taint>>,
}

impl NodeGroupCreation {
    pub fn request(self) -> CreateNodeGroup {
        CreateNodeGroup {
            name: self.name,
            description: self.description,
            tag: self.tag,
            flavor: self.flavor,
            target_node_count: self.target_node_count,
            min_node_count: self.min_node_count,
            max_node_count: self.max_node_count,
            autoscaling_enabled: self.autoscaling_enabled,
            labels: self.labels.unwrap_or_default(),
            taints: self.taints.unwrap_or_default(),
        }
    }
}

/// Not a true partial change: without `name` or `targetNodeCount` it is refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeGroupPatchBody {
    name: String,
    target_node_count: u32,
    #[serde(default, deserialize_with = "nullable")]
    description: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    tag: Option<Option<String>>,
    min_node_count: Option<u32>,
    max_node_count: Option<u32>,
    autoscaling_enabled: Option<bool>,
}

impl NodeGroupPatchBody {
    fn patch(self) -> NodeGroupPatch {
        NodeGroupPatch {
            name: self.name,
            target_node_count: self.target_node_count,
            description: self.description,
            tag: self.tag,
            min_node_count: self.min_node_count,
            max_node_count: self.max_node_count,
            autoscaling_enabled: self.autoscaling_enabled,
        }
    }
}

/// Without a filter everything but DELETED, as for clusters: the CLI does not filter this list.
async fn list(
    State(clever): State<Clever>,
    ActedCluster { owner, cluster }: ActedCluster,
    parameters: Parameters,
) -> Result<Json<Vec<NodeGroupBody>>, ApiError> {
    let statuses: Vec<NodeGroupStatus> = parameters.parse_all("status")?;
    let groups = clever
        .platform
        .list_node_groups(&owner, &cluster, &statuses)
        .await?;
    Ok(Json(groups.into_iter().map(NodeGroupBody::from).collect()))
}

async fn create(
    State(clever): State<Clever>,
    ActedCluster { owner, cluster }: ActedCluster,
    JsonBody(creation): JsonBody<NodeGroupCreation>,
) -> Result<(StatusCode, Json<NodeGroupBody>), ApiError> {
    let group = clever
        .platform
        .create_node_group(&owner, &cluster, creation.request())
        .await?;
    Ok((StatusCode::CREATED, Json(group.into())))
}

async fn read(
    State(clever): State<Clever>,
    OwnedNodeGroup {
        owner,
        cluster,
        node_group,
    }: OwnedNodeGroup,
) -> Result<Json<NodeGroupBody>, ApiError> {
    let group = clever
        .platform
        .get_node_group(&owner, &cluster, &node_group)
        .await?;
    Ok(Json(group.into()))
}

async fn update(
    State(clever): State<Clever>,
    OwnedNodeGroup {
        owner,
        cluster,
        node_group,
    }: OwnedNodeGroup,
    JsonBody(patch): JsonBody<NodeGroupPatchBody>,
) -> Result<Json<NodeGroupBody>, ApiError> {
    let group = clever
        .platform
        .update_node_group(&owner, &cluster, &node_group, patch.patch())
        .await?;
    Ok(Json(group.into()))
}

async fn remove(
    State(clever): State<Clever>,
    OwnedNodeGroup {
        owner,
        cluster,
        node_group,
    }: OwnedNodeGroup,
) -> Result<Json<NodeGroupBody>, ApiError> {
    let group = clever
        .platform
        .delete_node_group(&owner, &cluster, &node_group)
        .await?;
    Ok(Json(group.into()))
}

async fn resume(
    State(clever): State<Clever>,
    OwnedNodeGroup {
        owner,
        cluster,
        node_group,
    }: OwnedNodeGroup,
) -> Result<Json<NodeGroupBody>, ApiError> {
    let group = clever
        .platform
        .resume_node_group(&owner, &cluster, &node_group)
        .await?;
    Ok(Json(group.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_needs_name_and_target() {
        let check = |text: &str, expect: Option<&str>| {
            let error = serde_json::from_str::<NodeGroupPatchBody>(text).err();
            match (error, expect) {
                (None, None) => {}
                (Some(error), Some(expect)) => {
                    assert!(error.to_string().contains(expect), "{error}");
                }
                (error, _) => panic!("{text}: {error:?}"),
            }
        };
        check(r#"{"name":"a","targetNodeCount":1}"#, None);
        check(
            r#"{"name":"a","targetNodeCount":1,"tag":null,"minNodeCount":null}"#,
            None,
        );
        check(r#"{"targetNodeCount":1}"#, Some("missing field `name`"));
        check(r#"{"name":"a"}"#, Some("missing field `targetNodeCount`"));
        check(
            r#"{"name":"a","targetNodeCount":1.5}"#,
            Some("invalid type"),
        );
    }

    #[test]
    fn creations_of_every_client_are_understood() {
        let check = |text: &str, expect: CreateNodeGroup| {
            let creation: NodeGroupCreation = serde_json::from_str(text).expect(text);
            assert_eq!(creation.request(), expect, "{text}");
        };
        let minimal = CreateNodeGroup::new("workers", Flavor::Xs, 3);
        check(
            r#"{"name":"workers","flavor":"XS","targetNodeCount":3}"#,
            minimal.clone(),
        );
        check(
            r#"{"name":"workers","flavor":"XS","targetNodeCount":3,"minNodeCount":3,"maxNodeCount":3,"labels":{},"taints":null}"#,
            CreateNodeGroup {
                min_node_count: Some(3),
                max_node_count: Some(3),
                ..minimal
            },
        );
    }
}
