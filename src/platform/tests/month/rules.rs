//! What must be true at every change of a record, and at the end of every instant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::clock::Timestamp;
use crate::infra::metering::{Level, Usage};
use crate::infra::{Inventory, Requested, Vm};
use crate::platform::control_plane::{self, Role};
use crate::platform::deployment_event::Step;
use crate::platform::invariant;
use crate::platform::model::{
    Cluster, ClusterStatus, Component, NodeGroup, NodeGroupId, NodeGroupStatus, own_load_balancer,
};
use crate::platform::replacement::Replica;
use crate::platform::store::{CloudOwner, Record};
use crate::platform::testing::World;
use crate::platform::vm_state::VmState;

/// What has been seen of a world so far, and what was wrong with it. It outlives the world's kills.
#[derive(Default)]
pub struct Rules {
    pub found: Vec<String>,
    /// Successors that a replica ever had, by its id.
    successors: BTreeMap<String, BTreeSet<String>>,
    /// Replicas that left because another took their place.
    relieved: BTreeSet<String>,
    /// The largest size that a group was asked to have since it last was READY.
    sizes: BTreeMap<NodeGroupId, u32>,
    meter: Meter,
    pub instants: u64,
    pub replacements: u64,
    pub moves: u64,
    /// Everything that was seen at the end of each instant, in few bytes.
    pub digest: Sha256,
}

/// What VMs, load balancers and volumes of owners took, summed up instant by instant: what the cloud's own
/// meter must say too. Of each vCPU, GB, load balancers and MiB.
#[derive(Default)]
struct Meter {
    read_at: Option<Timestamp>,
    /// What is on it since then, by owner.
    running: BTreeMap<String, [i128; 4]>,
    /// Times milliseconds.
    totals: BTreeMap<String, [i128; 4]>,
}

impl Meter {
    /// Goes on to `now`; back, if a restart took time back to the last change of a record.
    fn follow(&mut self, now: Timestamp, inventory: &Inventory) {
        let passed = i128::from(now.0 - self.read_at.unwrap_or(now).0);
        for (owner, running) in &self.running {
            let total = self.totals.entry(owner.clone()).or_default();
            *total = std::array::from_fn(|of| total[of] + running[of] * passed);
        }
        self.read_at = Some(now);
        self.running.clear();
        let paid = |vm: &&Vm| vm.is_running() && vm.is_healthy();
        let wanted = |vm: &&Vm| vm.requested == Requested::Running;
        let mut add = |owner: &str, more: [u64; 4]| {
            let running = self.running.entry(owner.to_owned()).or_default();
            *running = std::array::from_fn(|of| running[of] + i128::from(more[of]));
        };
        for vm in inventory.vms.iter().filter(paid).filter(wanted) {
            let level = Level::of_vm(vm);
            add(&vm.spec.owner, [level.vcpus, level.ram_gb, 0, 0]);
        }
        for it in &inventory.load_balancers {
            let of = CloudOwner::parse(&it.owner);
            if of.is_some_and(|of| it.id != own_load_balancer(&of.cluster)) {
                add(&it.owner, [0, 0, 1, 0]);
            }
        }
        for volume in &inventory.volumes {
            add(
                &volume.owner,
                [0, 0, 0, volume.size_bytes.div_ceil(1 << 20)],
            );
        }
    }
}

/// Has `rules` follow every change in `world`, from what there is.
pub fn follow(rules: &Arc<Mutex<Rules>>, world: &World) {
    let followed = Arc::clone(rules);
    world.platform.observe(Box::new(move |change| {
        let old = change.old.map(AsRef::as_ref);
        match (old, change.new.map(AsRef::as_ref)) {
            (old, Some(Record::Cluster(new))) => {
                let old = old.and_then(|old| match old {
                    Record::Cluster(old) => Some(old),
                    _ => None,
                });
                followed.lock().cluster(old, new);
            }
            (old, Some(Record::NodeGroup(new))) => {
                let old = old.and_then(|old| match old {
                    Record::NodeGroup(old) => Some(old),
                    _ => None,
                });
                followed.lock().node_group(old, new);
            }
            _ => {}
        }
        true
    }));
}

