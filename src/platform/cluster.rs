//! A cluster's state machine: what to do next, as a function of what is recorded and what is seen.
//!
//! ```text
//! (create) ─▶ TO_DEPLOY ─▶ DEPLOYING ──────────────┐
//!             TO_REDEPLOY ─▶ REDEPLOYING ──────────┤
//!   ACTIVE ─▶ TO_UPGRADE ─▶ UPDATING ──────────────┼─▶ ACTIVE, or FAILED ─(resume)─▶ DEPLOYING
//!             TO_RECONCILE ─▶ RECONCILING ─────────┘
//!   any ────▶ TO_DELETE ─▶ DELETING ─▶ DELETED
//! ```
//!
//! An operation is a row of steps. A step begins with an event, has a shortest duration, may wait for
//! what it started (VMs that boot), and ends with an event. What a step does to the world is repeated
//! until the record says that the step is over: so it must be idempotent, and a kill at any instant costs
//! a repetition at most.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::kubernetes::{ControlPlane, Drain};

use super::control_plane::{self, News, Upkeep};
use super::deployment_event::{DeploymentEvent, EventStatus, OperationKind, Step};
use super::model::{Cluster, ClusterStatus, ControlPlaneVm, Flavor, LoadBalancer, NodeGroupId};
use super::placement::Openings;
use super::redeployment::Hooks;
use super::vm_state::VmState;

/// What is going on with a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub kind: OperationKind,
    /// The step under way; `None` before the first.
    pub step: Option<Step>,
    /// When the step began: it fails if it takes too long.
    pub started_at: Timestamp,
    /// The step is not over before this.
    pub due: Timestamp,
    /// The group whose nodes are being replaced.
    pub node_group: Option<NodeGroupId>,
    /// How many nodes are left to be replaced.
    pub outdated_nodes: usize,
    /// What is applied around a redeployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Box<Hooks>>,
}

impl Operation {
    /// One that is asked for at `now`.
    pub fn asked(kind: OperationKind, now: Timestamp) -> Operation {
        Operation {
            kind,
            step: None,
            started_at: now,
            due: now.saturating_add(ACCEPT),
            node_group: None,
            outdated_nodes: 0,
            hooks: None,
        }
    }

    /// The manifests that are to be applied now.
    pub fn manifests(&self) -> &[String] {
        let hooks = self.step.zip(self.hooks.as_ref());
        hooks.map_or(&[], |(step, hooks)| hooks.of(step))
    }
}

/// How long a `TO_*` status lasts.
const ACCEPT: Duration = Duration::from_secs(1);
/// How old a control plane's certificates get, a quarter of their life.
const ROTATE_EVERY: Duration = Duration::from_secs(90 * 24 * 3600);
/// An API that did not answer is asked again after so long.
const APPLY_AGAIN: Duration = Duration::from_secs(15);
/// A step that takes longer has failed.
const STEP_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The shortest that a step takes. With the boot of the VMs a creation takes about a minute in all.
fn duration(kind: OperationKind, step: Step) -> Duration {
    Duration::from_secs(match (kind, step) {
        (_, Step::NetworkGroup) => 3,
        (_, Step::LoadBalancerNetwork) => 2,
        (_, Step::MateriaLogicalDb) => 4,
        (_, Step::OtelConfig) => 1,
        (_, Step::ControlPlaneBundle) => 2,
        (_, Step::Storage) => 5,
        (_, Step::LoadBalancer) => 6,
        (_, Step::Plugin) => 8,
        (_, Step::PluginReconcile) => 3,
        (_, Step::NodeGroup | Step::RedeployBeforeYaml | Step::RedeployAfterYaml) => 0,
    })
}

/// The steps of an operation, in order.
fn steps(kind: OperationKind, cluster: &Cluster) -> Vec<Step> {
    let adds_storage = cluster.requested_features.csi && !cluster.features.csi;
    let storage = adds_storage.then_some(Step::Storage);
    match kind {
        OperationKind::Create => [
            Step::NetworkGroup,
            Step::LoadBalancerNetwork,
            Step::MateriaLogicalDb,
            Step::OtelConfig,
            Step::ControlPlaneBundle,
        ]
        .into_iter()
        .chain(storage)
        .chain([Step::LoadBalancer, Step::Plugin])
        .collect(),
        OperationKind::Upgrade => {
            vec![Step::ControlPlaneBundle, Step::Plugin, Step::NodeGroup]
        }
        OperationKind::Redeploy => {
            let hooks = cluster.operation.as_ref();
            let hooks = hooks.and_then(|going| going.hooks.as_ref());
            let hook = |step| hooks.and_then(|hooks| hooks.step(step));
            hook(Step::RedeployBeforeYaml)
                .into_iter()
                .chain([Step::ControlPlaneBundle, Step::PluginReconcile])
                .chain(hook(Step::RedeployAfterYaml))
                .collect()
        }
        OperationKind::Reconcile => storage.into_iter().chain([Step::PluginReconcile]).collect(),
        _ => Vec::new(),
    }
}

