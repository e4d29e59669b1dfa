//! Tells the Kubernetes layer when something that a cluster's own components follow has changed here. They
//! read what it is over the REST API; so a notice that is lost with a process costs nothing: after a start
//! they look at everything.

use crate::infra::reflector::{self, Change};
use crate::kubernetes::component::Notice;
use crate::platform::model::{ClusterId, NodeGroup};
use crate::platform::quota::Ledger;
use crate::platform::store::{self, Record};

/// Who is to be told of what.
pub(super) fn notices(change: &Change<'_, Record>) -> Vec<(ClusterId, Notice)> {
    let old = change.old.map(AsRef::as_ref);
    match (old, change.new.map(AsRef::as_ref)) {
        (Some(Record::NodeGroup(old)), Some(Record::NodeGroup(new)))
            if looks(old) == looks(new) =>
        {
            Vec::new()
        }
        (Some(Record::NodeGroup(group)), None) | (_, Some(Record::NodeGroup(group))) => {
            vec![(group.cluster.clone(), Notice::NodeGroups)]
        }
        (Some(Record::LoadBalancer(one)), None) | (_, Some(Record::LoadBalancer(one))) => {
            vec![(one.cluster.clone(), Notice::LoadBalancers)]
        }
        (_, Some(Record::Ledger(new))) if makes_room(change) => {
            let prefix = format!("{}{}/", store::CLUSTERS, new.owner);
            reflector::under(change.records, &prefix)
                .filter_map(|(_, stored)| match stored.record.as_ref() {
                    Record::Cluster(cluster) if !cluster.is_going() => {
                        Some((cluster.id.clone(), Notice::Quota))
                    }
                    _ => None,
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// What of a group is told inside its cluster.
fn looks(group: &NodeGroup) -> (u32, u32, crate::platform::model::NodeGroupStatus) {
    (
        group.target_node_count,
        group.current_node_count,
        group.status,
    )
}

/// Whether the change is of a ledger, and something that was refused may be granted now.
pub(super) fn makes_room(change: &Change<'_, Record>) -> bool {
    match (change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref)) {
        (Some(Record::Ledger(old)), Some(Record::Ledger(new))) => has_more_room(old, new),
        _ => false,
    }
}

fn has_more_room(old: &Ledger, new: &Ledger) -> bool {
    let (before, after) = (old.total(), new.total());
    let (was, is) = (old.limits, new.limits);
    is.vcpus > was.vcpus
        || is.ram_gb > was.ram_gb
        || is.ips > was.ips
        || after.vcpus < before.vcpus
        || after.ram_gb < before.ram_gb
        || new.total_ips() < old.total_ips()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_room_is_told() {
        let ledger = || Ledger::new("orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap());
        let check = |change: &dyn Fn(&mut Ledger), expect: bool| {
            let mut old = ledger();
            old.reserve_ips("a", 2).unwrap();
            let mut new = old.clone();
            change(&mut new);
            assert_eq!(has_more_room(&old, &new), expect, "{new:?}");
        };
        check(&|_| {}, false);
        check(&|new| new.minted += 1, false);
        check(&|new| new.limits.ips += 2, true);
        check(&|new| new.limits.ips -= 2, false);
        check(&|new| new.limits.ram_gb += 1, true);
        check(&|new| new.limits.vcpus += 1, true);
        check(&|new| new.release_ips("a"), true);
        check(
            &|new| {
                new.holdings_ips.insert(String::from("b"), 2);
            },
            false,
        );
    }
}