impl Rules {
    fn add(&mut self, rule: &str, subject: impl std::fmt::Display, detail: impl std::fmt::Debug) {
        // The first are what matters: what follows from them is noise.
        if self.found.len() < 10 {
            self.found.push(format!("{rule}: {subject}: {detail:?}"));
        }
    }

    fn cluster(&mut self, old: Option<&Cluster>, new: &Cluster) {
        let before = old.map_or(new.status, |old| old.status);
        if !may_follow(before, new.status) {
            self.add("cluster-status", &new.id, (before, new.status));
        }
        let going = new.is_going();
        let deployed = new.deployed_step >= Some(Step::ControlPlaneBundle) && !going;
        for role in control_plane::roles(&new.topology) {
            let subject = format!("{} {}", new.id, role.name);
            let own = new.control_plane.iter();
            let own: Vec<_> = own.filter(|vm| vm.components == role.components).collect();
            self.pool(&subject, &own);
            let counted = own.iter().filter(|vm| vm.counts()).count();
            let too_few = deployed && counted < role.replicas;
            if counted > role.replicas || too_few {
                self.add("replicas", &subject, (counted, role.replicas));
            }
        }
    }

    fn node_group(&mut self, old: Option<&NodeGroup>, new: &NodeGroup) {
        let before = old.map_or(new.status, |old| old.status);
        if !new.is_going() && old.is_some_and(NodeGroup::is_going) {
            self.add("group-status", &new.id, (before, new.status));
        }
        let own: Vec<_> = new.nodes.iter().collect();
        self.pool(new.id.as_str(), &own);
        if !(new.min_node_count..=new.max_node_count).contains(&new.target_node_count) {
            let bounds = (
                new.min_node_count,
                new.target_node_count,
                new.max_node_count,
            );
            self.add("group-bounds", &new.id, bounds);
        }
        let most = self.sizes.entry(new.id.clone()).or_default();
        *most = new.target_node_count.max(*most);
        let most = *most;
        let counted = own.iter().filter(|node| node.counts()).count();
        if counted > most as usize {
            self.add("group-size", &new.id, (counted, most));
        }
        if new.status == NodeGroupStatus::Ready {
            self.sizes.insert(new.id.clone(), new.target_node_count);
        }
    }

    /// One change at a time, one successor for one failure, and nobody goes before the successor serves.
    fn pool<R: Replica>(&mut self, subject: &str, pool: &[&R]) {
        let find = |id: &str| pool.iter().find(|other| other.id() == id);
        let successors: Vec<_> = pool
            .iter()
            .filter(|r| r.life().replaces.is_some())
            .collect();
        if successors.len() > 1 {
            let names: Vec<_> = successors.iter().map(|r| r.name()).collect();
            self.add("one-change", subject, names);
        }
        for new in successors {
            let old = new.life().replaces.clone().unwrap_or_default();
            let known = self.successors.entry(old.clone()).or_default();
            if !known.insert(new.id().to_owned()) {
                continue;
            }
            self.replacements += 1;
            let rivals = known.iter().filter(|id| *id != new.id());
            let given_up = |r: &&&R| r.is_leaving() && !r.life().served;
            let rivals: Vec<_> = rivals
                .filter_map(|id| find(id))
                .filter(|rival| !given_up(rival))
                .map(|rival| rival.name().to_owned())
                .collect();
            if !rivals.is_empty() {
                self.add("two-replacements", subject, (&old, rivals, new.name()));
            }
            let Some(predecessor) = find(&old).filter(|old| !old.is_leaving()) else {
                self.add("replaces-nobody", subject, (new.name(), old));
                continue;
            };
            if new.life().moves {
                self.moves += 1;
                let others = pool.iter().filter(|r| {
                    !r.is_leaving() && r.id() != new.id() && r.id() != predecessor.id()
                });
                let sites: Vec<_> = others.map(|r| r.datacenter()).collect();
                let at = |site| sites.iter().filter(|other| **other == site).count();
                let (from, to) = (predecessor.datacenter(), new.datacenter());
                if at(from) == at(to) {
                    self.add("moves-for-nothing", subject, (from, to, &sites));
                }
            }
            if predecessor.life().unhealthy_since.is_none() {
                let well = |r: &&R| r.life().served && r.life().unhealthy_since.is_none();
                let ill: Vec<_> = pool
                    .iter()
                    .filter(|r| r.counts() && !well(r))
                    .map(|r| r.name())
                    .collect();
                if !ill.is_empty() {
                    self.add("planned-while-ill", subject, (predecessor.name(), ill));
                }
            }
        }
        for old in pool {
            let Some(leaving) = &old.life().leaving else {
                continue;
            };
            let Some(by) = &leaving.replaced_by else {
                continue;
            };
            if self.relieved.insert(old.id().to_owned()) {
                let serves = |r: &&&R| r.name() == by && r.life().served;
                if !pool.iter().any(|r| serves(&r)) {
                    self.add("relieved-too-early", subject, (old.name(), by));
                }
            }
        }
    }

