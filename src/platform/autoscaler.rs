//! When a node group grows or shrinks by itself: a pure function of its nodes' loads.
//!
//! Pressure is the load of all nodes together in percent of what they have, of CPU or of memory,
//! whichever is higher. Above [`HIGH_PERCENT`] for [`HIGH_FOR`] the group grows to where the pressure would
//! be about [`AIM_PERCENT`], at most to twice its size. When the load would stay below [`LOW_PERCENT`] with a
//! node less, for [`LOW_FOR`], its emptiest node is drained. Growing is quick and shrinking slow, and between
//! the two thresholds nothing moves: so a load that swings does not make the group swing.
//!
//! Worked example (three nodes of 4 vCPU, 11 of 12 in use, 92 %): after 60 s the group is to have
//! ⌈3 × 92 / 65⌉ = 5 nodes, 55 % of which will be in use. With two nodes less it would be 92 % again; with one
//! less, 69 %: it stays at five.
//!
//! Nothing is polled: a change of a load brings the group here, and the windows are deadlines. The windows
//! are part of the group's record, so that a restart does not begin them anew.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::infra::Load;

use super::model::{NodeGroup, NodeGroupStatus, NodeId, NodeStatus};
use super::replacement::Replica as _;

/// Pressure above which a group grows.
pub const HIGH_PERCENT: u64 = 80;
/// Pressure that growing aims at.
pub const AIM_PERCENT: u64 = 65;
/// Pressure below which a group of one node less is large enough.
pub const LOW_PERCENT: u64 = 50;
/// How long it must be high.
pub const HIGH_FOR: Duration = Duration::from_secs(60);
/// How long it must be low.
pub const LOW_FOR: Duration = Duration::from_secs(5 * 60);

/// What is kept between two looks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Scaling {
    /// Since when the pressure is high.
    pub high_since: Option<Timestamp>,
    /// Since when it is low.
    pub low_since: Option<Timestamp>,
    /// The quota does not allow another node; tried again when the owner's ledger changes.
    pub quota_exceeded: bool,
}

/// A change of size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resize {
    pub target: u32,
    /// The node that goes.
    pub victim: Option<NodeId>,
    /// For people, such as `cpu 92 %`.
    pub why: String,
}

/// What to do, and what to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub scaling: Scaling,
    pub resize: Option<Resize>,
    /// When to look again if no load changes before.
    pub wake: Option<Timestamp>,
}

/// Load of so many nodes, in percent: of CPU and of memory.
#[derive(Clone, Copy, Debug)]
struct Pressure {
    cpu: u64,
    memory: u64,
}

impl Pressure {
    fn of(group: &NodeGroup, load: Load, nodes: u64) -> Pressure {
        let size = group.flavor.size();
        let percent = |used: u64, of: u64| {
            let of = u128::from(of).saturating_mul(u128::from(nodes)).max(1);
            u64::try_from(u128::from(used) * 100 / of).unwrap_or(u64::MAX)
        };
        Pressure {
            cpu: percent(load.cpu_millis, u64::from(size.vcpus) * 1000),
            memory: percent(load.memory_kib, size.visible_memory_kib),
        }
    }

    fn worst(self) -> u64 {
        self.cpu.max(self.memory)
    }
}

impl std::fmt::Display for Pressure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cpu {} %, memory {} %", self.cpu, self.memory)
    }
}

