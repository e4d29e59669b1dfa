//! The platform's records: keys, and the transactions that change them.
//!
//! | key under `/cke/` | value |
//! |---|---|
//! | `clusters/<owner>/<cluster>` | [`Cluster`], also when deleted |
//! | `node-groups/<cluster>/<node group>` | [`NodeGroup`] |
//! | `node-names/<cluster>/<name>` | id of what has the name in that cluster |
//! | `ledgers/<owner>` | [`Ledger`] |
//! | `holdings/<owner>/<cluster or node group>` | [`Holding`]; changes together with the ledger |
//! | `releases` | [`Releases`] |
//! | `load-balancers/<cluster>/<id>` | [`ServiceLoadBalancer`] |
//! | `rates` | [`RateTable`]; none while the rates are the catalog's |
//! | `credits/<owner>` | [`Credits`] |
//! | `removed-node-groups/<cluster>/<node group>` | [`RemovedNodeGroup`]: for invoices, for ever |
//! | `events/<cluster>/<time>/<source>/<number>` | [`DeploymentEvent`] |
//! | `cluster-events/<cluster>/<time>/<source>/<number>` | [`Told`]: the unified events of one change |
//!
//! Every change is one transaction that compares the mod revisions of what it was decided from. What
//! belongs together changes together: a record, its events, its names, its line in the ledger.

use std::collections::BTreeSet;

use bytes::Bytes;
use etcd_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_proto::etcdserverpb::{RangeRequest, TxnRequest};
use etcd_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Timestamp};
use crate::etcd::client::{Client, header_revision, prefix_range};
use crate::infra::{self, reflector::Reflector};

use super::cluster_event::{ClusterEvent, Told};
use super::credit::Credits;
use super::deployment_event::DeploymentEvent;
use super::error::PlatformError;
use super::load_balancer::ServiceLoadBalancer;
use super::model::{Cluster, ClusterId, ClusterStatus, Flavor, NodeGroup, NodeGroupId, OwnerId};
use super::quota::{Account, Holding, Ledger};
use super::rates::RateTable;
use super::releases::Releases;

mod change;

use change::{Finished, fits};

pub use change::Change;

pub const CLUSTERS: &str = "/cke/clusters/";
pub const NODE_GROUPS: &str = "/cke/node-groups/";
pub const NODE_NAMES: &str = "/cke/node-names/";
pub const LEDGERS: &str = "/cke/ledgers/";
const HOLDINGS: &str = "/cke/holdings/";
pub const LOAD_BALANCERS: &str = "/cke/load-balancers/";
pub const RELEASES: &str = "/cke/releases";
pub const RATES: &str = "/cke/rates";
const CREDITS: &str = "/cke/credits/";
const REMOVED_NODE_GROUPS: &str = "/cke/removed-node-groups/";
const EVENTS: &str = "/cke/events/";
/// Not in view: they are read when asked for.
const CLUSTER_EVENTS: &str = "/cke/cluster-events/";

type Result<T> = std::result::Result<T, PlatformError>;

pub fn cluster_key(owner: &OwnerId, id: &ClusterId) -> String {
    format!("{CLUSTERS}{owner}/{id}")
}

pub fn clusters_of(owner: &OwnerId) -> String {
    format!("{CLUSTERS}{owner}/")
}

pub fn node_group_key(cluster: &ClusterId, id: &NodeGroupId) -> String {
    format!("{NODE_GROUPS}{cluster}/{id}")
}

pub fn node_groups_of(cluster: &ClusterId) -> String {
    format!("{NODE_GROUPS}{cluster}/")
}

pub fn node_names_of(cluster: &ClusterId) -> String {
    format!("{NODE_NAMES}{cluster}/")
}

/// Names of nodes in the cluster, as they are seen.
pub fn taken_names(view: &Reflector<Record>, cluster: &ClusterId) -> BTreeSet<String> {
    let prefix = node_names_of(cluster);
    view.with(|records| {
        infra::reflector::under(records, &prefix)
            .map(|(key, _)| key[prefix.len()..].to_owned())
            .collect()
    })
}

fn node_name_key(cluster: &ClusterId, name: &str) -> String {
    format!("{NODE_NAMES}{cluster}/{name}")
}

pub fn load_balancer_key(cluster: &ClusterId, id: &str) -> String {
    format!("{LOAD_BALANCERS}{cluster}/{id}")
}

