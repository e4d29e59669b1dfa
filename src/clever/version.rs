//! Kubernetes versions of a cluster: what is installed, what could be, and the update.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::cluster::{ClusterBody, OwnedCluster};
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, JsonBody};
use crate::platform::model::VersionCheck;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/version/check",
            get(check),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/version/update",
            post(update),
        )
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionCheckBody {
    pub installed: String,
    pub latest: String,
    pub available: Vec<String>,
    pub need_update: bool,
}

impl From<VersionCheck> for VersionCheckBody {
    fn from(check: VersionCheck) -> Self {
        VersionCheckBody {
            installed: check.installed,
            latest: check.latest,
            available: check.available,
            need_update: check.need_update,
        }
    }
}

async fn check(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
) -> Result<Json<VersionCheckBody>, ApiError> {
    let check = clever.platform.version_check(&owner, &cluster).await?;
    Ok(Json(check.into()))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionUpdate {
    target_version: String,
}

async fn update(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
    JsonBody(update): JsonBody<VersionUpdate>,
) -> Result<Json<ClusterBody>, ApiError> {
    let view = clever
        .platform
        .update_version(&owner, &cluster, &update.target_version)
        .await?;
    Ok(Json(view.into()))
}
