//! What can be asked of load balancers of Services.

use super::catalog::LOCATION;
use super::error::PlatformError;
use super::identity;
use super::load_balancer::{ADDRESSES, Configuration, CreateLoadBalancer, ServiceLoadBalancer};
use super::model::{ClusterId, ClusterStatus, OwnerId};
use super::store::{Change, Versioned};
use super::{ATTEMPTS, Platform, Result, contention};

impl Platform {
    /// Records the load balancer and its two addresses in the ledger, or neither. If there are tags, they name
    /// it within its cluster: asked for again with the same ones, it is the same, and returned as it is.
    pub async fn create_load_balancer(
        &self,
        owner: &OwnerId,
        request: CreateLoadBalancer,
    ) -> Result<ServiceLoadBalancer> {
        // Whether the cluster is there comes first: a foreign one is not found, whatever is asked.
        self.store().cluster(owner, &request.cluster).await?;
        request.check()?;
        let _serial = self.ledger_lock(owner).await;
        for _ in 0..ATTEMPTS {
            let cluster = self.store().cluster(owner, &request.cluster).await?;
            if cluster.value.is_going() {
                return Err(PlatformError::wrong_state(format!(
                    "Cannot create a load balancer for cluster {}: status is {}",
                    cluster.value.id, cluster.value.status
                )));
            }
            let mut ledger = self.store().ledger(owner).await?;
            let now = self.now();
            let name = if request.tags.is_empty() {
                let seed = self.inner.context.seed;
                let minted = identity::mint(seed, now, owner.as_str(), ledger.value.minted);
                ledger.value.minted += 1;
                minted.to_string()
            } else {
                // Lengths keep two lists of tags apart that read the same when joined.
                let tags = request.tags.iter();
                tags.map(|tag| format!("{}:{tag}", tag.len())).collect()
            };
            let uuid = identity::uuid_of(&format!("{}/{name}", request.cluster));
            let id = format!("loadbalancer_{uuid}");
            let found = self
                .store()
                .find_load_balancer(&request.cluster, &id)
                .await?;
            match found {
                Some(found) if found.value.deleting => {
                    return Err(PlatformError::conflict(format!(
                        "Load balancer {id} is being deleted"
                    )));
                }
                Some(found) => return Ok(found.value),
                None => {}
            }
            ledger.value.reserve_ips(&id, ADDRESSES)?;
            let load_balancer = ServiceLoadBalancer {
                // RFC 6761: no such name exists outside of tests.
                domain_name: format!("{}.lb.{LOCATION}.kubernetes.test", uuid.simple()),
                id,
                owner: owner.clone(),
                cluster: request.cluster.clone(),
                region: LOCATION.to_owned(),
                flavor: request.flavor.clone(),
                tags: request.tags.clone(),
                configuration: request.configuration.clone(),
                configuration_version: 1,
                created_at: now,
                ips: Vec::new(),
                deleting: false,
            };
            let mut change = Change::new();
            // A cluster that is being deleted must not gain what nobody will remove.
            change.expect_cluster(&cluster);
            change.ledger(&ledger)?;
            change.load_balancer(&load_balancer, 0)?;
            if self.store().commit(change).await? {
                return Ok(load_balancer);
            }
        }
        Err(contention(&request.cluster))
    }

    /// Of all clusters of the owner, in the order of creation.
    pub async fn list_load_balancers(&self, owner: &OwnerId) -> Result<Vec<ServiceLoadBalancer>> {
        let mut found = Vec::new();
        for cluster in self.store().clusters(owner).await? {
            if cluster.status == ClusterStatus::Deleted {
                // It went after its last load balancer did.
                continue;
            }
            found.extend(self.store().load_balancers(&cluster.id).await?);
        }
        found.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(found)
    }

    /// Of one cluster, in the order of creation; none of one that is not the owner's, or DELETED.
    pub async fn load_balancers_of(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
    ) -> Result<Vec<ServiceLoadBalancer>> {
        let found = self.store().find_cluster(owner, cluster).await?;
        match found.filter(|found| found.value.status != ClusterStatus::Deleted) {
            Some(_) => self.store().load_balancers(cluster).await,
            None => Ok(Vec::new()),
        }
    }

    pub async fn get_load_balancer(
        &self,
        owner: &OwnerId,
        id: &str,
    ) -> Result<ServiceLoadBalancer> {
        Ok(self.load_balancer_of(owner, id).await?.value)
    }

    /// Replaces listeners and pools.
    pub async fn configure_load_balancer(
        &self,
        owner: &OwnerId,
        id: &str,
        configuration: Configuration,
    ) -> Result<ServiceLoadBalancer> {
        configuration.check()?;
        for _ in 0..ATTEMPTS {
            let before = self.load_balancer_of(owner, id).await?;
            if before.value.deleting {
                return Err(PlatformError::conflict(format!(
                    "Load balancer {id} is being deleted"
                )));
            }
            if before.value.configuration == configuration {
                return Ok(before.value);
            }
            let mut next = before.value;
            next.configuration.clone_from(&configuration);
            next.configuration_version = next.configuration_version.saturating_add(1);
            let mut change = Change::new();
            change.load_balancer(&next, before.revision)?;
            if self.store().commit(change).await? {
                return Ok(next);
            }
        }
        Err(contention(id))
    }

    /// Asks for the removal; its addresses are free once it is no longer found.
    pub async fn delete_load_balancer(
        &self,
        owner: &OwnerId,
        id: &str,
    ) -> Result<ServiceLoadBalancer> {
        for _ in 0..ATTEMPTS {
            let before = self.load_balancer_of(owner, id).await?;
            if before.value.deleting {
                return Ok(before.value);
            }
            let mut next = before.value;
            next.deleting = true;
            let mut change = Change::new();
            change.load_balancer(&next, before.revision)?;
            if self.store().commit(change).await? {
                return Ok(next);
            }
        }
        Err(contention(id))
    }

    async fn load_balancer_of(
        &self,
        owner: &OwnerId,
        id: &str,
    ) -> Result<Versioned<ServiceLoadBalancer>> {
        let not_found = || PlatformError::LoadBalancerNotFound(id.to_owned());
        let listed = self.list_load_balancers(owner).await?;
        let found = listed.into_iter().find(|other| other.id == id);
        let cluster: ClusterId = found.ok_or_else(not_found)?.cluster;
        let found = self.store().find_load_balancer(&cluster, id).await?;
        found.ok_or_else(not_found)
    }
}

#[cfg(test)]
mod tests;
