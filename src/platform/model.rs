//! What the platform keeps: clusters, node groups, nodes, and the requests that change them.
//!
//! The types say what is stored, in the spelling of the REST API's enums; they know nothing of its
//! envelopes. Identifiers are in `id`, requests in `request`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::infra::Datacenter;

use super::autoscaler::Scaling;
use super::cluster::Operation;
use super::deployment_event::Step;
use super::replacement::{Lifecycle, Replica, Tries};

pub use super::id::{ClusterId, InvalidId, NodeGroupId, NodeId, OwnerId};
pub use super::request::{
    ClusterPatch, CreateCluster, CreateNodeGroup, FeaturesPatch, NodeGroupPatch,
};

/// Size of a VM. What each means is in the catalog. Ordered from small to large.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Flavor {
    #[serde(rename = "2XS")]
    Xxs,
    #[serde(rename = "XS")]
    Xs,
    #[serde(rename = "S")]
    S,
    #[serde(rename = "M")]
    M,
    #[serde(rename = "L")]
    L,
    #[serde(rename = "XL")]
    Xl,
}

impl Flavor {
    pub const ALL: [Flavor; 6] = [
        Flavor::Xxs,
        Flavor::Xs,
        Flavor::S,
        Flavor::M,
        Flavor::L,
        Flavor::Xl,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Flavor::Xxs => "2XS",
            Flavor::Xs => "XS",
            Flavor::S => "S",
            Flavor::M => "M",
            Flavor::L => "L",
            Flavor::Xl => "XL",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Flavor {
    type Err = InvalidId;

    /// Any case is read, as the CLI does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Flavor::ALL
            .into_iter()
            .find(|flavor| flavor.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| InvalidId {
                text: text.to_owned(),
                expected: "a flavor (2XS, XS, S, M, L, XL)",
            })
    }
}

/// How the control plane is laid out. Immutable after creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    tag = "topology",
    rename_all = "SCREAMING_SNAKE_CASE",
    rename_all_fields = "camelCase"
)]
pub enum Topology {
    AllInOne {
        flavor: Flavor,
        replication_factor: u8,
    },
    DedicatedCompute {
        flavor: Flavor,
        replication_factor: u8,
    },
    Distributed {
        components: Components,
    },
}

impl Topology {
    pub fn kind(&self) -> TopologyKind {
        match self {
            Topology::AllInOne { .. } => TopologyKind::AllInOne,
            Topology::DedicatedCompute { .. } => TopologyKind::DedicatedCompute,
            Topology::Distributed { .. } => TopologyKind::Distributed,
        }
    }
}

/// A topology without its sizes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TopologyKind {
    AllInOne,
    DedicatedCompute,
    Distributed,
}

impl TopologyKind {
    pub const ALL: [TopologyKind; 3] = [
        TopologyKind::AllInOne,
        TopologyKind::DedicatedCompute,
        TopologyKind::Distributed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            TopologyKind::AllInOne => "ALL_IN_ONE",
            TopologyKind::DedicatedCompute => "DEDICATED_COMPUTE",
            TopologyKind::Distributed => "DISTRIBUTED",
        }
    }
}

impl fmt::Display for TopologyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TopologyKind {
    type Err = InvalidId;

    /// Any case is read, as the CLI does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TopologyKind::ALL
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| InvalidId {
                text: text.to_owned(),
                expected: "a topology (ALL_IN_ONE, DEDICATED_COMPUTE, DISTRIBUTED)",
            })
    }
}

/// The five parts of a DISTRIBUTED control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Components {
    pub apiserver: ComponentConfig,
    pub controller_manager: ComponentConfig,
    pub scheduler: ComponentConfig,
    pub node_group_operator: ComponentConfig,
    pub cloud_controller_manager: ComponentConfig,
}

impl Components {
    /// The same for all five, as the CLI sends it.
    pub fn uniform(config: ComponentConfig) -> Components {
        Components {
            apiserver: config,
            controller_manager: config,
            scheduler: config,
            node_group_operator: config,
            cloud_controller_manager: config,
        }
    }

