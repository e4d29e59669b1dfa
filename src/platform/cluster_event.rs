//! What a cluster is made of, and what becomes of it: the unified stream of newer clients (contract
//! cke-models 7.2).
//!
//! Nobody says that something happened: the events follow from a record as it was and as it becomes, in the
//! transaction that changes it. So none is missing and none is told twice, whoever changed the record.
//!
//! Worked example: a control-plane VM is replaced by another, and later struck from the record. The first
//! change of the record in which the other has served brings `CLUSTER_ITEM COMPONENT_BUNDLE ACTIVE` with the
//! other's id, the one that strikes the old one `CLUSTER_ITEM COMPONENT_BUNDLE DELETED` with its id.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::catalog::EPHEMERAL_STORAGE_KIB;
use super::deployment_event::{DeploymentEvent, EventStatus, OperationKind, Step};
use super::model::{
    Cluster, ClusterStatus, Component, ControlPlaneVm, Flavor, InvalidId, Node, NodeGroup,
    NodeGroupId, NodeGroupStatus, NodeId, NodeStatus, TopologyKind, wire_enum,
};
use super::plugin::{self, Plugin};

/// Port that a cluster's API server listens at, behind its load balancer.
const APISERVER_PORT: u16 = 6443;
/// What a keyspace may hold: etcd's own default.
const LOGICAL_DB_QUOTA_BYTES: u64 = 2 << 30;

wire_enum! {
    /// A part of a cluster.
    ItemType {
        NetworkGroup = "NETWORK_GROUP",
        LoadBalancerNetwork = "LOADBALANCER_NETWORK",
        MateriaLogicalDb = "MATERIA_LOGICALDB",
        OtelConfig = "OTEL_CONFIG",
        ComponentBundle = "COMPONENT_BUNDLE",
        Storage = "STORAGE",
        LoadBalancer = "LOAD_BALANCER",
        Plugin = "PLUGIN",
        NodeGroup = "NODE_GROUP",
    }
}

wire_enum! {
    /// Deletions do not fail here: the product's third status does not come up.
    ItemStatus {
        Active = "ACTIVE",
        Deleted = "DELETED",
    }
}

/// An event; when it happened is told with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ClusterEvent {
    Status {
        status: ClusterStatus,
        failure: Option<Failure>,
    },
    Item {
        id: String,
        item_type: ItemType,
        status: ItemStatus,
        /// `None` once it is deleted.
        data: Option<ItemData>,
    },
    Node {
        status: NodeStatus,
        id: NodeId,
        name: String,
        node_group: NodeGroupId,
        flavor: Flavor,
        failure: Option<Failure>,
    },
}

/// Why something failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub operation: OperationKind,
    pub step: Option<Step>,
    pub message: String,
}

/// What is to be known of an item, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum ItemData {
    PublicNetworkGroupData {
        tenant_id: String,
        network_group_id: String,
        network_group_origin: NetworkGroupOrigin,
    },
    PublicLoadBalancerNetworkData {
        tenant_id: String,
        network_id: String,
    },
    PublicMateriaLogicalDBData {
        addon_id: String,
        org_id: String,
        layer_name: String,
        quota_bytes: u64,
    },
    PublicOtelConfigData {
        tenant_id: String,
        logs_endpoint: String,
        traces_endpoint: String,
        metrics_endpoint: String,
    },
    PublicControlPlaneBundleData {
        vm_data: VmData,
        components: Vec<BundleComponent>,
        topology_type: TopologyKind,
    },
    PublicStorageData {
        container_storage_interface: StorageData,
    },
    PublicLoadBalancerData {
        tenant_id: String,
        region_id: String,
        lb_cluster_id: String,
        domain_name: String,
        port: u16,
    },
    PublicPluginData {
        name: Plugin,
        version: String,
    },
    PublicNodeGroupData {
        id: NodeGroupId,
    },
}

