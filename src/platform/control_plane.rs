//! The VMs of a control plane: which roles there are, how each is filled, healed and rolled, and which
//! components work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::infra::Datacenter;
use crate::kubernetes::{ControlPlane, Drain};

use super::deployment_event::EventStatus;
use super::model::{
    Cluster, ClusterId, Component, ControlPlaneVm, Flavor, RolePool, Topology, TopologyKind,
};
use super::placement::{self, Openings};
use super::replacement::{self, LOOK_AGAIN, Lifecycle, Reason, Replica, Sight, Tries};
use super::vm_state::VmState;

/// Name of the role whose VMs host everything, and of the group that ALL_IN_ONE's make, as nodes.
const BUNDLE: &str = "control-plane";

/// VMs that host the same components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    pub name: &'static str,
    /// Its place among the cluster's roles.
    pub index: usize,
    pub flavor: Flavor,
    pub replicas: usize,
    pub components: Vec<Component>,
}

/// The roles of a topology, in a fixed order.
pub fn roles(topology: &Topology) -> Vec<Role> {
    match topology {
        Topology::AllInOne {
            flavor,
            replication_factor,
        }
        | Topology::DedicatedCompute {
            flavor,
            replication_factor,
        } => vec![Role {
            name: BUNDLE,
            index: 0,
            flavor: *flavor,
            replicas: usize::from(*replication_factor),
            components: Component::ALL.to_vec(),
        }],
        Topology::Distributed { components } => Component::ALL
            .into_iter()
            .enumerate()
            .map(|(index, component)| {
                let config = components.get(component);
                Role {
                    name: component.name(),
                    index,
                    flavor: config.flavor,
                    replicas: usize::from(config.replication_factor),
                    components: vec![component],
                }
            })
            .collect(),
    }
}

fn node_name(kind: TopologyKind, number: u32) -> Option<String> {
    (kind == TopologyKind::AllInOne).then(|| format!("{BUNDLE}-node{number}"))
}

/// Another VM of the role. It takes the lowest number whose names are free.
fn new_vm(
    id: &ClusterId,
    kind: TopologyKind,
    role: &Role,
    pool: &mut RolePool,
    taken: &BTreeSet<String>,
    own: &[ControlPlaneVm],
    datacenter: Option<Datacenter>,
) -> ControlPlaneVm {
    let is_free = |number: &u32| {
        let used = own.iter().any(|vm| vm.number == *number);
        !used && node_name(kind, *number).is_none_or(|name| !taken.contains(&name))
    };
    let number = (0..=u32::MAX).find(is_free).unwrap_or(u32::MAX);
    let place = usize::try_from(number).unwrap_or(0);
    let allocated = pool.allocated;
    pool.allocated += 1;
    ControlPlaneVm {
        id: format!("vm_{}_{}_{allocated}", id.ulid(), role.name),
        name: format!("{}-{number}", role.name),
        number,
        flavor: role.flavor,
        datacenter: datacenter
            .unwrap_or_else(|| placement::of_replica(id, kind, role.index, place)),
        components: role.components.clone(),
        node_name: node_name(kind, number),
        version: String::new(),
        generation: 0,
        life: Lifecycle::default(),
    }
}

/// The VMs that a control plane begins with.
pub fn first_vms(
    id: &ClusterId,
    topology: &Topology,
    version: &str,
) -> (Vec<ControlPlaneVm>, BTreeMap<String, RolePool>) {
    let (mut vms, mut pools) = (Vec::new(), BTreeMap::new());
    for role in roles(topology) {
        let mut pool = RolePool::default();
        let mut own: Vec<ControlPlaneVm> = Vec::new();
        for _ in 0..role.replicas {
            let kind = topology.kind();
            let taken = BTreeSet::new();
            let mut vm = new_vm(id, kind, &role, &mut pool, &taken, &own, None);
            version.clone_into(&mut vm.version);
            own.push(vm);
        }
        vms.extend(own);
        pools.insert(role.name.to_owned(), pool);
    }
    (vms, pools)
}

/// What is seen of a control plane.
pub struct View<'a> {
    pub now: Timestamp,
    pub vms: &'a BTreeMap<String, VmState>,
    pub drains: &'a BTreeMap<String, Drain>,
    /// Names of nodes in the cluster, of any group.
    pub taken_names: &'a BTreeSet<String>,
    /// Whether VMs that are not of the wanted version and generation are replaced.
    pub rolls: bool,
    /// How many replacements may begin; as many as need be, if `None`.
    pub replacements: Option<usize>,
    pub version: &'a str,
    /// Which sites take a VM of a flavor, if somebody may move there now.
    pub openings: &'a BTreeMap<Flavor, Openings>,
}

