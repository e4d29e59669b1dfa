//! CKE itself: clusters, node groups, quotas, prices, and the controllers that make them real.
//!
//! May use `infra`, `kubernetes` (through [`cluster_api::ClusterApi`]), `leader`, `etcd::client` and `clock`.
//! Must never know of the REST API above it, nor of what stores etcd's keys.
//!
//! Rules without I/O come first: `catalog`, `pricing`, `quota`, `placement`, `validation`, and the
//! state machines `cluster` and `node_group`. Around them: `store` (records and transactions) and
//! `controller` (what acts). A request is judged, recorded and answered; the controllers do the rest.

pub mod autoscaler;
pub mod billing;
pub mod catalog;
pub mod cheapest;
pub mod cluster;
pub mod cluster_api;
pub mod cluster_event;
mod clusters;
pub mod consumption;
pub mod control_plane;
mod controller;
mod creation;
pub mod credit;
pub mod deployment_event;
pub mod error;
mod guest;
mod id;
mod identity;
pub mod invariant;
pub mod load_balancer;
mod load_balancers;
pub mod model;
pub mod node_group;
mod node_groups;
pub mod placement;
pub mod plugin;
pub mod pricing;
pub mod quota;
mod rate_changes;
pub mod rates;
pub mod redeployment;
pub mod releases;
pub mod replacement;
mod request;
pub mod shape;
pub mod standalone_nodes;
pub mod store;
mod turns;
pub mod validation;
mod vm_state;
pub mod volumes;
pub mod what_if;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Timestamp};
use crate::etcd::client::SharedKeyspaces;
use crate::infra::reflector::{Observer, Reflector};
use crate::infra::work_queue::Workers;
use crate::infra::{self, Cloud};
use crate::leader::Term;

use controller::Context;
use invariant::{Snapshot, Violation};
use store::Store;
use turns::{MAX_REPLACEMENTS, Turns};

pub use catalog::Catalog;
pub use cluster_api::{ClusterApi, ClusterApiError};
pub use deployment_event::DeploymentEvent;
pub use error::PlatformError;
pub use model::*;

/// Name of the keyspace that holds everything of this layer.
pub const KEYSPACE: &str = "cke";

/// How often a change is tried again after somebody else's came first.
const ATTEMPTS: usize = 64;

pub struct PlatformConfig {
    pub keyspaces: SharedKeyspaces,
    pub clock: Clock,
    pub cloud: Cloud,
    pub kubernetes: Arc<dyn ClusterApi>,
    pub seed: u64,
    /// Whether clusters whose version is no longer supported are updated, unless that is switched later.
    pub auto_upgrade: bool,
}

/// The platform. Cheap to clone.
#[derive(Clone)]
pub struct Platform {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    /// Serves the requests of this process that touch an owner's ledger one after the other, so that
    /// they do not fail one another's comparisons. Owners share locks; correctness is the store's.
    ledger_locks: [tokio::sync::Mutex<()>; 16],
}

type Result<T> = std::result::Result<T, PlatformError>;

/// What the clock must read at least when it starts, for the records of this layer and of `infra`;
/// `None` on a fresh store.
pub async fn last_instant(keyspaces: &SharedKeyspaces) -> Result<Option<Timestamp>> {
    let own = store::last_instant(&keyspaces.client(KEYSPACE)).await?;
    let below = infra::last_instant(keyspaces).await?;
    Ok(own.max(below))
}

impl Platform {
    /// Reads the state, and is then ready for requests. See [`Platform::act`].
    pub async fn start(config: PlatformConfig) -> Result<Platform> {
        let client = config.keyspaces.client(KEYSPACE);
        let view = Reflector::start_keeping(
            client.clone(),
            store::decode,
            store::Record::is_held,
            &config.clock,
            CancellationToken::new(),
        )
        .await?;
        let context = Context {
            store: Store {
                client,
                clock: config.clock,
                view,
            },
            cloud: config.cloud,
            kubernetes: config.kubernetes,
            seed: config.seed,
            auto_upgrade: config.auto_upgrade,
            turns: Turns::new(MAX_REPLACEMENTS),
        };
        Ok(Platform {
            inner: Arc::new(Inner {
                context,
                ledger_locks: Default::default(),
            }),
        })
    }

    /// Starts the controllers: they go on where the last ones were.
    pub fn act(&self, term: &Term) -> Workers {
        controller::start(&self.inner.context, term)
    }

    /// Tells of every record, and of every change of one; of an event when it comes.
    pub fn observe(&self, observer: Observer<store::Record>) {
        self.store().view.observe(observer);
    }

    /// Ends every watch: nothing is seen here any more.
    pub fn close(&self) {
        self.store().view.close();
    }