/// What is seen of the world beside the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By id; one that is not there is not in here.
    pub vms: BTreeMap<String, VmState>,
    /// Outcome of this round's evictions, by the id of the VM.
    pub drains: BTreeMap<String, Drain>,
    pub network_group: bool,
    pub load_balancer_network: bool,
    pub load_balancer: Option<LoadBalancer>,
    /// How many node groups have a record.
    pub node_groups: usize,
    /// The first of them, in the order of ids, with nodes of another version than the control plane's, and
    /// how many such nodes there are in all.
    pub outdated: Option<(NodeGroupId, usize)>,
    /// Names of nodes in the cluster, of any group.
    pub taken_names: BTreeSet<String>,
    /// The version that the platform takes the cluster to by itself.
    pub due_update: Option<String>,
    /// How many replacements may begin now; as many as need be, if `None`.
    pub replacements: Option<usize>,
    /// How many load balancers of services have a record.
    pub belongings: usize,
    /// What came of applying [`Operation::manifests`]; `None` while there is nobody to ask.
    pub applied: Option<Applied>,
    /// Which sites take a VM of each flavor of which one would be better off elsewhere.
    pub openings: BTreeMap<Flavor, Openings>,
}

/// What a cluster's API said to manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    All,
    /// In its words.
    Refused(String),
}

impl Seen {
    fn vm(&self, vm: &ControlPlaneVm) -> VmState {
        self.vms.get(&vm.id).copied().unwrap_or(VmState::Absent)
    }
}

/// Something to be done to the world; each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    CreateNetworkGroup,
    CreateLoadBalancerNetwork,
    ProvisionKubernetes,
    SetKubernetesVersion(String),
    /// The StorageClass appears in the cluster.
    EnableStorage,
    CreateVm(Box<ControlPlaneVm>),
    CreateLoadBalancer,
    RotateCertificates,
    DeleteVm(String),
    DeleteKubernetes,
    DeleteLoadBalancer,
    DeleteNetworks,
    DeleteVolumes,
}

/// What to do: the acts, in order, then the change of the record, with its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub acts: Vec<Act>,
    pub next: Option<Cluster>,
    pub events: Vec<DeploymentEvent>,
    /// When to look again if nothing changes before.
    pub wake: Option<Timestamp>,
    /// What the cluster's Kubernetes API should be told; `None` while it is not registered.
    pub control_plane: Option<ControlPlane>,
    /// Told once the change of the record is made.
    pub notices: Vec<Notice>,
    /// A replacement waits for its turn.
    pub deferred: bool,
}

