//! What a cluster is made of, before it exists: its control plane and its node groups.
//!
//! Written as text, as on the command line:
//!
//! ```text
//! ALL_IN_ONE:S:1
//! DEDICATED_COMPUTE:XS:3+web=M:3+XS:2              a control plane and two node groups
//! DISTRIBUTED:2XS:1,apiserver=S:3,scheduler=XS:1   two components of their own flavor and number
//! ```

use std::fmt;
use std::str::FromStr;

use super::error::PlatformError;
use super::model::{
    Component, ComponentConfig, Components, Flavor, InvalidId, Topology, TopologyKind,
};
use super::quota::Resources;
use super::validation;

/// Sites of the platform.
const SITES: u32 = crate::infra::Datacenter::ALL.len() as u32;
/// From so many replicas on, a control plane is promised to outlive a datacenter (spec, "3 datacenters in
/// Paris").
pub const REPLICAS_FOR_A_LOSS: u8 = 3;
/// Groups of a shape: more than any quota allows of one node each.
pub const MOST_GROUPS: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGroupShape {
    pub name: Option<String>,
    pub flavor: Flavor,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub topology: Topology,
    pub node_groups: Vec<NodeGroupShape>,
}

impl Shape {
    pub fn new(topology: Topology, node_groups: Vec<NodeGroupShape>) -> Shape {
        Shape {
            topology,
            node_groups,
        }
    }

    /// Whether a cluster can be so, its owner's quota aside. `field` is a prefix.
    pub fn check(&self, field: &str) -> Result<(), PlatformError> {
        validation::topology_fits(&format!("{field}topologyConfig"), &self.topology)?;
        let groups = self.node_groups.len();
        if groups > MOST_GROUPS {
            let reason = format!("at most {MOST_GROUPS} can be quoted at once");
            return Err(PlatformError::invalid(
                format!("{field}nodeGroups"),
                groups,
                reason,
            ));
        }
        for (index, group) in self.node_groups.iter().enumerate() {
            let field = format!("{field}nodeGroups[{index}].");
            validation::node_counts(&field, group.count, 0, validation::MAX_NODES)?;
        }
        Ok(())
    }

    /// What counts against the quota.
    pub fn resources(&self) -> Resources {
        let groups = self.node_groups.iter();
        let groups = groups.map(|group| Resources::of(group.flavor, group.count));
        groups
            .chain([Resources::of_control_plane(&self.topology)])
            .sum()
    }

    /// What the nodes have together: of the groups, and of the bundles, which are nodes too.
    pub fn capacity(&self) -> Resources {
        let groups = self.node_groups.iter();
        let groups = groups.map(|group| Resources::of(group.flavor, group.count));
        match &self.topology {
            Topology::AllInOne { .. } => groups
                .chain([Resources::of_control_plane(&self.topology)])
                .sum(),
            _ => groups.sum(),
        }
    }

    /// What of it is certain to be left when any one datacenter is lost: a group's nodes go round the sites;
    /// bundles stay within one, which may be the one that is lost.
    pub fn capacity_after_loss(&self) -> Resources {
        let groups = self.node_groups.iter();
        groups
            .map(|group| Resources::of(group.flavor, group.count - group.count.div_ceil(SITES)))
            .sum()
    }

    /// Whether the control plane goes on when any one datacenter is lost, as the product promises it.
    pub fn survives_a_datacenter(&self) -> bool {
        match &self.topology {
            Topology::AllInOne { .. } => false,
            Topology::DedicatedCompute {
                replication_factor, ..
            } => *replication_factor >= REPLICAS_FOR_A_LOSS,
            Topology::Distributed { components } => Component::ALL
                .into_iter()
                .all(|it| components.get(it).replication_factor >= REPLICAS_FOR_A_LOSS),
        }
    }
}

