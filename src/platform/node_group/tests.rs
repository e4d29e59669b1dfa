//! The rules of `node_group`, without a store.

use super::super::creation;
use super::super::model::{ClusterId, CreateNodeGroup, Flavor, OwnerId};
use super::super::quota::Ledger;
use super::super::validation;
use super::*;

use proptest::prelude::*;

const NOW: Timestamp = Timestamp(1_000_000);

fn group(name: &str, target: u32) -> NodeGroup {
    let owner: OwnerId = "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap();
    let order = validation::node_group_order(CreateNodeGroup::new(name, Flavor::Xxs, target));
    let cluster = ClusterId::new(ulid::Ulid(1));
    creation::node_group(
        &order.unwrap(),
        &cluster,
        false,
        &mut Ledger::new(owner),
        0,
        NOW,
    )
}

/// A cloud in which what is asked for happens after a fixed time, and a cluster that takes nodes.
struct World {
    now: Timestamp,
    group: Option<NodeGroup>,
    vms: BTreeMap<String, Simulated>,
    taken: BTreeSet<String>,
    statuses: Vec<NodeGroupStatus>,
}

struct Simulated {
    running: Timestamp,
    gone: Option<Timestamp>,
}

const BOOT: Duration = Duration::from_secs(45);
const GO: Duration = Duration::from_secs(40);

impl World {
    fn new(group: NodeGroup) -> World {
        World {
            now: NOW,
            statuses: vec![group.status],
            group: Some(group),
            vms: BTreeMap::new(),
            taken: BTreeSet::new(),
        }
    }

    fn seen(&self) -> Seen {
        let state = |vm: &Simulated| match vm.gone {
            Some(_) => VmState::Deleting,
            None if vm.running <= self.now => VmState::Running {
                healthy: true,
                since: vm.running,
                outdated: false,
            },
            None => VmState::Provisioning { outdated: false },
        };
        Seen {
            vms: self
                .vms
                .iter()
                .map(|(id, vm)| (id.clone(), state(vm)))
                .collect(),
            cluster_takes_nodes: true,
            cluster_is_going: false,
            taken_names: self.taken.clone(),
        }
    }

    /// One round. Returns whether it changed anything.
    fn round(&mut self) -> bool {
        self.vms
            .retain(|_, vm| vm.gone.is_none_or(|gone| gone > self.now));
        let Some(group) = &self.group else {
            return false;
        };
        let decision = decide(group, &self.seen(), self.now, 0);
        let acted = !decision.acts.is_empty();
        for act in decision.acts {
            match act {
                Act::CreateVm(node) => {
                    assert!(
                        group.nodes.iter().any(|known| known.id == node.id),
                        "a VM is asked for before its node is recorded"
                    );
                    self.vms.entry(node.id.to_string()).or_insert(Simulated {
                        running: self.now.saturating_add(BOOT),
                        gone: None,
                    });
                }
                Act::DeleteVm(id) => {
                    if let Some(vm) = self.vms.get_mut(id.as_str()) {
                        vm.gone.get_or_insert(self.now.saturating_add(GO));
                    }
                }
                Act::UpdateGuest(_) => {}
            }
        }
        let changed = decision.next.is_some();
        if decision.remove {
            assert!(self.vms.is_empty(), "the record goes before its VMs");
            self.group = None;
        } else if let Some(next) = decision.next {
            for node in &next.nodes {
                self.taken.insert(node.name.clone());
            }
            self.taken
                .retain(|name| next.nodes.iter().any(|node| node.name == *name));
            if self.statuses.last() != Some(&next.status) {
                self.statuses.push(next.status);
            }
            self.group = Some(next);
        }
        changed || acted
    }

    /// Runs for so many seconds, a second at a time.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let mut rounds = 0;
            while self.round() {
                rounds += 1;
                assert!(rounds < 50, "no rest: {:?}", self.group);
            }
            self.now = self.now.saturating_add(Duration::from_secs(1));
        }
    }

    fn group(&self) -> &NodeGroup {
        self.group.as_ref().expect("the group is there")
    }

    fn names(&self) -> Vec<&str> {
        self.group()
            .nodes
            .iter()
            .map(|node| node.name.as_str())
            .collect()
    }

    fn resize(&mut self, target: u32) {
        let mut next = self.group().clone();
        next.status = NodeGroupStatus::ToResize;
        next.target_node_count = target;
        self.group = Some(next);
    }
}