/// Sites at which a VM of a flavor would be better off, if there were room: after the loss of one, healing leaves two
/// replicas in another.
pub fn wanted_sites(cluster: &Cluster) -> BTreeMap<Flavor, BTreeSet<Datacenter>> {
    let rule = placement::Rule::of_control_plane(cluster.topology.kind());
    let mut wanted: BTreeMap<Flavor, BTreeSet<Datacenter>> = BTreeMap::new();
    for role in roles(&cluster.topology) {
        let own = cluster.control_plane.iter();
        let staying = own.filter(|vm| vm.components == role.components && vm.counts());
        let sites: Vec<Datacenter> = staying.map(|vm| vm.datacenter).collect();
        let better = placement::wanted(rule, &sites);
        if !better.is_empty() {
            wanted.entry(role.flavor).or_default().extend(better);
        }
    }
    wanted
}

/// What happened to one VM, for people.
#[derive(Debug)]
pub struct News {
    pub text: String,
    /// Of the VM's replacement.
    pub status: EventStatus,
    /// Something failed, or is missing.
    pub warning: bool,
}

impl News {
    fn new(status: EventStatus, text: String) -> News {
        News {
            text,
            status,
            warning: status == EventStatus::Failed,
        }
    }
}

/// What there is to do, and to tell.
#[derive(Debug, Default)]
pub struct Upkeep {
    pub create: Vec<ControlPlaneVm>,
    pub delete: Vec<String>,
    pub news: Vec<News>,
    /// A change of one VM came to its end.
    pub progress: bool,
    /// As many VMs as are asked for serve, all as they should be, and nothing changes.
    pub at_rest: bool,
    /// A replacement waits for its turn.
    pub deferred: bool,
    pub wake: Option<Timestamp>,
}

