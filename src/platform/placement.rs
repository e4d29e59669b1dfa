//! Which datacenter a VM goes to.
//!
//! Replicas of a dedicated or distributed control plane go round the three sites: with three or more,
//! each site has one, and losing a site leaves the others serving. The site of the first replica
//! differs from cluster to cluster, so that no site fills up before the others; each component of a
//! DISTRIBUTED cluster starts one site further. An ALL_IN_ONE cluster stays within one site: the
//! product promises no more (spec, "Cluster topologies"). Workers go round the sites.

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

fn start(id: &str) -> usize {
    usize::from(Sha256::digest(id)[0])
}

fn site(number: usize) -> Datacenter {
    Datacenter::ALL[number % Datacenter::ALL.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
}
