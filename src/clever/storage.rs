//! Block volumes of clusters: `/v4/tenants/{owner}/storages`; `contracts/cke-models.md` 10.3.
//!
//! What a cluster's CSI driver asks for, with the cluster's token. An owner sees them, too.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::authentication::Actor;
use crate::clever::error::{ApiError, CLUSTER, STORAGE};
use crate::clever::transport::{Json, JsonBody};
use crate::platform::model::{ClusterId, OwnerId};
use crate::platform::volumes::StorageVolume;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route("/v4/tenants/{owner}/storages", get(list).post(create))
        .route(
            "/v4/tenants/{owner}/storages/{id}",
            get(read).patch(resize).delete(remove),
        )
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageBody {
    pub id: String,
    pub tenant_id: OwnerId,
    pub kubernetes_cluster_id: ClusterId,
    pub size_bytes: u64,
    pub used_bytes: u64,
    pub created_at: String,
}

impl From<StorageVolume> for StorageBody {
    fn from(found: StorageVolume) -> Self {
        StorageBody {
            id: found.id,
            tenant_id: found.owner,
            kubernetes_cluster_id: found.cluster,
            size_bytes: found.size_bytes,
            used_bytes: found.used_bytes,
            created_at: found.created_at.to_rfc3339(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Creation {
    name: String,
    size_bytes: u64,
    kubernetes_cluster_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Growth {
    size_bytes: u64,
}

async fn list(
    State(clever): State<Clever>,
    actor: Actor,
) -> Result<Json<Vec<StorageBody>>, ApiError> {
    let mut found = clever.platform.list_volumes(&actor.owner).await?;
    found.retain(|one| actor.may_reach(&one.cluster));
    Ok(Json(found.into_iter().map(Into::into).collect()))
}

async fn create(
    State(clever): State<Clever>,
    actor: Actor,
    JsonBody(creation): JsonBody<Creation>,
) -> Result<(StatusCode, Json<StorageBody>), ApiError> {
    let id = &creation.kubernetes_cluster_id;
    let unknown = || ApiError::resource_not_found(CLUSTER, id);
    let cluster: ClusterId = id.parse().map_err(|_| unknown())?;
    if !actor.may_reach(&cluster) {
        return Err(unknown());
    }
    let made = clever
        .platform
        .create_volume(&actor.owner, &cluster, &creation.name, creation.size_bytes)
        .await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

/// The owner's storage of that id, if who asks can see it.
async fn find(clever: &Clever, actor: &Actor, id: &str) -> Result<StorageVolume, ApiError> {
    let found = clever.platform.get_volume(&actor.owner, id).await?;
    if actor.may_reach(&found.cluster) {
        return Ok(found);
    }
    Err(ApiError::resource_not_found(STORAGE, id))
}

async fn read(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<StorageBody>, ApiError> {
    Ok(Json(find(&clever, &actor, &id).await?.into()))
}

async fn resize(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, id)): Path<(String, String)>,
    JsonBody(growth): JsonBody<Growth>,
) -> Result<Json<StorageBody>, ApiError> {
    find(&clever, &actor, &id).await?;
    let grown = clever
        .platform
        .resize_volume(&actor.owner, &id, growth.size_bytes)
        .await?;
    Ok(Json(grown.into()))
}

async fn remove(
    State(clever): State<Clever>,
    actor: Actor,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<StorageBody>, ApiError> {
    find(&clever, &actor, &id).await?;
    let gone = clever.platform.delete_volume(&actor.owner, &id).await?;
    Ok(Json(gone.into()))
}
