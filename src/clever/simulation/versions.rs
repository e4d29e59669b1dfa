//! Versions of Kubernetes come out here: the supported window moves on.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get("/_sim/versions", "Which versions of Kubernetes are supported")
            .answers::<VersionsView>(),
        get_versions,
    )
    .add(
        Operation::put(
            "/_sim/versions",
            "Let a version of Kubernetes come out, or switch automatic updates. What is not given stays",
        )
        .takes::<VersionsChange>()
        .answers::<VersionsView>(),
        put_versions,
    )
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionsView {
    /// Oldest first; the last is the newest that is out.
    pub supported: Vec<String>,
    /// Whether clusters whose version is no longer supported are updated by the platform.
    pub auto_upgrade: bool,
}

/// What is absent or `null` stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VersionsChange {
    /// Such as `1.37`: this one, and all before it, are out from now on.
    newest: Option<String>,
    auto_upgrade: Option<bool>,
}

fn view(clever: &Clever) -> Json<VersionsView> {
    Json(VersionsView {
        supported: clever.platform.catalog().versions(),
        auto_upgrade: clever.platform.upgrades_by_itself(),
    })
}

async fn get_versions(State(clever): State<Clever>) -> Json<VersionsView> {
    view(&clever)
}

async fn put_versions(
    State(clever): State<Clever>,
    JsonBody(change): JsonBody<VersionsChange>,
) -> Result<Json<VersionsView>, ApiError> {
    let newest = change.newest.as_deref();
    clever.platform.release(newest, change.auto_upgrade).await?;
    Ok(view(&clever))
}