pub fn load_balancers_of(cluster: &ClusterId) -> String {
    format!("{LOAD_BALANCERS}{cluster}/")
}

fn ledger_key(owner: &OwnerId) -> String {
    format!("{LEDGERS}{owner}")
}

fn holdings_of(owner: &OwnerId) -> String {
    format!("{HOLDINGS}{owner}/")
}

fn holding_key(owner: &OwnerId, item: &str) -> String {
    format!("{HOLDINGS}{owner}/{item}")
}

fn credits_key(owner: &OwnerId) -> String {
    format!("{CREDITS}{owner}")
}

fn removed_node_groups_of(cluster: &ClusterId) -> String {
    format!("{REMOVED_NODE_GROUPS}{cluster}/")
}

/// What is kept of a node group once it is gone: it may still be on an invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedNodeGroup {
    pub id: NodeGroupId,
    pub name: String,
    pub flavor: Flavor,
    pub created_at: Timestamp,
}

/// Whose something of the cloud is: what the platform writes as owner there, and reads from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudOwner {
    pub owner: OwnerId,
    pub cluster: ClusterId,
    pub node_group: Option<NodeGroupId>,
}

impl CloudOwner {
    pub fn of_cluster(cluster: &Cluster) -> CloudOwner {
        CloudOwner {
            owner: cluster.owner.clone(),
            cluster: cluster.id.clone(),
            node_group: None,
        }
    }

    pub fn of_node_group(group: &NodeGroup) -> CloudOwner {
        CloudOwner {
            owner: group.owner.clone(),
            cluster: group.cluster.clone(),
            node_group: Some(group.id.clone()),
        }
    }

    /// `None` if it is not one of the platform's.
    pub fn parse(path: &str) -> Option<CloudOwner> {
        let mut parts = path.split('/');
        let owner = parts.next()?.parse().ok()?;
        let cluster = parts.next()?.parse().ok()?;
        let node_group = match parts.next() {
            Some(id) => Some(id.parse().ok()?),
            None => None,
        };
        parts.next().is_none().then_some(CloudOwner {
            owner,
            cluster,
            node_group,
        })
    }
}

impl std::fmt::Display for CloudOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.owner, self.cluster)?;
        match &self.node_group {
            Some(id) => write!(f, "/{id}"),
            None => Ok(()),
        }
    }
}

/// A record of the platform. Events are not held in view, only told of when they come: they are read when
/// asked for.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Record {
    Cluster(Cluster),
    NodeGroup(NodeGroup),
    NodeName(String),
    Ledger(Ledger),
    Holding(Holding),
    LoadBalancer(ServiceLoadBalancer),
    Releases(Releases),
    Rates(RateTable),
    Event(DeploymentEvent),
}

impl Record {
    pub fn is_held(&self) -> bool {
        !matches!(self, Record::Event(_))
    }
}

pub fn decode(key: &str, value: &[u8]) -> Option<Record> {
    fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
        serde_json::from_slice(value)
            .inspect_err(|error| tracing::error!(key, %error, "cannot read a record"))
            .ok()
    }
    if key.starts_with(CLUSTERS) {
        read(key, value).map(Record::Cluster)
    } else if key.starts_with(NODE_GROUPS) {
        read(key, value).map(Record::NodeGroup)
    } else if key.starts_with(NODE_NAMES) {
        read(key, value).map(Record::NodeName)
    } else if key.starts_with(LEDGERS) {
        read(key, value).map(Record::Ledger)
    } else if key.starts_with(HOLDINGS) {
        read(key, value).map(Record::Holding)
    } else if key == RELEASES {
        read(key, value).map(Record::Releases)
    } else if key.starts_with(LOAD_BALANCERS) {
        read(key, value).map(Record::LoadBalancer)
    } else if key == RATES {
        read(key, value).map(Record::Rates)
    } else if key.starts_with(EVENTS) {
        read(key, value).map(Record::Event)
    } else {
        None
    }
}

/// A record as it was read, and the revision that a change of it compares.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    pub value: T,
    /// 0 if there is no record yet.
    pub revision: i64,
    /// Of the keyspace when it was read.
    pub read_at: i64,
}

fn encode(record: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(record)
        .map(Bytes::from)
        .map_err(|error| PlatformError::Unavailable(format!("cannot write a record: {error}")))
}

