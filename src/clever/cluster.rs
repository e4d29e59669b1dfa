//! Clusters: `/v4/kubernetes/organisations/{owner}/clusters`.
//!
//! The wire differs from the domain in a few old habits: the owner is `tenantId`, the creation time
//! is `creationDate`, optional values are `null` rather than absent, and `features.csi` is `null`,
//! never `false`: the CLI takes its presence for "enabled".

use axum::Router;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::authentication::{Actor, Owner};
use crate::clever::error::{ApiError, CLUSTER};
use crate::clever::node_group::{ClusterNodeGroup, NodeGroupCreation};
use crate::clever::standalone_node::ClusterStandaloneNode;
use crate::clever::transport::{Json, JsonBody, OptionalJsonBody, Parameters, nullable};
use crate::platform::model::{
    ClusterId, ClusterPatch, ClusterStatus, ClusterView, CreateCluster, Features, FeaturesPatch,
    LoadBalancer, NodeGroupStatus, OwnerId, Topology,
};
use crate::platform::redeployment::Hooks;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters",
            get(list).post(create),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}",
            get(read).patch(update).delete(remove),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/csi/ceph",
            post(add_persistent_storage),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/resume",
            post(resume),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/redeploy",
            post(redeploy),
        )
}

/// The owner and the cluster in the path. Whether the owner has such a cluster is the platform's to
/// say; an id that cannot exist is unknown.
pub struct OwnedCluster {
    pub owner: OwnerId,
    pub cluster: ClusterId,
}

impl FromRequestParts<Clever> for OwnedCluster {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let owner = Owner::from_request_parts(parts, clever).await?;
        let id = path_parameter(parts, "cluster").await?;
        let cluster = id
            .parse()
            .map_err(|_| ApiError::resource_not_found(CLUSTER, &id))?;
        Ok(OwnedCluster {
            owner: owner.id,
            cluster,
        })
    }
}

/// As [`OwnedCluster`], but a component of the cluster may ask as well.
pub struct ActedCluster {
    pub owner: OwnerId,
    pub cluster: ClusterId,
}

impl FromRequestParts<Clever> for ActedCluster {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let actor = Actor::from_request_parts(parts, clever).await?;
        let id = path_parameter(parts, "cluster").await?;
        let unknown = || ApiError::resource_not_found(CLUSTER, &id);
        let cluster: ClusterId = id.parse().map_err(|_| unknown())?;
        if !actor.may_reach(&cluster) {
            return Err(unknown());
        }
        Ok(ActedCluster {
            owner: actor.owner,
            cluster,
        })
    }
}

pub async fn path_parameter(parts: &mut Parts, name: &str) -> Result<String, ApiError> {
    let parameters = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let found = parameters.iter().find(|(known, _)| *known == name);
    Ok(found.map(|(_, value)| value.to_owned()).unwrap_or_default())
}

/// A cluster on the wire; `contracts/cke-models.md` 4.1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBody {
    pub id: ClusterId,
    pub tenant_id: OwnerId,
    pub name: String,
    pub description: Option<String>,
    pub tags: Vec<String>,
    pub status: ClusterStatus,
    pub creation_date: String,
    pub version: String,
    pub topology_config: Topology,
    pub location_id: String,
    pub features: FeaturesBody,
    pub node_groups: Vec<ClusterNodeGroup>,
    pub standalone_node_groups: Vec<ClusterStandaloneNode>,
    pub load_balancers: Vec<LoadBalancer>,
    pub storage_usage_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FeaturesBody {
    /// `null` when off, not `false`.
    pub csi: Option<bool>,
    pub registries: Option<String>,
    pub autoscaling_enabled: bool,
}

impl From<Features> for FeaturesBody {
    fn from(features: Features) -> Self {
        FeaturesBody {
            csi: features.csi.then_some(true),
            registries: features.registries,
            autoscaling_enabled: features.autoscaling_enabled,
        }
    }
}

