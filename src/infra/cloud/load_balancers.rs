//! Requests about load balancers of the shared fleet.

use crate::etcd::client::{delete, mod_revision_is};
use crate::infra::record::{self, Record};
use crate::infra::{LoadBalancer, LoadBalancerSpec};

use super::{ATTEMPTS, Cloud, CloudError, Result, address_key, encode, lease, metering};

impl Cloud {
    /// Requests a load balancer with public addresses of its own. Idempotent by id.
    pub async fn create_load_balancer(&self, spec: LoadBalancerSpec) -> Result<LoadBalancer> {
        let _serial = self.inner.allocating.lock().await;
        let key = key(&spec.id);
        for _ in 0..ATTEMPTS {
            if let Some(existing) = self.load_balancer(&spec.id) {
                return Ok(existing);
            }
            let addresses = self.free_public(spec.addresses)?;
            let (mut compare, mut changes) = lease(&spec.id, &addresses)?;
            let load_balancer = LoadBalancer {
                id: spec.id.clone(),
                owner: spec.owner.clone(),
                flavor: spec.flavor.clone(),
                domain_name: spec.domain_name.clone(),
                addresses,
                metered_since: spec.metered.then(|| self.inner.clock.now()),
            };
            compare.push(mod_revision_is(key.clone(), 0));
            changes.push(encode(&key, &load_balancer)?);
            if self.commit(compare, changes).await? {
                return Ok(load_balancer);
            }
        }
        Err(CloudError::Contention(key))
    }

    /// Removes a load balancer and frees its addresses. Idempotent.
    pub async fn delete_load_balancer(&self, id: &str) -> Result<()> {
        let key = key(id);
        self.inner.records.catch_up().await?;
        for _ in 0..ATTEMPTS {
            let Some(stored) = self.inner.records.get(&key) else {
                return Ok(());
            };
            let Record::LoadBalancer(load_balancer) = stored.record.as_ref() else {
                return Ok(());
            };
            let mut changes = vec![delete(key.clone())];
            let addresses = load_balancer.addresses.iter();
            changes.extend(addresses.map(|address| delete(address_key(*address))));
            let now = self.inner.clock.now();
            changes.extend(metering::close(&stored.record, now)?);
            let compare = vec![mod_revision_is(key.clone(), stored.mod_revision)];
            if self.commit(compare, changes).await? {
                return Ok(());
            }
        }
        Err(CloudError::Contention(key))
    }

    pub fn load_balancer(&self, id: &str) -> Option<LoadBalancer> {
        match self.inner.records.get(&key(id))?.record.as_ref() {
            Record::LoadBalancer(load_balancer) => Some(load_balancer.clone()),
            _ => None,
        }
    }
}

fn key(id: &str) -> String {
    format!("{}{id}", record::LOAD_BALANCER)
}
