//! A node group's state machine: what to do next, as a function of what is recorded and what is seen.
//!
//! ```text
//! (create) ─▶ PENDING ─▶ CREATED ─▶ DEPLOYING ─▶ DEPLOYED ─▶ READY ◀────────────┐
//!                                                    READY ─▶ TO_RESIZE ─▶ RESIZING
//!                                    any ─▶ TO_TERMINATE ─▶ TERMINATING ─▶ (no record)
//! ```
//!
//! A node is recorded before its VM is asked for, and its VM has the node's id: so no VM is ever without
//! a record that names it. A node goes in the other order: drained, VM deleted, and only when the VM is
//! gone is the node struck off, together with its name.
//!
//! Worked example (group `w`, target 2 to 4 to 1): nodes `w-node0`, `w-node1` are READY; the resize to 4
//! adds the lowest free numbers, `w-node2` and `w-node3`; the resize to 1 drains the highest, `w-node3`,
//! `w-node2`, `w-node1`.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Timestamp;

use super::deployment_event::{DeploymentEvent, EventStatus, OperationKind};
use super::model::{Node, NodeGroup, NodeGroupStatus, NodeId, NodeStatus};
use super::vm_state::VmState;
use super::{identity, placement};

/// How long a group stays PENDING and CREATED, once its cluster can take nodes.
const ACCEPT: Duration = Duration::from_secs(1);
const PREPARE: Duration = Duration::from_secs(4);
/// From a running VM to a node that is ready in its cluster.
const JOIN: Duration = Duration::from_secs(10);
/// How long workloads get to leave a node.
const DRAIN: Duration = Duration::from_secs(5);
/// Nodes added in one change of the record: each needs operations of the same transaction, and etcd
/// allows 128 by default.
const MAX_ADDED: usize = 32;

/// What is seen of the world beside the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By the id of the node; one that is not there is not in here.
    pub vms: BTreeMap<String, VmState>,
    /// The cluster's control plane is up.
    pub cluster_takes_nodes: bool,
    pub cluster_is_going: bool,
    /// Names of nodes in the cluster, of any group: groups may share a name, nodes may not.
    pub taken_names: BTreeSet<String>,
}

impl Seen {
    fn vm(&self, node: &Node) -> VmState {
        self.vms
            .get(node.id.as_str())
            .copied()
            .unwrap_or(VmState::Absent)
    }
}

/// Something to be done to the world; each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    CreateVm(Node),
    UpdateGuest(Node),
    DeleteVm(NodeId),
}

/// What to do: the acts, in order, then the change of the record, with its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub acts: Vec<Act>,
    pub next: Option<NodeGroup>,
    pub events: Vec<DeploymentEvent>,
    /// When to look again if nothing changes before.
    pub wake: Option<Timestamp>,
    /// The record goes instead of changing.
    pub remove: bool,
}

