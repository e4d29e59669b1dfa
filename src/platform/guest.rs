//! What runs inside the platform's VMs: what it writes as their user data.
//!
//! The Kubernetes layer reads `kubelet` and registers such a VM as a node; nobody else looks inside.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::infra::{Image, VmId, VmSpec};

use super::catalog::kubelet_version;
use super::model::{Cluster, Component, ControlPlaneVm, Flavor, Node, NodeGroup, Taint};
use super::store::CloudOwner;

/// Labels that every node of the product has (contract cke-models 11.2).
const NODE_GROUP_LABEL: &str = "clever-cloud.com/nodegroup";
const FLAVOR_LABEL: &str = "clever-cloud.com/flavor";
const ROLE_LABEL: &str = "clever-cloud.com/cluster-node-role";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Components of the control plane.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<Component>,
    /// Such as `v1.36.0`.
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<Kubelet>,
}

/// A VM that is a node of its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubelet {
    pub cluster_id: String,
    pub node_name: String,
    /// Name of the group; `None` on a bundle VM, and of a standalone node.
    pub node_group: Option<String>,
    pub flavor: String,
    pub vcpus: u32,
    /// What the kernel sees.
    pub memory_kib: u64,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// Such as `v1.36.0`.
    pub version: String,
}

impl Guest {
    pub fn of_control_plane(cluster: &Cluster, vm: &ControlPlaneVm) -> Guest {
        Guest {
            components: vm.components.clone(),
            version: kubelet_version(&vm.version),
            kubelet: vm.node_name.as_ref().map(|node_name| {
                let labels = BTreeMap::from([(ROLE_LABEL.to_owned(), "control-plane".to_owned())]);
                kubelet(
                    cluster,
                    node_name,
                    None,
                    &vm.version,
                    vm.flavor,
                    labels,
                    Vec::new(),
                )
            }),
        }
    }

    pub fn of_node(cluster: &Cluster, group: &NodeGroup, node: &Node) -> Guest {
        let mut labels = group.labels.clone();
        labels.insert(ROLE_LABEL.to_owned(), "worker".to_owned());
        // A standalone node is of no group that anybody in the cluster could name.
        if !group.standalone {
            labels.insert(NODE_GROUP_LABEL.to_owned(), group.name.clone());
        }
        Guest {
            components: Vec::new(),
            version: kubelet_version(&node.version),
            kubelet: Some(kubelet(
                cluster,
                &node.name,
                (!group.standalone).then(|| group.name.clone()),
                &node.version,
                group.flavor,
                labels,
                group.taints.clone(),
            )),
        }
    }

    pub fn to_value(&self) -> serde_json::Value {
        // A struct of strings and numbers: it can always be written.
        serde_json::to_value(self).unwrap_or_default()
    }
}

fn kubelet(
    cluster: &Cluster,
    node_name: &str,
    node_group: Option<String>,
    version: &str,
    flavor: Flavor,
    mut labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
) -> Kubelet {
    let size = flavor.size();
    labels.insert(FLAVOR_LABEL.to_owned(), flavor.to_string());
    Kubelet {
        cluster_id: cluster.id.to_string(),
        node_name: node_name.to_owned(),
        node_group,
        flavor: flavor.to_string(),
        vcpus: size.vcpus,
        memory_kib: size.visible_memory_kib,
        labels,
        taints,
        version: kubelet_version(version),
    }
}

/// The VM of a replica of the control plane.
pub fn control_plane_vm(cluster: &Cluster, vm: &ControlPlaneVm) -> VmSpec {
    let size = vm.flavor.size();
    VmSpec {
        id: VmId(vm.id.clone()),
        name: vm.name.clone(),
        owner: CloudOwner::of_cluster(cluster).to_string(),
        datacenter: Some(vm.datacenter),
        image: Image::ControlPlane,
        vcpus: size.vcpus,
        ram_gb: size.ram_gb,
        network_group: Some(cluster.network_group_id.clone()),
        guest: Guest::of_control_plane(cluster, vm).to_value(),
    }
}

/// The VM of a worker.
pub fn node_vm(cluster: &Cluster, group: &NodeGroup, node: &Node) -> VmSpec {
    let size = group.flavor.size();
    VmSpec {
        id: VmId(node.id.to_string()),
        name: node.name.clone(),
        owner: CloudOwner::of_node_group(group).to_string(),
        datacenter: Some(node.datacenter),
        image: Image::Worker,
        vcpus: size.vcpus,
        ram_gb: size.ram_gb,
        network_group: Some(cluster.network_group_id.clone()),
        guest: Guest::of_node(cluster, group, node).to_value(),
    }
}
