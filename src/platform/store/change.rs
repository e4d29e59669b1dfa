//! A change of the records: what it was decided from, what it writes, and what is told of it.

use std::collections::BTreeSet;

use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::{Compare, RequestOp};
use serde::Serialize;

use super::{
    CLUSTER_EVENTS, EVENTS, RATES, RELEASES, RemovedNodeGroup, Result, Versioned, cluster_key,
    credits_key, encode, holding_key, ledger_key, load_balancer_key, node_group_key, node_name_key,
    removed_node_groups_of,
};
use crate::clock::Timestamp;
use crate::etcd::client::{delete, mod_revision_is, put};
use crate::platform::cluster_event::{self, ClusterEvent, Told};
use crate::platform::credit::Credits;
use crate::platform::deployment_event::DeploymentEvent;
use crate::platform::load_balancer::ServiceLoadBalancer;
use crate::platform::model::{Cluster, ClusterId, Node, NodeGroup};
use crate::platform::quota::{Account, Ledger};
use crate::platform::rates::RateTable;
use crate::platform::releases::Releases;

/// Comparisons and operations that make one change.
#[derive(Default)]
pub struct Change {
    compare: Vec<Compare>,
    operations: Vec<RequestOp>,
    told: Vec<Telling>,
}

/// The unified events of a record's change; the time of the commit makes them a [`Told`].
struct Telling {
    cluster: ClusterId,
    source: String,
    number: u64,
    events: Vec<ClusterEvent>,
}

/// A change with what is told of it, as it is written.
#[derive(Default)]
pub(super) struct Finished {
    pub compare: Vec<Compare>,
    pub operations: Vec<RequestOp>,
}

/// Operations and comparisons of changes that are written in one transaction: etcd allows 128 of each by default.
const MOST_OPERATIONS: usize = 120;
/// Bytes of such a transaction's values: etcd takes requests of 1.5 MiB by default.
const MOST_BYTES: usize = 512 << 10;

/// Whether `next` can be written together with the others: not too much, and no key twice.
pub(super) fn fits(others: &[Finished], next: &Finished) -> bool {
    let operations: usize = others.iter().map(|it| it.operations.len()).sum();
    let compare: usize = others.iter().map(|it| it.compare.len()).sum();
    let bytes: usize = others.iter().map(Finished::bytes).sum();
    let keys: BTreeSet<&[u8]> = others.iter().flat_map(Finished::keys).collect();
    operations + next.operations.len() <= MOST_OPERATIONS
        && compare + next.compare.len() <= MOST_OPERATIONS
        && bytes + next.bytes() <= MOST_BYTES
        && !next.keys().any(|key| keys.contains(key))
}

impl Finished {
    /// That are written.
    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.operations.iter().filter_map(|it| match &it.request {
            Some(Request::RequestPut(put)) => Some(&put.key[..]),
            Some(Request::RequestDeleteRange(delete)) => Some(&delete.key[..]),
            _ => None,
        })
    }

    fn bytes(&self) -> usize {
        let values = self.operations.iter().map(|it| match &it.request {
            Some(Request::RequestPut(put)) => put.value.len(),
            _ => 0,
        });
        values.sum()
    }
}

impl Change {
    pub fn new() -> Change {
        Change::default()
    }

    pub(super) fn finish(self, at: Timestamp) -> Result<Finished> {
        let mut operations = self.operations;
        for telling in self.told {
            let (cluster, source, number) = (telling.cluster, telling.source, telling.number);
            let key = format!(
                "{CLUSTER_EVENTS}{cluster}/{:015}/{source}/{number:010}",
                at.0
            );
            let events = telling.events;
            operations.push(put(key, encode(&Told { at, events })?));
        }
        Ok(Finished {
            compare: self.compare,
            operations,
        })
    }

    fn write(&mut self, key: String, revision: i64, record: &impl Serialize) -> Result<()> {
        let value = encode(record)?;
        self.compare.push(mod_revision_is(key.clone(), revision));
        self.operations.push(put(key, value));
        Ok(())
    }

