//! What the platform keeps: clusters, node groups, nodes, and the requests that change them.
//!
//! The types say what is stored, in the spelling of the REST API's enums; they know nothing of its
//! envelopes. Requests hold what a client asked for, not yet judged: the rules in `validation` judge.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::infra::Datacenter;

use super::cluster::Operation;
use super::deployment_event::Step;

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidId {
    pub text: String,
    pub expected: &'static str,
}

/// An organisation or a personal space: `orga_<uuid>` or `user_<uuid>`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OwnerId(String);

/// `kubernetes_` and a ULID in upper case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(String);

/// `node_group_` and a ULID in upper case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeGroupId(String);

/// `node_` and a ULID in upper case; also the id of the node's VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

const OWNER: &str = "an owner id (orga_<uuid> or user_<uuid>)";

impl FromStr for OwnerId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidId {
            text: text.to_owned(),
            expected: OWNER,
        };
        let lower = text.to_ascii_lowercase();
        let uuid = lower
            .strip_prefix("orga_")
            .or_else(|| lower.strip_prefix("user_"))
            .ok_or_else(invalid)?;
        // `Uuid` also reads forms without hyphens: the hyphenated one is 36 characters long.
        if uuid.len() != 36 || uuid::Uuid::try_parse(uuid).is_err() {
            return Err(invalid());
        }
        Ok(OwnerId(lower))
    }
}

/// A prefix and a ULID: `prefix` in lower case, 26 characters of Crockford's alphabet in upper case.
fn parse_ulid_id(text: &str, prefix: &str, expected: &'static str) -> Result<String, InvalidId> {
    let invalid = || InvalidId {
        text: text.to_owned(),
        expected,
    };
    let head = text.get(..prefix.len()).ok_or_else(invalid)?;
    let ulid = text.get(prefix.len()..).ok_or_else(invalid)?;
    let in_alphabet = |byte: u8| {
        // The CLI's own alphabet: it lets an L pass, which no ULID has.
        byte.is_ascii_digit() || (byte.is_ascii_uppercase() && !matches!(byte, b'I' | b'O' | b'U'))
    };
    let ulid = ulid.to_ascii_uppercase();
    if !head.eq_ignore_ascii_case(prefix) || ulid.len() != 26 || !ulid.bytes().all(in_alphabet) {
        return Err(invalid());
    }
    Ok(format!("{prefix}{ulid}"))
}

macro_rules! ulid_id {
    ($name:ident, $prefix:literal, $expected:literal) => {
        impl $name {
            pub const PREFIX: &'static str = $prefix;

            pub fn new(ulid: ulid::Ulid) -> $name {
                $name(format!(concat!($prefix, "{}"), ulid))
            }

            /// The 26 characters after the prefix.
            pub fn ulid(&self) -> &str {
                &self.0[$prefix.len()..]
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Any case is read; the id is kept in its one spelling.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_ulid_id(text, $prefix, $expected).map($name)
            }
        }
    };
}

macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

ulid_id!(ClusterId, "kubernetes_", "a cluster id (kubernetes_<ULID>)");
ulid_id!(
    NodeGroupId,
    "node_group_",
    "a node group id (node_group_<ULID>)"
);
ulid_id!(NodeId, "node_", "a node id (node_<ULID>)");
text_id!(OwnerId);
text_id!(ClusterId);
text_id!(NodeGroupId);
text_id!(NodeId);

/// Size of a VM. What each means is in the catalog. Ordered from small to large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    pub name: String,
    pub flavor: Flavor,
    pub datacenter: Datacenter,
    pub components: Vec<Component>,
    /// Name of the Kubernetes node that this VM is too (ALL_IN_ONE).
    pub node_name: Option<String>,
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

    /// Whether the control plane was deployed once: workers can join.
    pub fn can_take_nodes(&self) -> bool {
        self.deployed_step >= Some(Step::ControlPlaneBundle) && !self.is_going()
    }
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
    /// Until when workloads may leave, once the status is DRAINING.
    pub drained_at: Option<Timestamp>,
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
    fn ids_have_one_spelling() {
        let check = |text: &str, expect: Option<&str>| {
            let id = text.parse::<ClusterId>().ok();
            assert_eq!(id.as_ref().map(ClusterId::as_str), expect, "{text}");
        };
        let id = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
        check(id, Some(id));
        check(&id.to_lowercase(), Some(id));
        check("kubernetes_01KTREHTR6E4JEY46EPYBKY8X", None);
        check("kubernetes_01KTREHTR6E4JEY46EPYBKY8XU", None);
        check("kubernetes_01KTREHTR6E4JEY46EPYBKY/XG", None);
        check("node_group_01KTREHTR6E4JEY46EPYBKY8XG", None);
        check("kubernetes_é1KTREHTR6E4JEY46EPYBKY8X", None);
        check("", None);
    }

    #[test]
    fn owners_are_organisations_and_users() {
        let check = |text: &str, expect: bool| {
            assert_eq!(text.parse::<OwnerId>().is_ok(), expect, "{text}");
        };
        check("orga_3547a882-e464-4c34-8168-add4b3e0c135", true);
        check("user_3547a882-e464-4c34-8168-add4b3e0c135", true);
        check("ORGA_3547A882-E464-4C34-8168-ADD4B3E0C135", true);
        check("orga_3547a882e4644c348168add4b3e0c135", false);
        check("app_3547a882-e464-4c34-8168-add4b3e0c135", false);
        check("orga_", false);
    }

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
