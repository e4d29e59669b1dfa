//! `GET …/clusters/{cluster}/deployment-events`: what `clever k8s activity` shows, newest first.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::cluster::OwnedCluster;
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, Parameters};
use crate::platform::deployment_event::{DeploymentEvent, EventStatus, OperationKind, Step};
use crate::platform::model::NodeGroupId;

pub fn routes() -> Router<Clever> {
    Router::new().route(
        "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/deployment-events",
        get(list),
    )
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentEventBody {
    /// A string, always: the CLI slices it.
    pub created_at: String,
    pub operation: OperationKind,
    pub step_name: Option<Step>,
    pub status: EventStatus,
    pub detail: Option<String>,
    pub node_group_id: Option<NodeGroupId>,
}

impl From<DeploymentEvent> for DeploymentEventBody {
    fn from(event: DeploymentEvent) -> Self {
        DeploymentEventBody {
            created_at: event.created_at.to_rfc3339(),
            operation: event.operation,
            step_name: event.step,
            status: event.status,
            detail: event.detail,
            node_group_id: event.node_group_id,
        }
    }
}

async fn list(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
    parameters: Parameters,
) -> Result<Json<Vec<DeploymentEventBody>>, ApiError> {
    let limit = parameters.limit()?;
    let events = clever
        .platform
        .deployment_events(&owner, &cluster, limit)
        .await?;
    let bodies = events.into_iter().map(DeploymentEventBody::from);
    Ok(Json(bodies.collect()))
}