    /// The record must still be as it was read.
    pub fn expect_cluster(&mut self, cluster: &Versioned<Cluster>) {
        let key = cluster_key(&cluster.value.owner, &cluster.value.id);
        self.compare.push(mod_revision_is(key, cluster.revision));
    }

    /// Writes the record, and the events that it now counts.
    pub fn cluster(
        &mut self,
        before: Option<&Versioned<Cluster>>,
        cluster: &mut Cluster,
        events: &[DeploymentEvent],
    ) -> Result<()> {
        let id = cluster.id.clone();
        let told = cluster_event::of_cluster(before.map(|it| &it.value), cluster, events);
        self.tell(&id, id.as_str(), &mut cluster.events, told);
        self.events(&id, id.as_str(), &mut cluster.events, events)?;
        let revision = before.map_or(0, |before| before.revision);
        self.write(cluster_key(&cluster.owner, &id), revision, cluster)
    }

    /// Writes the record, the events that it now counts, and the names of its nodes.
    pub fn node_group(
        &mut self,
        before: Option<&Versioned<NodeGroup>>,
        group: &mut NodeGroup,
        events: &[DeploymentEvent],
    ) -> Result<()> {
        self.node_names(before.map(|before| &before.value), group)?;
        let source = group.id.clone();
        let told = cluster_event::of_node_group(before.map(|it| &it.value), Some(group));
        self.tell(&group.cluster, source.as_str(), &mut group.events, told);
        self.events(&group.cluster, source.as_str(), &mut group.events, events)?;
        let key = node_group_key(&group.cluster, &group.id);
        self.write(key, before.map_or(0, |before| before.revision), group)
    }

    /// Removes the record and the names of its nodes; `last` counts the events.
    pub fn remove_node_group(
        &mut self,
        before: &Versioned<NodeGroup>,
        last: &mut NodeGroup,
        events: &[DeploymentEvent],
    ) -> Result<()> {
        last.nodes.clear();
        self.node_names(Some(&before.value), last)?;
        let source = last.id.clone();
        let told = cluster_event::of_node_group(Some(&before.value), None);
        self.tell(&last.cluster, source.as_str(), &mut last.events, told);
        self.events(&last.cluster, source.as_str(), &mut last.events, events)?;
        let key = node_group_key(&last.cluster, &last.id);
        self.compare
            .push(mod_revision_is(key.clone(), before.revision));
        self.operations.push(delete(key));
        let removed = RemovedNodeGroup {
            id: last.id.clone(),
            name: last.name.clone(),
            flavor: last.flavor,
            created_at: last.created_at,
        };
        let key = format!("{}{}", removed_node_groups_of(&last.cluster), last.id);
        self.operations.push(put(key, encode(&removed)?));
        Ok(())
    }

    fn node_names(&mut self, before: Option<&NodeGroup>, after: &NodeGroup) -> Result<()> {
        let names = |group: &NodeGroup| -> BTreeSet<(String, String)> {
            let pair = |node: &Node| (node.name.clone(), node.id.to_string());
            group.nodes.iter().map(pair).collect()
        };
        let (old, new) = (before.map(names).unwrap_or_default(), names(after));
        for (name, id) in new.difference(&old) {
            self.take_name(&after.cluster, name, id)?;
        }
        for (name, _) in old.difference(&new) {
            self.operations
                .push(delete(node_name_key(&after.cluster, name)));
        }
        Ok(())
    }

    /// Gives a name of a node to `holder`. Fails the change if somebody has it.
    pub fn take_name(&mut self, cluster: &ClusterId, name: &str, holder: &str) -> Result<()> {
        self.write(node_name_key(cluster, name), 0, &holder)
    }

    pub fn free_name(&mut self, cluster: &ClusterId, name: &str) {
        self.operations.push(delete(node_name_key(cluster, name)));
    }

    pub fn ledger(&mut self, ledger: &Versioned<Ledger>) -> Result<()> {
        let key = ledger_key(&ledger.value.owner);
        self.write(key, ledger.revision, &ledger.value)
    }