impl Upkeep {
    fn wake_by(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Fills, heals and rolls the VMs of `next`.
pub fn keep(next: &mut Cluster, view: &View<'_>) -> Upkeep {
    let mut upkeep = Upkeep {
        at_rest: true,
        ..Upkeep::default()
    };
    let kind = next.topology.kind();
    let rule = placement::Rule::of_control_plane(kind);
    let mut left = view.replacements.unwrap_or(usize::MAX);
    let mut vms = Vec::with_capacity(next.control_plane.len());
    for role in roles(&next.topology) {
        let is_own = |vm: &ControlPlaneVm| vm.components == role.components;
        let all = std::mem::take(&mut next.control_plane);
        let (mut own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_own);
        next.control_plane = others;
        let mut pool = next.pools.remove(role.name).unwrap_or_default();
        let sight = Sight {
            now: view.now,
            vms: view.vms,
            drains: view.drains,
            join: Duration::ZERO,
        };
        let walk = replacement::walk(&mut own, &mut pool.tries, &sight);
        let create = own.iter().filter(|vm| walk.create.contains(&vm.id));
        upkeep.create.extend(create.cloned());
        upkeep.delete.extend(walk.delete);
        upkeep.progress |= !walk.took_over.is_empty();
        for name in walk.failed {
            let text = format!("{name} did not start: another takes its place");
            upkeep.news.push(News::new(EventStatus::Failed, text));
        }
        for (new, old) in walk.took_over {
            let text = format!("{new} serves: {old} is drained and deleted");
            upkeep.news.push(News::new(EventStatus::Started, text));
        }
        for vm in walk.struck {
            if let Some(by) = vm.life.leaving.and_then(|leaving| leaving.replaced_by) {
                let text = format!("{} is replaced by {by}", vm.name);
                upkeep.news.push(News::new(EventStatus::Completed, text));
            }
        }
        let add = |own: &mut Vec<ControlPlaneVm>, pool: &mut RolePool, site, life| {
            let taken = view.taken_names;
            let mut vm = new_vm(&next.id, kind, &role, pool, taken, own, site);
            view.version.clone_into(&mut vm.version);
            vm.generation = next.generation;
            vm.life = life;
            let name = vm.name.clone();
            own.push(vm);
            name
        };
        let open = BTreeSet::from(Datacenter::ALL);
        let counted = own.iter().filter(|vm| vm.counts()).count();
        if counted < role.replicas && pool.tries.may_try(view.now) {
            for _ in counted..role.replicas {
                let first = placement::of_replica(&next.id, kind, role.index, own.len());
                let others = replacement::sites(&own, None);
                let site = placement::choose(rule, first, &others, &open);
                add(&mut own, &mut pool, site, Lifecycle::default());
            }
        }
        let outdated = |vm: &ControlPlaneVm| {
            view.rolls && (vm.version != view.version || vm.generation != next.generation)
        };
        let nowhere = Openings::default();
        let openings = view.openings.get(&role.flavor).unwrap_or(&nowhere);
        let sites = replacement::sites(&own, None);
        let moves = placement::better_sites(rule, &sites, &openings.open);
        let misplaced = |index: usize| moves.contains_key(&own[index].datacenter);
        let there = openings.there();
        if moves.is_empty() && !placement::better_sites(rule, &sites, &there).is_empty() {
            upkeep.wake_by(view.now.saturating_add(LOOK_AGAIN));
        }
        let due = replacement::to_replace(&own, &pool.tries, &sight, outdated, misplaced);
        upkeep.deferred |= due.is_some() && left == 0;
        if let Some((index, reason)) = due.filter(|_| left > 0) {
            left -= 1;
            let old = &own[index];
            let (old_id, old_name) = (old.id.clone(), old.name.clone());
            let site = match reason {
                Reason::Misplaced => moves.get(&old.datacenter).copied(),
                _ => {
                    let others = replacement::sites(&own, Some(index));
                    placement::choose(rule, old.datacenter, &others, &open)
                }
            };
            let life = Lifecycle {
                replaces: Some(old_id),
                moves: reason == Reason::Misplaced,
                ..Lifecycle::default()
            };
            let name = add(&mut own, &mut pool, site, life);
            let why = match reason {
                Reason::Unhealthy => "does not answer",
                Reason::Outdated => "is to be renewed",
                Reason::Misplaced => "is to stand apart from the others, or beside them",
            };
            let text = format!("{old_name} {why}: {name} is to take its place");
            upkeep.news.push(News {
                warning: reason == Reason::Unhealthy,
                ..News::new(EventStatus::Started, text)
            });
        }
        let at_rest = replacement::is_at_rest(&own, role.replicas, &sight);
        let rolls = own.iter().any(|vm| vm.counts() && outdated(vm));
        // A change that is still wanted goes on with its pauses.
        if at_rest && !rolls && moves.is_empty() {
            pool.tries = Tries::default();
        }
        upkeep.at_rest &= at_rest && !rolls;
        let later = pool.tries.not_before.filter(|at| *at > view.now);
        for at in walk.wake.into_iter().chain(later) {
            upkeep.wake_by(at);
        }
        own.sort_by_key(|vm| vm.number);
        vms.extend(own);
        next.pools.insert(role.name.to_owned(), pool);
    }
    next.control_plane = vms;
    upkeep
}

/// Has the site of a VM refused it for want of room. Tells of a move that is given up.
pub fn refuse(next: &mut Cluster, id: &str, now: Timestamp) -> Option<News> {
    let rule = placement::Rule::of_control_plane(next.topology.kind());
    let vm = next.control_plane.iter().find(|vm| vm.id == id)?;
    let components = vm.components.clone();
    let role = roles(&next.topology)
        .into_iter()
        .find(|role| role.components == components)?;
    let all = std::mem::take(&mut next.control_plane);
    let is_own = |vm: &ControlPlaneVm| vm.components == role.components;
    let (mut own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_own);
    let pool = next.pools.entry(role.name.to_owned()).or_default();
    let given_up = replacement::refuse(&mut own, &mut pool.tries, id, rule, now);
    next.control_plane = others;
    next.control_plane.extend(own);
    let place = |vm: &ControlPlaneVm| vm.components.first().copied();
    next.control_plane.sort_by_key(|vm| (place(vm), vm.number));
    let name = given_up?.name;
    let text = format!("there is no room for {name} where it was to be: nothing moves");
    Some(News {
        warning: false,
        ..News::new(EventStatus::Failed, text)
    })
}

/// The instances of each component whose VM works.
pub fn working(cluster: &Cluster, vms: &BTreeMap<String, VmState>) -> ControlPlane {
    let mut working = ControlPlane::default();
    for vm in &cluster.control_plane {
        if !vms.get(&vm.id).is_some_and(|state| state.is_serving()) {
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
    working
}