fn read<T: DeserializeOwned>(kv: &KeyValue) -> Result<T> {
    serde_json::from_slice(&kv.value).map_err(|error| {
        let key = String::from_utf8_lossy(&kv.key);
        PlatformError::Unavailable(format!("cannot read the record {key}: {error}"))
    })
}

/// Access to the records. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub client: Client,
    pub clock: Clock,
    pub view: Reflector<Record>,
}

impl Store {
    /// Makes the change if all that it was decided from still holds; says whether it did. Either way the
    /// view then shows what the transaction saw.
    pub async fn commit(&self, change: Change) -> Result<bool> {
        let at = self.clock.now();
        self.write(change.finish(at)?, at).await
    }

    /// As [`Store::commit`] for each, many of them in a transaction. One that no longer holds does not concern the
    /// others.
    pub async fn commit_all(&self, changes: Vec<Change>) -> Result<Vec<bool>> {
        let at = self.clock.now();
        let mut made = Vec::with_capacity(changes.len());
        let mut together: Vec<Finished> = Vec::new();
        for change in changes {
            let next = change.finish(at)?;
            if !fits(&together, &next) {
                self.write_together(&mut together, at, &mut made).await?;
            }
            together.push(next);
        }
        self.write_together(&mut together, at, &mut made).await?;
        Ok(made)
    }

    async fn write_together(
        &self,
        together: &mut Vec<Finished>,
        at: Timestamp,
        made: &mut Vec<bool>,
    ) -> Result<()> {
        let changes = std::mem::take(together);
        if changes.len() > 1 {
            let all = Finished {
                compare: changes.iter().flat_map(|it| it.compare.clone()).collect(),
                operations: changes
                    .iter()
                    .flat_map(|it| it.operations.clone())
                    .collect(),
            };
            if self.write(all, at).await? {
                made.extend(changes.iter().map(|_| true));
                return Ok(());
            }
        }
        for change in changes {
            made.push(self.write(change, at).await?);
        }
        Ok(())
    }

    async fn write(&self, change: Finished, at: Timestamp) -> Result<bool> {
        let Finished {
            compare,
            mut operations,
        } = change;
        operations.push(infra::stamp(at));
        let response = self
            .client
            .txn(TxnRequest {
                compare,
                success: operations,
                failure: Vec::new(),
            })
            .await?;
        self.view.wait_for(header_revision(response.header)).await;
        Ok(response.succeeded)
    }

    async fn find<T: DeserializeOwned>(&self, key: String) -> Result<Option<Versioned<T>>> {
        let found = self.client.get(key).await?;
        let Some(kv) = found.value else {
            return Ok(None);
        };
        Ok(Some(Versioned {
            value: read(&kv)?,
            revision: kv.mod_revision,
            read_at: found.revision,
        }))
    }

    pub async fn find_cluster(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
    ) -> Result<Option<Versioned<Cluster>>> {
        self.find(cluster_key(owner, id)).await
    }

    pub async fn cluster(&self, owner: &OwnerId, id: &ClusterId) -> Result<Versioned<Cluster>> {
        let found = self.find_cluster(owner, id).await?;
        found.ok_or_else(|| PlatformError::ClusterNotFound(id.clone()))
    }

    pub async fn clusters(&self, owner: &OwnerId) -> Result<Vec<Cluster>> {
        let listed = self.client.list(format!("{CLUSTERS}{owner}/")).await?;
        let mut clusters = listed
            .value
            .iter()
            .map(read)
            .collect::<Result<Vec<Cluster>>>()?;
        clusters.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(clusters)
    }