    /// Writes the ledger, and the holdings that are others now.
    pub fn account(&mut self, account: &Versioned<Account>) -> Result<()> {
        let Account { ledger, .. } = &account.value;
        self.write(ledger_key(&ledger.owner), account.revision, ledger)?;
        for (item, holding) in account.value.changes() {
            let key = holding_key(&ledger.owner, item);
            self.operations.push(match holding {
                Some(holding) => put(key, encode(holding)?),
                None => delete(key),
            });
        }
        Ok(())
    }

    pub fn releases(&mut self, releases: &Versioned<Releases>) -> Result<()> {
        self.write(RELEASES.to_owned(), releases.revision, &releases.value)
    }

    /// `revision` is that of the table before, 0 for the first.
    pub fn rates(&mut self, table: &RateTable, revision: i64) -> Result<()> {
        self.write(RATES.to_owned(), revision, table)
    }

    pub fn credits(&mut self, credits: &Versioned<Credits>) -> Result<()> {
        let key = credits_key(&credits.value.owner);
        self.write(key, credits.revision, &credits.value)
    }

    /// Writes the record. `revision` is that of the record before, 0 for a new one.
    pub fn load_balancer(&mut self, next: &ServiceLoadBalancer, revision: i64) -> Result<()> {
        self.write(load_balancer_key(&next.cluster, &next.id), revision, next)
    }

    pub fn remove_load_balancer(&mut self, before: &Versioned<ServiceLoadBalancer>) {
        let key = load_balancer_key(&before.value.cluster, &before.value.id);
        self.compare
            .push(mod_revision_is(key.clone(), before.revision));
        self.operations.push(delete(key));
    }

    /// All unified events of a record's change are one key: hundreds of nodes may change at once.
    fn tell(
        &mut self,
        cluster: &ClusterId,
        source: &str,
        counter: &mut u64,
        events: Vec<ClusterEvent>,
    ) {
        if events.is_empty() {
            return;
        }
        self.told.push(Telling {
            cluster: cluster.clone(),
            source: source.to_owned(),
            number: *counter,
            events,
        });
        *counter += 1;
    }

    /// Events are in the order of their keys: time, source, number.
    fn events(
        &mut self,
        cluster: &ClusterId,
        source: &str,
        counter: &mut u64,
        events: &[DeploymentEvent],
    ) -> Result<()> {
        for event in events {
            let time = event.created_at.0;
            let key = format!("{EVENTS}{cluster}/{time:015}/{source}/{counter:010}");
            *counter += 1;
            self.operations.push(put(key, encode(event)?));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(keys: &[&str], bytes: usize) -> Finished {
        let operations = keys
            .iter()
            .map(|key| put((*key).to_owned(), vec![0; bytes]));
        Finished {
            compare: keys
                .iter()
                .map(|key| mod_revision_is((*key).to_owned(), 1))
                .collect(),
            operations: operations.collect(),
        }
    }

    #[test]
    fn changes_go_together_as_far_as_a_transaction_holds_them() {
        let check = |others: &[Finished], next: Finished, expect: bool| {
            assert_eq!(fits(others, &next), expect);
        };
        let many: Vec<String> = (0..59).map(|number| format!("/{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        check(&[], change(&["/a"], 1), true);
        check(&[change(&["/a"], 1)], change(&["/b", "/c"], 1), true);
        check(&[change(&["/a", "/b"], 1)], change(&["/c", "/b"], 1), false);
        check(&[change(&many, 1)], change(&["/a", "/b"], 1), true);
        check(
            &[change(&many, 1), change(&["/a", "/b"], 1)],
            change(&many[..0], 1),
            true,
        );
        let another: Vec<String> = (0..62).map(|number| format!("/b{number}")).collect();
        let another: Vec<&str> = another.iter().map(String::as_str).collect();
        check(&[change(&many, 1)], change(&another, 1), false);
        check(&[change(&["/a"], MOST_BYTES)], change(&["/b"], 1), false);
    }
}