impl From<ClusterView> for ClusterBody {
    fn from(view: ClusterView) -> Self {
        let cluster = view.cluster;
        let (standalone, groups): (Vec<_>, Vec<_>) = view
            .node_groups
            .into_iter()
            .filter(|group| group.status != NodeGroupStatus::Deleted)
            .partition(|group| group.standalone);
        ClusterBody {
            id: cluster.id,
            tenant_id: cluster.owner,
            name: cluster.name,
            description: cluster.description,
            tags: cluster.tags,
            status: cluster.status,
            creation_date: cluster.created_at.to_rfc3339(),
            version: cluster.version,
            topology_config: cluster.topology,
            location_id: cluster.location,
            features: cluster.features.into(),
            node_groups: groups.into_iter().map(ClusterNodeGroup::of).collect(),
            standalone_node_groups: standalone.into_iter().map(Into::into).collect(),
            load_balancers: cluster.load_balancer.into_iter().collect(),
            storage_usage_bytes: cluster.storage_usage_bytes,
        }
    }
}

/// A request for a cluster. Every optional value may also be `null`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterCreation {
    name: String,
    version: Option<String>,
    description: Option<String>,
    tags: Option<Vec<String>>,
    #[serde(default, deserialize_with = "topology")]
    topology_config: Option<Topology>,
    location_id: Option<String>,
    network_group_id: Option<String>,
    features: Option<FeaturesCreation>,
    node_groups: Option<Vec<NodeGroupCreation>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FeaturesCreation {
    csi: Option<bool>,
    registries: Option<String>,
    autoscaling_enabled: Option<bool>,
    node_autoprovisioning: Option<bool>,
}

/// The tag of a topology is `topology`; the Go client's generated types call it
/// `topologyDiscriminator`.
fn topology<'de, D>(deserializer: D) -> Result<Option<Topology>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let mut value = serde_json::Value::deserialize(deserializer)?;
    if value.is_null() {
        return Ok(None);
    }
    if let Some(object) = value.as_object_mut()
        && !object.contains_key("topology")
        && let Some(tag) = object.remove("topologyDiscriminator")
    {
        object.insert(String::from("topology"), tag);
    }
    serde_json::from_value(value)
        .map(Some)
        .map_err(|error| serde::de::Error::custom(format!("topologyConfig: {error}")))
}

/// Managed Karpenter is a newer feature than this platform's.
fn refuse_autoprovisioning(requested: Option<bool>) -> Result<(), ApiError> {
    if requested == Some(true) {
        return Err(ApiError::invalid_field(
            "features.nodeAutoprovisioning",
            "true",
            "Node autoprovisioning is not available",
        ));
    }
    Ok(())
}

impl ClusterCreation {
    fn request(self) -> Result<CreateCluster, ApiError> {
        let features = self.features.unwrap_or_default();
        refuse_autoprovisioning(features.node_autoprovisioning)?;
        Ok(CreateCluster {
            name: self.name,
            version: self.version,
            description: self.description,
            tags: self.tags.unwrap_or_default(),
            topology: self.topology_config,
            location: self.location_id,
            network_group_id: self.network_group_id,
            features: Features {
                autoscaling_enabled: features.autoscaling_enabled.unwrap_or(false),
                csi: features.csi.unwrap_or(false),
                registries: features.registries,
            },
            node_groups: self
                .node_groups
                .unwrap_or_default()
                .into_iter()
                .map(NodeGroupCreation::request)
                .collect(),
        })
    }
}

/// A partial change; `features` is a merge patch (RFC 7386).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterPatchBody {
    name: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    description: Option<Option<String>>,
    tags: Option<Vec<String>>,
    features: Option<FeaturesPatchBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FeaturesPatchBody {
    #[serde(default, deserialize_with = "nullable")]
    csi: Option<Option<bool>>,
    #[serde(default, deserialize_with = "nullable")]
    registries: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    autoscaling_enabled: Option<Option<bool>>,
    node_autoprovisioning: Option<bool>,
}