/// Why a text is no shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShape {
    #[error(transparent)]
    Word(#[from] InvalidId),
    #[error("`{0}`: expected FLAVOR:N, such as M:3")]
    Vms(String),
    #[error("`{0}` is not a number of VMs")]
    Count(String),
    #[error("expected NAME=FLAVOR:N, such as apiserver=S:3")]
    Component,
    #[error("`{0}` is not one of {names}", names = component_names())]
    UnknownComponent(String),
    #[error("{0} is named twice")]
    ComponentTwice(&'static str),
    #[error("a component is for the topology DISTRIBUTED, not {0}")]
    ComponentOf(TopologyKind),
}

fn component_names() -> String {
    Component::ALL.map(Component::name).join(", ")
}

/// `M:3`.
fn vms_of<N: FromStr>(text: &str) -> Result<(Flavor, N), InvalidShape> {
    let (flavor, count) = text
        .split_once(':')
        .ok_or_else(|| InvalidShape::Vms(text.to_owned()))?;
    let flavor = flavor.parse::<Flavor>()?;
    let count = count
        .parse()
        .map_err(|_| InvalidShape::Count(count.to_owned()))?;
    Ok((flavor, count))
}

impl FromStr for NodeGroupShape {
    type Err = InvalidShape;

    fn from_str(text: &str) -> Result<Self, InvalidShape> {
        let (name, nodes) = match text.split_once('=') {
            Some((name, nodes)) => (Some(name.to_owned()), nodes),
            None => (None, text),
        };
        let (flavor, count) = vms_of(nodes)?;
        Ok(NodeGroupShape {
            name,
            flavor,
            count,
        })
    }
}

/// A component of a DISTRIBUTED control plane that is not like the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComponentShape {
    pub component: Component,
    pub config: ComponentConfig,
}

impl FromStr for ComponentShape {
    type Err = InvalidShape;

    fn from_str(text: &str) -> Result<Self, InvalidShape> {
        let (name, vms) = text.split_once('=').ok_or(InvalidShape::Component)?;
        let component = Component::ALL
            .into_iter()
            .find(|component| component.name() == name)
            .ok_or_else(|| InvalidShape::UnknownComponent(name.to_owned()))?;
        let (flavor, replication_factor) = vms_of(vms)?;
        Ok(ComponentShape {
            component,
            config: ComponentConfig {
                flavor,
                replication_factor,
            },
        })
    }
}

/// A control plane of a kind: its smallest flavor and one replica, unless told otherwise.
pub fn topology(
    kind: TopologyKind,
    flavor: Option<Flavor>,
    replication_factor: Option<u8>,
    unlike: &[ComponentShape],
) -> Result<Topology, InvalidShape> {
    let flavor = flavor.unwrap_or(kind.flavors()[0]);
    let replication_factor = replication_factor.unwrap_or(1);
    if kind != TopologyKind::Distributed && !unlike.is_empty() {
        return Err(InvalidShape::ComponentOf(kind));
    }
    Ok(match kind {
        TopologyKind::AllInOne => Topology::AllInOne {
            flavor,
            replication_factor,
        },
        TopologyKind::DedicatedCompute => Topology::DedicatedCompute {
            flavor,
            replication_factor,
        },
        TopologyKind::Distributed => {
            let mut components = Components::uniform(ComponentConfig {
                flavor,
                replication_factor,
            });
            for (index, ComponentShape { component, config }) in unlike.iter().enumerate() {
                if unlike[..index].iter().any(|it| it.component == *component) {
                    return Err(InvalidShape::ComponentTwice(component.name()));
                }
                *components.get_mut(*component) = *config;
            }
            Topology::Distributed { components }
        }
    })
}

impl FromStr for Shape {
    type Err = InvalidShape;