impl Decision {
    fn wake_by(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// When a group that is asked for at `now` may go on.
pub fn first_due(now: Timestamp) -> Timestamp {
    now.saturating_add(ACCEPT)
}

/// What to do about `group` now.
pub fn decide(group: &NodeGroup, seen: &Seen, now: Timestamp, seed: u64) -> Decision {
    let mut decision = Decision::default();
    let mut next = group.clone();
    if seen.cluster_is_going && !next.is_going() {
        next.status = NodeGroupStatus::ToTerminate;
    }
    let due = group.due.unwrap_or(now);
    let event =
        |kind, status| DeploymentEvent::new(now, kind, None, status).of_node_group(&group.id);
    match next.status {
        NodeGroupStatus::Pending => {
            if !seen.cluster_takes_nodes {
                // The cluster's next change brings the group back here.
            } else if now < due {
                decision.wake_by(due);
            } else {
                next.status = NodeGroupStatus::Created;
                next.due = Some(now.saturating_add(PREPARE));
            }
        }
        NodeGroupStatus::Created => {
            if now < due {
                decision.wake_by(due);
            } else {
                next.status = NodeGroupStatus::Deploying;
                next.due = None;
            }
        }
        NodeGroupStatus::ToResize => next.status = NodeGroupStatus::Resizing,
        NodeGroupStatus::ToTerminate => {
            next.status = NodeGroupStatus::Terminating;
            next.due = None;
            decision
                .events
                .push(event(OperationKind::NodeGroupDelete, EventStatus::Started));
        }
        NodeGroupStatus::Deploying
        | NodeGroupStatus::Deployed
        | NodeGroupStatus::Resizing
        | NodeGroupStatus::Ready
        | NodeGroupStatus::Failed => {
            size(&mut next, seen, now, seed);
            converge(&mut next, &group.nodes, seen, now, &mut decision);
            settle(&mut next, now, &mut decision, event);
        }
        NodeGroupStatus::Terminating => {
            drain(&mut next, 0, now);
            converge(&mut next, &group.nodes, seen, now, &mut decision);
            if next.nodes.is_empty() {
                next.status = NodeGroupStatus::Deleted;
                decision.remove = true;
                decision.events.push(event(
                    OperationKind::NodeGroupDelete,
                    EventStatus::Completed,
                ));
            }
        }
        NodeGroupStatus::Deleted => decision.remove = true,
    }
    next.current_node_count = ready_nodes(&next);
    if next != *group || decision.remove {
        decision.next = Some(next);
    }
    decision
}

fn ready_nodes(group: &NodeGroup) -> u32 {
    let ready = |node: &&Node| node.status == NodeStatus::Ready;
    u32::try_from(group.nodes.iter().filter(ready).count()).unwrap_or(u32::MAX)
}

fn stays(node: &Node) -> bool {
    node.status != NodeStatus::Draining
}

/// Adds nodes with the lowest free numbers, or drains those with the highest, up to the target.
fn size(next: &mut NodeGroup, seen: &Seen, now: Timestamp, seed: u64) {
    let target = usize::try_from(next.target_node_count).unwrap_or(usize::MAX);
    let staying = next.nodes.iter().filter(|node| stays(node)).count();
    if staying > target {
        drain(next, target, now);
    }
    let mut number = 0;
    for _ in staying..target.min(staying.saturating_add(MAX_ADDED)) {
        let name = loop {
            let name = format!("{}-node{number}", next.name);
            number += 1;
            let own = next.nodes.iter().any(|node| node.name == name);
            if !own && !seen.taken_names.contains(&name) {
                break name;
            }
        };
        let id = identity::mint(seed, now, next.id.as_str(), next.allocated);
        next.nodes.push(Node {
            id: NodeId::new(id),
            name,
            number: number - 1,
            status: NodeStatus::Deploying,
            datacenter: placement::of_node(&next.id, next.allocated),
            created_at: now,
            drained_at: None,
        });
        next.allocated += 1;
    }
    next.nodes.sort_by_key(|node| node.number);
}

/// Leaves the `keep` lowest nodes, and drains the others.
fn drain(next: &mut NodeGroup, keep: usize, now: Timestamp) {
    let going = next.nodes.iter_mut().filter(|node| stays(node)).skip(keep);
    for node in going {
        node.status = NodeStatus::Draining;
        node.drained_at = Some(now.saturating_add(DRAIN));
    }
}

/// Brings nodes and VMs together: missing VMs are asked for, statuses follow, drained nodes go.
///
/// `recorded` are the nodes of the record as it is: one that this very decision adds gets its VM in the
/// next round, when its record is safe.
fn converge(
    next: &mut NodeGroup,
    recorded: &[Node],
    seen: &Seen,
    now: Timestamp,
    decision: &mut Decision,
) {
    let mut nodes = std::mem::take(&mut next.nodes);
    nodes.retain_mut(|node| {
        let state = seen.vm(node);
        if node.status == NodeStatus::Draining {
            let drained_at = node.drained_at.unwrap_or(now);
            if now < drained_at {
                decision.wake_by(drained_at);
                return true;
            }
            return match state {
                VmState::Absent => false,
                VmState::Deleting => true,
                _ => {
                    decision.acts.push(Act::DeleteVm(node.id.clone()));
                    true
                }
            };
        }
        match state {
            VmState::Absent => {
                if recorded.iter().any(|known| known.id == node.id) {
                    decision.acts.push(Act::CreateVm(node.clone()));
                }
                node.status = NodeStatus::Deploying;
            }
            VmState::Provisioning { .. } | VmState::Deleting => {
                node.status = NodeStatus::Deploying;
            }
            VmState::Failed => node.status = NodeStatus::Failed,
            VmState::Running { since, .. } => {
                let joined = since.saturating_add(JOIN);
                if joined <= now {
                    node.status = NodeStatus::Ready;
                } else {
                    node.status = NodeStatus::Deployed;
                    decision.wake_by(joined);
                }
            }
        }
        if state.is_outdated() {
            decision.acts.push(Act::UpdateGuest(node.clone()));
        }
        true
    });
    next.nodes = nodes;
}

/// What the group's status is, once its nodes are as they are.
fn settle(
    next: &mut NodeGroup,
    now: Timestamp,
    decision: &mut Decision,
    event: impl Fn(OperationKind, EventStatus) -> DeploymentEvent,
) {
    let target = usize::try_from(next.target_node_count).unwrap_or(usize::MAX);
    let all = |least: &[NodeStatus]| {
        next.nodes.len() == target && next.nodes.iter().all(|node| least.contains(&node.status))
    };
    let ready = all(&[NodeStatus::Ready]);
    match next.status {
        NodeGroupStatus::Deploying | NodeGroupStatus::Deployed if ready => {
            next.status = NodeGroupStatus::Ready;
            next.updated_at = Some(now);
            decision.events.push(event(
                OperationKind::NodeGroupCreate,
                EventStatus::Completed,
            ));
        }
        NodeGroupStatus::Deploying if all(&[NodeStatus::Deployed, NodeStatus::Ready]) => {
            next.status = NodeGroupStatus::Deployed;
        }
        NodeGroupStatus::Resizing if ready => {
            next.status = NodeGroupStatus::Ready;
            next.updated_at = Some(now);
            decision
                .events
                .push(event(OperationKind::NodeGroupScale, EventStatus::Completed));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
