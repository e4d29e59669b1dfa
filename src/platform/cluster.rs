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

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::kubernetes::ControlPlane;

use super::deployment_event::{DeploymentEvent, EventStatus, OperationKind, Step};
use super::model::{Cluster, ClusterStatus, Component, ControlPlaneVm, LoadBalancer};
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
}

impl Operation {
    /// One that is asked for at `now`.
    pub fn asked(kind: OperationKind, now: Timestamp) -> Operation {
        Operation {
            kind,
            step: None,
            started_at: now,
            due: now.saturating_add(ACCEPT),
        }
    }
}

/// How long a `TO_*` status lasts.
const ACCEPT: Duration = Duration::from_secs(1);
/// A step that takes longer has failed.
const STEP_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The shortest that a step takes. With the boot of the VMs a creation takes about a minute in all.
fn duration(kind: OperationKind, step: Step) -> Duration {
    Duration::from_secs(match (kind, step) {
        (OperationKind::Upgrade | OperationKind::Redeploy, Step::ControlPlaneBundle) => 25,
        (_, Step::NetworkGroup) => 3,
        (_, Step::LoadBalancerNetwork) => 2,
        (_, Step::MateriaLogicalDb) => 4,
        (_, Step::OtelConfig) => 1,
        (_, Step::ControlPlaneBundle) => 2,
        (_, Step::Storage) => 5,
        (_, Step::LoadBalancer) => 6,
        (_, Step::Plugin) => 8,
        (_, Step::PluginReconcile) => 3,
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
        OperationKind::Upgrade => vec![Step::ControlPlaneBundle, Step::Plugin],
        OperationKind::Redeploy => vec![Step::ControlPlaneBundle, Step::PluginReconcile],
        OperationKind::Reconcile => storage.into_iter().chain([Step::PluginReconcile]).collect(),
        _ => Vec::new(),
    }
}

/// What is seen of the world beside the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By id; one that is not there is not in here.
    pub vms: BTreeMap<String, VmState>,
    pub network_group: bool,
    pub load_balancer_network: bool,
    pub load_balancer: Option<LoadBalancer>,
    /// How many node groups have a record.
    pub node_groups: usize,
    /// How many load balancers of services have a record.
    pub belongings: usize,
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
    CreateVm(ControlPlaneVm),
    /// What runs inside the VM is not of the version that the cluster runs.
    UpdateGuest(ControlPlaneVm),
    CreateLoadBalancer,
    DeleteVm(String),
    DeleteKubernetes,
    DeleteLoadBalancer,
    DeleteNetworks,
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
}

/// What to do about `cluster` now.
pub fn decide(cluster: &Cluster, seen: &Seen, now: Timestamp) -> Decision {
    let mut decision = match cluster.status {
        ClusterStatus::Deleted => Decision::default(),
        ClusterStatus::ToDelete | ClusterStatus::Deleting => delete(cluster, seen, now),
        ClusterStatus::Active | ClusterStatus::Failed => Decision::default(),
        _ => operate(cluster, seen, now),
    };
    if !cluster.is_going() && cluster.deployed_step >= Some(Step::ControlPlaneBundle) {
        keep_control_plane(cluster, seen, &mut decision);
    }
    decision.control_plane = control_plane(cluster, seen);
    decision
}

/// Who works: the instances of components whose VM runs.
fn control_plane(cluster: &Cluster, seen: &Seen) -> Option<ControlPlane> {
    let registered = cluster.deployed_step >= Some(Step::MateriaLogicalDb);
    if !registered || cluster.status == ClusterStatus::Deleted {
        return None;
    }
    let mut working = ControlPlane::default();
    if cluster.is_going() {
        return Some(working);
    }
    for vm in &cluster.control_plane {
        if !seen.vm(vm).is_running() {
            continue;
        }
        for component in &vm.components {
            let instances = match component {
                Component::Apiserver => &mut working.apiserver,
                Component::ControllerManager => &mut working.controller_manager,
                Component::Scheduler => &mut working.scheduler,
                Component::NodeGroupOperator => &mut working.node_group_operator,
                Component::CloudControllerManager => &mut working.cloud_controller_manager,
            };
            instances.push(vm.name.clone());
        }
    }
    Some(working)
}

/// Once deployed, VMs that are missing are made again, and what runs inside follows the version.
fn keep_control_plane(cluster: &Cluster, seen: &Seen, decision: &mut Decision) {
    for vm in &cluster.control_plane {
        match seen.vm(vm) {
            VmState::Absent => decision.acts.push(Act::CreateVm(vm.clone())),
            state if state.is_outdated() => decision.acts.push(Act::UpdateGuest(vm.clone())),
            _ => {}
        }
    }
}

