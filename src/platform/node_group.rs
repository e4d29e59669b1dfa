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
//! gone is the node struck off, together with its name. Nodes that fail, and all of them after an update,
//! are replaced one at a time whatever the group's status: see [`super::replacement`]. While a group is READY and
//! nothing else is to do, nodes that crowd in one site move to another that has room.
//!
//! Worked example (group `w`, target 2 to 4 to 1): nodes `w-node0`, `w-node1` are READY; the resize to 4
//! adds the lowest free numbers, `w-node2` and `w-node3`; the resize to 1 drains the highest, `w-node3`,
//! `w-node2`, `w-node1`. Nodes that do not answer go before all others.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::infra::Datacenter;
use crate::kubernetes::Drain;

use super::deployment_event::{DeploymentEvent, EventStatus, OperationKind};
use super::identity;
use super::model::{Node, NodeGroup, NodeGroupStatus, NodeId, NodeStatus};
use super::placement::{self, Openings, Rule};
use super::replacement::{self, LOOK_AGAIN, Lifecycle, Reason, Replica, Sight, Tries};
use super::vm_state::VmState;

/// How long a group stays PENDING and CREATED, once its cluster can take nodes.
const ACCEPT: Duration = Duration::from_secs(1);
const PREPARE: Duration = Duration::from_secs(4);
/// From a running VM to a node that is ready in its cluster.
const JOIN: Duration = Duration::from_secs(10);
/// Failures in a row that make a group FAILED which is being deployed or resized. It is tried on all the same.
const FAILED_AFTER: u32 = 5;
/// Nodes added in one change of the record: each needs operations of the same transaction, and etcd
/// allows 128 by default.
const MAX_ADDED: usize = 32;
/// How nodes lie to one another.
pub const RULE: Rule = Rule::Spread;

/// What is seen of the world beside the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By the id of the node; one that is not there is not in here.
    pub vms: BTreeMap<String, VmState>,
    /// Outcome of this round's evictions, by the id of the node.
    pub drains: BTreeMap<String, Drain>,
    /// The cluster's control plane is up.
    pub cluster_takes_nodes: bool,
    pub cluster_is_going: bool,
    /// Version that the cluster's control plane serves.
    pub version: String,
    /// It is this group's turn to have its nodes replaced by ones of that version.
    pub rolls: bool,
    /// Names of nodes in the cluster, of any group: groups may share a name, nodes may not.
    pub taken_names: BTreeSet<String>,
    /// How many replacements may begin now; as many as need be, if `None`.
    pub replacements: Option<usize>,
    /// Which sites take a node that moves: none while the cluster is busy with something else.
    pub openings: Openings,
}

/// Something to be done to the world; each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    CreateVm(Node),
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
    /// Told once the change of the record is made.
    pub notices: Vec<Notice>,
    /// A replacement waits for its turn.
    pub deferred: bool,
}

/// Something that the cluster's users are told of by a Kubernetes event on the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
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
            keep(&mut next, seen, now, seed, &mut decision);
            settle(&mut next, seen, now, &mut decision, event);
        }
        NodeGroupStatus::Terminating => {
            let sight = sight(seen, now);
            drain(&mut next, 0, &sight);
            walk(&mut next, &sight, &mut decision);
            follow(&mut next, &sight);
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

/// Sites at which a node would be better off, if there were room; none while the group has something else to do than
/// to move a node.
pub fn wanted_sites(group: &NodeGroup) -> BTreeSet<Datacenter> {
    let counted: Vec<&Node> = group.nodes.iter().filter(|node| node.counts()).collect();
    let busy = |node: &Node| node.life.replaces.is_some() && !node.life.moves;
    let rests = group.status == NodeGroupStatus::Ready
        && u32::try_from(counted.len()) == Ok(group.target_node_count)
        && counted.iter().all(|node| node.status == NodeStatus::Ready)
        && !group.nodes.iter().any(busy);
    if !rests {
        return BTreeSet::new();
    }
    let sites: Vec<Datacenter> = counted.iter().map(|node| node.datacenter).collect();
    placement::wanted(RULE, &sites)
}

fn ready_nodes(group: &NodeGroup) -> u32 {
    let ready = |node: &&Node| node.status == NodeStatus::Ready;
    u32::try_from(group.nodes.iter().filter(ready).count()).unwrap_or(u32::MAX)
}

fn sight(seen: &Seen, now: Timestamp) -> Sight<'_> {
    Sight {
        now,
        vms: &seen.vms,
        drains: &seen.drains,
        join: JOIN,
    }
}

