//! What a request may say: judged here, so that every door gives the same answer.
//!
//! How many nodes a group may have is not published in one place. The CLI's options and the product's
//! bounds say 0 to 256 (contract clever-api 5.12, 5.14), the in-cluster resource says 0 to 16. Here, at
//! the API that both use:
//! - 0 to [`MAX_NODES`] for a group that is created by itself or changed: scaling to zero is legal on
//!   every path;
//! - 1 to [`MAX_NODES`] for a group that comes with its cluster: it is there "so the cluster is ready to
//!   schedule workloads" (spec, "Create a Kubernetes cluster"), which an empty one cannot, and the CLI
//!   leaves the judgement of `--nodegroup XS:0` to the server (contract clever-api 5.2).

use std::collections::BTreeMap;

use super::catalog::{Catalog, LOCATION, REPLICATION_FACTOR};
use super::error::PlatformError;
use super::model::{
    Component, CreateCluster, CreateNodeGroup, Flavor, Taint, Topology, TopologyKind,
};

pub const MAX_NODES: u32 = 256;
const MAX_NAME_CHARS: usize = 128;
const MAX_DESCRIPTION_CHARS: usize = 4096;
const MAX_TAG_CHARS: usize = 1024;
/// Not published; keeps a record small.
const MAX_TAGS: usize = 64;
/// Not published; keeps a creation within one transaction.
const MAX_INITIAL_NODE_GROUPS: usize = 16;
const MAX_LABELS: usize = 64;
/// Label keys that belong to the platform (contract cke-models 11.1).
const RESERVED_LABELS: [&str; 3] = ["kubernetes.io/", "node.kubernetes.io/", "clever-cloud.com/"];

type Result<T> = std::result::Result<T, PlatformError>;

/// A creation that is legal, with the defaults filled in. The quota is another matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterOrder {
    pub request: CreateCluster,
    pub version: String,
    pub topology: Topology,
    pub node_groups: Vec<NodeGroupOrder>,
}

/// As [`ClusterOrder`], for a node group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGroupOrder {
    pub request: CreateNodeGroup,
    pub min_node_count: u32,
    pub max_node_count: u32,
}

/// Of a creation that says none (contract cke-models 4.4; the CLI always says one).
pub const DEFAULT_TOPOLOGY: Topology = Topology::DedicatedCompute {
    flavor: Flavor::Xs,
    replication_factor: 1,
};