impl Decision {
    fn wake_by(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Something that the cluster's users are told of by a Kubernetes event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// What to do about `cluster` now.
pub fn decide(cluster: &Cluster, seen: &Seen, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let mut next = cluster.clone();
    let upkeep = keep_control_plane(&mut next, seen, now, &mut decision);
    match cluster.status {
        ClusterStatus::Deleted | ClusterStatus::Failed => {}
        ClusterStatus::Active => match &seen.due_update {
            Some(target) => begin_update(&mut next, target, now, &mut decision),
            None => rotate_certificates(&mut next, &upkeep, now, &mut decision),
        },
        ClusterStatus::ToDelete | ClusterStatus::Deleting => {
            delete(&mut next, seen, now, &mut decision);
        }
        _ => operate(cluster, &mut next, seen, &upkeep, now, &mut decision),
    }
    if next != *cluster {
        decision.next = Some(next);
    }
    decision.control_plane = working(cluster, seen);
    decision
}

/// An update that nobody asked for: the version is no longer supported.
fn begin_update(next: &mut Cluster, target: &str, now: Timestamp, decision: &mut Decision) {
    let message = format!(
        "{} is no longer supported: updated to {target}",
        next.version
    );
    target.clone_into(&mut next.version);
    next.status = ClusterStatus::ToUpgrade;
    next.operation = Some(Operation::asked(OperationKind::Upgrade, now));
    let started = DeploymentEvent::new(now, OperationKind::Upgrade, None, EventStatus::Started);
    decision.events.push(started.because(message.clone()));
    decision.notices.push(Notice {
        warning: true,
        reason: "UnsupportedVersion",
        message,
    });
}

/// Makes the control plane's certificates anew long before they end, while nothing else is going on.
fn rotate_certificates(
    next: &mut Cluster,
    upkeep: &Upkeep,
    now: Timestamp,
    decision: &mut Decision,
) {
    let due = next.certificates_rotated_at.saturating_add(ROTATE_EVERY);
    if now < due {
        decision.wake_by(due);
    } else if upkeep.at_rest {
        decision.acts.push(Act::RotateCertificates);
        next.certificates_rotated_at = now;
        decision.notices.push(Notice {
            warning: false,
            reason: "CertificatesRotated",
            message: String::from("the control plane's certificates were made anew"),
        });
    }
}

/// Who works: the instances of components whose VM is healthy and answers.
fn working(cluster: &Cluster, seen: &Seen) -> Option<ControlPlane> {
    let registered = cluster.deployed_step >= Some(Step::MateriaLogicalDb);
    if !registered || cluster.status == ClusterStatus::Deleted {
        return None;
    }
    if cluster.is_going() {
        return Some(ControlPlane::default());
    }
    Some(control_plane::working(cluster, &seen.vms))
}

/// Whether the control plane's VMs are being made for the first time, or all anew.
fn is_at(cluster: &Cluster, step: Step) -> bool {
    let operation = cluster.operation.as_ref();
    operation.is_some_and(|operation| operation.step == Some(step))
}

/// From when they are first asked for, VMs that are missing or failed are replaced, in any status but on
/// the way out.
fn keep_control_plane(
    next: &mut Cluster,
    seen: &Seen,
    now: Timestamp,
    decision: &mut Decision,
) -> Upkeep {
    let deploys = is_at(next, Step::ControlPlaneBundle);
    let deployed = next.deployed_step >= Some(Step::ControlPlaneBundle);
    if next.is_going() || !(deployed || deploys) {
        return Upkeep::default();
    }
    let kind = next.operation.as_ref().map(|operation| operation.kind);
    let version = match kind {
        Some(OperationKind::Upgrade) if deploys => next.version.clone(),
        _ => next.running_version.clone(),
    };
    let view = control_plane::View {
        now,
        vms: &seen.vms,
        drains: &seen.drains,
        taken_names: &seen.taken_names,
        rolls: deploys && next.status != ClusterStatus::Failed,
        replacements: seen.replacements,
        version: &version,
        openings: match next.status {
            ClusterStatus::Active => &seen.openings,
            _ => &BTreeMap::new(),
        },
    };
    let upkeep = control_plane::keep(next, &view);
    decision.deferred = upkeep.deferred;
    decision.acts.extend(
        upkeep
            .create
            .iter()
            .cloned()
            .map(Box::new)
            .map(Act::CreateVm),
    );
    decision
        .acts
        .extend(upkeep.delete.iter().cloned().map(Act::DeleteVm));
    if let Some(at) = upkeep.wake {
        decision.wake_by(at);
    }
    // What is not part of an operation is one of its own: the product has no other name for it.
    let kind = kind.filter(|_| deploys).unwrap_or(OperationKind::Redeploy);
    for news in &upkeep.news {
        tell(news, kind, now, decision);
    }
    upkeep
}

/// Tells of what happened to a VM of the control plane, in the cluster and in its list of events.
fn tell(news: &News, kind: OperationKind, now: Timestamp, decision: &mut Decision) {
    let event = DeploymentEvent::new(now, kind, Some(Step::ControlPlaneBundle), news.status);
    decision.events.push(event.because(news.text.clone()));
    decision.notices.push(Notice {
        warning: news.warning,
        reason: "ControlPlaneVM",
        message: news.text.clone(),
    });
}

/// Has the site of a VM of `cluster`'s control plane refused it for want of room.
pub fn refuse(cluster: &Cluster, id: &str, now: Timestamp, decision: &mut Decision) {
    let next = decision.next.get_or_insert_with(|| cluster.clone());
    if let Some(news) = control_plane::refuse(next, id, now) {
        // Only what moves is given up, and nothing moves during an operation.
        tell(&news, OperationKind::Redeploy, now, decision);
    }
}

fn operate(
    cluster: &Cluster,
    next: &mut Cluster,
    seen: &Seen,
    upkeep: &Upkeep,
    now: Timestamp,
    decision: &mut Decision,
) {
    let Some(operation) = &cluster.operation else {
        // Only a record written by other hands has a transitional status and no operation.
        next.status = ClusterStatus::Failed;
        return;
    };
    let Some(step) = operation.step else {
        if now < operation.due {
            decision.wake_by(operation.due);
            return;
        }
        next.status = match operation.kind {
            OperationKind::Upgrade => ClusterStatus::Updating,
            OperationKind::Redeploy => ClusterStatus::Redeploying,
            OperationKind::Reconcile => ClusterStatus::Reconciling,
            _ => ClusterStatus::Deploying,
        };
        if operation.kind == OperationKind::Redeploy {
            next.generation += 1;
        }
        go_on(next, operation.kind, None, now, &mut decision.events);
        return;
    };
    let late = operation.started_at.until(now) > STEP_LIMIT;
    let failure = match (&seen.applied, operation.manifests()) {
        (Some(Applied::Refused(why)), [_, ..]) => Some(why.clone()),
        _ => late.then(|| format!("the step took longer than {} s", STEP_LIMIT.as_secs())),
    };
    if let Some(detail) = failure {
        next.status = ClusterStatus::Failed;
        for step in [Some(step), None] {
            let event = DeploymentEvent::new(now, operation.kind, step, EventStatus::Failed);
            decision.events.push(event.because(detail.clone()));
        }
        return;
    }
    let done = start_step(cluster, seen, upkeep, step, &mut decision.acts);
    if now < operation.due {
        decision.wake_by(operation.due);
        return;
    }
    if !done {
        follow_rolling(next, seen, upkeep, step, now, &mut decision.events);
        // What the step waits for brings the cluster back here; but a step must not wait for ever: one
        // that rolls VMs has its time for each of them.
        let started = next
            .operation
            .as_ref()
            .map_or(now, |going| going.started_at);
        decision.wake_by(started.saturating_add(STEP_LIMIT + Duration::from_millis(1)));
        if !operation.manifests().is_empty() {
            decision.wake_by(now.saturating_add(APPLY_AGAIN));
        }
        return;
    }
    if step == Step::NodeGroup {
        follow_rolling(next, seen, upkeep, step, now, &mut decision.events);
    }
    end_step(next, seen, operation.kind, step, &mut decision.acts);
    decision.events.push(DeploymentEvent::new(
        now,
        operation.kind,
        Some(step),
        EventStatus::Completed,
    ));
    let before = steps(operation.kind, cluster);
    let following = before.iter().skip_while(|other| **other != step).nth(1);
    match following {
        Some(_) => go_on(
            next,
            operation.kind,
            following.copied(),
            now,
            &mut decision.events,
        ),
        None => {
            next.status = ClusterStatus::Active;
            next.operation = None;
            decision.events.push(DeploymentEvent::new(
                now,
                operation.kind,
                None,
                EventStatus::Completed,
            ));
        }
    }
}

/// Gives a step that replaces VMs its time anew for each of them, and says which group's turn it is.
fn follow_rolling(
    next: &mut Cluster,
    seen: &Seen,
    upkeep: &Upkeep,
    step: Step,
    now: Timestamp,
    events: &mut Vec<DeploymentEvent>,
) {
    let target = next.running_version.clone();
    let Some(operation) = next.operation.as_mut() else {
        return;
    };
    if upkeep.progress && step == Step::ControlPlaneBundle {
        operation.started_at = now;
    }
    if step != Step::NodeGroup {
        return;
    }
    let (group, left) = match &seen.outdated {
        Some((group, left)) => (Some(group.clone()), *left),
        None => (None, 0),
    };
    if operation.outdated_nodes != left {
        operation.outdated_nodes = left;
        operation.started_at = now;
    }
    if operation.node_group == group {
        return;
    }
    let event = |id: &NodeGroupId, status| {
        DeploymentEvent::new(now, OperationKind::NodeGroupRedeploy, None, status)
            .of_node_group(id)
            .because(format!("to {target}"))
    };
    let before = std::mem::replace(&mut operation.node_group, group);
    events.extend(before.iter().map(|id| event(id, EventStatus::Completed)));
    let now_on = operation.node_group.iter();
    events.extend(now_on.map(|id| event(id, EventStatus::Started)));
}

/// Begins `step`, or the operation's first.
fn go_on(
    next: &mut Cluster,
    kind: OperationKind,
    step: Option<Step>,
    now: Timestamp,
    events: &mut Vec<DeploymentEvent>,
) {
    let Some(step) = step.or_else(|| steps(kind, next).first().copied()) else {
        return;
    };
    events.push(DeploymentEvent::new(
        now,
        kind,
        Some(step),
        EventStatus::Started,
    ));
    let hooks = next.operation.take().and_then(|going| going.hooks);
    next.operation = Some(Operation {
        kind,
        step: Some(step),
        started_at: now,
        due: now.saturating_add(duration(kind, step)),
        node_group: None,
        outdated_nodes: 0,
        hooks,
    });
}

/// Asks for what the step needs. Returns whether all of it is there.
fn start_step(
    cluster: &Cluster,
    seen: &Seen,
    upkeep: &Upkeep,
    step: Step,
    acts: &mut Vec<Act>,
) -> bool {
    let mut ask = |there: bool, act: Act| {
        if !there {
            acts.push(act);
        }
        there
    };
    match step {
        Step::NetworkGroup => ask(seen.network_group, Act::CreateNetworkGroup),
        Step::LoadBalancerNetwork => {
            ask(seen.load_balancer_network, Act::CreateLoadBalancerNetwork)
        }
        Step::LoadBalancer => ask(seen.load_balancer.is_some(), Act::CreateLoadBalancer),
        Step::ControlPlaneBundle => upkeep.at_rest,
        Step::RedeployBeforeYaml | Step::RedeployAfterYaml => seen.applied == Some(Applied::All),
        Step::NodeGroup => seen.outdated.is_none() && cluster.running_version == cluster.version,
        _ => true,
    }
}

/// What the end of the step does to the record, and to the world just before.
fn end_step(next: &mut Cluster, seen: &Seen, kind: OperationKind, step: Step, acts: &mut Vec<Act>) {
    match (kind, step) {
        (_, Step::MateriaLogicalDb) => acts.push(Act::ProvisionKubernetes),
        (OperationKind::Upgrade, Step::ControlPlaneBundle) => {
            acts.push(Act::SetKubernetesVersion(next.version.clone()));
            next.running_version = next.version.clone();
        }
        (_, Step::Storage) => {
            acts.push(Act::EnableStorage);
            next.features.csi = true;
            next.storage_usage_bytes = Some(0);
        }
        (_, Step::LoadBalancer) => next.load_balancer = seen.load_balancer.clone(),
        (_, Step::Plugin | Step::PluginReconcile) => {
            next.features = next.requested_features.clone();
        }
        _ => {}
    }
    if kind == OperationKind::Create {
        next.deployed_step = Some(step);
    }
}

fn delete(next: &mut Cluster, seen: &Seen, now: Timestamp, decision: &mut Decision) {
    if next.status == ClusterStatus::ToDelete {
        let due = next.operation.as_ref().map_or(now, |going| going.due);
        if now < due {
            decision.wake_by(due);
            return;
        }
        next.status = ClusterStatus::Deleting;
        return;
    }
    let mut left = seen.node_groups + seen.belongings;
    for vm in &next.control_plane {
        match seen.vm(vm) {
            VmState::Absent => continue,
            VmState::Deleting => {}
            _ => decision.acts.push(Act::DeleteVm(vm.id.clone())),
        }
        left += 1;
    }
    if left > 0 {
        return;
    }
    decision.acts.extend([
        Act::DeleteKubernetes,
        Act::DeleteLoadBalancer,
        Act::DeleteNetworks,
        Act::DeleteVolumes,
    ]);
    next.status = ClusterStatus::Deleted;
    next.operation = None;
    next.control_plane.clear();
    next.load_balancer = None;
    next.storage_usage_bytes = None;
    decision.events.push(DeploymentEvent::new(
        now,
        OperationKind::Delete,
        None,
        EventStatus::Completed,
    ));
}

#[cfg(test)]
mod tests;
