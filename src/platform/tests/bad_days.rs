//! Bad days that once had no end: each was found by a month of [`month`](super::month).

use std::sync::atomic::Ordering;

use super::*;
use crate::infra::{BootFault, BootScope, CapacityFault, DatacenterState, Image, VmId};

async fn fail_boots(world: &World, failure_per_mille: u32) {
    let fault = BootFault {
        failure_per_mille,
        ..BootFault::default()
    };
    let set = world.cloud.set_boot_fault(BootScope::Everywhere, fault);
    set.await.unwrap();
}

async fn set_site(world: &World, site: Datacenter, state: DatacenterState) {
    world.cloud.set_datacenter(site, state).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_that_never_came_to_run_are_not_left_behind() {
    let world = World::new().await;
    let mut order = request("demo", SMALL);
    order.node_groups = vec![CreateNodeGroup::new("w", Flavor::Xxs, 2)];
    fail_boots(&world, 1000).await;
    let view = world.platform.create_cluster(&owner(), order).await;
    let id = view.unwrap().cluster.id;
    world.advance(300).await;
    fail_boots(&world, 0).await;
    world.advance(600).await;
    healed(&world, &id).await;
    world.advance(120).await;
    assert_eq!(world.cloud.list_vms().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_after_failures_ends_by_itself() {
    let world = World::new().await;
    let mut order = request("demo", SMALL);
    order.node_groups = vec![CreateNodeGroup::new("w", Flavor::Xxs, 1)];
    let view = world.platform.create_cluster(&owner(), order).await;
    let id = view.unwrap().cluster.id;
    world.advance(300).await;
    let worker = healed(&world, &id).await.node_groups[0].nodes[0].id.clone();
    fail_boots(&world, 1000).await;
    let killed = world.cloud.kill_vm(&VmId(worker.to_string())).await;
    killed.unwrap();
    // Successor after successor fails, with pauses of minutes between them.
    world.advance(1200).await;
    fail_boots(&world, 0).await;
    // Nothing else happens: time alone must bring the next.
    world.advance(900).await;
    let view = world.platform.get_cluster(&owner(), &id).await.unwrap();
    let nodes = &view.node_groups[0].nodes;
    assert_eq!(nodes.len(), 1, "{nodes:#?}");
    assert_eq!(nodes[0].status, NodeStatus::Ready);
    assert_ne!(nodes[0].id, worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_crowded_into_one_site_stand_apart_again() {
    let world = World::new().await;
    let topology = Topology::DedicatedCompute {
        flavor: Flavor::Xs,
        replication_factor: 3,
    };
    let id = world.active_cluster(topology).await;
    let sites = |view: &ClusterView| -> BTreeSet<Datacenter> {
        let vms = view.cluster.control_plane.iter();
        vms.map(|vm| vm.datacenter).collect()
    };
    set_site(&world, Datacenter::Par1, DatacenterState::Lost).await;
    set_site(&world, Datacenter::Par2, DatacenterState::Lost).await;
    world.advance(1200).await;
    let crowded = healed(&world, &id).await;
    assert_eq!(sites(&crowded), BTreeSet::from([Datacenter::Par3]));
    set_site(&world, Datacenter::Par1, DatacenterState::Up).await;
    set_site(&world, Datacenter::Par2, DatacenterState::Up).await;
    for _ in 0..300 {
        world.advance(5).await;
        let known = world.kubernetes.clusters.lock()[id.as_str()].clone();
        assert!(known.control_plane.apiserver.len() >= 2, "{known:?}");
    }
    let apart = healed(&world, &id).await;
    assert_eq!(sites(&apart), BTreeSet::from(Datacenter::ALL));
    world.advance(86_400).await;
    assert_eq!(healed(&world, &id).await, apart, "and there they stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_crowded_into_two_sites_go_round_all_three_again() {
    let world = World::new().await;
    let mut order = request("demo", SMALL);
    order.node_groups = vec![CreateNodeGroup::new("w", Flavor::Xxs, 6)];
    let view = world.platform.create_cluster(&owner(), order).await;
    let id = view.unwrap().cluster.id;
    world.advance(400).await;
    let spread = |view: &ClusterView| -> [usize; 3] {
        let nodes = &view.node_groups[0].nodes;
        Datacenter::ALL.map(|site| nodes.iter().filter(|n| n.datacenter == site).count())
    };
    assert_eq!(spread(&healed(&world, &id).await), [2, 2, 2]);
    set_site(&world, Datacenter::Par2, DatacenterState::Lost).await;
    world.advance(1800).await;
    let crowded = healed(&world, &id).await;
    assert_eq!(spread(&crowded), [3, 0, 3]);
    // Nobody has room where it would be better: each hour it is asked again.
    let full = CapacityFault::Exhausted;
    world
        .cloud
        .set_capacity(Datacenter::Par2, full)
        .await
        .unwrap();
    set_site(&world, Datacenter::Par2, DatacenterState::Up).await;
    world.advance(3 * 3600).await;
    assert_eq!(healed(&world, &id).await, crowded);
    let (cloud, none) = (&world.cloud, CapacityFault::None);
    cloud.set_capacity(Datacenter::Par2, none).await.unwrap();
    // Budgets hold up each drain, up to its deadline.
    world.kubernetes.budgets.store(true, Ordering::Relaxed);
    let drains_before = world.kubernetes.clusters.lock()[id.as_str()].drains.len();
    for _ in 0..1800 {
        world.advance(1).await;
        let view = world.platform.get_cluster(&owner(), &id).await.unwrap();
        let nodes = &view.node_groups[0].nodes;
        let moving = nodes
            .iter()
            .filter(|node| node.life.moves && !node.life.served);
        let draining = nodes
            .iter()
            .filter(|node| node.status == NodeStatus::Draining);
        let ready = nodes.iter().filter(|node| node.status == NodeStatus::Ready);
        assert!(moving.count() <= 1 && draining.count() <= 2, "{nodes:#?}");
        assert!(ready.count() >= 6, "{nodes:#?}");
    }
    let apart = healed(&world, &id).await;
    assert_eq!(spread(&apart), [2, 2, 2]);
    let drains = world.kubernetes.clusters.lock()[id.as_str()].drains.clone();
    let drains = &drains[drains_before..];
    let forced = drains.iter().filter(|(_, force)| *force).count();
    assert!(forced == 2 && drains.len() > 100, "{drains:?}");
    world.advance(86_400).await;
    assert_eq!(healed(&world, &id).await, apart, "and there they stay");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_whose_site_is_lost_while_it_boots_is_not_waited_for() {
    let world = World::new().await;
    let view = world
        .platform
        .create_cluster(&owner(), request("demo", SMALL))
        .await
        .unwrap();
    let id = view.cluster.id;
    let group = CreateNodeGroup::new("w", Flavor::Xxs, 3);
    world.advance(120).await;
    let created = world.platform.create_node_group(&owner(), &id, group).await;
    let group = created.unwrap().id;
    world.advance(15).await;
    let vms = world.cloud.list_vms();
    let booting = vms.iter().find(|vm| vm.spec.image == Image::Worker);
    let site = booting.expect("a worker boots").datacenter;
    set_site(&world, site, DatacenterState::Lost).await;
    world.advance(3600).await;
    let group = world.group(&id, &group).await;
    assert_eq!(group.status, NodeGroupStatus::Ready, "{group:#?}");
    assert!(group.nodes.iter().all(|node| node.datacenter != site));
    healed(&world, &id).await;
}
