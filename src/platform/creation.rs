//! From an order to the records of what is ordered.

use crate::clock::Timestamp;

use super::autoscaler::Scaling;
use super::catalog::LOCATION;
use super::cluster::Operation;
use super::deployment_event::OperationKind;
use super::model::{
    Cluster, ClusterId, ClusterStatus, Features, NodeGroup, NodeGroupId, NodeGroupStatus,
    UsageItemType,
};
use super::quota::{Holding, Ledger, Resources};
use super::replacement::Tries;
use super::validation::{ClusterOrder, NodeGroupOrder};
use super::{control_plane, identity, node_group};

/// Mints the next identifier of an owner.
fn mint(ledger: &mut Ledger, seed: u64, now: Timestamp) -> ulid::Ulid {
    let id = identity::mint(seed, now, ledger.owner.as_str(), ledger.minted);
    ledger.minted += 1;
    id
}

/// The record of a new cluster.
pub fn cluster(order: &ClusterOrder, ledger: &mut Ledger, seed: u64, now: Timestamp) -> Cluster {
    let id = ClusterId::new(mint(ledger, seed, now));
    let request = &order.request;
    let network_group_id = request
        .network_group_id
        .clone()
        .unwrap_or_else(|| format!("ng_{}", identity::uuid_of(id.as_str())));
    let (vms, pools) = control_plane::first_vms(&id, &order.topology, &order.version);
    Cluster {
        owner: ledger.owner.clone(),
        name: request.name.clone(),
        description: request.description.clone(),
        tags: request.tags.clone(),
        status: ClusterStatus::ToDeploy,
        created_at: now,
        version: order.version.clone(),
        running_version: order.version.clone(),
        topology: order.topology.clone(),
        location: LOCATION.to_owned(),
        // Nothing has to be installed for autoscaling; the rest comes with its steps.
        features: Features {
            autoscaling_enabled: request.features.autoscaling_enabled,
            ..Features::default()
        },
        requested_features: request.features.clone(),
        load_balancer: None,
        network_group_id,
        network_group_is_users: request.network_group_id.is_some(),
        storage_usage_bytes: None,
        control_plane: vms,
        pools,
        generation: 0,
        certificates_rotated_at: now,
        operation: Some(Operation::asked(OperationKind::Create, now)),
        deployed_step: None,
        events: 0,
        id,
    }
}

/// What the cluster's control plane reserves.
pub fn cluster_holding(cluster: &Cluster) -> Holding {
    Holding {
        owner: cluster.owner.clone(),
        item: cluster.id.to_string(),
        cluster: cluster.id.clone(),
        item_type: UsageItemType::ComponentBundle,
        resources: Resources::of_control_plane(&cluster.topology),
        created_at: cluster.created_at,
    }
}

/// The record of a new node group.
pub fn node_group(
    order: &NodeGroupOrder,
    cluster: &ClusterId,
    inherits_autoscaling: bool,
    ledger: &mut Ledger,
    seed: u64,
    now: Timestamp,
) -> NodeGroup {
    let request = &order.request;
    NodeGroup {
        id: NodeGroupId::new(mint(ledger, seed, now)),
        cluster: cluster.clone(),
        owner: ledger.owner.clone(),
        name: request.name.clone(),
        description: request.description.clone(),
        tag: request.tag.clone(),
        flavor: request.flavor,
        current_node_count: 0,
        target_node_count: request.target_node_count,
        min_node_count: order.min_node_count,
        max_node_count: order.max_node_count,
        autoscaling_enabled: request.autoscaling_enabled.unwrap_or(inherits_autoscaling),
        standalone: false,
        labels: request.labels.clone(),
        taints: request.taints.clone(),
        created_at: now,
        updated_at: None,
        status: NodeGroupStatus::Pending,
        nodes: Vec::new(),
        due: Some(node_group::first_due(now)),
        allocated: 0,
        tries: Tries::default(),
        scaling: Scaling::default(),
        events: 0,
    }
}

/// What a group of `count` nodes reserves.
pub fn node_group_holding(group: &NodeGroup, count: u32) -> Holding {
    Holding {
        owner: group.owner.clone(),
        item: group.id.to_string(),
        cluster: group.cluster.clone(),
        item_type: UsageItemType::NodeGroup,
        resources: Resources::of(group.flavor, count),
        created_at: group.created_at,
    }
}
