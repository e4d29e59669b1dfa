//! What must be true of all records together, whatever happened before: a leak or a double is found here.
//!
//! A pure function over a snapshot of the platform's and the cloud's records. Some rules hold at every
//! instant, as one transaction writes both sides of them; others only for what is at rest, because the
//! platform records before the cloud acts. A snapshot of two keyspaces is not of one instant either: the
//! rules between them are only about what is at rest.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

use crate::clock::Timestamp;
use crate::infra::{Inventory, Requested, Vm};

use super::control_plane;
use super::load_balancer::{ADDRESSES, ServiceLoadBalancer};
use super::model::{
    Cluster, ClusterStatus, ControlPlaneVm, NodeGroup, NodeGroupStatus, NodeStatus, OwnerId,
    own_load_balancer,
};
use super::quota::{Holding, Ledger, Resources};
use super::replacement::Replica;
use super::store::{CloudOwner, Record};

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Name of the rule.
    pub rule: &'static str,
    /// Id of what breaks it.
    pub subject: String,
    pub detail: String,
}

/// All records.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub clusters: Vec<Cluster>,
    pub node_groups: Vec<NodeGroup>,
    pub ledgers: Vec<Ledger>,
    pub holdings: Vec<Holding>,
    pub load_balancers: Vec<ServiceLoadBalancer>,
    pub inventory: Inventory,
}

impl Snapshot {
    pub fn new<'a>(records: impl Iterator<Item = &'a Record>, inventory: Inventory) -> Snapshot {
        let mut snapshot = Snapshot {
            inventory,
            ..Snapshot::default()
        };
        for record in records {
            match record {
                Record::Cluster(cluster) => snapshot.clusters.push(cluster.clone()),
                Record::NodeGroup(group) => snapshot.node_groups.push(group.clone()),
                Record::Ledger(ledger) => snapshot.ledgers.push(ledger.clone()),
                Record::Holding(holding) => snapshot.holdings.push(holding.clone()),
                Record::LoadBalancer(load_balancer) => {
                    snapshot.load_balancers.push(load_balancer.clone());
                }
                Record::NodeName(_) | Record::Releases(_) | Record::Rates(_) | Record::Event(_) => {
                }
            }
        }
        snapshot
    }
}

/// Every rule that does not hold, in order.
pub fn check(snapshot: &Snapshot) -> Vec<Violation> {
    let mut found = Violations::default();
    ledgers(snapshot, &mut found);
    public_addresses(snapshot, &mut found);
    node_groups(snapshot, &mut found);
    clusters(snapshot, &mut found);
    vms(snapshot, &mut found);
    addresses(&snapshot.inventory, &mut found);
    hypervisors(&snapshot.inventory, &mut found);
    cloud_belongings(snapshot, &mut found);
    volumes(snapshot, &mut found);
    meter(&snapshot.inventory, &mut found);
    found.0.sort();
    found.0
}

#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, rule: &'static str, subject: impl ToString, detail: impl Into<String>) {
        self.0.push(Violation {
            rule,
            subject: subject.to_string(),
            detail: detail.into(),
        });
    }
}