/// Brings the group's nodes a step further: they come, are replaced, and go.
fn keep(next: &mut NodeGroup, seen: &Seen, now: Timestamp, seed: u64, decision: &mut Decision) {
    let sight = sight(seen, now);
    walk(next, &sight, decision);
    size(next, seen, &sight, seed);
    let outdated = |node: &Node| seen.rolls && node.version != seen.version;
    let nowhere = Openings::default();
    let openings = match next.status {
        NodeGroupStatus::Ready => &seen.openings,
        _ => &nowhere,
    };
    let sites = replacement::sites(&next.nodes, None);
    let moves = placement::better_sites(RULE, &sites, &openings.open);
    let misplaced = |index: usize| moves.contains_key(&next.nodes[index].datacenter);
    let wanted = !moves.is_empty()
        || next
            .nodes
            .iter()
            .any(|node| node.counts() && outdated(node));
    if !wanted && !placement::better_sites(RULE, &sites, &openings.there()).is_empty() {
        decision.wake_by(now.saturating_add(LOOK_AGAIN));
    }
    let due = replacement::to_replace(&next.nodes, &next.tries, &sight, outdated, misplaced);
    decision.deferred = due.is_some() && seen.replacements == Some(0);
    if let Some((index, reason)) = due.filter(|_| !decision.deferred) {
        let old = &next.nodes[index];
        let (name, from) = (old.name.clone(), old.datacenter);
        let life = Lifecycle {
            replaces: Some(old.id.to_string()),
            moves: reason == Reason::Misplaced,
            ..Lifecycle::default()
        };
        let others = replacement::sites(&next.nodes, Some(index));
        let to = moves.get(&from).copied().filter(|_| life.moves);
        let site = to.unwrap_or_else(|| best_site(from, &others));
        let new = new_node(next, seen, now, seed, site, life);
        let (why, reason) = match reason {
            Reason::Unhealthy => (String::from("does not answer"), "NodeUnhealthy"),
            Reason::Outdated => (String::from("is to be renewed"), "NodeOutdated"),
            Reason::Misplaced => (format!("is to leave {from} for {site}"), "NodeMisplaced"),
        };
        let message = format!("{name} {why}: {new} is to take its place");
        tell(next, now, EventStatus::Started, reason, message, decision);
    }
    let target = usize::try_from(next.target_node_count).unwrap_or(usize::MAX);
    // A change that is still wanted goes on with its pauses.
    if target > 0 && !wanted && replacement::is_at_rest(&next.nodes, target, &sight) {
        next.tries = Tries::default();
    }
    // Whatever waits for the end of the pause: each round says anew when the next is due.
    if let Some(at) = next.tries.not_before.filter(|at| *at > now) {
        decision.wake_by(at);
    }
    follow(next, &sight);
}

/// Tells of a node's replacement, in the cluster and in its list of events.
fn tell(
    group: &NodeGroup,
    now: Timestamp,
    status: EventStatus,
    reason: &'static str,
    message: String,
    decision: &mut Decision,
) {
    let event = DeploymentEvent::new(now, OperationKind::NodeGroupRedeploy, None, status);
    decision
        .events
        .push(event.of_node_group(&group.id).because(message.clone()));
    decision.notices.push(Notice {
        warning: matches!(reason, "NodeUnhealthy" | "NodeFailed"),
        reason,
        message,
    });
}