    pub fn get(&self, component: Component) -> ComponentConfig {
        match component {
            Component::Apiserver => self.apiserver,
            Component::ControllerManager => self.controller_manager,
            Component::Scheduler => self.scheduler,
            Component::NodeGroupOperator => self.node_group_operator,
            Component::CloudControllerManager => self.cloud_controller_manager,
        }
    }

    pub fn get_mut(&mut self, component: Component) -> &mut ComponentConfig {
        match component {
            Component::Apiserver => &mut self.apiserver,
            Component::ControllerManager => &mut self.controller_manager,
            Component::Scheduler => &mut self.scheduler,
            Component::NodeGroupOperator => &mut self.node_group_operator,
            Component::CloudControllerManager => &mut self.cloud_controller_manager,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentConfig {
    pub flavor: Flavor,
    pub replication_factor: u8,
}

/// A part of the control plane; spelled as in events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Component {
    Apiserver,
    ControllerManager,
    Scheduler,
    NodeGroupOperator,
    CloudControllerManager,
}

impl Component {
    pub const ALL: [Component; 5] = [
        Component::Apiserver,
        Component::ControllerManager,
        Component::Scheduler,
        Component::NodeGroupOperator,
        Component::CloudControllerManager,
    ];

    /// As in names of VMs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Component::Apiserver => "apiserver",
            Component::ControllerManager => "controller-manager",
            Component::Scheduler => "scheduler",
            Component::NodeGroupOperator => "node-group-operator",
            Component::CloudControllerManager => "cloud-controller-manager",
        }
    }
}

/// An enum whose variants have one spelling, on the wire and in records.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// As on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $name::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| InvalidId {
                    text: text.to_owned(),
                    expected: concat!("one of", $(" ", $text),+),
                })
            }
        }
    };
}

pub(super) use wire_enum;

wire_enum! {
    /// `TO_*` is asked for, `*ING` is under way.
    ClusterStatus {
        ToDeploy = "TO_DEPLOY",
        Deploying = "DEPLOYING",
        Active = "ACTIVE",
        ToRedeploy = "TO_REDEPLOY",
        Redeploying = "REDEPLOYING",
        ToUpgrade = "TO_UPGRADE",
        Updating = "UPDATING",
        ToReconcile = "TO_RECONCILE",
        Reconciling = "RECONCILING",
        ToDelete = "TO_DELETE",
        Deleting = "DELETING",
        Deleted = "DELETED",
        Failed = "FAILED",
    }
}

wire_enum! {
    NodeGroupStatus {
        Pending = "PENDING",
        Created = "CREATED",
        Deploying = "DEPLOYING",
        Deployed = "DEPLOYED",
        ToResize = "TO_RESIZE",
        Resizing = "RESIZING",
        Ready = "READY",
        Failed = "FAILED",
        ToTerminate = "TO_TERMINATE",
        Terminating = "TERMINATING",
        Deleted = "DELETED",
    }
}

wire_enum! {
    NodeStatus {
        Deploying = "DEPLOYING",
        Deployed = "DEPLOYED",
        Ready = "READY",
        Draining = "DRAINING",
        Failed = "FAILED",
        Deleted = "DELETED",
    }
}

wire_enum! {
    TaintEffect {
        NoSchedule = "NoSchedule",
        PreferNoSchedule = "PreferNoSchedule",
        NoExecute = "NoExecute",
    }
}

wire_enum! {
    /// Which way a kubeconfig reaches the API server.
    KubeconfigType {
        NetworkGroup = "NETWORKGROUP",
        LoadBalancer = "LOADBALANCER",
        ApiserverIp = "APISERVER_IP",
    }
}

wire_enum! {
    /// What a line of the usage counts.
    UsageItemType {
        ComponentBundle = "COMPONENT_BUNDLE",
        NodeGroup = "NODE_GROUP",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Taint {
    pub key: String,
    pub value: Option<String>,
    pub effect: TaintEffect,
}

/// Features that are installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Features {
    pub autoscaling_enabled: bool,
    /// Persistent storage. Never goes back to `false`.
    pub csi: bool,
    pub registries: Option<String>,
}

/// The load balancer in front of the cluster's API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    pub id: String,
    /// Such as `XS-duo`; the suffix says how many instances.
    pub flavor: String,
    pub ips: Vec<String>,
    pub domain_name: String,
}

