//! The platform's records: keys, and the transactions that change them.
//!
//! | key under `/cke/` | value |
//! |---|---|
//! | `clusters/<owner>/<cluster>` | [`Cluster`], also when deleted |
//! | `node-groups/<cluster>/<node group>` | [`NodeGroup`] |
//! | `node-names/<cluster>/<name>` | id of what has the name in that cluster |
//! | `ledgers/<owner>` | [`Ledger`] |
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
use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_proto::etcdserverpb::{Compare, RangeRequest, RequestOp, TxnRequest};
use etcd_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Timestamp};
use crate::etcd::client::{Client, delete, header_revision, mod_revision_is, prefix_range, put};
use crate::infra::{self, reflector::Reflector};

use super::cluster_event::{self, ClusterEvent, Told};
use super::credit::Credits;
use super::deployment_event::DeploymentEvent;
use super::error::PlatformError;
use super::load_balancer::ServiceLoadBalancer;
use super::model::{Cluster, ClusterId, ClusterStatus, Flavor, NodeGroup, NodeGroupId, OwnerId};
use super::quota::Ledger;
use super::rates::RateTable;
use super::releases::Releases;

pub const CLUSTERS: &str = "/cke/clusters/";
pub const NODE_GROUPS: &str = "/cke/node-groups/";
pub const NODE_NAMES: &str = "/cke/node-names/";
pub const LEDGERS: &str = "/cke/ledgers/";
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

impl Change {
    pub fn new() -> Change {
        Change::default()
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
            let pair = |node: &super::model::Node| (node.name.clone(), node.id.to_string());
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
        let Change {
            compare,
            mut operations,
            told,
        } = change;
        let at = self.clock.now();
        for telling in told {
            let (cluster, source, number) = (telling.cluster, telling.source, telling.number);
            let key = format!(
                "{CLUSTER_EVENTS}{cluster}/{:015}/{source}/{number:010}",
                at.0
            );
            let events = telling.events;
            operations.push(put(key, encode(&Told { at, events })?));
        }
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

    /// The cluster as it is seen, which may be a little behind.
    pub fn seen_cluster(&self, owner: &OwnerId, id: &ClusterId) -> Option<Arc<Record>> {
        self.view
            .get(&cluster_key(owner, id))
            .map(|stored| stored.record)
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
    use super::*;

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