fn walk(next: &mut NodeGroup, sight: &Sight<'_>, decision: &mut Decision) {
    let now = sight.now;
    let walk = replacement::walk(&mut next.nodes, &mut next.tries, sight);
    let create = next.nodes.iter();
    let create = create.filter(|node| walk.create.iter().any(|id| id == node.id.as_str()));
    decision.acts.extend(create.cloned().map(Act::CreateVm));
    let delete = next.nodes.iter();
    let delete = delete.filter(|node| walk.delete.iter().any(|id| id == node.id.as_str()));
    decision
        .acts
        .extend(delete.map(|node| Act::DeleteVm(node.id.clone())));
    for name in walk.failed {
        let message = format!("{name} did not start: another takes its place");
        tell(
            next,
            now,
            EventStatus::Failed,
            "NodeFailed",
            message,
            decision,
        );
    }
    for (new, old) in walk.took_over {
        let message = format!("{new} has joined: {old} is drained and deleted");
        tell(
            next,
            now,
            EventStatus::Started,
            "Draining",
            message,
            decision,
        );
    }
    for node in walk.struck {
        if let Some(by) = node.life.leaving.and_then(|leaving| leaving.replaced_by) {
            let message = format!("{} is replaced by {by}", node.name);
            tell(
                next,
                now,
                EventStatus::Completed,
                "NodeReplaced",
                message,
                decision,
            );
        }
    }
    if let Some(at) = walk.wake {
        decision.wake_by(at);
    }
}

fn best_site(preferred: Datacenter, others: &[Datacenter]) -> Datacenter {
    let open = BTreeSet::from(Datacenter::ALL);
    placement::choose(RULE, preferred, others, &open).unwrap_or(preferred)
}

/// Records another node, with the lowest free number. Returns its name.
fn new_node(
    next: &mut NodeGroup,
    seen: &Seen,
    now: Timestamp,
    seed: u64,
    datacenter: Datacenter,
    life: Lifecycle,
) -> String {
    let is_free = |name: &String| {
        let own = next.nodes.iter().any(|node| node.name == *name);
        !own && !seen.taken_names.contains(name)
    };
    let names = (0..=u32::MAX).map(|number| (number, format!("{}-node{number}", next.name)));
    let (number, name) = names
        .into_iter()
        .find(|(_, name)| is_free(name))
        .unwrap_or_default();
    next.nodes.push(Node {
        id: NodeId::new(identity::mint(seed, now, next.id.as_str(), next.allocated)),
        name: name.clone(),
        number,
        status: NodeStatus::Deploying,
        datacenter,
        created_at: now,
        version: seen.version.clone(),
        life,
    });
    next.allocated += 1;
    next.nodes.sort_by_key(|node| node.number);
    name
}

/// Adds nodes, or drains those with the highest numbers, up to the target.
fn size(next: &mut NodeGroup, seen: &Seen, sight: &Sight<'_>, seed: u64) {
    let target = usize::try_from(next.target_node_count).unwrap_or(usize::MAX);
    let staying = next.nodes.iter().filter(|node| node.counts()).count();
    if staying > target {
        drain(next, target, sight);
    }
    if staying < target && !next.tries.may_try(sight.now) {
        return;
    }
    for _ in staying..target.min(staying.saturating_add(MAX_ADDED)) {
        let preferred = placement::of_node(&next.id, next.allocated);
        let site = best_site(preferred, &replacement::sites(&next.nodes, None));
        new_node(next, seen, sight.now, seed, site, Lifecycle::default());
    }
}