fn operate(cluster: &Cluster, seen: &Seen, now: Timestamp) -> Decision {
    let Some(operation) = &cluster.operation else {
        // Only a record written by other hands has a transitional status and no operation.
        let mut next = cluster.clone();
        next.status = ClusterStatus::Failed;
        return Decision {
            next: Some(next),
            ..Decision::default()
        };
    };
    let mut decision = Decision::default();
    let Some(step) = operation.step else {
        if now < operation.due {
            decision.wake = Some(operation.due);
            return decision;
        }
        let mut next = cluster.clone();
        next.status = match operation.kind {
            OperationKind::Upgrade => ClusterStatus::Updating,
            OperationKind::Redeploy => ClusterStatus::Redeploying,
            OperationKind::Reconcile => ClusterStatus::Reconciling,
            _ => ClusterStatus::Deploying,
        };
        go_on(&mut next, operation.kind, None, now, &mut decision.events);
        decision.next = Some(next);
        return decision;
    };
    if operation.started_at.until(now) > STEP_LIMIT {
        let mut next = cluster.clone();
        next.status = ClusterStatus::Failed;
        let detail = format!("the step took longer than {} s", STEP_LIMIT.as_secs());
        for step in [Some(step), None] {
            let event = DeploymentEvent::new(now, operation.kind, step, EventStatus::Failed);
            decision.events.push(event.because(detail.clone()));
        }
        decision.next = Some(next);
        return decision;
    }
    let done = start_step(cluster, seen, operation.kind, step, &mut decision.acts);
    if now < operation.due {
        decision.wake = Some(operation.due);
        return decision;
    }
    if !done {
        // What the step waits for brings the cluster back here; but a step must not wait for ever.
        decision.wake = Some(
            operation
                .started_at
                .saturating_add(STEP_LIMIT + Duration::from_millis(1)),
        );
        return decision;
    }
    let mut next = cluster.clone();
    end_step(&mut next, seen, operation.kind, step, &mut decision.acts);
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
            &mut next,
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
    decision.next = Some(next);
    decision
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
    next.operation = Some(Operation {
        kind,
        step: Some(step),
        started_at: now,
        due: now.saturating_add(duration(kind, step)),
    });
}

/// Asks for what the step needs. Returns whether all of it is there.
fn start_step(
    cluster: &Cluster,
    seen: &Seen,
    kind: OperationKind,
    step: Step,
    acts: &mut Vec<Act>,
) -> bool {
    let mut ask = |there: bool, act: Act| {
        if !there {
            acts.push(act);
        }
        there
    };
    match (kind, step) {
        (_, Step::NetworkGroup) => ask(seen.network_group, Act::CreateNetworkGroup),
        (_, Step::LoadBalancerNetwork) => {
            ask(seen.load_balancer_network, Act::CreateLoadBalancerNetwork)
        }
        (_, Step::LoadBalancer) => ask(seen.load_balancer.is_some(), Act::CreateLoadBalancer),
        (OperationKind::Create, Step::ControlPlaneBundle) => {
            for vm in &cluster.control_plane {
                ask(seen.vm(vm) != VmState::Absent, Act::CreateVm(vm.clone()));
            }
            cluster
                .control_plane
                .iter()
                .all(|vm| seen.vm(vm).is_running())
        }
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

fn delete(cluster: &Cluster, seen: &Seen, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if cluster.status == ClusterStatus::ToDelete {
        let due = cluster.operation.as_ref().map_or(now, |going| going.due);
        if now < due {
            decision.wake = Some(due);
            return decision;
        }
        let mut next = cluster.clone();
        next.status = ClusterStatus::Deleting;
        decision.next = Some(next);
        return decision;
    }
    let mut left = seen.node_groups + seen.belongings;
    for vm in &cluster.control_plane {
        match seen.vm(vm) {
            VmState::Absent => continue,
            VmState::Deleting => {}
            _ => decision.acts.push(Act::DeleteVm(vm.id.clone())),
        }
        left += 1;
    }
    if left > 0 {
        return decision;
    }
    decision.acts.extend([
        Act::DeleteKubernetes,
        Act::DeleteLoadBalancer,
        Act::DeleteNetworks,
    ]);
    let mut next = cluster.clone();
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
    decision.next = Some(next);
    decision
}

#[cfg(test)]
mod tests;