/// A VM that hosts components of a control plane, as the cluster wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneVm {
    /// Id of the VM.
    pub id: String,
    /// `<role>-<number>`.
    pub name: String,
    pub number: u32,
    pub flavor: Flavor,
    pub datacenter: Datacenter,
    pub components: Vec<Component>,
    /// Name of the Kubernetes node that this VM is too (ALL_IN_ONE).
    pub node_name: Option<String>,
    /// Version that it runs, such as `1.36`.
    pub version: String,
    /// [`Cluster::generation`] as of its creation.
    pub generation: u64,
    pub life: Lifecycle,
}

impl Replica for ControlPlaneVm {
    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn datacenter(&self) -> Datacenter {
        self.datacenter
    }

    fn set_datacenter(&mut self, datacenter: Datacenter) {
        self.datacenter = datacenter;
    }

    fn life(&self) -> &Lifecycle {
        &self.life
    }

    fn life_mut(&mut self) -> &mut Lifecycle {
        &mut self.life
    }
}

/// What is kept of a role of a control plane: of the VMs that host the same components.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RolePool {
    /// How many VMs it ever had: number of the next one's identity.
    pub allocated: u64,
    pub tries: Tries,
}

/// A cluster as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub id: ClusterId,
    pub owner: OwnerId,
    pub name: String,
    pub description: Option<String>,
    pub tags: Vec<String>,
    pub status: ClusterStatus,
    pub created_at: Timestamp,
    /// Version asked for, such as `1.36`: the target's as soon as an update is accepted.
    pub version: String,
    /// Version that the control plane serves, behind `version` during an update.
    pub running_version: String,
    pub topology: Topology,
    pub location: String,
    /// What is installed.
    pub features: Features,
    /// What is asked for; differs from `features` while a change is under way.
    pub requested_features: Features,
    pub load_balancer: Option<LoadBalancer>,
    pub network_group_id: String,
    /// Whether the network group came with the creation and so outlives the cluster.
    pub network_group_is_users: bool,
    /// Bytes; `None` without persistent storage.
    pub storage_usage_bytes: Option<u64>,
    pub control_plane: Vec<ControlPlaneVm>,
    /// By the name of the role.
    pub pools: BTreeMap<String, RolePool>,
    /// Counts redeployments: VMs of an older one are replaced.
    pub generation: u64,
    /// When the control plane's certificates were last made.
    pub certificates_rotated_at: Timestamp,
    /// What is going on, if anything.
    pub operation: Option<Operation>,
    /// Last step of the creation that is complete.
    pub deployed_step: Option<Step>,
    /// How many deployment events this record has written: the next one's number.
    pub events: u64,
}

impl Cluster {
    /// Whether the cluster is on its way out: nothing new may be attached to it.
    pub fn is_going(&self) -> bool {
        matches!(
            self.status,
            ClusterStatus::ToDelete | ClusterStatus::Deleting | ClusterStatus::Deleted
        )
    }

    /// Of the load balancer in front of the API.
    pub fn load_balancer_id(&self) -> String {
        own_load_balancer(&self.id)
    }

    /// Of the network that joins the control plane to the load balancers.
    pub fn load_balancer_network_id(&self) -> String {
        format!("lbnetwork_{}", self.id.ulid())
    }

    /// Whether the control plane was deployed once: workers can join.
    pub fn can_take_nodes(&self) -> bool {
        self.deployed_step >= Some(Step::ControlPlaneBundle) && !self.is_going()
    }
}

/// Id of the load balancer in front of a cluster's API, as the cloud knows it.
pub fn own_load_balancer(cluster: &ClusterId) -> String {
    format!("loadbalancer_{}", cluster.ulid())
}