/// What to do about `group` now. `enabled`: at the cluster, which is ACTIVE. `loads` by the id of the node.
pub fn decide(
    group: &NodeGroup,
    enabled: bool,
    loads: &BTreeMap<String, Load>,
    now: Timestamp,
) -> Decision {
    let ready = |node: &&super::model::Node| node.counts() && node.status == NodeStatus::Ready;
    let nodes: Vec<_> = group.nodes.iter().filter(ready).collect();
    let count = u64::try_from(nodes.len()).unwrap_or(u64::MAX);
    // While nodes come, go or are replaced, loads tell of a size that is not the group's.
    let at_rest = group.status == NodeGroupStatus::Ready
        && u64::from(group.target_node_count) == count
        && nodes.len() == group.nodes.len();
    if !(enabled && group.autoscaling_enabled && at_rest && count > 0) {
        return Decision::default();
    }
    let load_of = |id: &NodeId| loads.get(id.as_str()).copied().unwrap_or_default();
    let sum = |load: Load, node: &&super::model::Node| {
        let more = load_of(&node.id);
        Load {
            cpu_millis: load.cpu_millis.saturating_add(more.cpu_millis),
            memory_kib: load.memory_kib.saturating_add(more.memory_kib),
        }
    };
    let load = nodes.iter().fold(Load::default(), sum);
    let pressure = Pressure::of(group, load, count);
    let with_one_less = Pressure::of(group, load, count.saturating_sub(1));
    let mut decision = Decision::default();
    if pressure.worst() > HIGH_PERCENT && group.target_node_count < group.max_node_count {
        let since = group.scaling.high_since.unwrap_or(now);
        decision.scaling.high_since = Some(since);
        decision.scaling.quota_exceeded = group.scaling.quota_exceeded;
        let at = since.saturating_add(HIGH_FOR);
        if now < at {
            decision.wake = Some(at);
            return decision;
        }
        let wanted = count.saturating_mul(pressure.worst()).div_ceil(AIM_PERCENT);
        let wanted = wanted
            .clamp(count + 1, count * 2)
            .min(group.max_node_count.into());
        decision.resize = Some(Resize {
            target: u32::try_from(wanted).unwrap_or(group.max_node_count),
            victim: None,
            why: pressure.to_string(),
        });
    } else if count > 1
        && with_one_less.worst() < LOW_PERCENT
        && group.target_node_count > group.min_node_count
    {
        let since = group.scaling.low_since.unwrap_or(now);
        decision.scaling.low_since = Some(since);
        let at = since.saturating_add(LOW_FOR);
        if now < at {
            decision.wake = Some(at);
            return decision;
        }
        let weight = |node: &&&super::model::Node| {
            let own = Pressure::of(group, load_of(&node.id), 1).worst();
            (own, std::cmp::Reverse(node.number))
        };
        decision.resize = nodes.iter().min_by_key(weight).map(|node| Resize {
            target: group.target_node_count - 1,
            victim: Some(node.id.clone()),
            why: pressure.to_string(),
        });
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::super::creation;
    use super::super::model::{ClusterId, CreateNodeGroup, Flavor, OwnerId};
    use super::super::quota::Ledger;
    use super::super::{node_group, validation, vm_state::VmState};
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    /// A group at rest whose nodes have 4 vCPU each.
    fn group(count: u32, min: u32, max: u32) -> NodeGroup {
        let owner: OwnerId = "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap();
        let order = validation::node_group_order(CreateNodeGroup {
            min_node_count: Some(min),
            max_node_count: Some(max),
            autoscaling_enabled: Some(true),
            ..CreateNodeGroup::new("w", Flavor::Xxs, count)
        });
        let mut ledger = Ledger::new(owner);
        let cluster = ClusterId::new(ulid::Ulid(1));
        let mut group = creation::node_group(
            &order.unwrap(),
            &cluster,
            true,
            &mut ledger,
            0,
            Timestamp(0),
        );
        group.status = NodeGroupStatus::Deploying;
        let mut seen = node_group::Seen {
            cluster_takes_nodes: true,
            ..node_group::Seen::default()
        };
        while let Some(next) = node_group::decide(&group, &seen, NOW, 0).next {
            group = next;
            for node in &group.nodes {
                let state = VmState::Running {
                    since: Timestamp(0),
                    healthy: true,
                    reachable: true,
                };
                seen.vms.insert(node.id.to_string(), state);
            }
        }
        assert_eq!(group.status, NodeGroupStatus::Ready);
        group
    }

    fn loads(group: &NodeGroup, millis: &[u64]) -> BTreeMap<String, Load> {
        let load = |cpu_millis: &u64| Load {
            cpu_millis: *cpu_millis,
            memory_kib: 0,
        };
        let ids = group.nodes.iter().map(|node| node.id.to_string());
        ids.zip(millis.iter().map(load)).collect()
    }

    /// Looks until something is to be done or nothing will be; returns when, the target and the victim.
    fn outcome(group: &mut NodeGroup, millis: &[u64]) -> Option<(u64, u32, Option<String>)> {
        let loads = loads(group, millis);
        let mut now = NOW;
        loop {
            let decision = decide(group, true, &loads, now);
            group.scaling = decision.scaling;
            if let Some(resize) = decision.resize {
                let node = |id| group.nodes.iter().find(|node| node.id == id);
                let victim = resize.victim.and_then(node).map(|node| node.name.clone());
                return Some((NOW.until(now).as_secs(), resize.target, victim));
            }
            now = decision.wake?;
        }
    }

    #[test]
    fn a_group_follows_its_load_within_its_bounds() {
        let check =
            |bounds: (u32, u32), millis: &[u64], expect: Option<(u64, u32, Option<&str>)>| {
                let count = u32::try_from(millis.len()).unwrap();
                let mut group = group(count, bounds.0, bounds.1);
                let found = outcome(&mut group, millis);
                let found = found
                    .as_ref()
                    .map(|(at, to, who)| (*at, *to, who.as_deref()));
                assert_eq!(found, expect, "{millis:?} within {bounds:?}");
            };
        check((1, 10), &[3700, 3700, 3700], Some((60, 5, None)));
        check((1, 4), &[3700, 3700, 3700], Some((60, 4, None)));
        check((1, 3), &[3700, 3700, 3700], None);
        check((1, 10), &[3200, 3200, 3200], None);
        check((1, 10), &[3240, 3240, 3240], Some((60, 4, None)));
        check((1, 10), &[40_000], Some((60, 2, None)));
        check((1, 10), &[1500, 300, 900], Some((300, 2, Some("w-node1"))));
        check((1, 10), &[300, 300, 300], Some((300, 2, Some("w-node2"))));
        check((3, 10), &[300, 300, 300], None);
        check((1, 10), &[1900, 1900, 1900], None);
        check((0, 10), &[0], None);
    }

    #[test]
    fn memory_counts_as_cpu_does() {
        let group = group(1, 1, 2);
        let load = Load {
            cpu_millis: 0,
            memory_kib: 3_600_000,
        };
        let loads = BTreeMap::from([(group.nodes[0].id.to_string(), load)]);
        assert!(decide(&group, true, &loads, NOW).wake.is_some());
    }

    #[test]
    fn it_stands_still_while_switched_off_at_either_level_or_while_something_changes() {
        let idle = |group: &NodeGroup, enabled| {
            let loads = loads(group, &[4000]);
            assert_eq!(decide(group, enabled, &loads, NOW), Decision::default());
        };
        let mut group = group(1, 1, 5);
        group.scaling.high_since = Some(NOW);
        idle(&group, false);
        group.autoscaling_enabled = false;
        idle(&group, true);
        group.autoscaling_enabled = true;
        group.status = NodeGroupStatus::Resizing;
        idle(&group, true);
    }

    #[test]
    fn a_load_that_swings_begins_its_window_anew() {
        let mut group = group(1, 1, 5);
        let high = loads(&group, &[4000]);
        let normal = loads(&group, &[2500]);
        group.scaling = decide(&group, true, &high, NOW).scaling;
        assert_eq!(group.scaling.high_since, Some(NOW));
        let later = NOW.saturating_add(Duration::from_secs(50));
        group.scaling = decide(&group, true, &normal, later).scaling;
        assert_eq!(group.scaling, Scaling::default());
        let later = NOW.saturating_add(Duration::from_secs(70));
        assert_eq!(decide(&group, true, &high, later).resize, None);
    }
}
