//! Serves and removes load balancers of Services: see [`crate::platform::load_balancer`] for the rules.

use crate::infra::reflector::{self, Change as Observed};
use crate::infra::{self, LoadBalancerSpec};
use crate::platform::error::PlatformError;
use crate::platform::load_balancer::{self, ADDRESSES, Next, ServiceLoadBalancer};
use crate::platform::model::{Cluster, ClusterId};
use crate::platform::store::{self, Change, CloudOwner, Record, Versioned};

use super::{ATTEMPTS, Context, Controller, Round};

pub(super) struct LoadBalancerController {
    context: Context,
}

impl LoadBalancerController {
    pub(super) fn new(context: Context) -> LoadBalancerController {
        LoadBalancerController { context }
    }

    /// The addresses that the fleet gave it; none if it does not know it.
    fn in_fleet(&self, id: &str) -> Option<Vec<String>> {
        let found = self.context.cloud.load_balancer(id)?;
        Some(found.addresses.iter().map(ToString::to_string).collect())
    }

    async fn create(
        &self,
        cluster: &Cluster,
        load_balancer: &ServiceLoadBalancer,
    ) -> Result<(), PlatformError> {
        let spec = LoadBalancerSpec {
            id: load_balancer.id.clone(),
            owner: CloudOwner::of_cluster(cluster).to_string(),
            flavor: load_balancer.flavor.clone(),
            domain_name: load_balancer.domain_name.clone(),
            addresses: usize::try_from(ADDRESSES).unwrap_or(usize::MAX),
            metered: true,
        };
        self.context.cloud.create_load_balancer(spec).await?;
        Ok(())
    }

    /// Whether the record is gone.
    async fn remove(&self, before: &Versioned<ServiceLoadBalancer>) -> Result<bool, PlatformError> {
        let load_balancer = &before.value;
        let cloud = &self.context.cloud;
        cloud.delete_load_balancer(&load_balancer.id).await?;
        let store = &self.context.store;
        let mut ledger = store.ledger(&load_balancer.owner).await?;
        ledger.value.release_ips(&load_balancer.id);
        let mut change = Change::new();
        change.ledger(&ledger)?;
        change.remove_load_balancer(before);
        store.commit(change).await
    }
}

/// Cluster and id from the key of a record.
fn parse(key: &str) -> Option<(ClusterId, &str)> {
    let (cluster, id) = key.strip_prefix(store::LOAD_BALANCERS)?.split_once('/')?;
    Some((cluster.parse().ok()?, id))
}

impl Controller for LoadBalancerController {
    fn name(&self) -> &'static str {
        "load_balancer"
    }

    fn on_record(&self, change: &Observed<'_, Record>) -> Vec<String> {
        match change.new.or(change.old).map(AsRef::as_ref) {
            Some(Record::LoadBalancer(load_balancer)) => {
                vec![store::load_balancer_key(
                    &load_balancer.cluster,
                    &load_balancer.id,
                )]
            }
            Some(Record::Cluster(cluster)) if cluster.is_going() => {
                let prefix = store::load_balancers_of(&cluster.id);
                reflector::under(change.records, &prefix)
                    .map(|(key, _)| key.clone())
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn on_cloud(
        &self,
        owner: Option<&CloudOwner>,
        change: &Observed<'_, infra::record::Record>,
    ) -> Vec<String> {
        match (owner, change.new.or(change.old).map(AsRef::as_ref)) {
            (Some(owner), Some(infra::record::Record::LoadBalancer(found))) => {
                vec![store::load_balancer_key(&owner.cluster, &found.id)]
            }
            _ => Vec::new(),
        }
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> Round<'a> {
        Box::pin(async move {
            let Some((cluster, id)) = parse(key) else {
                return Ok(None);
            };
            let store = &self.context.store;
            for _ in 0..ATTEMPTS {
                let Some(found) = store.find_load_balancer(&cluster, id).await? else {
                    return Ok(None);
                };
                let owner = &found.value.owner;
                let Some(cluster) = store.find_cluster(owner, &cluster).await? else {
                    let reason = format!("load balancer {id} is without its cluster");
                    return Err(PlatformError::conflict(reason));
                };
                let going = cluster.value.is_going();
                let in_fleet = self.in_fleet(id);
                let now = store.clock.now();
                match load_balancer::decide(&found.value, going, in_fleet.as_deref(), now) {
                    Next::Nothing => return Ok(None),
                    Next::LookAgain(at) => return Ok(Some(at)),
                    Next::CreateInFleet => self.create(&cluster.value, &found.value).await?,
                    Next::Record(ips) => {
                        let mut change = Change::new();
                        let mut next = found.value;
                        next.ips = ips;
                        change.load_balancer(&next, found.revision)?;
                        store.commit(change).await?;
                    }
                    Next::Remove => {
                        if self.remove(&found).await? {
                            return Ok(None);
                        }
                    }
                }
            }
            Err(PlatformError::conflict(format!(
                "too many changes at once to {id}"
            )))
        })
    }
}
