//! Which datacenter a VM goes to.
//!
//! Replicas of a dedicated or distributed control plane go round the three sites: with three or more,
//! each site has one, and losing a site leaves the others serving. The site of the first replica
//! differs from cluster to cluster, so that no site fills up before the others; each component of a
//! DISTRIBUTED cluster starts one site further. An ALL_IN_ONE cluster stays within one site: the
//! product promises no more (spec, "Cluster topologies"). Workers go round the sites.
//!
//! Whoever had to go elsewhere, as a site was lost or full, moves back one at a time when there is room again:
//! only where that leaves two sites more alike, so that moving comes to an end.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::infra::Datacenter;

use super::model::{ClusterId, NodeGroupId, TopologyKind};

/// Site of a replica (from 0) of the `component`-th VM role (from 0) of a control plane.
pub fn of_replica(
    cluster: &ClusterId,
    topology: TopologyKind,
    component: usize,
    replica: usize,
) -> Datacenter {
    let first = start(cluster.as_str());
    match topology {
        TopologyKind::AllInOne => site(first),
        TopologyKind::DedicatedCompute | TopologyKind::Distributed => {
            site(first + component + replica)
        }
    }
}

/// Site of the node with this number (from 0) in its group's history.
pub fn of_node(group: &NodeGroupId, number: u64) -> Datacenter {
    let sites = Datacenter::ALL.len() as u64;
    site(start(group.as_str()) + usize::try_from(number % sites).unwrap_or(0))
}

/// How the replicas of a pool lie to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Over as many sites as there are.
    Spread,
    /// All in one.
    Together,
}

impl Rule {
    pub fn of_control_plane(topology: TopologyKind) -> Rule {
        match topology {
            TopologyKind::AllInOne => Rule::Together,
            TopologyKind::DedicatedCompute | TopologyKind::Distributed => Rule::Spread,
        }
    }
}

/// The best of the `open` sites for a replica whose companions are at `others`; `preferred` among equals, then
/// the next in the order of names. `None` if no site is open.
pub fn choose(
    rule: Rule,
    preferred: Datacenter,
    others: &[Datacenter],
    open: &BTreeSet<Datacenter>,
) -> Option<Datacenter> {
    let place = |site: Datacenter| Datacenter::ALL.iter().position(|known| *known == site);
    let (sites, from) = (Datacenter::ALL.len(), place(preferred).unwrap_or(0));
    open.iter().copied().min_by_key(|site| {
        let companions = others.iter().filter(|other| *other == site).count();
        let distance = (place(*site).unwrap_or(0) + sites - from) % sites;
        match rule {
            Rule::Spread => (companions, distance),
            Rule::Together => (others.len() - companions, distance),
        }
    })
}

/// Where a replica at `own` whose companions are at `others` would be better off, among the `open` sites.
pub fn better(
    rule: Rule,
    own: Datacenter,
    others: &[Datacenter],
    open: &BTreeSet<Datacenter>,
) -> Option<Datacenter> {
    let companions = |site: Datacenter| others.iter().filter(|other| **other == site).count();
    let best = choose(rule, own, others, open)?;
    let improves = match rule {
        Rule::Spread => companions(best) < companions(own),
        Rule::Together => companions(best) > companions(own),
    };
    improves.then_some(best)
}

/// Where replicas would be better off, among the `open` sites: by the site at which they are, for those at the
/// same one are as well off as each other. `sites` are those of all of them.
pub fn better_sites(
    rule: Rule,
    sites: &[Datacenter],
    open: &BTreeSet<Datacenter>,
) -> BTreeMap<Datacenter, Datacenter> {
    let to = |own: Datacenter| {
        let mut others = sites.to_vec();
        others.swap_remove(others.iter().position(|site| *site == own)?);
        better(rule, own, &others, open)
    };
    let known: BTreeSet<Datacenter> = match open.is_empty() {
        true => BTreeSet::new(),
        false => sites.iter().copied().collect(),
    };
    let found = known.into_iter().map(|own| (own, to(own)));
    found.filter_map(|(own, to)| Some((own, to?))).collect()
}