/// Held is exactly what lives: every control plane until it is DELETED, every node group until its record
/// goes. Each ledger has the sum of that, and not more than the limits.
fn ledgers(snapshot: &Snapshot, found: &mut Violations) {
    let mut live: BTreeMap<String, (&str, Resources, Resources)> = BTreeMap::new();
    for cluster in &snapshot.clusters {
        if cluster.status != ClusterStatus::Deleted {
            let needs = Resources::of_control_plane(&cluster.topology);
            live.insert(
                cluster.id.to_string(),
                (cluster.owner.as_str(), needs, needs),
            );
        }
    }
    for group in &snapshot.node_groups {
        // Successors, and those whose place they took, are for nobody's account.
        let counted = group.nodes.iter().filter(|node| node.counts()).count();
        let counted = u32::try_from(counted).unwrap_or(u32::MAX);
        let target = group.target_node_count;
        let most = Resources::of(group.flavor, target);
        let least = Resources::of(group.flavor, target.min(counted));
        let unbounded = Resources {
            vcpus: u64::MAX,
            ram_gb: u64::MAX,
        };
        // On the way from one size to another, what is held may be for the larger one. At rest it is for what
        // is asked for: the overlap of a healing takes nothing.
        let (least, most) = match group.status {
            NodeGroupStatus::Ready => (most, most),
            _ => (least, unbounded),
        };
        live.insert(group.id.to_string(), (group.owner.as_str(), least, most));
    }
    let mut sums: BTreeMap<&OwnerId, Resources> = BTreeMap::new();
    for holding in &snapshot.holdings {
        let (id, held) = (&holding.item, holding.resources);
        let sum = sums.entry(&holding.owner).or_default();
        *sum = [*sum, held].into_iter().sum();
        match live.remove(id) {
            Some((owner, least, most)) => {
                if owner != holding.owner.as_str() {
                    found.add("ledger-owner", id, format!("held by {}", holding.owner));
                }
                let within = (least.vcpus..=most.vcpus).contains(&held.vcpus)
                    && (least.ram_gb..=most.ram_gb).contains(&held.ram_gb);
                if !within {
                    found.add(
                        "ledger-amount",
                        id,
                        format!("held {held:?}, needs {least:?}"),
                    );
                }
            }
            None => found.add("ledger-leak", id, "nothing that lives needs this"),
        }
    }
    for ledger in &snapshot.ledgers {
        let total = ledger.total();
        let sum = sums.remove(&ledger.owner).unwrap_or_default();
        if sum != total {
            let detail = format!("{total:?}, and what is held is {sum:?}");
            found.add("ledger-sum", &ledger.owner, detail);
        }
        if !ledger.is_within_limits() {
            found.add(
                "quota",
                &ledger.owner,
                format!("{total:?} is over the limits"),
            );
        }
    }
    for (owner, sum) in sums {
        found.add("ledger-missing", owner, format!("{sum:?} are held"));
    }
    for (id, (owner, ..)) in live {
        found.add(
            "ledger-missing",
            id,
            format!("{owner} holds nothing for it"),
        );
    }
}

/// At most one of a pool is being replaced.
fn one_change<'a, R: Replica + 'a>(
    pool: impl IntoIterator<Item = &'a R>,
    subject: &str,
    found: &mut Violations,
) {
    let successors = pool.into_iter().filter(|r| r.life().replaces.is_some());
    let names: Vec<&str> = successors.map(Replica::name).collect();
    if names.len() > 1 {
        found.add("one-change", subject, names.join(", "));
    }
}

/// Each ledger holds the addresses of exactly the load balancers that have a record, and each of those is of
/// a cluster that is not DELETED.
fn public_addresses(snapshot: &Snapshot, found: &mut Violations) {
    let mut live: BTreeMap<&str, &ServiceLoadBalancer> = BTreeMap::new();
    for load_balancer in &snapshot.load_balancers {
        live.insert(&load_balancer.id, load_balancer);
        let of = |cluster: &&Cluster| cluster.id == load_balancer.cluster;
        let cluster = snapshot.clusters.iter().find(of);
        if cluster.is_none_or(|cluster| cluster.status == ClusterStatus::Deleted) {
            let detail = load_balancer.cluster.as_str();
            found.add("load-balancer-without-cluster", &load_balancer.id, detail);
        }
    }
    for ledger in &snapshot.ledgers {
        for (id, count) in &ledger.holdings_ips {
            match live.remove(id.as_str()) {
                Some(of) if of.owner == ledger.owner && *count == ADDRESSES => {}
                Some(of) => {
                    let detail = format!("{} holds {count} for {}'s", ledger.owner, of.owner);
                    found.add("ip-amount", id, detail);
                }
                None => found.add("ip-leak", id, "nothing that lives needs this"),
            }
        }
    }
    for (id, load_balancer) in live {
        let detail = format!("{} holds nothing for it", load_balancer.owner);
        found.add("ip-missing", id, detail);
    }
}

fn node_groups(snapshot: &Snapshot, found: &mut Violations) {
    let clusters: BTreeMap<_, _> = snapshot.clusters.iter().map(|c| (&c.id, c)).collect();
    let mut names: BTreeSet<(String, String)> = BTreeSet::new();
    for cluster in &snapshot.clusters {
        for name in cluster
            .control_plane
            .iter()
            .filter_map(|vm| vm.node_name.clone())
        {
            names.insert((cluster.id.to_string(), name));
        }
    }
    for group in &snapshot.node_groups {
        match clusters.get(&group.cluster) {
            Some(cluster) if cluster.status != ClusterStatus::Deleted => {}
            _ => found.add(
                "node-group-without-cluster",
                &group.id,
                group.cluster.as_str(),
            ),
        }
        for node in &group.nodes {
            if !names.insert((group.cluster.to_string(), node.name.clone())) {
                found.add(
                    "node-name",
                    &node.id,
                    format!("{} is taken twice", node.name),
                );
            }
        }
        let ready = |node: &&super::model::Node| node.status == NodeStatus::Ready;
        let ready = group.nodes.iter().filter(ready).count();
        if u32::try_from(ready) != Ok(group.current_node_count) {
            let detail = format!("{} recorded, {ready} are ready", group.current_node_count);
            found.add("node-count", &group.id, detail);
        }
        let counted = group.nodes.iter().filter(|node| node.counts()).count();
        if group.status == NodeGroupStatus::Ready
            && u32::try_from(counted) != Ok(group.target_node_count)
        {
            let detail = format!("{counted} of {}", group.target_node_count);
            found.add("ready-size", &group.id, detail);
        }
        one_change(&group.nodes, group.id.as_str(), found);
    }
}