    pub async fn find_node_group(
        &self,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Result<Option<Versioned<NodeGroup>>> {
        self.find(node_group_key(cluster, id)).await
    }

    pub async fn node_group(
        &self,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Result<Versioned<NodeGroup>> {
        let found = self.find_node_group(cluster, id).await?;
        found.ok_or_else(|| PlatformError::NodeGroupNotFound(id.clone()))
    }

    pub async fn node_groups(&self, cluster: &ClusterId) -> Result<Vec<NodeGroup>> {
        let listed = self.client.list(node_groups_of(cluster)).await?;
        let mut groups = listed
            .value
            .iter()
            .map(read)
            .collect::<Result<Vec<NodeGroup>>>()?;
        groups.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(groups)
    }

    pub async fn find_load_balancer(
        &self,
        cluster: &ClusterId,
        id: &str,
    ) -> Result<Option<Versioned<ServiceLoadBalancer>>> {
        self.find(load_balancer_key(cluster, id)).await
    }

    /// Of a cluster, in the order of creation.
    pub async fn load_balancers(&self, cluster: &ClusterId) -> Result<Vec<ServiceLoadBalancer>> {
        let listed = self.client.list(load_balancers_of(cluster)).await?;
        let mut found = listed
            .value
            .iter()
            .map(read)
            .collect::<Result<Vec<ServiceLoadBalancer>>>()?;
        found.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(found)
    }

    /// As it is seen, which may be a little behind.
    pub fn seen_releases(&self) -> Releases {
        let stored = self.view.get(RELEASES);
        match stored.as_ref().map(|stored| stored.record.as_ref()) {
            Some(Record::Releases(releases)) => releases.clone(),
            _ => Releases::default(),
        }
    }

    pub async fn releases(&self) -> Result<Versioned<Releases>> {
        let found = self.find(RELEASES.to_owned()).await?;
        Ok(found.unwrap_or_else(|| Versioned {
            value: Releases::default(),
            revision: 0,
            read_at: 0,
        }))
    }

    /// A new one if the owner has none yet: it is written with its first entry.
    pub async fn ledger(&self, owner: &OwnerId) -> Result<Versioned<Ledger>> {
        let found = self.find(ledger_key(owner)).await?;
        Ok(found.unwrap_or_else(|| Versioned {
            value: Ledger::new(owner.clone()),
            revision: 0,
            read_at: 0,
        }))
    }

    /// The owner's ledger with what these items hold. Both change together: so if the ledger is still the same when
    /// something is written, what was read after it was of the same instant.
    pub async fn account(&self, owner: &OwnerId, items: &[&str]) -> Result<Versioned<Account>> {
        let ledger = self.ledger(owner).await?;
        let mut holdings = Vec::new();
        for item in items {
            let found = self.find(holding_key(owner, item)).await?;
            holdings.extend(found.map(|found: Versioned<Holding>| found.value));
        }
        Ok(Versioned {
            value: Account::new(ledger.value, holdings),
            revision: ledger.revision,
            read_at: ledger.read_at,
        })
    }

    /// Of an owner, in the order of the items' ids.
    pub async fn holdings(&self, owner: &OwnerId) -> Result<Vec<Holding>> {
        let listed = self.client.list(holdings_of(owner)).await?;
        listed.value.iter().map(read).collect()
    }

    /// Of a cluster, in the order of their ids.
    pub async fn removed_node_groups(&self, cluster: &ClusterId) -> Result<Vec<RemovedNodeGroup>> {
        let listed = self.client.list(removed_node_groups_of(cluster)).await?;
        listed.value.iter().map(read).collect()
    }

    pub async fn rates(&self) -> Result<Versioned<RateTable>> {
        let found = self.find(RATES.to_owned()).await?;
        Ok(found.unwrap_or_else(|| Versioned {
            value: RateTable::default(),
            revision: 0,
            read_at: 0,
        }))
    }

    pub async fn credits(&self, owner: &OwnerId) -> Result<Versioned<Credits>> {
        let found = self.find(credits_key(owner)).await?;
        Ok(found.unwrap_or_else(|| Versioned {
            value: Credits::new(owner.clone()),
            revision: 0,
            read_at: 0,
        }))
    }

    /// Newest first.
    pub async fn events(&self, cluster: &ClusterId, limit: usize) -> Result<Vec<DeploymentEvent>> {
        self.newest(format!("{EVENTS}{cluster}/"), limit).await
    }

    /// Newest first.
    pub async fn cluster_events(
        &self,
        cluster: &ClusterId,
        limit: usize,
    ) -> Result<Vec<(Timestamp, ClusterEvent)>> {
        // Each has at least one.
        let told: Vec<Told> = self
            .newest(format!("{CLUSTER_EVENTS}{cluster}/"), limit)
            .await?;
        let dated = |told: Told| {
            let events = told.events.into_iter().rev();
            events.map(move |event| (told.at, event))
        };
        Ok(told.into_iter().flat_map(dated).take(limit).collect())
    }

    /// The last of what is under a prefix, in the order of keys, backwards.
    async fn newest<T: DeserializeOwned>(&self, prefix: String, limit: usize) -> Result<Vec<T>> {
        let (key, range_end) = prefix_range(Bytes::from(prefix));
        let response = self
            .client
            .range(RangeRequest {
                key,
                range_end,
                limit: i64::try_from(limit).unwrap_or(i64::MAX),
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Key.into(),
                ..RangeRequest::default()
            })
            .await?;
        response.kvs.iter().map(read).collect()
    }

    /// The cluster's record as it is seen, which may be a little behind: then a change that was decided from it
    /// fails, and whoever decides again sees more. Costs no request, as [`Store::find_cluster`] does.
    pub fn cluster_in_view(&self, owner: &OwnerId, id: &ClusterId) -> Option<Versioned<Cluster>> {
        let read_at = self.view.revision();
        let stored = self.view.get(&cluster_key(owner, id))?;
        match stored.record.as_ref() {
            Record::Cluster(cluster) => Some(Versioned {
                value: cluster.clone(),
                revision: stored.mod_revision,
                read_at,
            }),
            _ => None,
        }
    }

    /// As [`Store::cluster_in_view`].
    pub fn node_group_in_view(
        &self,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Option<Versioned<NodeGroup>> {
        let read_at = self.view.revision();
        let stored = self.view.get(&node_group_key(cluster, id))?;
        match stored.record.as_ref() {
            Record::NodeGroup(group) => Some(Versioned {
                value: group.clone(),
                revision: stored.mod_revision,
                read_at,
            }),
            _ => None,
        }
    }
}

/// Whether a list without a filter shows a cluster.
pub fn is_listed(status: ClusterStatus, wanted: &[ClusterStatus]) -> bool {
    if wanted.is_empty() {
        status != ClusterStatus::Deleted
    } else {
        wanted.contains(&status)
    }
}

/// What the clock must read at least when it starts; `None` on a fresh store.
pub async fn last_instant(client: &Client) -> Result<Option<Timestamp>> {
    Ok(infra::last_reading(client).await?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BUNDLE, World, owner, request};
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_changes_that_are_made_together_only_the_stale_ones_fail() {
        let world = World::new().await;
        let store = world.platform.store();
        let mut versions = Vec::new();
        for name in ["a", "b", "c"] {
            let order = request(name, BUNDLE);
            let made = world
                .platform
                .create_cluster(&owner(), order)
                .await
                .unwrap();
            versions.push(store.cluster(&owner(), &made.cluster.id).await.unwrap());
        }
        let rename = |before: &Versioned<Cluster>, name: &str| {
            let mut next = before.value.clone();
            name.clone_into(&mut next.name);
            let mut change = Change::new();
            change.cluster(Some(before), &mut next, &[]).unwrap();
            change
        };
        let names = async || {
            let clusters = store.clusters(&owner()).await.unwrap();
            let names: BTreeSet<String> = clusters.into_iter().map(|it| it.name).collect();
            names.into_iter().collect::<Vec<_>>()
        };
        let before = store.view.revision();
        let changes = versions
            .iter()
            .map(|it| rename(it, &format!("{}1", it.value.name)));
        assert_eq!(
            store.commit_all(changes.collect()).await.unwrap(),
            [true; 3]
        );
        assert_eq!(names().await, ["a1", "b1", "c1"]);
        assert_eq!(store.view.revision(), before + 1, "one transaction");
        // Of b an old version is known.
        let stale = versions.swap_remove(1);
        let mut changes = Vec::new();
        for before in &versions {
            let now = store.cluster(&owner(), &before.value.id).await.unwrap();
            changes.push(rename(&now, &format!("{}2", before.value.name)));
        }
        changes.insert(1, rename(&stale, "b2"));
        let made = store.commit_all(changes).await.unwrap();
        assert_eq!(made, [true, false, true]);
        assert_eq!(names().await, ["a2", "b1", "c2"]);
        assert!(store.commit_all(Vec::new()).await.unwrap().is_empty());
    }

    #[test]
    fn an_owner_in_the_cloud_is_a_path() {
        let check = |path: &str, ok: bool| {
            let parsed = CloudOwner::parse(path);
            assert_eq!(parsed.is_some(), ok, "{path}");
            if let Some(owner) = parsed {
                assert_eq!(owner.to_string(), path);
            }
        };
        let cluster =
            "orga_3547a882-e464-4c34-8168-add4b3e0c135/kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
        check(cluster, true);
        check(
            &format!("{cluster}/node_group_01KTREHTR6E4JEY46EPYBKY8XG"),
            true,
        );
        check(
            &format!("{cluster}/node_group_01KTREHTR6E4JEY46EPYBKY8XG/x"),
            false,
        );
        check("somebody", false);
    }
}
