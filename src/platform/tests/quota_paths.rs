//! Every way in which something is taken from an organisation's quota: refused if it is short by one,
//! admitted if it is just enough, and given back exactly once.
//!
//! The NodeGroup resource and Services of type LoadBalancer take the same ways, over the REST API: see
//! `tests/e2e/nodegroup_resource.rs` and `tests/e2e/load_balancers.rs`.

use super::super::load_balancer::{Configuration, CreateLoadBalancer, FLAVOR};
use super::super::quota::{Limits, Resources};
use super::super::redeployment::Hooks;
use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Creation,
    CreationWithGroups,
    NodeGroup,
    Resize,
    Autoscaler,
    LoadBalancer,
}

struct Case {
    way: Way,
    /// What is held before: by the cluster that the case needs, if any.
    before: Limits,
    /// What the way takes.
    takes: Limits,
}

const fn limits(vcpus: u64, ram_gb: u64, ips: u32) -> Limits {
    Limits { vcpus, ram_gb, ips }
}

/// Sizes of VMs: 2XS 4/4, XS 6/8, S 8/12, M 10/16.
const CASES: [Case; 6] = [
    Case {
        way: Way::Creation,
        before: limits(0, 0, 0),
        takes: limits(6, 8, 0),
    },
    Case {
        way: Way::CreationWithGroups,
        before: limits(0, 0, 0),
        takes: limits(6 + 2 * 4 + 8, 8 + 2 * 4 + 12, 0),
    },
    Case {
        way: Way::NodeGroup,
        before: limits(6, 8, 0),
        takes: limits(10, 16, 0),
    },
    Case {
        way: Way::Resize,
        before: limits(6 + 4, 8 + 4, 0),
        takes: limits(2 * 4, 2 * 4, 0),
    },
    Case {
        way: Way::Autoscaler,
        before: limits(6 + 4, 8 + 4, 0),
        takes: limits(4, 4, 0),
    },
    Case {
        way: Way::LoadBalancer,
        before: limits(6, 8, 0),
        takes: limits(0, 0, 2),
    },
];

/// A platform with what the case needs, and that thing's ids.
struct Scene {
    world: World,
    cluster: Option<ClusterId>,
    group: Option<NodeGroupId>,
}

async fn scene(way: Way) -> Scene {
    let world = World::new().await;
    if matches!(way, Way::Creation | Way::CreationWithGroups) {
        return Scene {
            world,
            cluster: None,
            group: None,
        };
    }
    let mut order = request("base", SMALL);
    if matches!(way, Way::Resize | Way::Autoscaler) {
        order.features.autoscaling_enabled = way == Way::Autoscaler;
        order.node_groups = vec![CreateNodeGroup {
            min_node_count: Some(1),
            max_node_count: Some(4),
            ..CreateNodeGroup::new("base", Flavor::Xxs, 1)
        }];
    }
    let view = world
        .platform
        .create_cluster(&owner(), order)
        .await
        .unwrap();
    world.advance(300).await;
    let view = healed(&world, &view.cluster.id).await;
    Scene {
        cluster: Some(view.cluster.id),
        group: view.node_groups.first().map(|group| group.id.clone()),
        world,
    }
}

impl Scene {
    fn cluster(&self) -> &ClusterId {
        self.cluster.as_ref().expect("the case has a cluster")
    }

    fn group(&self) -> &NodeGroupId {
        self.group.as_ref().expect("the case has a group")
    }

    async fn load(&self, cpu_millis: u64) {
        let group = self.world.group(self.cluster(), self.group()).await;
        for node in &group.nodes {
            let load = crate::infra::Load {
                cpu_millis,
                memory_kib: 0,
            };
            let vm = crate::infra::VmId(node.id.to_string());
            self.world
                .cloud
                .set_user_load(&vm, Some(load))
                .await
                .unwrap();
        }
    }

    /// Goes the way. The refusal as the way tells it; of the autoscaler, as it tells the cluster.
    async fn take(&self, way: Way) -> Option<String> {
        let (world, platform, us) = (&self.world, &self.world.platform, owner());
        let refused = |error: PlatformError| error.to_string();
        match way {
            Way::Creation => {
                let order = request("taken", SMALL);
                platform.create_cluster(&us, order).await.err().map(refused)
            }
            Way::CreationWithGroups => {
                let mut order = request("taken", SMALL);
                order.node_groups = vec![
                    CreateNodeGroup::new("a", Flavor::Xxs, 2),
                    CreateNodeGroup::new("b", Flavor::S, 1),
                ];
                platform.create_cluster(&us, order).await.err().map(refused)
            }
            Way::NodeGroup => {
                let order = CreateNodeGroup::new("taken", Flavor::M, 1);
                let group = platform.create_node_group(&us, self.cluster(), order);
                group.await.err().map(refused)
            }
            Way::Resize => {
                let patch = count("base", 3);
                let group = platform.update_node_group(&us, self.cluster(), self.group(), patch);
                group.await.err().map(refused)
            }
            Way::Autoscaler => {
                let size = async || {
                    let group = world.group(self.cluster(), self.group()).await;
                    group.target_node_count
                };
                let before = size().await;
                self.load(4000).await;
                world.advance(200).await;
                // Neither too much nor too little from here on.
                self.load(2000).await;
                if size().await > before {
                    return None;
                }
                let known = world.kubernetes.clusters.lock()[self.cluster().as_str()].clone();
                let told = known.events.into_iter();
                let told = told.rev().find(|(reason, _)| reason == "QuotaExceeded");
                Some(told.map(|(_, message)| message).unwrap_or_default())
            }
            Way::LoadBalancer => {
                let order = CreateLoadBalancer {
                    cluster: self.cluster().clone(),
                    flavor: FLAVOR.to_owned(),
                    tags: vec![String::from("taken")],
                    configuration: Configuration::default(),
                };
                let made = platform.create_load_balancer(&us, order);
                made.await.err().map(refused)
            }
        }
    }