    /// Looks at everything at the end of an instant. Returns whether nothing is wrong so far.
    pub fn instant(&mut self, world: &World) -> bool {
        self.instants += 1;
        let inventory = world.cloud.seen();
        self.meter.follow(world.clock.now(), &inventory);
        let snapshot = world.platform.seen(inventory);
        let now = world.clock.now();
        self.digest.update(format!("{now:?} {snapshot:?}"));
        for violation in invariant::check(&snapshot) {
            self.add(violation.rule, &violation.subject, &violation.detail);
        }
        let vms: BTreeMap<String, VmState> = snapshot
            .inventory
            .vms
            .iter()
            .map(|vm| (vm.spec.id.0.clone(), VmState::of(vm)))
            .collect();
        let told = world.kubernetes.clusters.lock().clone();
        for cluster in &snapshot.clusters {
            let Some(told) = told.get(cluster.id.as_str()) else {
                continue;
            };
            let working = control_plane::working(cluster, &vms);
            if cluster.deployed_step < Some(Step::MateriaLogicalDb) || cluster.is_going() {
                continue;
            }
            if told.control_plane != working {
                let pair = (&told.control_plane, working);
                self.add("announced", &cluster.id, pair);
            }
            let apiserver = |role: &Role| role.components.contains(&Component::Apiserver);
            let roles = control_plane::roles(&cluster.topology);
            let Some(role) = roles.iter().find(|role| apiserver(role)) else {
                continue;
            };
            let own = cluster.control_plane.iter();
            let own = own.filter(|vm| vm.components == role.components && vm.counts());
            let serves = |id: &str| vms.get(id).is_some_and(|state| state.is_serving());
            let down = own.filter(|vm| !serves(&vm.id)).count();
            let deployed = cluster.deployed_step >= Some(Step::ControlPlaneBundle);
            if deployed && role.replicas > 1 && down <= 1 && !told.control_plane.serves() {
                self.add("api-gap", &cluster.id, down);
            }
        }
        self.found.is_empty()
    }

    /// What was used by everything that is an organisation's cluster's.
    pub fn used(&self) -> BTreeMap<String, [i128; 4]> {
        let mut totals = self.meter.totals.clone();
        totals.retain(|owner, total| CloudOwner::parse(owner).is_some() && *total != [0; 4]);
        totals
    }
}

/// As [`Rules::used`] gives it.
pub fn as_totals(usage: Usage) -> [i128; 4] {
    [
        usage.vcpu_ms,
        usage.ram_gb_ms,
        usage.load_balancer_ms,
        usage.storage_mib_ms,
    ]
    .map(i128::from)
}

/// Whether a cluster's status may be followed by that one.
fn may_follow(before: ClusterStatus, after: ClusterStatus) -> bool {
    use ClusterStatus::{
        Active, Deleted, Deleting, Deploying, Failed, Reconciling, Redeploying, ToDelete, ToDeploy,
        ToReconcile, ToRedeploy, ToUpgrade, Updating,
    };
    before == after
        || match before {
            ToDeploy => matches!(after, Deploying | ToDelete),
            ToRedeploy => matches!(after, Redeploying | ToDelete),
            ToUpgrade => matches!(after, Updating | ToDelete),
            ToReconcile => matches!(after, Reconciling | ToDelete),
            Deploying | Redeploying | Updating | Reconciling => {
                matches!(after, Active | Failed | ToDelete)
            }
            Active => matches!(after, ToRedeploy | ToUpgrade | ToReconcile | ToDelete),
            Failed => matches!(after, Deploying | ToDelete),
            ToDelete => after == Deleting,
            Deleting => after == Deleted,
            Deleted => false,
        }
}
