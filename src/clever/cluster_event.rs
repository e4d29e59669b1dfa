//! `GET …/clusters/{cluster}/events`: what a cluster is made of and what became of it, newest first
//! (`contracts/cke-models.md` 7.2).

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::cluster::OwnedCluster;
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, Parameters};
use crate::clock::Timestamp;
use crate::platform::cluster_event::{ClusterEvent, Failure, ItemData, ItemStatus, ItemType};
use crate::platform::deployment_event::{OperationKind, Step};
use crate::platform::model::{ClusterStatus, Flavor, NodeGroupId, NodeId, NodeStatus};

pub fn routes() -> Router<Clever> {
    Router::new().route(
        "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/events",
        get(list),
    )
}

/// What is absent is `null`, as everywhere in this API.
#[derive(Debug, Serialize)]
#[serde(
    tag = "event",
    rename_all = "SCREAMING_SNAKE_CASE",
    rename_all_fields = "camelCase"
)]
enum ClusterEventBody {
    ClusterStatus {
        date: String,
        status: ClusterStatus,
        failure: Option<FailureBody>,
    },
    ClusterItem {
        date: String,
        id: String,
        item_type: ItemType,
        status: ItemStatus,
        data: Option<ItemData>,
    },
    NodeLifecycle {
        date: String,
        status: NodeStatus,
        node_id: NodeId,
        node_name: String,
        node_group_id: NodeGroupId,
        flavor: Flavor,
        failure: Option<FailureBody>,
    },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FailureBody {
    operation: &'static str,
    step: Option<Step>,
    message: String,
    occurred_at: String,
}

impl FailureBody {
    fn of(failure: Failure, at: Timestamp) -> FailureBody {
        FailureBody {
            operation: operation_name(failure.operation),
            step: failure.step,
            message: failure.message,
            occurred_at: at.to_rfc3339(),
        }
    }
}

/// The newer API's names of operations.
fn operation_name(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "CLUSTER_CREATE",
        // A change of features is told as the redeployment that it is: the enum has no other name.
        OperationKind::Redeploy | OperationKind::Reconcile => "CLUSTER_REDEPLOY",
        OperationKind::Upgrade => "CLUSTER_UPGRADE",
        OperationKind::Delete => "CLUSTER_DELETE",
        kind => kind.as_str(),
    }
}

impl ClusterEventBody {
    fn of((at, event): (Timestamp, ClusterEvent)) -> ClusterEventBody {
        let date = at.to_rfc3339();
        let failed = |failure: Option<Failure>| failure.map(|it| FailureBody::of(it, at));
        match event {
            ClusterEvent::Status { status, failure } => ClusterEventBody::ClusterStatus {
                date,
                status,
                failure: failed(failure),
            },
            ClusterEvent::Item {
                id,
                item_type,
                status,
                data,
            } => ClusterEventBody::ClusterItem {
                date,
                id,
                item_type,
                status,
                data,
            },
            ClusterEvent::Node {
                status,
                id,
                name,
                node_group,
                flavor,
                failure,
            } => ClusterEventBody::NodeLifecycle {
                date,
                status,
                node_id: id,
                node_name: name,
                node_group_id: node_group,
                flavor,
                failure: failed(failure),
            },
        }
    }
}

async fn list(
    State(clever): State<Clever>,
    OwnedCluster { owner, cluster }: OwnedCluster,
    parameters: Parameters,
) -> Result<Json<Vec<ClusterEventBody>>, ApiError> {
    let limit = parameters.limit()?;
    let platform = &clever.platform;
    let events = platform.cluster_events(&owner, &cluster, limit).await?;
    Ok(Json(events.into_iter().map(ClusterEventBody::of).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_written_as_clients_read_them() {
        let check = |event: ClusterEvent, expect: serde_json::Value| {
            let body = ClusterEventBody::of((Timestamp(0), event));
            assert_eq!(serde_json::to_value(body).expect("JSON"), expect);
        };
        check(
            ClusterEvent::Status {
                status: ClusterStatus::Failed,
                failure: Some(Failure {
                    operation: OperationKind::Create,
                    step: Some(Step::ControlPlaneBundle),
                    message: String::from("too long"),
                }),
            },
            json!({"event": "CLUSTER_STATUS", "date": "1970-01-01T00:00:00.000Z", "status": "FAILED",
                "failure": {"operation": "CLUSTER_CREATE", "step": "CONTROL_PLANE_BUNDLE",
                    "message": "too long", "occurredAt": "1970-01-01T00:00:00.000Z"}}),
        );
        check(
            ClusterEvent::Item {
                id: String::from("vm_1"),
                item_type: ItemType::ComponentBundle,
                status: ItemStatus::Deleted,
                data: None,
            },
            json!({"event": "CLUSTER_ITEM", "date": "1970-01-01T00:00:00.000Z", "id": "vm_1",
                "itemType": "COMPONENT_BUNDLE", "status": "DELETED", "data": null}),
        );
    }

    #[test]
    fn every_operation_has_a_name_that_the_newer_clients_know() {
        let known = [
            "CLUSTER_CREATE",
            "CLUSTER_REDEPLOY",
            "CLUSTER_UPGRADE",
            "CLUSTER_DELETE",
            "NODEGROUP_CREATE",
            "NODEGROUP_DELETE",
            "NODEGROUP_SCALE",
            "NODEGROUP_RESUME",
            "NODEGROUP_REDEPLOY",
        ];
        for kind in OperationKind::ALL {
            assert!(known.contains(&operation_name(*kind)), "{kind}");
        }
    }
}