/// Leaves `keep` nodes: those that do not answer go first, then those with the highest numbers, so many in
/// a round as one transaction holds. A successor goes with its predecessor.
fn drain(next: &mut NodeGroup, keep: usize, sight: &Sight<'_>) {
    let well = |node: &Node| sight.vm(node.id.as_str()).is_healthy();
    let mut staying: Vec<usize> = (0..next.nodes.len())
        .filter(|index| next.nodes[*index].counts())
        .collect();
    staying.sort_by_key(|index| (!well(&next.nodes[*index]), next.nodes[*index].number));
    let going = staying.split_off(keep.min(staying.len()));
    let mut gone = BTreeSet::new();
    for index in going.into_iter().rev().take(MAX_ADDED) {
        let node = &mut next.nodes[index];
        let state = sight.vm(node.id.as_str());
        replacement::send_away(node, state, sight.now);
        gone.insert(node.id.to_string());
    }
    for node in &mut next.nodes {
        let orphaned = node
            .life
            .replaces
            .as_ref()
            .is_some_and(|old| gone.contains(old));
        if orphaned || (keep == 0 && node.life.replaces.is_some()) {
            let state = sight.vm(node.id.as_str());
            replacement::send_away(node, state, sight.now);
        }
    }
}

/// Has the site of a node of `group` refused it for want of room.
pub fn refuse(group: &NodeGroup, id: &str, now: Timestamp, decision: &mut Decision) {
    let next = decision.next.get_or_insert_with(|| group.clone());
    let given_up = replacement::refuse(&mut next.nodes, &mut next.tries, id, RULE, now);
    if let Some(Node {
        name, datacenter, ..
    }) = given_up
    {
        let message = format!("{datacenter} has no room for {name}: nothing moves");
        let status = EventStatus::Failed;
        tell(group, now, status, "NodeMisplaced", message, decision);
    }
}

/// The statuses follow what is seen.
fn follow(next: &mut NodeGroup, sight: &Sight<'_>) {
    for node in &mut next.nodes {
        let state = sight.vm(node.id.as_str());
        node.status = match state {
            _ if node.is_leaving() => NodeStatus::Draining,
            VmState::Absent | VmState::Provisioning { .. } | VmState::Deleting => {
                NodeStatus::Deploying
            }
            VmState::Failed | VmState::Running { healthy: false, .. } => NodeStatus::Failed,
            VmState::Running { .. } if node.life.served => NodeStatus::Ready,
            VmState::Running { .. } => NodeStatus::Deployed,
        };
    }
}

/// What the group's status is, once its nodes are as they are.
fn settle(
    next: &mut NodeGroup,
    seen: &Seen,
    now: Timestamp,
    decision: &mut Decision,
    event: impl Fn(OperationKind, EventStatus) -> DeploymentEvent,
) {
    let target = usize::try_from(next.target_node_count).unwrap_or(usize::MAX);
    let all = |least: &[NodeStatus]| {
        next.nodes.len() == target && next.nodes.iter().all(|node| least.contains(&node.status))
    };
    let ready = all(&[NodeStatus::Ready]);
    let failing = next.tries.failures >= FAILED_AFTER;
    match next.status {
        NodeGroupStatus::Deploying | NodeGroupStatus::Deployed if ready => {
            next.status = NodeGroupStatus::Ready;
            next.updated_at = Some(now);
            decision.events.push(event(
                OperationKind::NodeGroupCreate,
                EventStatus::Completed,
            ));
        }
        NodeGroupStatus::Deploying | NodeGroupStatus::Deployed | NodeGroupStatus::Resizing
            if failing =>
        {
            let kind = match next.status {
                NodeGroupStatus::Resizing => OperationKind::NodeGroupScale,
                _ => OperationKind::NodeGroupCreate,
            };
            next.status = NodeGroupStatus::Failed;
            let detail = format!("{} nodes in a row did not start", next.tries.failures);
            let failed = event(kind, EventStatus::Failed).because(detail);
            decision.events.push(failed);
        }
        NodeGroupStatus::Failed
            if replacement::is_at_rest(&next.nodes, target, &sight(seen, now)) =>
        {
            next.status = NodeGroupStatus::Ready;
            next.updated_at = Some(now);
            let resumed = event(OperationKind::NodeGroupResume, EventStatus::Completed);
            decision.events.push(resumed);
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