pub fn cluster_order(request: CreateCluster, catalog: &Catalog) -> Result<ClusterOrder> {
    cluster_name("name", &request.name)?;
    description("description", request.description.as_deref())?;
    tags("tags", &request.tags)?;
    let version = match &request.version {
        Some(version) => available_version("version", version, catalog)?,
        None => catalog.default_version(),
    };
    let topology = request.topology.clone().unwrap_or(DEFAULT_TOPOLOGY);
    topology_fits("topologyConfig", &topology)?;
    if let Some(location) = &request.location
        && location != LOCATION
    {
        let reason = format!("unknown location. Supported: {LOCATION}");
        return Err(PlatformError::invalid("locationId", location, reason));
    }
    if request.node_groups.len() > MAX_INITIAL_NODE_GROUPS {
        return Err(PlatformError::invalid(
            "nodeGroups",
            request.node_groups.len(),
            format!("at most {MAX_INITIAL_NODE_GROUPS} can be created with a cluster"),
        ));
    }
    let node_groups = request
        .node_groups
        .iter()
        .enumerate()
        .map(|(index, group)| {
            let field = format!("nodeGroups[{index}].");
            if group.target_node_count == 0 {
                return Err(PlatformError::invalid(
                    format!("{field}targetNodeCount"),
                    0,
                    format!("must be between 1 and {MAX_NODES} at the creation of a cluster"),
                ));
            }
            node_group_order_at(&field, group.clone())
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(ClusterOrder {
        version,
        topology,
        node_groups,
        request,
    })
}

pub fn node_group_order(request: CreateNodeGroup) -> Result<NodeGroupOrder> {
    node_group_order_at("", request)
}

fn node_group_order_at(field: &str, request: CreateNodeGroup) -> Result<NodeGroupOrder> {
    node_group_name(&format!("{field}name"), &request.name)?;
    description(
        &format!("{field}description"),
        request.description.as_deref(),
    )?;
    node_group_tag(&format!("{field}tag"), request.tag.as_deref())?;
    labels(&format!("{field}labels"), &request.labels)?;
    taints(&format!("{field}taints"), &request.taints)?;
    let min_node_count = request.min_node_count.unwrap_or(0);
    let max_node_count = request.max_node_count.unwrap_or(MAX_NODES);
    node_counts(
        field,
        request.target_node_count,
        min_node_count,
        max_node_count,
    )?;
    Ok(NodeGroupOrder {
        request,
        min_node_count,
        max_node_count,
    })
}

pub fn cluster_name(field: &str, name: &str) -> Result<()> {
    let chars = name.chars().count();
    if !(1..=MAX_NAME_CHARS).contains(&chars) {
        let reason = format!("must have between 1 and {MAX_NAME_CHARS} characters");
        return Err(PlatformError::invalid(field, name, reason));
    }
    Ok(())
}

pub fn description(field: &str, text: Option<&str>) -> Result<()> {
    at_most(field, text, MAX_DESCRIPTION_CHARS)
}

pub fn node_group_tag(field: &str, text: Option<&str>) -> Result<()> {
    at_most(field, text, MAX_TAG_CHARS)
}

fn at_most(field: &str, text: Option<&str>, chars: usize) -> Result<()> {
    match text {
        Some(text) if text.chars().count() > chars => {
            let reason = format!("must have at most {chars} characters");
            Err(PlatformError::invalid(field, text, reason))
        }
        _ => Ok(()),
    }
}

/// A tag is `tag` or `key:value`: neither commas nor white space.
pub fn tags(field: &str, tags: &[String]) -> Result<()> {
    if tags.len() > MAX_TAGS {
        let reason = format!("must be at most {MAX_TAGS}");
        return Err(PlatformError::invalid(field, tags.len(), reason));
    }
    for (index, tag) in tags.iter().enumerate() {
        let bad = |c: char| c == ',' || c.is_whitespace();
        if tag.is_empty() || tag.chars().count() > MAX_TAG_CHARS || tag.contains(bad) {
            let reason = format!(
                "must have 1 to {MAX_TAG_CHARS} characters, without commas and white space"
            );
            return Err(PlatformError::invalid(
                format!("{field}[{index}]"),
                tag,
                reason,
            ));
        }
    }
    Ok(())
}

pub fn available_version(field: &str, version: &str, catalog: &Catalog) -> Result<String> {
    if catalog.is_supported(version) {
        return Ok(version.to_owned());
    }
    let reason = format!(
        "version \"{version}\" is not available. Supported: {}",
        catalog.versions().join(", ")
    );
    Err(PlatformError::invalid(field, version, reason))
}

pub fn topology_fits(field: &str, topology: &Topology) -> Result<()> {
    match topology {
        Topology::AllInOne {
            flavor,
            replication_factor,
        }
        | Topology::DedicatedCompute {
            flavor,
            replication_factor,
        } => vm_fits(field, topology.kind(), *flavor, *replication_factor),
        Topology::Distributed { components } => {
            for component in Component::ALL {
                let config = components.get(component);
                let field = format!("{field}.components.{}", field_of(component));
                vm_fits(
                    &field,
                    topology.kind(),
                    config.flavor,
                    config.replication_factor,
                )?;
            }
            Ok(())
        }
    }
}

/// Name of a component in a request.
fn field_of(component: Component) -> &'static str {
    match component {
        Component::Apiserver => "apiserver",
        Component::ControllerManager => "controllerManager",
        Component::Scheduler => "scheduler",
        Component::NodeGroupOperator => "nodeGroupOperator",
        Component::CloudControllerManager => "cloudControllerManager",
    }
}

fn vm_fits(field: &str, topology: TopologyKind, flavor: Flavor, factor: u8) -> Result<()> {
    if !topology.flavors().contains(&flavor) {
        let supported: Vec<&str> = topology.flavors().iter().map(|f| f.as_str()).collect();
        let reason = format!(
            "flavor \"{flavor}\" is not available for {topology}. Supported: {}",
            supported.join(", ")
        );
        return Err(PlatformError::invalid(
            format!("{field}.flavor"),
            flavor,
            reason,
        ));
    }
    if !REPLICATION_FACTOR.contains(&factor) {
        let reason = format!(
            "replication factor for {topology} must be between {} and {}",
            REPLICATION_FACTOR.start(),
            REPLICATION_FACTOR.end()
        );
        return Err(PlatformError::invalid(
            format!("{field}.replicationFactor"),
            factor,
            reason,
        ));
    }
    Ok(())
}

/// A label as of RFC 1123 in lower case, of at most 63 characters.
fn node_group_name(field: &str, name: &str) -> Result<()> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| inner(byte) && byte != b'-');
    let bytes = name.as_bytes();
    let ok = (1..=63).contains(&bytes.len())
        && bytes.iter().copied().all(inner)
        && outer(bytes.first().copied())
        && outer(bytes.last().copied());
    if ok {
        return Ok(());
    }
    let reason = "must be 1 to 63 lower case letters, digits and hyphens, \
        with a letter or digit at both ends (RFC 1123)";
    Err(PlatformError::invalid(field, name, reason))
}