impl ClusterPatchBody {
    fn patch(self) -> Result<ClusterPatch, ApiError> {
        let features = self.features.unwrap_or_default();
        refuse_autoprovisioning(features.node_autoprovisioning)?;
        Ok(ClusterPatch {
            name: self.name,
            description: self.description,
            tags: self.tags,
            features: FeaturesPatch {
                autoscaling_enabled: features.autoscaling_enabled,
                csi: features.csi,
                registries: features.registries,
            },
        })
    }
}

async fn list(
    State(clever): State<Clever>,
    owner: Owner,
    parameters: Parameters,
) -> Result<Json<Vec<ClusterBody>>, ApiError> {
    let statuses: Vec<ClusterStatus> = parameters.parse_all("status")?;
    let clusters = clever.platform.list_clusters(&owner.id, &statuses).await?;
    Ok(Json(clusters.into_iter().map(ClusterBody::from).collect()))
}

async fn create(
    State(clever): State<Clever>,
    owner: Owner,
    JsonBody(creation): JsonBody<ClusterCreation>,
) -> Result<(StatusCode, Json<ClusterBody>), ApiError> {
    let request = creation.request()?;
    let view = clever.platform.create_cluster(&owner.id, request).await?;
    Ok((StatusCode::CREATED, Json(view.into())))
}

async fn read(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
) -> Result<Json<ClusterBody>, ApiError> {
    let view = clever.platform.get_cluster(&owner, &cluster).await?;
    Ok(Json(view.into()))
}

async fn update(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
    JsonBody(patch): JsonBody<ClusterPatchBody>,
) -> Result<Json<ClusterBody>, ApiError> {
    let patch = patch.patch()?;
    let view = clever
        .platform
        .update_cluster(&owner, &cluster, patch)
        .await?;
    Ok(Json(view.into()))
}

async fn remove(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
) -> Result<Json<ClusterBody>, ApiError> {
    let view = clever.platform.delete_cluster(&owner, &cluster).await?;
    Ok(Json(view.into()))
}

/// Answers at once; the storage is there when `features.csi` says so.
async fn add_persistent_storage(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
) -> Result<Json<ClusterBody>, ApiError> {
    let view = clever
        .platform
        .add_persistent_storage(&owner, &cluster)
        .await?;
    Ok(Json(view.into()))
}

/// What the old endpoint may carry along; `contracts/cke-models.md` 4.11.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Redeployment {
    before_yamls: Option<Vec<String>>,
    after_yamls: Option<Vec<String>>,
}