/// Sites at which some replica would be better off, if there were room. `sites` are those of all of them.
pub fn wanted(rule: Rule, sites: &[Datacenter]) -> BTreeSet<Datacenter> {
    let helps = |site: &Datacenter| {
        let alone = BTreeSet::from([*site]);
        !better_sites(rule, sites, &alone).is_empty()
    };
    Datacenter::ALL.into_iter().filter(helps).collect()
}

/// Which of the sites that are wanted would take a VM of some size now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Openings {
    /// There is room.
    pub open: BTreeSet<Datacenter>,
    /// They answer, and have no room.
    pub full: BTreeSet<Datacenter>,
}

impl Openings {
    /// All that answer, with room or without.
    pub fn there(&self) -> BTreeSet<Datacenter> {
        self.open.union(&self.full).copied().collect()
    }
}

fn start(id: &str) -> usize {
    usize::from(Sha256::digest(id)[0])
}

fn site(number: usize) -> Datacenter {
    Datacenter::ALL[number % Datacenter::ALL.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn replicas_cover_as_many_sites_as_they_can(
            id in 0u128..=u128::MAX,
            component in 0usize..5,
            factor in 1usize..=5,
        ) {
            let cluster = ClusterId::new(ulid::Ulid(id));
            let sites = |topology| -> BTreeSet<Datacenter> {
                (0..factor).map(|r| of_replica(&cluster, topology, component, r)).collect()
            };
            prop_assert_eq!(sites(TopologyKind::DedicatedCompute).len(), factor.min(3));
            prop_assert_eq!(sites(TopologyKind::Distributed).len(), factor.min(3));
            prop_assert_eq!(sites(TopologyKind::AllInOne).len(), 1);
        }
    }

    #[test]
    fn nodes_go_round_the_sites() {
        let group = NodeGroupId::new(ulid::Ulid(7));
        let sites: BTreeSet<Datacenter> = (0..3).map(|n| of_node(&group, n)).collect();
        assert_eq!(sites.len(), 3);
        assert_eq!(of_node(&group, 0), of_node(&group, 3));
    }

    #[test]
    fn a_replica_moves_only_to_where_it_is_better_off() {
        use Datacenter::{Par1, Par2, Par3};
        let check = |rule, own, others: &[Datacenter], open: &[Datacenter], expect| {
            let open = open.iter().copied().collect();
            assert_eq!(better(rule, own, others, &open), expect, "{own} {others:?}");
        };
        let all = &[Par1, Par2, Par3];
        check(Rule::Spread, Par1, &[Par1, Par3], all, Some(Par2));
        check(Rule::Spread, Par1, &[Par1, Par3], &[Par1, Par3], None);
        check(Rule::Spread, Par1, &[Par1, Par1], &[Par1, Par3], Some(Par3));
        check(Rule::Spread, Par1, &[Par1, Par2, Par3], all, None);
        check(Rule::Spread, Par1, &[Par2, Par2, Par3], all, None);
        check(Rule::Spread, Par1, &[], all, None);
        check(Rule::Together, Par1, &[Par2, Par2], all, Some(Par2));
        check(Rule::Together, Par1, &[Par1, Par2, Par2], all, Some(Par2));
        check(Rule::Together, Par1, &[Par2, Par2], &[Par1, Par3], None);
        check(Rule::Together, Par1, &[], all, None);
    }

    proptest! {
        /// However many there are, and whatever site closes and opens meanwhile: each move leaves the sites
        /// more alike, so their number is bounded by where they began, and at the end the open sites are as
        /// alike as can be.
        #[test]
        fn the_spread_of_many_improves_with_each_move(
            places in proptest::collection::vec(0usize..3, 1..40),
            doors in proptest::collection::vec(1usize..8, 1..10),
        ) {
            let mut sites: Vec<Datacenter> = places.into_iter().map(site).collect();
            let count = |sites: &[Datacenter], at| sites.iter().filter(|site| **site == at).count();
            let squares = |sites: &[Datacenter]| -> usize {
                Datacenter::ALL.map(|at| count(sites, at).pow(2)).into_iter().sum()
            };
            let move_of = |sites: &[Datacenter], open: &BTreeSet<Datacenter>| {
                let (from, to) = better_sites(Rule::Spread, sites, open).pop_first()?;
                Some((sites.iter().position(|site| *site == from)?, to))
            };
            let mut moves_left = squares(&sites) / 2;
            for door in doors {
                let is_open = |at: &Datacenter| {
                    Datacenter::ALL.iter().position(|it| it == at).is_some_and(|bit| door >> bit & 1 == 1)
                };
                let open: BTreeSet<Datacenter> = Datacenter::ALL.into_iter().filter(is_open).collect();
                // Room need not be looked for but where it is wanted.
                let wanted = wanted(Rule::Spread, &sites);
                let there: BTreeSet<Datacenter> = open.intersection(&wanted).copied().collect();
                prop_assert_eq!(move_of(&sites, &there), move_of(&sites, &open));
                while let Some((index, to)) = move_of(&sites, &open) {
                    prop_assert!(open.contains(&to));
                    let before = squares(&sites);
                    sites[index] = to;
                    prop_assert!(squares(&sites) + 2 <= before, "{sites:?}");
                    prop_assert!(moves_left > 0);
                    moves_left -= 1;
                }
                let least = open.iter().map(|at| count(&sites, *at)).min().unwrap_or(0);
                for at in Datacenter::ALL {
                    prop_assert!(count(&sites, at) <= least + 1 , "{sites:?} with {open:?}");
                }
            }
        }
    }

    proptest! {
        /// Moving on until nobody would be better off ends, and ends as the rule asks.
        #[test]
        fn moves_come_to_an_end_and_the_rule_then_holds(
            places in proptest::collection::vec(0usize..3, 1..=5),
            together in proptest::bool::ANY,
        ) {
            let rule = if together { Rule::Together } else { Rule::Spread };
            let open = BTreeSet::from(Datacenter::ALL);
            let mut sites: Vec<Datacenter> = places.into_iter().map(site).collect();
            let mut moves = 0;
            let move_of = |sites: &[Datacenter]| {
                (0..sites.len()).find_map(|index| {
                    let mut others = sites.to_vec();
                    let own = others.remove(index);
                    better(rule, own, &others, &open).map(|to| (index, to))
                })
            };
            while let Some((index, to)) = move_of(&sites) {
                sites[index] = to;
                moves += 1;
                prop_assert!(moves <= sites.len());
            }
            let used: BTreeSet<_> = sites.iter().collect();
            prop_assert_eq!(used.len(), if together { 1 } else { sites.len().min(3) });
        }
    }

    #[test]
    fn a_replica_goes_where_the_spread_is_best() {
        use Datacenter::{Par1, Par2, Par3};
        let check = |rule, preferred, others: &[Datacenter], open: &[Datacenter], expect| {
            let open = open.iter().copied().collect();
            assert_eq!(choose(rule, preferred, others, &open), expect, "{others:?}");
        };
        let all = &[Par1, Par2, Par3];
        check(Rule::Spread, Par2, &[Par1, Par3], all, Some(Par2));
        check(Rule::Spread, Par2, &[], all, Some(Par2));
        check(Rule::Spread, Par1, &[Par1, Par2], all, Some(Par3));
        check(Rule::Spread, Par2, &[Par1, Par3], &[Par1, Par3], Some(Par3));
        check(
            Rule::Spread,
            Par2,
            &[Par1, Par1, Par3],
            &[Par1, Par3],
            Some(Par3),
        );
        check(Rule::Spread, Par2, &[], &[], None);
        check(Rule::Together, Par3, &[Par1, Par1], all, Some(Par1));
        check(
            Rule::Together,
            Par1,
            &[Par1, Par1],
            &[Par2, Par3],
            Some(Par2),
        );
    }
}