/// Each within 0 to [`MAX_NODES`], and in order. `field` is a prefix.
pub fn node_counts(field: &str, target: u32, min: u32, max: u32) -> Result<()> {
    for (name, count) in [
        ("targetNodeCount", target),
        ("minNodeCount", min),
        ("maxNodeCount", max),
    ] {
        if count > MAX_NODES {
            let reason = format!("must be between 0 and {MAX_NODES}");
            return Err(PlatformError::invalid(
                format!("{field}{name}"),
                count,
                reason,
            ));
        }
    }
    if min > max {
        let reason = format!("must not be greater than maxNodeCount ({max})");
        return Err(PlatformError::invalid(
            format!("{field}minNodeCount"),
            min,
            reason,
        ));
    }
    if !(min..=max).contains(&target) {
        let reason = format!("must be between minNodeCount ({min}) and maxNodeCount ({max})");
        return Err(PlatformError::invalid(
            format!("{field}targetNodeCount"),
            target,
            reason,
        ));
    }
    Ok(())
}

fn labels(field: &str, labels: &BTreeMap<String, String>) -> Result<()> {
    if labels.len() > MAX_LABELS {
        let reason = format!("must be at most {MAX_LABELS}");
        return Err(PlatformError::invalid(field, labels.len(), reason));
    }
    for (key, value) in labels {
        let field = format!("{field}.{key}");
        if RESERVED_LABELS
            .iter()
            .any(|reserved| key.starts_with(reserved))
        {
            let reason = "the key belongs to the platform";
            return Err(PlatformError::invalid(field, value, reason));
        }
        qualified_name(&field, key)?;
        label_value(&field, value)?;
    }
    Ok(())
}

fn taints(field: &str, taints: &[Taint]) -> Result<()> {
    if taints.len() > MAX_LABELS {
        let reason = format!("must be at most {MAX_LABELS}");
        return Err(PlatformError::invalid(field, taints.len(), reason));
    }
    for (index, taint) in taints.iter().enumerate() {
        let field = format!("{field}[{index}]");
        qualified_name(&format!("{field}.key"), &taint.key)?;
        label_value(
            &format!("{field}.value"),
            taint.value.as_deref().unwrap_or_default(),
        )?;
    }
    Ok(())
}

/// Up to 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// As Kubernetes has keys of labels and taints: a name, perhaps after a DNS subdomain and a slash.
fn qualified_name(field: &str, key: &str) -> Result<()> {
    let is_domain = |domain: &str| {
        domain.len() <= 253
            && domain.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    };
    let ok = match key.split_once('/') {
        Some((domain, name)) => is_domain(domain) && is_label_name(name),
        None => is_label_name(key),
    };
    if ok {
        return Ok(());
    }
    let reason =
        "the key must be a name of at most 63 characters, perhaps after a domain and a slash";
    Err(PlatformError::invalid(field, key, reason))
}

fn label_value(field: &str, value: &str) -> Result<()> {
    if value.is_empty() || is_label_name(value) {
        return Ok(());
    }
    let reason = "the value must be empty, or at most 63 letters, digits, '-', '_' and '.', \
        with a letter or digit at both ends";
    Err(PlatformError::invalid(field, value, reason))
}

#[cfg(test)]
mod tests {
    use super::super::model::{ComponentConfig, Components, TaintEffect};
    use super::*;