#[test]
fn a_group_comes_grows_shrinks_and_goes() {
    let mut world = World::new(group("w", 2));
    world.run(100);
    assert_eq!(world.names(), ["w-node0", "w-node1"]);
    world.resize(4);
    world.run(100);
    assert_eq!(world.names(), ["w-node0", "w-node1", "w-node2", "w-node3"]);
    world.resize(1);
    world.run(100);
    assert_eq!(world.names(), ["w-node0"]);
    let mut going = world.group().clone();
    going.status = NodeGroupStatus::ToTerminate;
    world.group = Some(going);
    world.run(100);
    assert!(world.group.is_none() && world.vms.is_empty());
    use NodeGroupStatus::*;
    assert_eq!(
        world.statuses,
        [
            Pending,
            Created,
            Deploying,
            Deployed,
            Ready,
            Resizing,
            Ready,
            Resizing,
            Ready,
            Terminating
        ]
    );
}

#[test]
fn a_group_is_ready_after_about_a_minute() {
    let mut world = World::new(group("w", 3));
    world.run(60);
    assert_ne!(world.group().status, NodeGroupStatus::Ready);
    world.run(2);
    assert_eq!(world.group().status, NodeGroupStatus::Ready);
    assert_eq!(world.group().current_node_count, 3);
}

#[test]
fn an_empty_group_is_ready_at_once_and_grows_later() {
    let mut world = World::new(group("w", 0));
    world.run(10);
    assert_eq!(world.group().status, NodeGroupStatus::Ready);
    world.resize(1);
    world.run(100);
    assert_eq!(world.names(), ["w-node0"]);
}

#[test]
fn a_large_group_comes_in_parts() {
    let mut world = World::new(group("w", 100));
    world.run(100);
    assert_eq!(world.group().current_node_count, 100);
    assert_eq!(world.group().nodes.last().map(|node| node.number), Some(99));
}

#[test]
fn a_group_waits_for_its_cluster_and_goes_with_it() {
    let group = group("w", 1);
    let waiting = decide(&group, &Seen::default(), NOW.saturating_add(BOOT), 0);
    assert_eq!(waiting, Decision::default());
    let seen = Seen {
        cluster_is_going: true,
        ..Seen::default()
    };
    let going = decide(&group, &seen, NOW, 0);
    assert_eq!(
        going.next.map(|next| next.status),
        Some(NodeGroupStatus::Terminating)
    );
}

#[test]
fn names_of_others_are_left_to_them() {
    let mut world = World::new(group("w", 2));
    world.taken = BTreeSet::from([String::from("w-node0"), String::from("w-node2")]);
    let others = world.taken.clone();
    let mut seen = world.seen();
    seen.taken_names = others;
    let mut deploying = world.group().clone();
    deploying.status = NodeGroupStatus::Deploying;
    let next = decide(&deploying, &seen, NOW, 0)
        .next
        .expect("nodes are added");
    let names: Vec<_> = next.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["w-node1", "w-node3"]);
}

proptest! {
    #[test]
    fn every_size_is_reached_and_no_name_is_there_twice(
        sizes in proptest::collection::vec((0u32..40, 1u64..150), 1..6),
    ) {
        let mut world = World::new(group("w", 3));
        world.run(100);
        let mut target = 3;
        for (size, seconds) in sizes {
            // A resize is only accepted at rest; a kill changes nothing about the record.
            if world.group().status == NodeGroupStatus::Ready {
                world.resize(size);
                target = size;
            }
            world.run(seconds);
            let names: BTreeSet<_> = world.names().into_iter().collect();
            prop_assert_eq!(names.len(), world.group().nodes.len());
        }
        world.run(200);
        prop_assert_eq!(world.group().status, NodeGroupStatus::Ready);
        prop_assert_eq!(world.group().current_node_count, target);
        prop_assert_eq!(world.vms.len(), world.group().nodes.len());
        let numbers: Vec<u32> = world.group().nodes.iter().map(|node| node.number).collect();
        prop_assert_eq!(numbers, (0..target).collect::<Vec<_>>());
    }
}