    /// Asks for the end of what was taken, as often as somebody may, and again in the middle of it.
    async fn give_back(&self, way: Way) {
        let (platform, us) = (&self.world.platform, owner());
        for _ in 0..3 {
            match way {
                Way::Creation | Way::CreationWithGroups => {
                    for view in platform.list_clusters(&us, &[]).await.unwrap() {
                        let id = &view.cluster.id;
                        platform.delete_cluster(&us, id).await.unwrap();
                    }
                }
                Way::NodeGroup => {
                    let groups = platform.list_node_groups(&us, self.cluster(), &[]);
                    for group in groups.await.unwrap() {
                        let id = &group.id;
                        let gone = platform.delete_node_group(&us, self.cluster(), id);
                        gone.await.unwrap();
                    }
                }
                Way::Resize | Way::Autoscaler => {
                    let group = self.world.group(self.cluster(), self.group()).await;
                    if group.status == NodeGroupStatus::Ready {
                        let patch = count("base", 1);
                        let id = self.group();
                        let done = platform.update_node_group(&us, self.cluster(), id, patch);
                        done.await.unwrap();
                    }
                }
                Way::LoadBalancer => {
                    for found in platform.list_load_balancers(&us).await.unwrap() {
                        platform.delete_load_balancer(&us, &found.id).await.unwrap();
                    }
                }
            }
            self.world.advance(5).await;
        }
        self.world.advance(600).await;
    }

    async fn held(&self) -> Limits {
        let ledger = self
            .world
            .platform
            .store()
            .ledger(&owner())
            .await
            .unwrap()
            .value;
        let Resources { vcpus, ram_gb } = ledger.total();
        limits(vcpus, ram_gb, ledger.total_ips())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_is_bounded_and_gives_back_once() {
    for Case { way, before, takes } in CASES {
        let scene = scene(way).await;
        let platform = &scene.world.platform;
        let enough = limits(
            before.vcpus + takes.vcpus,
            before.ram_gb + takes.ram_gb,
            before.ips + takes.ips,
        );
        assert_eq!(scene.held().await, before, "{way:?}");
        // Each of the limits that the way is about, short by one.
        let mut short = Vec::new();
        if takes.vcpus > 0 {
            short.push(limits(enough.vcpus - 1, 1000, 10));
            short.push(limits(1000, enough.ram_gb - 1, 10));
        }
        if takes.ips > 0 {
            short.push(limits(1000, 1000, enough.ips - 1));
        }
        for short in short {
            platform.set_limits(&owner(), short).await.unwrap();
            let refusal = scene.take(way).await.unwrap_or_default();
            assert!(
                refusal.starts_with("Quota exceeded: "),
                "{way:?} {short:?}: {refusal}"
            );
            assert_eq!(
                scene.held().await,
                before,
                "{way:?}: a refusal takes nothing"
            );
            scene.world.check_invariants().await;
        }
        platform.set_limits(&owner(), enough).await.unwrap();
        assert_eq!(scene.take(way).await, None, "{way:?}: just enough");
        assert_eq!(scene.held().await, enough, "{way:?}");
        scene.world.advance(400).await;
        // A load balancer asked for again with its tags is the one that there is.
        if !matches!(way, Way::LoadBalancer | Way::Resize) {
            let again = scene.take(way).await.unwrap_or_default();
            assert!(again.starts_with("Quota exceeded: "), "{way:?}: {again}");
            assert_eq!(scene.held().await, enough, "{way:?}");
        }
        scene.world.check_invariants().await;
        // Nothing grows into what is about to be given back.
        let mut seen = vec![scene.held().await];
        scene.give_back(way).await;
        seen.push(scene.held().await);
        assert_eq!(seen, [enough, before], "{way:?}");
        scene.world.check_invariants().await;
        scene.world.shutdown().await;
    }
}

/// While a VM is replaced, it and its successor are both there, and the owner at the quota is healed and
/// updated like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_nothing_from_the_quota() {
    let world = World::new().await;
    let mut order = request("full", SMALL);
    order.node_groups = vec![CreateNodeGroup::new("w", Flavor::Xxs, 2)];
    let view = world
        .platform
        .create_cluster(&owner(), order)
        .await
        .unwrap();
    let id = view.cluster.id;
    world.advance(300).await;
    let before = healed(&world, &id).await;
    world
        .platform
        .set_limits(&owner(), limits(14, 16, 0))
        .await
        .unwrap();
    let mut most = 0;
    let mut watch = async |world: &World| {
        for _ in 0..60 {
            world.advance(10).await;
            assert_eq!(used(world).await, (14, 16));
            most = most.max(world.cloud.list_vms().len());
        }
        world.check_invariants().await;
    };
    let node = before.node_groups[0].nodes[0].id.to_string();
    world
        .cloud
        .kill_vm(&crate::infra::VmId(node))
        .await
        .unwrap();
    watch(&world).await;
    world
        .platform
        .redeploy_cluster(&owner(), &id, Hooks::default())
        .await
        .unwrap();
    watch(&world).await;
    let after = healed(&world, &id).await;
    assert_eq!(after.cluster.status, ClusterStatus::Active);
    assert_eq!(most, 4, "one more than are asked for");
    assert_ne!(
        after.cluster.control_plane[0].id,
        before.cluster.control_plane[0].id
    );
    world.shutdown().await;
}