/// Texts in YAML, from what they are sent as.
fn manifests(field: &str, sent: Option<Vec<String>>) -> Result<Vec<String>, ApiError> {
    let sent = sent.unwrap_or_default().into_iter().enumerate();
    let decode = |(index, sent): (usize, String)| {
        let decoded = BASE64.decode(sent.trim()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        text.ok_or_else(|| {
            let field = format!("{field}[{index}]");
            let shown: String = sent.chars().take(64).collect();
            ApiError::invalid_field(field, shown, "must be text in base64")
        })
    };
    sent.map(decode).collect()
}

async fn redeploy(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
    OptionalJsonBody(redeployment): OptionalJsonBody<Redeployment>,
) -> Result<Json<ClusterBody>, ApiError> {
    let redeployment = redeployment.unwrap_or_default();
    let before = manifests("beforeYamls", redeployment.before_yamls)?;
    let after = manifests("afterYamls", redeployment.after_yamls)?;
    let hooks = Hooks::new(before, after)?;
    let redeployed = clever.platform.redeploy_cluster(&owner, &cluster, hooks);
    let view = redeployed.await?;
    Ok(Json(view.into()))
}

async fn resume(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
) -> Result<Json<ClusterBody>, ApiError> {
    let view = clever.platform.resume_cluster(&owner, &cluster).await?;
    Ok(Json(view.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::model::Flavor;

    fn creation(text: &str) -> Result<CreateCluster, String> {
        let creation: ClusterCreation =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        creation.request().map_err(|error| error.to_string())
    }

    #[test]
    fn creations_of_every_client_are_understood() {
        let minimal = creation(r#"{"name":"demo"}"#).unwrap();
        assert_eq!(
            minimal,
            CreateCluster {
                name: "demo".into(),
                ..CreateCluster::default()
            }
        );
        let nulls = r#"{"name":"demo","version":null,"description":null,"tags":null,"topologyConfig":null,
            "locationId":null,"networkGroupId":null,"features":null,"nodeGroups":null,"unknown":1}"#;
        assert_eq!(creation(nulls).unwrap(), minimal);
        for tag in ["topology", "topologyDiscriminator"] {
            let text = format!(
                r#"{{"name":"demo","topologyConfig":{{"{tag}":"ALL_IN_ONE","flavor":"S","replicationFactor":1}}}}"#
            );
            assert_eq!(
                creation(&text).unwrap().topology,
                Some(Topology::AllInOne {
                    flavor: Flavor::S,
                    replication_factor: 1
                })
            );
        }
        let cli = r#"{"name":"demo","version":"1.35","description":"Prod","tags":["env:prod","team:x"],
            "features":{"autoscalingEnabled":true,"csi":true},
            "topologyConfig":{"topology":"DEDICATED_COMPUTE","flavor":"S","replicationFactor":3},
            "nodeGroups":[{"name":"default","flavor":"M","targetNodeCount":3}]}"#;
        let request = creation(cli).unwrap();
        assert_eq!(request.tags, ["env:prod", "team:x"]);
        assert!(request.features.csi && request.features.autoscaling_enabled);
        assert_eq!(request.node_groups[0].target_node_count, 3);
    }

    #[test]
    fn undecodable_creations_say_what_is_wrong() {
        let check = |text: &str, expect: &str| {
            let error = creation(text).expect_err(text);
            assert!(error.contains(expect), "{text}: {error}");
        };
        check("{}", "missing field `name`");
        check(r#"{"name":1}"#, "invalid type");
        check(
            r#"{"name":"x","topologyConfig":{"topology":"FOO","flavor":"S","replicationFactor":1}}"#,
            "unknown variant `FOO`",
        );
        check(
            r#"{"name":"x","topologyConfig":{"topology":"ALL_IN_ONE","flavor":"9XL","replicationFactor":1}}"#,
            "unknown variant `9XL`",
        );
        check(
            r#"{"name":"x","topologyConfig":{"topology":"ALL_IN_ONE","flavor":"S","replicationFactor":300}}"#,
            "topologyConfig: invalid value",
        );
        check(
            r#"{"name":"x","topologyConfig":{"topology":"DISTRIBUTED","components":{}}}"#,
            "missing field `apiserver`",
        );
        check(
            r#"{"name":"x","nodeGroups":[{"name":"a","flavor":"S","targetNodeCount":-1}]}"#,
            "invalid value",
        );
        check(
            r#"{"name":"x","features":{"nodeAutoprovisioning":true}}"#,
            "not available",
        );
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let check = |text: &str, expect: ClusterPatch| {
            let body: ClusterPatchBody = serde_json::from_str(text).expect(text);
            assert_eq!(body.patch().expect(text), expect, "{text}");
        };
        check("{}", ClusterPatch::default());
        check(
            r#"{"description":null,"tags":[],"features":{"registries":null,"autoscalingEnabled":true}}"#,
            ClusterPatch {
                description: Some(None),
                tags: Some(Vec::new()),
                features: FeaturesPatch {
                    registries: Some(None),
                    autoscaling_enabled: Some(Some(true)),
                    csi: None,
                },
                ..ClusterPatch::default()
            },
        );
    }

    #[test]
    fn storage_that_is_off_is_null() {
        let body = serde_json::to_value(FeaturesBody::from(Features::default())).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"csi": null, "registries": null, "autoscalingEnabled": false})
        );
    }
}