    /// Whose cluster it is, as far as is seen; `None` for one that there is not.
    pub fn owner_of(&self, cluster: &ClusterId) -> Option<OwnerId> {
        self.store().view.with(|records| {
            let mut clusters = crate::infra::reflector::under(records, store::CLUSTERS);
            // The key ends with the id: of most, nothing else is looked at.
            let (_, found) = clusters.find(|(key, _)| key.ends_with(cluster.as_str()))?;
            match found.record.as_ref() {
                store::Record::Cluster(found) => Some(found.owner.clone()),
                _ => None,
            }
        })
    }

    pub async fn quota(&self, owner: &OwnerId) -> Result<Quota> {
        Ok(self.store().ledger(owner).await?.value.quota())
    }

    /// What of the owner's quota nothing holds.
    pub async fn quota_left(&self, owner: &OwnerId) -> Result<quota::Resources> {
        let ledger = self.store().ledger(owner).await?.value;
        let limits = quota::Resources {
            vcpus: ledger.limits.vcpus,
            ram_gb: ledger.limits.ram_gb,
        };
        Ok(limits.less(ledger.total()))
    }

    /// Lets the owner hold so much. What it holds over that stays, and cannot grow.
    pub async fn set_limits(&self, owner: &OwnerId, limits: quota::Limits) -> Result<Quota> {
        self.change_limits(owner, |_| limits).await
    }

    /// As [`Platform::set_limits`], with limits that follow from those before.
    pub async fn change_limits(
        &self,
        owner: &OwnerId,
        change: impl Fn(quota::Limits) -> quota::Limits,
    ) -> Result<Quota> {
        let _serial = self.ledger_lock(owner).await;
        for _ in 0..ATTEMPTS {
            let mut ledger = self.store().ledger(owner).await?;
            let limits = change(ledger.value.limits);
            ledger.value.set_limits(limits);
            let mut record = store::Change::new();
            record.ledger(&ledger)?;
            if self.store().commit(record).await? {
                return Ok(ledger.value.quota());
            }
        }
        Err(contention(owner))
    }

    /// What counts against the quota now, in the order of creation.
    pub async fn usage(&self, owner: &OwnerId) -> Result<Vec<UsageItem>> {
        let holdings = self.store().holdings(owner).await?;
        let mut items: Vec<UsageItem> = holdings.iter().map(quota::Holding::usage).collect();
        items.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(items)
    }

    /// Everything that is wrong with what is recorded; nothing, at rest. See [`invariant`].
    ///
    /// Two keyspaces cannot be read at one instant: what is found is looked for a second time, and only
    /// what is still there counts.
    pub async fn check_invariants(&self) -> Result<Vec<Violation>> {
        let mut found = invariant::check(&self.snapshot().await?);
        if !found.is_empty() {
            let again = invariant::check(&self.snapshot().await?);
            found.retain(|violation| again.contains(violation));
        }
        Ok(found)
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        // The cloud first: a VM that is seen there has had its record before.
        let inventory = self.inner.context.cloud.inventory().await?;
        self.store().view.catch_up().await?;
        Ok(self.seen(inventory))
    }

    /// What is seen here beside `inventory`.
    fn seen(&self, inventory: infra::Inventory) -> Snapshot {
        self.store().view.with(|records| {
            let records = records.values().map(|stored| stored.record.as_ref());
            Snapshot::new(records, inventory)
        })
    }

    /// Lets the certificate that the clusters' APIs serve with expire, or makes it anew.
    pub fn expire_certificates(&self, expired: bool) -> Result<()> {
        let kubernetes = &self.inner.context.kubernetes;
        Ok(kubernetes.expire_certificates(expired)?)
    }

    pub fn certificates_are_expired(&self) -> bool {
        self.inner.context.kubernetes.certificates_are_expired()
    }

    /// Keeps the clock's reading for a restart. Whoever advances a manual clock does it afterwards.
    pub async fn save_reading(&self) -> Result<()> {
        Ok(self.inner.context.cloud.save_reading().await?)
    }

    fn store(&self) -> &Store {
        &self.inner.context.store
    }

    fn now(&self) -> Timestamp {
        self.store().clock.now()
    }

    async fn ledger_lock(&self, owner: &OwnerId) -> tokio::sync::MutexGuard<'_, ()> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        let locks = &self.inner.ledger_locks;
        let index = usize::try_from(hasher.finish() % locks.len() as u64).unwrap_or(0);
        locks[index].lock().await
    }
}

/// The answer when [`ATTEMPTS`] are used up.
fn contention(what: impl std::fmt::Display) -> PlatformError {
    PlatformError::conflict(format!("{what} is changed by too many at once"))
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
