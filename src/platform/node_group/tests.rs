//! The rules of `node_group`, without a store.

use super::super::creation;
use super::super::model::{ClusterId, CreateNodeGroup, Flavor, OwnerId};
use super::super::quota::Ledger;
use super::super::validation;
use super::*;

use proptest::prelude::*;

mod moves;

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
    version: String,
    /// The next so many VMs do not come to run.
    boots_fail: u32,
    /// Sites that take VMs; the others are away, and what is there does not answer.
    open: BTreeSet<Datacenter>,
    /// Sites that are said to take VMs and then do not.
    full: BTreeSet<Datacenter>,
}

struct Simulated {
    datacenter: Datacenter,
    asked_for: Timestamp,
    running: Timestamp,
    gone: Option<Timestamp>,
    /// It does not answer.
    down: bool,
    /// It never comes to run.
    fails: bool,
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
            version: String::from("1.35"),
            boots_fail: 0,
            open: BTreeSet::from(Datacenter::ALL),
            full: BTreeSet::new(),
        }
    }

    fn seen(&self) -> Seen {
        let state = |vm: &Simulated| match vm.gone {
            Some(_) => VmState::Deleting,
            None if vm.fails && vm.running <= self.now => VmState::Failed,
            None if vm.running <= self.now => VmState::Running {
                since: vm.running,
                healthy: self.answers(vm),
                reachable: self.answers(vm),
            },
            None => VmState::Provisioning {
                since: vm.asked_for,
            },
        };
        let wanted = self.group.as_ref().map(wanted_sites).unwrap_or_default();
        Seen {
            vms: self
                .vms
                .iter()
                .map(|(id, vm)| (id.clone(), state(vm)))
                .collect(),
            cluster_takes_nodes: true,
            cluster_is_going: false,
            taken_names: self.taken.clone(),
            version: self.version.clone(),
            replacements: None,
            openings: Openings {
                // As the controller looks for room: only where it is wanted.
                open: wanted.intersection(&self.open).copied().collect(),
                full: BTreeSet::new(),
            },
            rolls: true,
            // Only what runs can be drained.
            drains: self
                .vms
                .iter()
                .filter(|(_, vm)| state(vm).is_running())
                .map(|(id, _)| (id.clone(), Drain::Drained))
                .collect(),
        }
    }

    fn answers(&self, vm: &Simulated) -> bool {
        !vm.down && self.open.contains(&vm.datacenter)
    }

    /// One round. Returns whether it changed anything.
    fn round(&mut self) -> bool {
        self.vms
            .retain(|_, vm| vm.gone.is_none_or(|gone| gone > self.now));
        let Some(group) = &self.group else {
            return false;
        };
        let mut decision = decide(group, &self.seen(), self.now, 0);
        let acted = !decision.acts.is_empty();
        for act in std::mem::take(&mut decision.acts) {
            match act {
                Act::CreateVm(node)
                    if self.full.contains(&node.datacenter)
                        || !self.open.contains(&node.datacenter) =>
                {
                    refuse(group, node.id.as_str(), self.now, &mut decision);
                }
                Act::CreateVm(node) => {
                    assert!(
                        group.nodes.iter().any(|known| known.id == node.id),
                        "a VM is asked for before its node is recorded"
                    );
                    let fails = self.boots_fail > 0;
                    self.boots_fail = self.boots_fail.saturating_sub(1);
                    self.vms.entry(node.id.to_string()).or_insert(Simulated {
                        asked_for: self.now,
                        running: self.now.saturating_add(BOOT),
                        gone: None,
                        datacenter: node.datacenter,
                        down: false,
                        fails,
                    });
                }
                Act::DeleteVm(id) => {
                    if let Some(vm) = self.vms.get_mut(id.as_str()) {
                        vm.gone.get_or_insert(self.now.saturating_add(GO));
                    }
                }
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
                self.check();
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

    /// Sets whether the node's VM answers.
    fn set_down(&mut self, name: &str, down: bool) {
        let node = self.group().nodes.iter().find(|node| node.name == name);
        let id = node.expect("the node is there").id.to_string();
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.down = down;
        }
    }

    /// What holds at any instant.
    fn check(&self) {
        let Some(group) = &self.group else { return };
        let new = group.nodes.iter().filter(|n| n.life.replaces.is_some());
        assert!(new.count() <= 1, "two changes at once: {group:?}");
        let target = usize::try_from(group.target_node_count).unwrap();
        let counted = group.nodes.iter().filter(|node| node.counts()).count();
        if group.status == NodeGroupStatus::Ready {
            assert!(counted <= target, "more than asked for: {group:?}");
        }
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

#[test]
fn a_node_that_dies_is_replaced_once_its_successor_has_joined() {
    let mut world = World::new(group("w", 2));
    world.run(100);
    world.set_down("w-node1", true);
    world.run(20);
    assert_eq!(world.names(), ["w-node0", "w-node1"], "patience");
    assert_eq!(world.group().nodes[1].status, NodeStatus::Failed);
    assert_eq!(world.group().current_node_count, 1);
    world.run(2);
    assert_eq!(world.names(), ["w-node0", "w-node1", "w-node2"]);
    world.run(57);
    assert_eq!(world.group().nodes[1].status, NodeStatus::Draining);
    assert_eq!(world.group().current_node_count, 2);
    world.run(40);
    assert_eq!(world.names(), ["w-node0", "w-node2"]);
    assert_eq!(world.group().status, NodeGroupStatus::Ready);
    assert_eq!(world.vms.len(), 2);
}

#[test]
fn a_node_that_died_waits_for_its_turn() {
    let mut world = World::new(group("w", 2));
    world.run(120);
    world.set_down("w-node0", true);
    // So that it is seen, and then overdue.
    world.round();
    world.now = world.now.saturating_add(replacement::PATIENCE);
    let mut seen = world.seen();
    seen.replacements = Some(0);
    let waiting = decide(world.group(), &seen, world.now, 0);
    assert!(waiting.deferred);
    assert!(waiting.next.is_none_or(|next| next.nodes.len() == 2));
    seen.replacements = Some(1);
    let begun = decide(world.group(), &seen, world.now, 0);
    assert!(!begun.deferred);
    assert_eq!(begun.next.map(|next| next.nodes.len()), Some(3));
}

#[test]
fn a_node_that_recovers_in_time_stays_and_one_that_does_not_goes() {
    let mut world = World::new(group("w", 1));
    world.run(100);
    for _ in 0..10 {
        world.set_down("w-node0", true);
        world.run(15);
        world.set_down("w-node0", false);
        world.run(15);
    }
    assert_eq!(world.names(), ["w-node0"]);
    world.set_down("w-node0", true);
    world.run(30);
    world.set_down("w-node0", false);
    world.run(150);
    assert_eq!(world.names(), ["w-node1"], "the successor is kept");
    assert_eq!(world.vms.len(), 1);
}

#[test]
fn nodes_that_do_not_start_make_room_for_others_after_growing_pauses() {
    let mut world = World::new(group("w", 2));
    world.boots_fail = 3;
    world.run(400);
    assert_eq!(world.group().status, NodeGroupStatus::Ready);
    assert_eq!(world.vms.len(), 2);
    world.boots_fail = 2;
    let name = world.names()[0].to_owned();
    world.set_down(&name, true);
    world.run(400);
    assert_eq!(world.group().current_node_count, 2);
    assert_eq!(world.group().nodes.len(), 2);
    assert_eq!(world.group().tries, Default::default());
}

#[test]
fn a_group_whose_nodes_never_start_is_failed_until_they_do() {
    let mut world = World::new(group("w", 1));
    world.boots_fail = FAILED_AFTER;
    world.run(400);
    assert_eq!(world.group().status, NodeGroupStatus::Failed);
    world.run(600);
    assert_eq!(world.group().status, NodeGroupStatus::Ready);
}

#[test]
fn another_version_renews_one_node_at_a_time_and_a_resize_meanwhile_is_kept() {
    let mut world = World::new(group("w", 3));
    world.run(100);
    world.version = String::from("1.36");
    for _ in 0..100 {
        world.run(1);
        let serving = world.group().nodes.iter().filter(|n| n.life.served).count();
        assert!(serving >= 3);
    }
    world.resize(5);
    world.run(800);
    assert_eq!(world.group().nodes.len(), 5);
    assert!(world.group().nodes.iter().all(|n| n.version == "1.36"));
    assert_eq!(world.group().status, NodeGroupStatus::Ready);
}

#[test]
fn a_resize_takes_the_dead_first_and_their_successors_with_them() {
    let mut world = World::new(group("w", 3));
    world.run(100);
    world.set_down("w-node0", true);
    world.run(30);
    assert_eq!(world.group().nodes.len(), 4);
    world.resize(2);
    world.run(200);
    assert_eq!(world.names(), ["w-node1", "w-node2"]);
    assert_eq!(world.vms.len(), 2);
}

proptest! {
    // A case is hours of simulated time, a second at a time.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_fails_it_comes_to_rest_as_asked(
        faults in proptest::collection::vec((0u8..8, 0usize..8, 1u64..120), 1..30),
    ) {
        let mut world = World::new(group("w", 3));
        world.run(100);
        let mut target = 3;
        for (what, which, seconds) in faults {
            let names: Vec<String> = world.names().into_iter().map(str::to_owned).collect();
            let name = names.get(which % names.len().max(1)).cloned();
            match (what, name) {
                (0 | 1, Some(name)) => world.set_down(&name, true),
                (2, Some(name)) => world.set_down(&name, false),
                (3, _) => world.boots_fail += 1,
                (4, _) => world.version = format!("1.{which}"),
                (6, _) => drop(world.open.remove(&Datacenter::ALL[which % 3])),
                (7, _) => world.open = BTreeSet::from(Datacenter::ALL),
                _ if world.group().status == NodeGroupStatus::Ready => {
                    target = u32::try_from(which).unwrap();
                    world.resize(target);
                }
                _ => {}
            }
            world.run(seconds);
        }
        world.open = BTreeSet::from(Datacenter::ALL);
        world.run(7200);
        world.check();
        prop_assert_eq!(wanted_sites(world.group()), BTreeSet::new(), "{:?}", world.group());
        prop_assert_eq!(world.group().status, NodeGroupStatus::Ready);
        prop_assert_eq!(world.group().current_node_count, target);
        prop_assert_eq!(world.vms.len(), world.group().nodes.len());
        prop_assert!(world.group().nodes.iter().all(|node| node.version == world.version));
    }
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
