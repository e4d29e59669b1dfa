//! Nodes that had to crowd in one site move apart again.

use super::*;

use Datacenter::{Par1, Par2, Par3};

/// How many nodes each site has.
fn spread(world: &World) -> [usize; 3] {
    let nodes = &world.group().nodes;
    Datacenter::ALL.map(|site| nodes.iter().filter(|node| node.datacenter == site).count())
}

/// A group of six that lost a site, and was healed in the two others.
fn crowded() -> World {
    let mut world = World::new(group("w", 6));
    world.run(100);
    assert_eq!(spread(&world), [2, 2, 2]);
    world.open.remove(&Par3);
    world.run(600);
    assert_eq!(spread(&world), [3, 3, 0]);
    assert_eq!(world.group().status, NodeGroupStatus::Ready);
    world
}

#[test]
fn nodes_move_back_to_a_site_that_returns_one_at_a_time_and_stay() {
    let mut world = crowded();
    let ids = |world: &World| -> BTreeSet<String> {
        let nodes = &world.group().nodes;
        nodes.iter().map(|node| node.id.to_string()).collect()
    };
    let before = ids(&world);
    world.open.insert(Par3);
    for _ in 0..300 {
        world.run(1);
        let serving = world.group().nodes.iter().filter(|n| n.life.served).count();
        assert!(serving >= 6, "one goes only when its successor has joined");
        let new = world.group().nodes.iter().filter(|n| n.life.moves);
        for node in new {
            assert_eq!(node.datacenter, Par3);
        }
    }
    assert_eq!(spread(&world), [2, 2, 2]);
    let moved = ids(&world).difference(&before).count();
    assert_eq!(moved, 2, "two moved, not more");
    let group = world.group().clone();
    world.run(7200);
    assert_eq!(*world.group(), group, "and there they stay");
}

/// What a crowded group of six does, as one or the other thing is not as it should be.
#[test]
fn nothing_moves_before_its_time() {
    let check = |spoil: &dyn Fn(&mut NodeGroup, &mut Seen), expect: Option<Datacenter>| {
        let world = crowded();
        let (mut group, mut seen) = (world.group().clone(), world.seen());
        seen.openings.open = BTreeSet::from(Datacenter::ALL);
        spoil(&mut group, &mut seen);
        let decision = decide(&group, &seen, world.now, 0);
        let next = decision.next.unwrap_or_else(|| group.clone());
        let moved = next.nodes.iter().find(|node| node.life.moves);
        assert_eq!(moved.map(|node| node.datacenter), expect, "{seen:?}");
        decision.wake.map(|at| world.now.until(at))
    };
    assert_eq!(check(&|_, _| {}, Some(Par3)), None);
    check(&|_, seen| seen.replacements = Some(0), None);
    check(&|group, _| group.status = NodeGroupStatus::Resizing, None);
    check(
        &|group, seen| {
            let ill = seen.vms.get_mut(group.nodes[5].id.as_str()).unwrap();
            *ill = VmState::Running {
                since: NOW,
                healthy: false,
                reachable: false,
            };
        },
        None,
    );
    check(
        &|_, seen| seen.version = String::from("1.37"),
        None, // A renewal comes first.
    );
    check(&|_, seen| seen.openings = Openings::default(), None);
    check(
        &|_, seen| seen.openings.open = BTreeSet::from([Par1, Par2]),
        None,
    );
    let full = |_: &mut NodeGroup, seen: &mut Seen| {
        seen.openings = Openings {
            open: BTreeSet::from([Par1, Par2]),
            full: BTreeSet::from([Par3]),
        };
    };
    assert_eq!(check(&full, None), Some(LOOK_AGAIN), "room is looked for");
}

#[test]
fn a_move_that_finds_no_room_after_all_is_given_up() {
    let mut world = crowded();
    let before = world.group().nodes.clone();
    world.open.insert(Par3);
    let begun = decide(world.group(), &world.seen(), world.now, 0);
    world.group = begun.next;
    assert_eq!(world.group().nodes.len(), 7);
    let successor = world.group().nodes.iter().find(|node| node.life.moves);
    let id = successor.unwrap().id.clone();
    let mut decision = Decision::default();
    refuse(world.group(), id.as_str(), world.now, &mut decision);
    assert_eq!(decision.next.map(|next| next.nodes), Some(before));
    assert_eq!(decision.notices[0].reason, "NodeMisplaced");
    assert_eq!(decision.events[0].status, EventStatus::Failed);
}

#[test]
fn a_move_whose_node_fails_meanwhile_becomes_its_replacement() {
    let mut world = crowded();
    world.open.insert(Par3);
    world.round();
    let nodes = &world.group().nodes;
    let successor = nodes.iter().find(|node| node.life.moves).unwrap().clone();
    let mut group = world.group().clone();
    let old = group.nodes.iter_mut();
    let mut old = old.filter(|old| Some(old.id.as_str()) == successor.life.replaces.as_deref());
    old.next().unwrap().life.unhealthy_since = Some(world.now);
    let mut decision = Decision::default();
    refuse(&group, successor.id.as_str(), world.now, &mut decision);
    let next = decision.next.unwrap();
    let successor = next.nodes.iter().find(|node| node.id == successor.id);
    let site = successor.expect("it is still wanted").datacenter;
    assert!(site != Par3, "and goes where there may be room");
}

#[test]
fn moves_that_do_not_come_to_run_are_tried_after_growing_pauses() {
    let mut world = crowded();
    world.open.insert(Par3);
    world.boots_fail = u32::MAX;
    let mut tried = 0;
    for _ in 0..3600 {
        let allocated = world.group().allocated;
        world.run(1);
        tried += world.group().allocated - allocated;
    }
    // A boot of 45 s and a pause of up to five minutes each.
    assert!((8..=16).contains(&tried), "{tried}");
    assert_eq!(spread(&world), [3, 3, 0], "and nothing is lost");
    world.boots_fail = 0;
    world.run(900);
    assert_eq!(spread(&world), [2, 2, 2]);
}

proptest! {
    // A case is hours of simulated time, a second at a time.
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever sites come and go, and say that they have room when they have none: once they stay as they
    /// are the nodes settle over those that are there, and nothing moves any more.
    #[test]
    fn placing_settles(
        size in 1u32..10,
        days in proptest::collection::vec((1usize..8, 0usize..8, 60u64..900), 1..6),
        last in 1usize..8,
    ) {
        let sites = |door: usize| -> BTreeSet<Datacenter> {
            let all = Datacenter::ALL.into_iter().enumerate();
            all.filter(|(bit, _)| door >> bit & 1 == 1).map(|(_, site)| site).collect()
        };
        let mut world = World::new(group("w", size));
        world.run(100);
        for (door, lies, seconds) in days {
            world.open = sites(door);
            world.full = sites(lies);
            world.run(seconds);
        }
        world.open = sites(last);
        world.full = BTreeSet::new();
        world.run(5400);
        prop_assert_eq!(world.group().status, NodeGroupStatus::Ready);
        prop_assert_eq!(world.group().nodes.len(), size as usize);
        let used: Vec<usize> = Datacenter::ALL
            .into_iter()
            .zip(spread(&world))
            .filter(|(site, _)| world.open.contains(site))
            .map(|(_, count)| count)
            .collect();
        let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{used:?}");
        let rest = world.group().clone();
        world.run(3600);
        prop_assert_eq!(world.group(), &rest);
    }
}
