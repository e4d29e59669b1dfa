//! The platform as a whole, in-process, on a manual clock.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::TimeScale;

use super::deployment_event::{EventStatus, OperationKind};
use super::testing::{BUNDLE, SMALL, World, owner, request};
use super::*;
use crate::infra::Datacenter;
use crate::infra::testing::MemoryKeyspaces;
use rand::{Rng, SeedableRng};

mod billed_year;
mod quota_paths;
mod quoted_month;
mod redeployment;
mod replacement_overlap;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_active_after_about_a_minute() {
    let world = World::new().await;
    let view = world
        .platform
        .create_cluster(&owner(), request("demo", BUNDLE))
        .await
        .unwrap();
    let id = view.cluster.id.clone();
    assert_eq!(view.cluster.status, ClusterStatus::ToDeploy);
    world.advance(2).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Deploying);
    world.advance(43).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Deploying);
    world.advance(30).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Active);
    world.check_invariants().await;

    let known = world.kubernetes.clusters.lock()[id.as_str()].clone();
    assert!(known.control_plane.serves());
    assert_eq!(known.version, "1.36");
    let vms = world.cloud.list_vms();
    assert_eq!(vms.len(), 1);
    assert_eq!(
        vms[0].spec.guest["kubelet"]["nodeName"],
        "control-plane-node0"
    );
    assert_eq!(vms[0].spec.guest["kubelet"]["version"], "v1.36.0");
    let view = world.platform.get_cluster(&owner(), &id).await.unwrap();
    let load_balancer = view.cluster.load_balancer.unwrap();
    assert_eq!(load_balancer.ips, ["192.0.2.1", "192.0.2.2"]);

    let events = world
        .platform
        .deployment_events(&owner(), &id, 1000)
        .await
        .unwrap();
    let lines: Vec<String> = events
        .iter()
        .rev()
        .map(|event| {
            let step = event.step.map_or("-", |step| step.as_str());
            format!("{} {step} {}", event.operation, event.status)
        })
        .collect();
    expect_test::expect![[r#"
        CREATE - STARTED
        CREATE NETWORK_GROUP STARTED
        CREATE NETWORK_GROUP COMPLETED
        CREATE LOADBALANCER_NETWORK STARTED
        CREATE LOADBALANCER_NETWORK COMPLETED
        CREATE MATERIA_LOGICALDB STARTED
        CREATE MATERIA_LOGICALDB COMPLETED
        CREATE OTEL_CONFIG STARTED
        CREATE OTEL_CONFIG COMPLETED
        CREATE CONTROL_PLANE_BUNDLE STARTED
        CREATE CONTROL_PLANE_BUNDLE COMPLETED
        CREATE LOAD_BALANCER STARTED
        CREATE LOAD_BALANCER COMPLETED
        CREATE PLUGIN STARTED
        CREATE PLUGIN COMPLETED
        CREATE - COMPLETED"#]]
    .assert_eq(&lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_created_resized_and_deleted() {
    let world = World::new().await;
    let cluster = world.active_cluster(SMALL).await;
    let platform = &world.platform;
    let group = platform
        .create_node_group(
            &owner(),
            &cluster,
            CreateNodeGroup::new("workers", Flavor::Xxs, 2),
        )
        .await
        .unwrap();
    assert_eq!(group.status, NodeGroupStatus::Pending);
    world.advance(40).await;
    assert_ne!(
        world.group(&cluster, &group.id).await.status,
        NodeGroupStatus::Ready
    );
    world
        .wait_for_group(&cluster, &group.id, NodeGroupStatus::Ready)
        .await;
    assert_eq!(
        names(&world.group(&cluster, &group.id).await),
        ["workers-node0", "workers-node1"]
    );
    world.check_invariants().await;

    let resized = platform
        .update_node_group(&owner(), &cluster, &group.id, count("workers", 4))
        .await
        .unwrap();
    assert_eq!(resized.status, NodeGroupStatus::ToResize);
    let again = platform
        .update_node_group(&owner(), &cluster, &group.id, count("workers", 3))
        .await;
    assert!(
        matches!(again, Err(PlatformError::WrongState { .. })),
        "{again:?}"
    );
    world.advance(1).await;
    world
        .wait_for_group(&cluster, &group.id, NodeGroupStatus::Ready)
        .await;
    world.check_invariants().await;
    let grown = world.group(&cluster, &group.id).await;
    assert_eq!((grown.current_node_count, grown.nodes.len()), (4, 4));
    assert_eq!(used(&world).await, (6 + 16, 8 + 16));

    platform
        .update_node_group(&owner(), &cluster, &group.id, count("workers", 1))
        .await
        .unwrap();
    world.advance(20).await;
    assert_eq!(used(&world).await, (22, 24), "held until the VMs are gone");
    world
        .wait_for_group(&cluster, &group.id, NodeGroupStatus::Ready)
        .await;
    world.check_invariants().await;
    assert_eq!(
        names(&world.group(&cluster, &group.id).await),
        ["workers-node0"]
    );
    assert_eq!(used(&world).await, (10, 12));

    let going = platform
        .delete_node_group(&owner(), &cluster, &group.id)
        .await
        .unwrap();
    assert_eq!(going.status, NodeGroupStatus::ToTerminate);
    world.advance(60).await;
    let gone = platform.get_node_group(&owner(), &cluster, &group.id).await;
    assert_eq!(
        gone.unwrap_err(),
        PlatformError::NodeGroupNotFound(group.id)
    );
    assert_eq!(
        platform
            .list_node_groups(&owner(), &cluster, &[])
            .await
            .unwrap(),
        []
    );
    assert_eq!(used(&world).await, (6, 8));
    world.check_invariants().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_cluster_leaves_nothing_but_its_record() {
    let world = World::new().await;
    let mut order = request("demo", SMALL);
    order.node_groups = vec![CreateNodeGroup::new("default", Flavor::Xxs, 3)];
    order.features.csi = true;
    let view = world
        .platform
        .create_cluster(&owner(), order)
        .await
        .unwrap();
    let (id, group) = (view.cluster.id.clone(), view.node_groups[0].id.clone());
    world.advance(100).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Active);
    world
        .wait_for_group(&id, &group, NodeGroupStatus::Ready)
        .await;
    let view = world.platform.get_cluster(&owner(), &id).await.unwrap();
    assert!(view.cluster.features.csi);
    assert_eq!(view.cluster.storage_usage_bytes, Some(0));
    world.check_invariants().await;

    let going = world.platform.delete_cluster(&owner(), &id).await.unwrap();
    assert_eq!(going.cluster.status, ClusterStatus::ToDelete);
    let refused = world
        .platform
        .create_node_group(&owner(), &id, CreateNodeGroup::new("late", Flavor::Xxs, 1))
        .await;
    assert!(matches!(refused, Err(PlatformError::WrongState { .. })));
    world.advance(30).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Deleting);
    world.advance(40).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Deleted);
    world.check_invariants().await;
    assert_eq!(
        world.platform.list_clusters(&owner(), &[]).await.unwrap(),
        []
    );
    let listed = world
        .platform
        .list_clusters(&owner(), &[ClusterStatus::Deleted])
        .await;
    assert_eq!(listed.unwrap().len(), 1);
    assert_eq!(used(&world).await, (0, 0));
    assert!(world.kubernetes.clusters.lock().is_empty());
    let left = world.cloud.inventory().await.unwrap();
    assert!(left.vms.is_empty() && left.addresses.is_empty() && left.networks.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_features_change_in_steps() {
    let world = World::new().await;
    let mut order = request("demo", BUNDLE);
    order.version = Some(String::from("1.34"));
    let id = world
        .platform
        .create_cluster(&owner(), order)
        .await
        .unwrap()
        .cluster
        .id;
    let early = world.platform.update_version(&owner(), &id, "1.35").await;
    assert!(matches!(early, Err(PlatformError::WrongState { .. })));
    world.advance(90).await;
    let check = world.platform.version_check(&owner(), &id).await.unwrap();
    assert_eq!(check.available, ["1.34", "1.35", "1.36"]);
    assert!(check.need_update);
    let unknown = world.platform.update_version(&owner(), &id, "1.33").await;
    assert!(matches!(unknown, Err(PlatformError::Invalid { .. })));

    let skipping = world.platform.update_version(&owner(), &id, "1.36").await;
    assert_eq!(
        skipping.unwrap_err().to_string(),
        "Invalid targetVersion: the cluster is at 1.34: no version can be skipped, update to 1.35 first"
    );
    for target in ["1.35", "1.36"] {
        let view = world
            .platform
            .update_version(&owner(), &id, target)
            .await
            .unwrap();
        assert_eq!(view.cluster.status, ClusterStatus::ToUpgrade);
        world.advance(10).await;
        assert_eq!(world.status(&id).await, ClusterStatus::Updating);
        world.advance(110).await;
        assert_eq!(world.status(&id).await, ClusterStatus::Active);
    }
    assert_eq!(
        world.kubernetes.clusters.lock()[id.as_str()].version,
        "1.36"
    );
    assert_eq!(
        world.cloud.list_vms()[0].spec.guest["kubelet"]["version"],
        "v1.36.0"
    );
    let back = world.platform.update_version(&owner(), &id, "1.35").await;
    assert!(matches!(back, Err(PlatformError::Invalid { .. })));

    let view = world
        .platform
        .add_persistent_storage(&owner(), &id)
        .await
        .unwrap();
    assert_eq!(view.cluster.status, ClusterStatus::ToReconcile);
    assert!(!view.cluster.features.csi);
    world.advance(20).await;
    let view = world.platform.get_cluster(&owner(), &id).await.unwrap();
    assert_eq!(view.cluster.status, ClusterStatus::Active);
    assert!(view.cluster.features.csi);
    let again = world.platform.add_persistent_storage(&owner(), &id).await;
    assert!(matches!(again, Err(PlatformError::Conflict { .. })));
    world.check_invariants().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_creations_at_once_the_quota_admits_five() {
    let world = World::new().await;
    let creations = (0..100).map(|number| {
        let platform = world.platform.clone();
        tokio::spawn(async move {
            let order = request(&format!("demo-{number}"), SMALL);
            platform.create_cluster(&owner(), order).await
        })
    });
    let outcomes = futures::future::join_all(creations).await;
    let mut admitted = BTreeSet::new();
    for outcome in outcomes {
        match outcome.unwrap() {
            Ok(view) => assert!(admitted.insert(view.cluster.id), "an id twice"),
            Err(error) => assert_eq!(
                error.to_string(),
                "Quota exceeded: RAM max: limit = 40.0 GB | actual = 48.0 GB"
            ),
        }
    }
    assert_eq!(admitted.len(), 5);
    assert_eq!(used(&world).await, (30, 40));
    let listed = world.platform.list_clusters(&owner(), &[]).await.unwrap();
    assert_eq!(listed.len(), 5);
    world.advance(120).await;
    for id in &admitted {
        assert_eq!(world.status(id).await, ClusterStatus::Active);
    }
    world.check_invariants().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_stand_in_three_datacenters() {
    let world = World::new().await;
    let topology = Topology::DedicatedCompute {
        flavor: Flavor::Xs,
        replication_factor: 3,
    };
    world.active_cluster(topology).await;
    let sites: BTreeSet<Datacenter> = world
        .cloud
        .list_vms()
        .iter()
        .map(|vm| vm.datacenter)
        .collect();
    assert_eq!(sites.len(), 3);
    world.check_invariants().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_one_name_share_no_node_name() {
    let world = World::new().await;
    let cluster = world.active_cluster(BUNDLE).await;
    let mut groups = Vec::new();
    for name in ["same", "same", "control-plane"] {
        let order = CreateNodeGroup::new(name, Flavor::Xxs, 1);
        let group = world
            .platform
            .create_node_group(&owner(), &cluster, order)
            .await;
        groups.push(group.unwrap().id);
    }
    let mut taken = Vec::new();
    for id in &groups {
        world
            .wait_for_group(&cluster, id, NodeGroupStatus::Ready)
            .await;
        taken.extend(names(&world.group(&cluster, id).await));
    }
    taken.sort();
    assert_eq!(taken, ["control-plane-node1", "same-node0", "same-node1"]);
    world.check_invariants().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_find_nothing() {
    let world = World::new().await;
    let id = world.active_cluster(SMALL).await;
    let stranger: OwnerId = "orga_00000000-0000-4000-8000-000000000000".parse().unwrap();
    let platform = &world.platform;
    let refused = PlatformError::ClusterNotFound(id.clone());
    assert_eq!(
        platform.get_cluster(&stranger, &id).await.unwrap_err(),
        refused
    );
    assert_eq!(
        platform.delete_cluster(&stranger, &id).await.unwrap_err(),
        refused
    );
    let group = CreateNodeGroup::new("x", Flavor::Xxs, 1);
    let created = platform.create_node_group(&stranger, &id, group).await;
    assert_eq!(created.unwrap_err(), refused);
    let kubeconfig = platform
        .kubeconfig(&stranger, &id, KubeconfigType::LoadBalancer)
        .await;
    assert_eq!(kubeconfig.unwrap_err(), refused);
    assert_eq!(platform.list_clusters(&stranger, &[]).await.unwrap(), []);
    assert_eq!(world.status(&id).await, ClusterStatus::Active);
}

/// A world that is killed again and again, each time at another transaction.
struct Killed {
    store: Arc<MemoryKeyspaces>,
    world: World,
    generator: rand_chacha::ChaCha8Rng,
    kills: u32,
}

impl Killed {
    /// Advances by up to a minute, and is killed on the way if something is written.
    async fn go_on(mut self) -> Killed {
        let by = Duration::from_secs(self.generator.random_range(5..60));
        let (number, makes_last) = (self.generator.random_range(1..=3), self.generator.random());
        let killed = tokio::select! {
            _ = self.world.clock.advance(by) => false,
            () = self.store.freeze_at(number, makes_last) => true,
        };
        self.kills += u32::from(killed);
        let dead = self.world.kill().await;
        self.store.thaw();
        self.world = dead.restart().await;
        self.world.advance(1).await;
        // As whoever advances a manual clock does.
        self.world.platform.save_reading().await.unwrap();
        self
    }
}

/// A life: creation with a group, resizes, deletion. Each reaches its end, and nothing is left over.
async fn survive_kills(seed: u64) {
    let store = Arc::new(MemoryKeyspaces::default());
    let mut killed = Killed {
        world: World::on(store.clone(), TimeScale::Manual).await,
        store,
        generator: rand_chacha::ChaCha8Rng::seed_from_u64(seed),
        kills: 0,
    };
    let mut order = request("demo", SMALL);
    order.node_groups = vec![CreateNodeGroup::new("default", Flavor::Xxs, 2)];
    let view = killed
        .world
        .platform
        .create_cluster(&owner(), order)
        .await
        .unwrap();
    let (id, group) = (view.cluster.id.clone(), view.node_groups[0].id.clone());

    for _ in 0..200 {
        killed = killed.go_on().await;
        let view = killed
            .world
            .platform
            .get_cluster(&owner(), &id)
            .await
            .unwrap();
        if view.cluster.status == ClusterStatus::Active
            && view.node_groups[0].status == NodeGroupStatus::Ready
        {
            break;
        }
    }
    assert_eq!(killed.world.status(&id).await, ClusterStatus::Active);
    killed.world.check_invariants().await;

    for size in [5, 1] {
        let platform = &killed.world.platform;
        let patch = count("default", size);
        let resized = platform
            .update_node_group(&owner(), &id, &group, patch)
            .await;
        assert_eq!(resized.unwrap().status, NodeGroupStatus::ToResize);
        for _ in 0..200 {
            killed = killed.go_on().await;
            if killed.world.group(&id, &group).await.status == NodeGroupStatus::Ready {
                break;
            }
        }
        let now = killed.world.group(&id, &group).await;
        assert_eq!(
            (now.status, now.current_node_count),
            (NodeGroupStatus::Ready, size)
        );
        killed.world.check_invariants().await;
    }

    killed
        .world
        .platform
        .delete_cluster(&owner(), &id)
        .await
        .unwrap();
    for _ in 0..200 {
        killed = killed.go_on().await;
        if killed.world.status(&id).await == ClusterStatus::Deleted {
            break;
        }
    }
    let world = &killed.world;
    assert_eq!(world.status(&id).await, ClusterStatus::Deleted);
    assert_eq!(used(world).await, (0, 0));
    world.check_invariants().await;
    world.advance(60).await;
    assert_eq!(world.cloud.list_vms(), []);
    let events = world
        .platform
        .deployment_events(&owner(), &id, 1000)
        .await
        .unwrap();
    for kind in [
        OperationKind::Create,
        OperationKind::Delete,
        OperationKind::NodeGroupCreate,
    ] {
        let ended = events.iter().filter(|event| {
            event.operation == kind
                && event.step.is_none()
                && event.status == EventStatus::Completed
        });
        assert_eq!(ended.count(), 1, "{kind} ends once");
    }
    assert!(
        killed.kills > 10,
        "only {} kills within a change",
        killed.kills
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_that_is_killed_again_and_again_loses_nothing() {
    for seed in 0..12 {
        survive_kills(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runs_with_one_seed_have_one_history() {
    let mut histories = Vec::new();
    for _ in 0..2 {
        let world = World::new().await;
        let mut order = request("demo", BUNDLE);
        order.node_groups = vec![CreateNodeGroup::new("default", Flavor::Xxs, 3)];
        let id = world
            .platform
            .create_cluster(&owner(), order)
            .await
            .unwrap()
            .cluster
            .id;
        world.advance(300).await;
        let view = world.platform.get_cluster(&owner(), &id).await.unwrap();
        let events = world
            .platform
            .deployment_events(&owner(), &id, 1000)
            .await
            .unwrap();
        let vms: Vec<_> = world
            .cloud
            .list_vms()
            .iter()
            .map(|vm| vm.as_ref().clone())
            .collect();
        histories.push((view, events, vms));
    }
    assert!(histories[0] == histories[1], "{histories:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lives_go_on_side_by_side_on_a_clock_that_runs() {
    let world = World::at(TimeScale::Factor(200.0)).await;
    let lives = (0..3).map(|number| {
        let (platform, clock) = (world.platform.clone(), world.clock.clone());
        tokio::spawn(async move {
            let mut order = request(&format!("demo-{number}"), SMALL);
            order.node_groups = vec![CreateNodeGroup::new("default", Flavor::Xxs, 1)];
            let view = platform.create_cluster(&owner(), order).await.unwrap();
            let id = view.cluster.id;
            let mut deleted = false;
            // Ten minutes of the clock's time.
            for _ in 0..600 {
                let view = platform.get_cluster(&owner(), &id).await.unwrap();
                let group = view.node_groups.first().map(|group| group.status);
                match (view.cluster.status, group) {
                    (ClusterStatus::Active, Some(NodeGroupStatus::Ready)) if !deleted => {
                        platform.delete_cluster(&owner(), &id).await.unwrap();
                        deleted = true;
                    }
                    (ClusterStatus::Deleted, _) => return,
                    _ => {}
                }
                clock.sleep(Duration::from_secs(1)).await;
            }
            panic!("{:#?}", platform.get_cluster(&owner(), &id).await);
        })
    });
    for life in futures::future::join_all(lives).await {
        life.unwrap();
    }
    world.check_invariants().await;
    assert_eq!(used(&world).await, (0, 0));
}

/// The other tests stand on a small etcd of their own; this one on the one that the product has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_on_materia_etcd() {
    let directory = tempfile::tempdir().unwrap();
    let options = fdb::EmbeddedOptions {
        fsync: false,
        ..fdb::EmbeddedOptions::default()
    };
    let database = fdb::Database::open_embedded(directory.path(), options);
    let server = crate::etcd::Server::open(
        database.await.unwrap(),
        Clock::real(),
        crate::etcd::EtcdConfig::default(),
    );
    let keyspaces = Arc::new(server.await.unwrap());
    let mut world = World::on(keyspaces, TimeScale::Manual).await;
    let mut order = request("demo", BUNDLE);
    order.node_groups = vec![CreateNodeGroup::new("default", Flavor::Xxs, 3)];
    let view = world
        .platform
        .create_cluster(&owner(), order)
        .await
        .unwrap();
    let (id, group) = (view.cluster.id.clone(), view.node_groups[0].id.clone());
    world.advance(40).await;
    world = world.kill().await.restart().await;
    world
        .wait_for_group(&id, &group, NodeGroupStatus::Ready)
        .await;
    assert_eq!(world.status(&id).await, ClusterStatus::Active);
    world.check_invariants().await;
    world.platform.delete_cluster(&owner(), &id).await.unwrap();
    world.advance(20).await;
    world = world.kill().await.restart().await;
    world.advance(60).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Deleted);
    assert_eq!(used(&world).await, (0, 0));
    world.check_invariants().await;
    world.shutdown().await;
}

fn names(group: &NodeGroup) -> Vec<String> {
    group.nodes.iter().map(|node| node.name.clone()).collect()
}

fn count(name: &str, target_node_count: u32) -> NodeGroupPatch {
    NodeGroupPatch {
        name: name.to_owned(),
        target_node_count,
        description: None,
        tag: None,
        min_node_count: None,
        max_node_count: None,
        autoscaling_enabled: None,
    }
}

/// vCPU and GB held.
async fn used(world: &World) -> (u64, u64) {
    let usage = world.platform.usage(&owner()).await.unwrap();
    let vcpus: u64 = usage.iter().map(|item| item.cpu_millicores / 1000).sum();
    let ram: u64 = usage.iter().map(|item| item.ram_bytes >> 30).sum();
    (vcpus, ram)
}

/// Advances until nobody is being replaced any more.
async fn healed(world: &World, cluster: &ClusterId) -> ClusterView {
    for _ in 0..400 {
        world.advance(5).await;
        let view = world.platform.get_cluster(&owner(), cluster).await.unwrap();
        let well = |life: &replacement::Lifecycle| {
            life.served && life.unhealthy_since.is_none() && life.leaving.is_none()
        };
        let nodes = || view.node_groups.iter().flat_map(|group| &group.nodes);
        if view.cluster.control_plane.iter().all(|vm| well(&vm.life))
            && nodes().all(|node| well(&node.life))
        {
            world.check_invariants().await;
            return view;
        }
    }
    panic!("not healed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_killed_is_replaced_and_a_single_apiserver_is_missed_for_minutes_only() {
    let world = World::new().await;
    let mut order = request("demo", SMALL);
    order.node_groups = vec![CreateNodeGroup::new("w", Flavor::Xxs, 2)];
    let view = world.platform.create_cluster(&owner(), order).await;
    let id = view.unwrap().cluster.id;
    world.advance(300).await;
    let before = healed(&world, &id).await;
    let vm = before.cluster.control_plane[0].id.clone();
    let node = before.node_groups[0].nodes[1].id.to_string();
    for dead in [&vm, &node] {
        let dead = crate::infra::VmId(dead.clone());
        world.cloud.kill_vm(&dead).await.unwrap();
    }
    world.advance(1).await;
    let serves = || {
        world.kubernetes.clusters.lock()[id.as_str()]
            .control_plane
            .serves()
    };
    assert!(!serves(), "the only apiserver is dead");
    world.advance(140).await;
    assert!(serves());
    let after = healed(&world, &id).await;
    assert_eq!(after.cluster.status, ClusterStatus::Active);
    assert_eq!(after.cluster.control_plane.len(), 1);
    assert_ne!(after.cluster.control_plane[0].id, vm);
    assert_eq!(names(&after.node_groups[0]), ["w-node0", "w-node2"]);
    assert_eq!(after.node_groups[0].current_node_count, 2);
    assert_eq!(world.cloud.list_vms().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_serve_while_a_site_is_lost_and_move_to_the_others() {
    let world = World::new().await;
    let topology = Topology::DedicatedCompute {
        flavor: Flavor::Xs,
        replication_factor: 3,
    };
    let id = world.active_cluster(topology).await;
    let lost = crate::infra::DatacenterState::Lost;
    world
        .cloud
        .set_datacenter(Datacenter::Par2, lost)
        .await
        .unwrap();
    for _ in 0..60 {
        world.advance(5).await;
        let known = world.kubernetes.clusters.lock()[id.as_str()].clone();
        assert!(known.control_plane.apiserver.len() >= 2, "{known:?}");
    }
    let view = healed(&world, &id).await;
    let sites: BTreeSet<Datacenter> = view
        .cluster
        .control_plane
        .iter()
        .map(|vm| vm.datacenter)
        .collect();
    assert_eq!(view.cluster.control_plane.len(), 3);
    assert_eq!(sites, BTreeSet::from([Datacenter::Par1, Datacenter::Par3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_under_load_grows_until_the_quota_and_says_so() {
    let world = World::new().await;
    let mut order = request("demo", SMALL);
    order.features.autoscaling_enabled = true;
    order.node_groups = vec![CreateNodeGroup {
        min_node_count: Some(1),
        max_node_count: Some(20),
        ..CreateNodeGroup::new("w", Flavor::S, 1)
    }];
    let view = world.platform.create_cluster(&owner(), order).await;
    let id = view.unwrap().cluster.id;
    world.advance(300).await;
    let mut sizes = vec![healed(&world, &id).await.node_groups[0].nodes.len()];
    for _ in 0..3 {
        let view = healed(&world, &id).await;
        for node in &view.node_groups[0].nodes {
            let load = crate::infra::Load {
                cpu_millis: 8000,
                memory_kib: 0,
            };
            let vm = crate::infra::VmId(node.id.to_string());
            world.cloud.set_user_load(&vm, Some(load)).await.unwrap();
        }
        world.advance(400).await;
        sizes.push(healed(&world, &id).await.node_groups[0].nodes.len());
    }
    // 8 GB of the control plane and two nodes of 12: a third would make 44 of 40.
    assert_eq!(sizes, [1, 2, 2, 2]);
    let known = world.kubernetes.clusters.lock()[id.as_str()].clone();
    let told = |reason: &str| known.events.iter().filter(|(r, _)| r == reason).count();
    assert_eq!((told("ScalingUp"), told("QuotaExceeded")), (1, 1));
    world.check_invariants().await;
}

mod bad_days;
mod month;