fn clusters(snapshot: &Snapshot, found: &mut Violations) {
    let running: BTreeSet<&str> = snapshot
        .inventory
        .vms
        .iter()
        .filter(|vm| vm.is_running())
        .map(|vm| vm.spec.id.0.as_str())
        .collect();
    for cluster in &snapshot.clusters {
        if cluster.status == ClusterStatus::Active {
            if cluster.operation.is_some() {
                found.add("active-operation", &cluster.id, "ACTIVE with an operation");
            }
            if cluster.load_balancer.is_none() {
                found.add("active-load-balancer", &cluster.id, "ACTIVE without one");
            }
            // One that is new, sick or on its way out need not run.
            let settled = |vm: &&ControlPlaneVm| {
                vm.counts() && vm.life.served && vm.life.unhealthy_since.is_none()
            };
            for vm in cluster.control_plane.iter().filter(settled) {
                if !running.contains(vm.id.as_str()) {
                    found.add(
                        "active-vm",
                        &vm.id,
                        format!("of {} does not run", cluster.id),
                    );
                }
            }
        }
        for role in control_plane::roles(&cluster.topology) {
            let own = cluster.control_plane.iter();
            let own: Vec<_> = own.filter(|vm| vm.components == role.components).collect();
            one_change(
                own.iter().copied(),
                &format!("{} {}", cluster.id, role.name),
                found,
            );
            let counted = own.iter().filter(|vm| vm.counts()).count();
            if counted > role.replicas {
                let detail = format!("{counted} of {}: {}", role.replicas, role.name);
                found.add("extra-replica", &cluster.id, detail);
            }
        }
        if cluster.status == ClusterStatus::Deleted
            && !(cluster.control_plane.is_empty() && cluster.load_balancer.is_none())
        {
            found.add(
                "deleted-cluster",
                &cluster.id,
                "still has VMs or a load balancer",
            );
        }
    }
    for group in &snapshot.node_groups {
        for node in &group.nodes {
            if node.status == NodeStatus::Ready && !running.contains(node.id.as_str()) {
                found.add("ready-node", &node.id, "READY, and its VM does not run");
            }
        }
    }
}

/// Every VM that is to run is named by exactly one record.
fn vms(snapshot: &Snapshot, found: &mut Violations) {
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    let control_plane = snapshot.clusters.iter().flat_map(|c| &c.control_plane);
    let nodes = snapshot.node_groups.iter().flat_map(|g| &g.nodes);
    let ids = control_plane
        .map(|vm| vm.id.as_str())
        .chain(nodes.map(|node| node.id.as_str()));
    for id in ids {
        *named.entry(id).or_default() += 1;
    }
    let is_ours = |vm: &&Vm| CloudOwner::parse(&vm.spec.owner).is_some();
    for vm in snapshot.inventory.vms.iter().filter(is_ours) {
        match named.get(vm.spec.id.0.as_str()) {
            Some(1) => {}
            Some(times) => found.add("vm-doubly-named", &vm.spec.id, format!("{times} times")),
            None if vm.requested == Requested::Deleted => {}
            None => found.add("vm-leak", &vm.spec.id, format!("of {}", vm.spec.owner)),
        }
    }
}

/// An address has one holder, and every holder exists.
fn addresses(inventory: &Inventory, found: &mut Violations) {
    let mut wanted: BTreeMap<std::net::Ipv4Addr, &str> = BTreeMap::new();
    let vms = inventory
        .vms
        .iter()
        .map(|vm| (vm.address, vm.spec.id.0.as_str()));
    let load_balancers = inventory.load_balancers.iter().flat_map(|lb| {
        lb.addresses
            .iter()
            .map(|address| (*address, lb.id.as_str()))
    });
    for (address, holder) in vms.chain(load_balancers) {
        if let Some(other) = wanted.insert(address, holder) {
            found.add("address-twice", address, format!("{other} and {holder}"));
        }
    }
    for (address, lease) in &inventory.addresses {
        match wanted.remove(address) {
            Some(holder) if holder == lease.holder => {}
            Some(holder) => {
                found.add(
                    "address-holder",
                    address,
                    format!("{holder}, not {}", lease.holder),
                );
            }
            None => found.add("address-leak", address, format!("held by {}", lease.holder)),
        }
    }
    for (address, holder) in wanted {
        found.add(
            "address-missing",
            address,
            format!("{holder} does not hold it"),
        );
    }
}