/// A worker of a node group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub id: NodeId,
    /// `<group>-node<N>`, unique in the cluster.
    pub name: String,
    /// The `N` of the name.
    pub number: u32,
    pub status: NodeStatus,
    pub datacenter: Datacenter,
    pub created_at: Timestamp,
    /// Version that it runs, such as `1.36`.
    pub version: String,
    pub life: Lifecycle,
}

impl Replica for Node {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn datacenter(&self) -> Datacenter {
        self.datacenter
    }

    fn set_datacenter(&mut self, datacenter: Datacenter) {
        self.datacenter = datacenter;
    }

    fn life(&self) -> &Lifecycle {
        &self.life
    }

    fn life_mut(&mut self) -> &mut Lifecycle {
        &mut self.life
    }
}

/// A node group as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeGroup {
    pub id: NodeGroupId,
    pub cluster: ClusterId,
    pub owner: OwnerId,
    pub name: String,
    pub description: Option<String>,
    pub tag: Option<String>,
    pub flavor: Flavor,
    /// How many nodes are READY.
    pub current_node_count: u32,
    pub target_node_count: u32,
    pub min_node_count: u32,
    pub max_node_count: u32,
    pub autoscaling_enabled: bool,
    /// It is how one standalone node is kept: of one node always, and no group to anybody who asks for groups.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standalone: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
    pub status: NodeGroupStatus,
    pub nodes: Vec<Node>,
    /// No timed transition before this.
    pub due: Option<Timestamp>,
    /// How many nodes were ever allocated: number of the next one's identity.
    pub allocated: u64,
    pub tries: Tries,
    #[serde(default)]
    pub scaling: Scaling,
    /// How many deployment events this record has written: the next one's number.
    pub events: u64,
}

impl NodeGroup {
    pub fn is_going(&self) -> bool {
        matches!(
            self.status,
            NodeGroupStatus::ToTerminate | NodeGroupStatus::Terminating | NodeGroupStatus::Deleted
        )
    }
}

/// A cluster with its node groups, as get and list return it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    pub cluster: Cluster,
    /// In the order of their ids, which is that of their creation.
    pub node_groups: Vec<NodeGroup>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionCheck {
    pub installed: String,
    pub latest: String,
    /// What the cluster can be updated to, with what is installed, oldest first.
    pub available: Vec<String>,
    pub need_update: bool,
}

/// What an owner may hold at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// `quota_<uuid>`, the same for an owner for ever.
    pub id: String,
    pub owner: OwnerId,
    pub vcpu_millis_max: u64,
    /// Units of 1024³ bytes.
    pub ram_gb_max: u64,
    pub ip_max: u32,
}

/// One thing that counts against the quota now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageItem {
    pub id: String,
    pub cluster_id: ClusterId,
    pub owner: OwnerId,
    pub item_type: UsageItemType,
    pub cpu_millicores: u64,
    pub ram_bytes: u64,
    pub created_at: Timestamp,
    pub deactivated_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_is_tagged_as_on_the_wire() {
        let check = |topology: Topology, expect: &str| {
            assert_eq!(serde_json::to_string(&topology).unwrap(), expect);
            assert_eq!(
                serde_json::from_str::<Topology>(expect).unwrap(),
                topology,
                "{expect}"
            );
        };
        check(
            Topology::AllInOne {
                flavor: Flavor::S,
                replication_factor: 1,
            },
            r#"{"topology":"ALL_IN_ONE","flavor":"S","replicationFactor":1}"#,
        );
        check(
            Topology::Distributed {
                components: Components::uniform(ComponentConfig {
                    flavor: Flavor::Xxs,
                    replication_factor: 2,
                }),
            },
            concat!(
                r#"{"topology":"DISTRIBUTED","components":{"#,
                r#""apiserver":{"flavor":"2XS","replicationFactor":2},"#,
                r#""controllerManager":{"flavor":"2XS","replicationFactor":2},"#,
                r#""scheduler":{"flavor":"2XS","replicationFactor":2},"#,
                r#""nodeGroupOperator":{"flavor":"2XS","replicationFactor":2},"#,
                r#""cloudControllerManager":{"flavor":"2XS","replicationFactor":2}}}"#
            ),
        );
    }
}
