//! Volumes of the cloud, and how much is written to them.

use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};
use crate::infra::volume::Volume;
use crate::platform::store::CloudOwner;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get(
            "/_sim/volumes",
            "The volumes of the cloud, in the order of their ids",
        )
        .answers::<Vec<VolumeView>>(),
        list,
    )
    .add(
        Operation::put(
            "/_sim/volumes/{volume}/usage",
            "Set how much of a volume is written",
        )
        .takes::<Usage>()
        .answers::<VolumeView>(),
        set_usage,
    )
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeView {
    pub id: String,
    /// Whose it is; absent if it is nobody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    pub size_bytes: u64,
    pub used_bytes: u64,
}

impl VolumeView {
    fn of(volume: Volume) -> VolumeView {
        let owner = CloudOwner::parse(&volume.owner);
        VolumeView {
            id: volume.id,
            cluster: owner.map(|owner| owner.cluster.to_string()),
            size_bytes: volume.size_bytes,
            used_bytes: volume.used_bytes,
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Usage {
    /// At most the volume's size.
    pub used_bytes: u64,
}

async fn list(State(clever): State<Clever>) -> Result<Json<Vec<VolumeView>>, ApiError> {
    let volumes = clever.simulation.inner.cloud.volumes().await?;
    Ok(Json(volumes.into_iter().map(VolumeView::of).collect()))
}

async fn set_usage(
    State(clever): State<Clever>,
    Path(id): Path<String>,
    JsonBody(usage): JsonBody<Usage>,
) -> Result<Json<VolumeView>, ApiError> {
    let cloud = &clever.simulation.inner.cloud;
    cloud.set_volume_usage(&id, usage.used_bytes).await?;
    match cloud.volume(&id) {
        Some(volume) => Ok(Json(VolumeView::of(volume))),
        None => Err(ApiError::resource_not_found("Volume", &id)),
    }
}