    /// `expect` is the field refused.
    fn check_cluster(change: impl FnOnce(&mut CreateCluster), expect: Option<&str>) {
        let mut request = CreateCluster {
            name: String::from("demo"),
            ..CreateCluster::default()
        };
        change(&mut request);
        let refused = match cluster_order(request.clone(), &Catalog::default()) {
            Err(PlatformError::Invalid { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        };
        assert_eq!(refused.as_deref(), expect, "{request:?}");
    }

    #[test]
    fn a_cluster_s_request_is_judged_field_by_field() {
        let check = |change: fn(&mut CreateCluster), expect| check_cluster(change, expect);
        check(|_| {}, None);
        check(|r| r.name.clear(), Some("name"));
        check(|r| r.name = "é".repeat(128), None);
        check(|r| r.name = "x".repeat(129), Some("name"));
        check(|r| r.name = "x".repeat(300), Some("name"));
        check(|r| r.description = Some("x".repeat(4096)), None);
        check(
            |r| r.description = Some("x".repeat(4097)),
            Some("description"),
        );
        check(|r| r.tags = vec!["env:prod".into(), "a".into()], None);
        check(|r| r.tags = vec!["a".into(), "b c".into()], Some("tags[1]"));
        check(|r| r.tags = vec!["a,b".into()], Some("tags[0]"));
        check(|r| r.tags = vec![String::new()], Some("tags[0]"));
        check(|r| r.version = Some("1.34".into()), None);
        check(|r| r.version = Some("1.33".into()), Some("version"));
        check(|r| r.version = Some("v1.36".into()), Some("version"));
        check(|r| r.location = Some("par".into()), None);
        check(|r| r.location = Some("rbx".into()), Some("locationId"));
    }

    #[test]
    fn a_topology_has_its_own_flavors_and_factors() {
        let all_in_one = |flavor, replication_factor| Topology::AllInOne {
            flavor,
            replication_factor,
        };
        let check = |topology, expect| check_cluster(|r| r.topology = Some(topology), expect);
        check(all_in_one(Flavor::S, 1), None);
        check(all_in_one(Flavor::S, 5), None);
        check(all_in_one(Flavor::Xs, 1), Some("topologyConfig.flavor"));
        check(
            all_in_one(Flavor::S, 0),
            Some("topologyConfig.replicationFactor"),
        );
        check(
            all_in_one(Flavor::S, 6),
            Some("topologyConfig.replicationFactor"),
        );
        check(
            Topology::DedicatedCompute {
                flavor: Flavor::Xxs,
                replication_factor: 1,
            },
            Some("topologyConfig.flavor"),
        );
        let mut components = Components::uniform(ComponentConfig {
            flavor: Flavor::Xxs,
            replication_factor: 1,
        });
        check(
            Topology::Distributed {
                components: components.clone(),
            },
            None,
        );
        components.scheduler.replication_factor = 9;
        check(
            Topology::Distributed { components },
            Some("topologyConfig.components.scheduler.replicationFactor"),
        );
    }

    #[test]
    fn an_initial_group_has_at_least_one_node() {
        let check = |count, expect| {
            check_cluster(
                |r| r.node_groups = vec![CreateNodeGroup::new("default", Flavor::Xs, count)],
                expect,
            );
        };
        check(0, Some("nodeGroups[0].targetNodeCount"));
        check(1, None);
        check(256, None);
        check(9999, Some("nodeGroups[0].targetNodeCount"));
    }

    #[test]
    fn a_node_group_s_request_is_judged_field_by_field() {
        let check = |change: fn(&mut CreateNodeGroup), expect: Option<&str>| {
            let mut request = CreateNodeGroup::new("workers", Flavor::Xxs, 2);
            change(&mut request);
            let refused = match node_group_order(request.clone()) {
                Err(PlatformError::Invalid { field, .. }) => Some(field),
                Err(other) => panic!("{other}"),
                Ok(_) => None,
            };
            assert_eq!(refused.as_deref(), expect, "{request:?}");
        };
        check(|_| {}, None);
        check(|r| r.name = "a".repeat(63), None);
        check(|r| r.name = "a".repeat(64), Some("name"));
        check(|r| r.name.clear(), Some("name"));
        check(|r| r.name = "Workers".into(), Some("name"));
        check(|r| r.name = "-a".into(), Some("name"));
        check(|r| r.name = "a-".into(), Some("name"));
        check(|r| r.name = "a_b".into(), Some("name"));
        check(|r| r.tag = Some("x".repeat(1025)), Some("tag"));
        check(|r| r.target_node_count = 0, None);
        check(|r| r.target_node_count = 257, Some("targetNodeCount"));
        check(|r| r.max_node_count = Some(257), Some("maxNodeCount"));
        check(|r| r.max_node_count = Some(1), Some("targetNodeCount"));
        check(|r| r.min_node_count = Some(3), Some("targetNodeCount"));
        check(
            |r| (r.min_node_count, r.max_node_count) = (Some(3), Some(2)),
            Some("minNodeCount"),
        );
        let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let check_label = |key: &str, value: &str, ok: bool| {
            let mut request = CreateNodeGroup::new("workers", Flavor::Xxs, 2);
            request.labels = label(key, value);
            assert_eq!(node_group_order(request).is_ok(), ok, "{key}={value}");
        };
        check_label("a.example/b", "c", true);
        check_label("karpenter.clever-cloud.com/managed", "true", true);
        check_label("b", "", true);
        check_label("kubernetes.io/role", "c", false);
        check_label("node.kubernetes.io/x", "c", false);
        check_label("clever-cloud.com/x", "c", false);
        check_label("b", "c d", false);
        check_label("b", &"c".repeat(64), false);
        check_label("", "c", false);
        check_label("A_b/c", "c", false);
        check(
            |r| {
                r.taints = vec![Taint {
                    key: "a b".into(),
                    value: None,
                    effect: TaintEffect::NoSchedule,
                }];
            },
            Some("taints[0].key"),
        );
    }
}