fn hypervisors(inventory: &Inventory, found: &mut Violations) {
    let mut placed = BTreeSet::new();
    for hypervisor in &inventory.hypervisors {
        let used = |of: fn(&crate::infra::fleet::Room) -> u32| -> u64 {
            hypervisor
                .placed
                .values()
                .map(|room| u64::from(of(room)))
                .sum()
        };
        if used(|room| room.vcpus) > u64::from(hypervisor.capacity.vcpus)
            || used(|room| room.ram_gb) > u64::from(hypervisor.capacity.ram_gb)
        {
            found.add("hypervisor-capacity", &hypervisor.name, "over its capacity");
        }
        for id in hypervisor.placed.keys() {
            placed.insert((id.clone(), hypervisor.name.clone()));
        }
    }
    for vm in &inventory.vms {
        if !placed.remove(&(vm.spec.id.clone(), vm.hypervisor.clone())) {
            let detail = format!("{} does not know it", vm.hypervisor);
            found.add("placement-missing", &vm.spec.id, detail);
        }
    }
    for (id, hypervisor) in placed {
        found.add(
            "placement-leak",
            id,
            format!("still takes room on {hypervisor}"),
        );
    }
}

/// Load balancers, networks and volumes belong to clusters that are not DELETED.
fn cloud_belongings(snapshot: &Snapshot, found: &mut Violations) {
    let live: BTreeSet<String> = snapshot
        .clusters
        .iter()
        .filter(|cluster| cluster.status != ClusterStatus::Deleted)
        .map(|cluster| CloudOwner::of_cluster(cluster).to_string())
        .collect();
    let load_balancers = snapshot.inventory.load_balancers.iter();
    let load_balancers = load_balancers.map(|lb| ("load-balancer-leak", &lb.id, &lb.owner));
    let networks = snapshot.inventory.networks.iter();
    let networks = networks.map(|network| ("network-leak", &network.id, &network.owner));
    let volumes = snapshot.inventory.volumes.iter();
    let volumes = volumes.map(|volume| ("volume-leak", &volume.id, &volume.owner));
    for (rule, id, owner) in load_balancers.chain(networks).chain(volumes) {
        if CloudOwner::parse(owner).is_some() && !live.contains(owner) {
            found.add(rule, id, format!("of {owner}"));
        }
    }
}

/// A volume is of a cluster with persistent storage, and no more is written to it than fits.
fn volumes(snapshot: &Snapshot, found: &mut Violations) {
    let clusters: BTreeMap<String, &Cluster> = snapshot
        .clusters
        .iter()
        .map(|cluster| (CloudOwner::of_cluster(cluster).to_string(), cluster))
        .collect();
    for volume in &snapshot.inventory.volumes {
        let of = clusters.get(&volume.owner);
        if of.is_some_and(|cluster| !cluster.features.csi) {
            found.add("volume-without-storage", &volume.id, &volume.owner);
        }
        if volume.size_bytes == 0 || volume.used_bytes > volume.size_bytes {
            let (used, size) = (volume.used_bytes, volume.size_bytes);
            found.add(
                "volume-usage",
                &volume.id,
                format!("{used} of {size} bytes"),
            );
        }
    }
}

/// On the meter is what somebody pays for, and nothing else: VMs while they serve, volumes, and the load
/// balancers of services, for a cluster's own comes with its control plane.
fn meter(inventory: &Inventory, found: &mut Violations) {
    let mut check = |id: &str, is_due: bool, since: Option<Timestamp>| {
        if is_due != since.is_some() {
            let detail = match since {
                Some(since) => format!("on the meter since {}", since.to_rfc3339()),
                None => String::from("not on the meter"),
            };
            found.add("meter", id, detail);
        }
    };
    for vm in &inventory.vms {
        check(vm.spec.id.0.as_str(), vm.is_metered(), vm.metered_since);
    }
    for volume in &inventory.volumes {
        check(&volume.id, true, volume.metered_since);
    }
    for load_balancer in &inventory.load_balancers {
        if let Some(of) = CloudOwner::parse(&load_balancer.owner) {
            let is_due = load_balancer.id != own_load_balancer(&of.cluster);
            check(&load_balancer.id, is_due, load_balancer.metered_since);
        }
    }
}

#[cfg(test)]
mod tests;
