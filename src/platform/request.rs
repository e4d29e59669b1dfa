//! What clients ask for, not yet judged: the rules in `validation` judge.

use std::collections::BTreeMap;

use super::model::{Features, Flavor, Taint, Topology};

/// A request for a cluster, as the client sent it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateCluster {
    pub name: String,
    pub version: Option<String>,
    pub description: Option<String>,
    pub tags: Vec<String>,
    /// DEDICATED_COMPUTE, XS, 1 if omitted.
    pub topology: Option<Topology>,
    pub location: Option<String>,
    pub network_group_id: Option<String>,
    pub features: Features,
    pub node_groups: Vec<CreateNodeGroup>,
}

/// A request for a node group, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateNodeGroup {
    pub name: String,
    pub description: Option<String>,
    pub tag: Option<String>,
    pub flavor: Flavor,
    pub target_node_count: u32,
    pub min_node_count: Option<u32>,
    pub max_node_count: Option<u32>,
    /// Inherits the cluster's if omitted.
    pub autoscaling_enabled: Option<bool>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

impl CreateNodeGroup {
    /// One with nothing but what is required.
    pub fn new(name: impl Into<String>, flavor: Flavor, target_node_count: u32) -> CreateNodeGroup {
        CreateNodeGroup {
            name: name.into(),
            description: None,
            tag: None,
            flavor,
            target_node_count,
            min_node_count: None,
            max_node_count: None,
            autoscaling_enabled: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
        }
    }
}

/// A partial change of a cluster: outer `None` keeps, inner `None` clears.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterPatch {
    pub name: Option<String>,
    pub description: Option<Option<String>>,
    pub tags: Option<Vec<String>>,
    pub features: FeaturesPatch,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeaturesPatch {
    pub autoscaling_enabled: Option<Option<bool>>,
    pub csi: Option<Option<bool>>,
    pub registries: Option<Option<String>>,
}

/// A change of a node group. Name and target count always come along: without them the REST API
/// refuses the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGroupPatch {
    pub name: String,
    pub target_node_count: u32,
    pub description: Option<Option<String>>,
    pub tag: Option<Option<String>>,
    pub min_node_count: Option<u32>,
    pub max_node_count: Option<u32>,
    pub autoscaling_enabled: Option<bool>,
}
