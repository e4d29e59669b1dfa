//! What must be true once nothing has been at fault for long enough: what is observed is what is desired.

use std::collections::{BTreeMap, BTreeSet};

use crate::infra::Datacenter;
use crate::infra::fleet::{self, Room};
use crate::infra::site::Site;
use crate::platform::control_plane;
use crate::platform::invariant::Snapshot;
use crate::platform::model::{Cluster, ClusterStatus, NodeGroup, NodeGroupStatus, NodeStatus};
use crate::platform::node_group::RULE;
use crate::platform::placement::{Rule, better_sites};
use crate::platform::replacement::{self, Replica};
use crate::platform::testing::KnownCluster;

/// What is not as it should be. Where replicas are does not matter while a site is away.
pub fn check(
    snapshot: &Snapshot,
    told: &BTreeMap<String, KnownCluster>,
    without_a_site: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    let well: BTreeSet<&str> = snapshot
        .inventory
        .vms
        .iter()
        .filter(|vm| vm.is_running() && vm.is_healthy() && vm.reachable && vm.gone_at.is_none())
        .map(|vm| vm.spec.id.0.as_str())
        .collect();
    let mut named = BTreeSet::new();
    for cluster in &snapshot.clusters {
        match cluster.status {
            ClusterStatus::Active => {
                let told = told.get(cluster.id.as_str());
                active(cluster, told, &well, without_a_site, &mut found);
            }
            ClusterStatus::Deleted => {}
            status => found.push(format!("{} is {status}", cluster.id)),
        }
        named.extend(cluster.control_plane.iter().map(|vm| vm.id.as_str()));
    }
    for group in &snapshot.node_groups {
        let of = snapshot.clusters.iter().find(|it| it.id == group.cluster);
        let Some(cluster) = of else { continue };
        let subject = format!("{} of {}", group.id, group.cluster);
        if group.status != NodeGroupStatus::Ready {
            found.push(format!("{subject} is {}: {group:?}", group.status));
            continue;
        }
        replicas(&subject, group.nodes.iter().collect(), &well, &mut found);
        let count = u32::try_from(group.nodes.len()).unwrap_or(u32::MAX);
        if (count, count) != (group.target_node_count, group.current_node_count) {
            let (target, ready) = (group.target_node_count, group.current_node_count);
            found.push(format!(
                "{subject} has {count} nodes, {ready} ready, of {target}"
            ));
        }
        for node in &group.nodes {
            if node.status != NodeStatus::Ready || node.version != cluster.running_version {
                found.push(format!("{subject}: {node:?}"));
            }
            named.insert(node.id.as_str());
        }
        let sites = replacement::sites(&group.nodes, None);
        if !without_a_site && !better_sites(RULE, &sites, &open(group, snapshot)).is_empty() {
            let sites: Vec<_> = group
                .nodes
                .iter()
                .map(|it| (&it.name, it.datacenter))
                .collect();
            found.push(format!("{subject}: badly placed: {sites:?}"));
        }
        // Nothing is used: as few nodes as may be; the last one is not taken away.
        let scales = cluster.features.autoscaling_enabled && group.autoscaling_enabled;
        let most = group.min_node_count.max(1);
        if scales && group.target_node_count > most {
            found.push(format!("{subject} is idle with {count} nodes"));
        }
    }
    let there: BTreeSet<&str> = snapshot
        .inventory
        .vms
        .iter()
        .map(|vm| vm.spec.id.0.as_str())
        .collect();
    if there != named {
        let nobodys: Vec<_> = there.difference(&named).collect();
        let missing: Vec<_> = named.difference(&there).collect();
        found.push(format!("VMs of nobody: {nobodys:?}; missing: {missing:?}"));
    }
    for load_balancer in &snapshot.load_balancers {
        if load_balancer.ips.is_empty() || load_balancer.deleting {
            found.push(format!("{load_balancer:?}"));
        }
    }
    found
}

/// The sites with room for another node, when all are up.
fn open(group: &NodeGroup, snapshot: &Snapshot) -> BTreeSet<Datacenter> {
    let size = group.flavor.size();
    let room = Room {
        vcpus: size.vcpus,
        ram_gb: size.ram_gb,
    };
    let fleet = || snapshot.inventory.hypervisors.iter();
    let is_open = |site: &Datacenter| {
        fleet::choose(fleet(), |_| Site::default(), Some(*site), room).is_some()
    };
    Datacenter::ALL.into_iter().filter(is_open).collect()
}

fn active(
    cluster: &Cluster,
    told: Option<&KnownCluster>,
    well: &BTreeSet<&str>,
    without_a_site: bool,
    found: &mut Vec<String>,
) {
    let id = &cluster.id;
    if cluster.running_version != cluster.version {
        let (running, wanted) = (&cluster.running_version, &cluster.version);
        found.push(format!("{id} runs {running}, not {wanted}"));
    }
    if cluster.features != cluster.requested_features {
        found.push(format!("{id} lacks features: {:?}", cluster.features));
    }
    match told {
        Some(told) if told.version != cluster.version => {
            found.push(format!("{id}: its API is of {}", told.version));
        }
        Some(told) if !told.control_plane.serves() => found.push(format!("{id} does not answer")),
        Some(_) => {}
        None => found.push(format!("{id} has no API")),
    }
    for role in control_plane::roles(&cluster.topology) {
        let subject = format!("{} of {id}", role.name);
        let own = cluster.control_plane.iter();
        let own: Vec<_> = own.filter(|vm| vm.components == role.components).collect();
        if own.len() != role.replicas {
            found.push(format!("{subject}: {} of {}", own.len(), role.replicas));
        }
        for vm in &own {
            if vm.version != cluster.version || vm.generation != cluster.generation {
                found.push(format!("{subject}: {vm:?}"));
            }
        }
        let sites = own.iter().map(|vm| vm.datacenter);
        let rule = Rule::of_control_plane(cluster.topology.kind());
        if !without_a_site && !is_placed_well(rule, sites) {
            let sites: Vec<_> = own.iter().map(|vm| (&vm.name, vm.datacenter)).collect();
            found.push(format!("{subject}: badly placed: {sites:?}"));
        }
        replicas(&subject, own, well, found);
    }
}

/// Everybody serves, and nobody comes or goes.
fn replicas<R: Replica>(
    subject: &str,
    pool: Vec<&R>,
    well: &BTreeSet<&str>,
    found: &mut Vec<String>,
) {
    for replica in pool {
        let life = replica.life();
        let rests = replica.counts() && life.served && life.unhealthy_since.is_none();
        if !rests || !well.contains(replica.id()) {
            found.push(format!("{subject}: {} {life:?}", replica.name()));
        }
    }
}

fn is_placed_well(rule: Rule, sites: impl Iterator<Item = Datacenter>) -> bool {
    let mut counts: BTreeMap<Datacenter, usize> =
        Datacenter::ALL.into_iter().map(|site| (site, 0)).collect();
    for site in sites {
        *counts.entry(site).or_default() += 1;
    }
    let used = counts.values().filter(|count| **count > 0).count();
    let (least, most) = (counts.values().min(), counts.values().max());
    match rule {
        Rule::Together => used <= 1,
        Rule::Spread => most
            .zip(least)
            .is_some_and(|(most, least)| most - least <= 1),
    }
}