    fn from_str(text: &str) -> Result<Self, InvalidShape> {
        let mut parts = text.split('+');
        let mut words = parts.next().unwrap_or_default().split(',');
        let mut head = words.next().unwrap_or_default().split(':');
        let kind = head.next().unwrap_or_default().parse::<TopologyKind>()?;
        let flavor = head.next().map(str::parse::<Flavor>).transpose()?;
        let factor = head.next().map(|factor| {
            let invalid = |_| InvalidShape::Count(factor.to_owned());
            factor.parse().map_err(invalid)
        });
        let factor = factor.transpose()?;
        if let Some(rest) = head.next() {
            return Err(InvalidShape::Vms(rest.to_owned()));
        }
        let unlike = words.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        let node_groups = parts.map(str::parse).collect::<Result<_, _>>()?;
        let topology = topology(kind, flavor, factor, &unlike)?;
        Ok(Shape {
            topology,
            node_groups,
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.topology.kind().as_str().to_owned();
        match &self.topology {
            Topology::AllInOne {
                flavor,
                replication_factor,
            }
            | Topology::DedicatedCompute {
                flavor,
                replication_factor,
            } => text.push_str(&format!(":{flavor}:{replication_factor}")),
            Topology::Distributed { components } => {
                // As the one that most components are like.
                let all = Component::ALL.map(|it| components.get(it));
                let alike =
                    |config: &ComponentConfig| all.iter().filter(|it| *it == config).count();
                let usual = all.iter().rev().max_by_key(|it| alike(it)).copied();
                if let Some(config) = usual {
                    let (flavor, factor) = (config.flavor, config.replication_factor);
                    text.push_str(&format!(":{flavor}:{factor}"));
                }
                for component in Component::ALL {
                    let config = components.get(component);
                    if Some(config) != usual {
                        let (flavor, factor) = (config.flavor, config.replication_factor);
                        text.push_str(&format!(",{}={flavor}:{factor}", component.name()));
                    }
                }
            }
        }
        for group in &self.node_groups {
            text.push('+');
            if let Some(name) = &group.name {
                text.push_str(&format!("{name}="));
            }
            text.push_str(&format!("{}:{}", group.flavor, group.count));
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_as_it_is_written() {
        let check = |text: &str, expect: &str| {
            let said = match text.parse::<Shape>() {
                Ok(shape) => {
                    let written = shape.to_string();
                    assert_eq!(written.parse::<Shape>().as_ref(), Ok(&shape), "{written}");
                    written
                }
                Err(error) => error.to_string(),
            };
            assert_eq!(said, expect, "{text}");
        };
        check("ALL_IN_ONE:S:1", "ALL_IN_ONE:S:1");
        check("all_in_one", "ALL_IN_ONE:S:1");
        check("DEDICATED_COMPUTE:m", "DEDICATED_COMPUTE:M:1");
        check(
            "DEDICATED_COMPUTE:XS:3+web=M:3+2XS:0",
            "DEDICATED_COMPUTE:XS:3+web=M:3+2XS:0",
        );
        check(
            "DISTRIBUTED:2XS:1,apiserver=S:3,scheduler=XS:1",
            "DISTRIBUTED:2XS:1,apiserver=S:3,scheduler=XS:1",
        );
        check(
            "",
            "`` is not a topology (ALL_IN_ONE, DEDICATED_COMPUTE, DISTRIBUTED)",
        );
        check("ALL_IN_ONE:Q", "`Q` is not a flavor (2XS, XS, S, M, L, XL)");
        check("ALL_IN_ONE:S:x", "`x` is not a number of VMs");
        check("ALL_IN_ONE:S:1:2", "`2`: expected FLAVOR:N, such as M:3");
        check("ALL_IN_ONE+M", "`M`: expected FLAVOR:N, such as M:3");
        check("ALL_IN_ONE+M:-1", "`-1` is not a number of VMs");
        check(
            "ALL_IN_ONE,apiserver=S:1",
            "a component is for the topology DISTRIBUTED, not ALL_IN_ONE",
        );
        check(
            "DISTRIBUTED,apiserver=S:1,apiserver=S:2",
            "apiserver is named twice",
        );
        check(
            "DISTRIBUTED,apiserver",
            "expected NAME=FLAVOR:N, such as apiserver=S:3",
        );
    }

    #[test]
    fn bundles_are_nodes_and_stay_within_one_datacenter() {
        let check = |text: &str, all: [u64; 2], nodes: [u64; 2], left: [u64; 2], survives| {
            let shape: Shape = text.parse().unwrap();
            let seen = [
                shape.resources(),
                shape.capacity(),
                shape.capacity_after_loss(),
            ];
            let expect = [all, nodes, left].map(|[vcpus, ram_gb]| Resources { vcpus, ram_gb });
            assert_eq!(seen, expect, "{text}");
            assert_eq!(shape.survives_a_datacenter(), survives, "{text}");
        };
        check("ALL_IN_ONE:S:3", [24, 36], [24, 36], [0, 0], false);
        check("ALL_IN_ONE:S:1+XS:4", [32, 44], [32, 44], [12, 16], false);
        check(
            "DEDICATED_COMPUTE:XS:2+2XS:1",
            [16, 20],
            [4, 4],
            [0, 0],
            false,
        );
        check(
            "DEDICATED_COMPUTE:XS:3+2XS:2",
            [26, 32],
            [8, 8],
            [4, 4],
            true,
        );
        check(
            "DISTRIBUTED:2XS:3,apiserver=2XS:2",
            [56, 56],
            [0, 0],
            [0, 0],
            false,
        );
        check("DISTRIBUTED:2XS:3", [60, 60], [0, 0], [0, 0], true);
    }
}
