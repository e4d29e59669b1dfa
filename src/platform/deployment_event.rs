//! What happened to a cluster, step by step: what `clever k8s activity` shows.
//!
//! An event is written in the transaction that changes the state which it tells of, so there is one
//! for each change, and none for a change that did not happen.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::model::{InvalidId, NodeGroupId, wire_enum};

wire_enum! {
    /// Names of `GET deployment-events`; clients print any string (contract clever-api 5.7).
    OperationKind {
        Create = "CREATE",
        Redeploy = "REDEPLOY",
        Upgrade = "UPGRADE",
        /// A change of features. The old endpoint's list has no name for it, as that product had no
        /// such operation.
        Reconcile = "RECONCILE",
        Delete = "DELETE",
        NodeGroupCreate = "NODEGROUP_CREATE",
        NodeGroupScale = "NODEGROUP_SCALE",
        NodeGroupResume = "NODEGROUP_RESUME",
        /// Nodes are replaced: those that failed, and all of a group after an update.
        NodeGroupRedeploy = "NODEGROUP_REDEPLOY",
        NodeGroupDelete = "NODEGROUP_DELETE",
    }
}

wire_enum! {
    /// A step of an operation, in the order in which a creation takes them.
    Step {
        NetworkGroup = "NETWORK_GROUP",
        LoadBalancerNetwork = "LOADBALANCER_NETWORK",
        MateriaLogicalDb = "MATERIA_LOGICALDB",
        OtelConfig = "OTEL_CONFIG",
        ControlPlaneBundle = "CONTROL_PLANE_BUNDLE",
        Storage = "STORAGE",
        LoadBalancer = "LOAD_BALANCER",
        Plugin = "PLUGIN",
        PluginReconcile = "PLUGIN_RECONCILE",
        /// The last of an update: the workers, group by group. Named as the product names such an item.
        NodeGroup = "NODE_GROUP",
        /// Manifests of a redeployment that are applied before its control plane is rolled, or after.
        RedeployBeforeYaml = "REDEPLOY_BEFORE_YAML",
        RedeployAfterYaml = "REDEPLOY_AFTER_YAML",
    }
}

wire_enum! {
    EventStatus {
        Started = "STARTED",
        Completed = "COMPLETED",
        Failed = "FAILED",
        Skipped = "SKIPPED",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentEvent {
    pub created_at: Timestamp,
    pub operation: OperationKind,
    /// `None`: the operation as a whole.
    pub step: Option<Step>,
    pub status: EventStatus,
    pub detail: Option<String>,
    pub node_group_id: Option<NodeGroupId>,
}

impl DeploymentEvent {
    pub fn new(
        created_at: Timestamp,
        operation: OperationKind,
        step: Option<Step>,
        status: EventStatus,
    ) -> DeploymentEvent {
        DeploymentEvent {
            created_at,
            operation,
            step,
            status,
            detail: None,
            node_group_id: None,
        }
    }

    pub fn of_node_group(mut self, id: &NodeGroupId) -> DeploymentEvent {
        self.node_group_id = Some(id.clone());
        self
    }

    pub fn because(mut self, detail: impl Into<String>) -> DeploymentEvent {
        self.detail = Some(detail.into());
        self
    }
}