wire_enum! {
    NetworkGroupOrigin {
        SystemCreated = "SYSTEM_CREATED",
        UserProvided = "USER_PROVIDED",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmData {
    pub id: String,
    pub name: String,
    pub resources_spec: ResourcesSpec,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    pub cpu_millicores: u64,
    pub mem_bytes: u64,
    pub disk_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageData {
    pub cluster_id: String,
    pub ceph_namespace: String,
    pub ceph_pool: String,
    pub kubernetes_namespace: String,
    #[serde(rename = "cephCSIVersion")]
    pub ceph_csi_version: String,
    pub provisioner_replicas: u32,
}

/// A component that a bundle hosts, or the node that it is too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleComponent {
    #[serde(rename = "type")]
    pub kind: String,
    /// As [`Component`] is spelled, or `NODE`.
    pub component_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What the change of a cluster's record brings about. `told` is what else is told of the change.
pub fn of_cluster(
    before: Option<&Cluster>,
    after: &Cluster,
    told: &[DeploymentEvent],
) -> Vec<ClusterEvent> {
    let mut events = Vec::new();
    let old = before.map(items).unwrap_or_default();
    let new = items(after);
    for (key, item) in &new {
        if !old.contains_key(key) {
            events.push(active(key, item));
        }
    }
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
    events.extend(gone.map(|(key, _)| deleted(key)));
    if before.is_none_or(|before| before.status != after.status) {
        events.push(ClusterEvent::Status {
            status: after.status,
            failure: (after.status == ClusterStatus::Failed)
                .then(|| why_failed(after, told))
                .flatten(),
        });
    }
    events
}

/// What the change of a node group's record brings about; `after` is `None` if the record goes.
pub fn of_node_group(before: Option<&NodeGroup>, after: Option<&NodeGroup>) -> Vec<ClusterEvent> {
    let Some(group) = after.or(before) else {
        return Vec::new();
    };
    let mut events = Vec::new();
    let key = (ItemType::NodeGroup, group.id.to_string());
    let data = || ItemData::PublicNodeGroupData {
        id: group.id.clone(),
    };
    if before.is_none() {
        events.push(active(&key, &data()));
    }
    let nodes = |group: Option<&NodeGroup>| -> BTreeMap<NodeId, Node> {
        let nodes = group.into_iter().flat_map(|group| &group.nodes);
        nodes.map(|node| (node.id.clone(), node.clone())).collect()
    };
    let (old, new) = (nodes(before), nodes(after));
    let event = |node: &Node, status: NodeStatus| ClusterEvent::Node {
        status,
        id: node.id.clone(),
        name: node.name.clone(),
        node_group: group.id.clone(),
        flavor: group.flavor,
        failure: (status == NodeStatus::Failed).then(|| why_node_failed(group, node)),
    };
    for (id, node) in &new {
        if old.get(id).is_none_or(|old| old.status != node.status) {
            events.push(event(node, node.status));
        }
    }
    let gone = old.iter().filter(|(id, _)| !new.contains_key(*id));
    events.extend(gone.map(|(_, node)| event(node, NodeStatus::Deleted)));
    if after.is_none() {
        events.push(deleted(&key));
    }
    events
}

type Key = (ItemType, String);

fn active((item_type, id): &Key, data: &ItemData) -> ClusterEvent {
    ClusterEvent::Item {
        id: id.clone(),
        item_type: *item_type,
        status: ItemStatus::Active,
        data: Some(data.clone()),
    }
}

fn deleted((item_type, id): &Key) -> ClusterEvent {
    ClusterEvent::Item {
        id: id.clone(),
        item_type: *item_type,
        status: ItemStatus::Deleted,
        data: None,
    }
}

/// Everything that the cluster consists of, but for its node groups.
fn items(cluster: &Cluster) -> BTreeMap<Key, ItemData> {
    let mut items = BTreeMap::new();
    if cluster.status == ClusterStatus::Deleted {
        return items;
    }
    let tenant_id = || cluster.owner.to_string();
    let ulid = cluster.id.ulid();
    let mut add = |item_type, id: String, data| drop(items.insert((item_type, id), data));
    let has = |step| cluster.deployed_step >= Some(step);
    if has(Step::NetworkGroup) {
        let origin = match cluster.network_group_is_users {
            true => NetworkGroupOrigin::UserProvided,
            false => NetworkGroupOrigin::SystemCreated,
        };
        let id = cluster.network_group_id.clone();
        let data = ItemData::PublicNetworkGroupData {
            tenant_id: tenant_id(),
            network_group_id: id.clone(),
            network_group_origin: origin,
        };
        add(ItemType::NetworkGroup, id, data);
    }
    if has(Step::LoadBalancerNetwork) {
        let id = cluster.load_balancer_network_id();
        let data = ItemData::PublicLoadBalancerNetworkData {
            tenant_id: tenant_id(),
            network_id: id.clone(),
        };
        add(ItemType::LoadBalancerNetwork, id, data);
    }
    if has(Step::MateriaLogicalDb) {
        let id = format!("materia_{ulid}");
        let data = ItemData::PublicMateriaLogicalDBData {
            addon_id: id.clone(),
            org_id: tenant_id(),
            layer_name: String::from("etcd"),
            quota_bytes: LOGICAL_DB_QUOTA_BYTES,
        };
        add(ItemType::MateriaLogicalDb, id, data);
    }
    if has(Step::OtelConfig) {
        // RFC 6761: no such name exists outside of tests.
        let endpoint = |signal: &str| format!("https://otel.{}.test/v1/{signal}", cluster.location);
        let data = ItemData::PublicOtelConfigData {
            tenant_id: tenant_id(),
            logs_endpoint: endpoint("logs"),
            traces_endpoint: endpoint("traces"),
            metrics_endpoint: endpoint("metrics"),
        };
        add(ItemType::OtelConfig, format!("otel_{ulid}"), data);
    }
    for vm in cluster.control_plane.iter().filter(|vm| vm.life.served) {
        let data = bundle(vm, cluster.topology.kind());
        add(ItemType::ComponentBundle, vm.id.clone(), data);
    }
    if cluster.features.csi {
        let data = ItemData::PublicStorageData {
            container_storage_interface: StorageData {
                cluster_id: cluster.id.to_string(),
                ceph_namespace: ulid.to_ascii_lowercase(),
                ceph_pool: String::from("kubernetes"),
                kubernetes_namespace: String::from("ceph-csi"),
                ceph_csi_version: Plugin::CephCsi.version().to_owned(),
                provisioner_replicas: 1,
            },
        };
        add(ItemType::Storage, format!("storage_{ulid}"), data);
    }
    if let Some(load_balancer) = &cluster.load_balancer {
        let data = ItemData::PublicLoadBalancerData {
            tenant_id: tenant_id(),
            region_id: cluster.location.clone(),
            lb_cluster_id: load_balancer.id.clone(),
            domain_name: load_balancer.domain_name.clone(),
            port: APISERVER_PORT,
        };
        add(ItemType::LoadBalancer, load_balancer.id.clone(), data);
    }
    for plugin in plugin::installed(has(Step::Plugin), cluster.features.csi) {
        let name = plugin.as_str().to_ascii_lowercase();
        let data = ItemData::PublicPluginData {
            name: plugin,
            version: plugin.version().to_owned(),
        };
        add(ItemType::Plugin, format!("plugin_{name}_{ulid}"), data);
    }
    items
}

fn bundle(vm: &ControlPlaneVm, topology_type: TopologyKind) -> ItemData {
    let size = vm.flavor.size();
    let component = |component: &Component| {
        let (kind, port) = match component {
            Component::Apiserver => ("PublicApiServer", Some(APISERVER_PORT)),
            Component::ControllerManager => ("PublicControllerManager", None),
            Component::Scheduler => ("PublicScheduler", None),
            Component::NodeGroupOperator => ("PublicNodeGroupOperator", None),
            Component::CloudControllerManager => ("PublicCloudControllerManager", None),
        };
        BundleComponent {
            kind: kind.to_owned(),
            component_type: component.name().replace('-', "_").to_ascii_uppercase(),
            port,
            name: None,
        }
    };
    let node = vm.node_name.iter().map(|name| BundleComponent {
        kind: String::from("PublicSingleNode"),
        component_type: String::from("NODE"),
        port: None,
        name: Some(name.clone()),
    });
    ItemData::PublicControlPlaneBundleData {
        vm_data: VmData {
            id: vm.id.clone(),
            name: vm.name.clone(),
            resources_spec: ResourcesSpec {
                cpu_millicores: u64::from(size.vcpus) * 1000,
                mem_bytes: u64::from(size.ram_gb) << 30,
                disk_bytes: EPHEMERAL_STORAGE_KIB * 1024,
            },
        },
        components: vm.components.iter().map(component).chain(node).collect(),
        topology_type,
    }
}

/// What was told of the operation as a whole says why.
fn why_failed(after: &Cluster, told: &[DeploymentEvent]) -> Option<Failure> {
    let of_operation = |event: &&DeploymentEvent| {
        event.status == EventStatus::Failed && event.step.is_none() && event.node_group_id.is_none()
    };
    let event = told.iter().find(of_operation)?;
    let operation = after.operation.as_ref();
    Some(Failure {
        operation: event.operation,
        step: operation.and_then(|operation| operation.step),
        message: event.detail.clone().unwrap_or_default(),
    })
}

fn why_node_failed(group: &NodeGroup, node: &Node) -> Failure {
    let operation = match group.status {
        NodeGroupStatus::Ready => OperationKind::NodeGroupRedeploy,
        NodeGroupStatus::ToResize | NodeGroupStatus::Resizing => OperationKind::NodeGroupScale,
        NodeGroupStatus::ToTerminate | NodeGroupStatus::Terminating | NodeGroupStatus::Deleted => {
            OperationKind::NodeGroupDelete
        }
        _ => OperationKind::NodeGroupCreate,
    };
    let message = match node.life.served {
        true => "the VM does not answer",
        false => "the VM did not start",
    };
    Failure {
        operation,
        step: None,
        message: message.to_owned(),
    }
}

/// The events of one change of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub at: Timestamp,
    pub events: Vec<ClusterEvent>,
}

#[cfg(test)]
mod tests;
