//! Requests about load balancers of the shared fleet.

use crate::etcd::client::{delete, mod_revision_is};
use crate::infra::record::{self, Record};
use crate::infra::{LoadBalancer, LoadBalancerSpec};

use super::{ATTEMPTS, Cloud, CloudError, Result, address_key, encode, lease, metering};

impl Cloud {
    /// Requests a load balancer with public addresses of its own. Idempotent by id.
    pub async fn create_load_balancer(&self, spec: LoadBalancerSpec) -> Result<LoadBalancer> {
        let mut made = self
            .create_load_balancers(std::slice::from_ref(&spec))
            .await?;
        made.pop()
            .ok_or_else(|| CloudError::Contention(key(&spec.id)))
    }

    /// As [`Cloud::create_load_balancer`] for each, many in a transaction.
    pub async fn create_load_balancers(
        &self,
        specs: &[LoadBalancerSpec],
    ) -> Result<Vec<LoadBalancer>> {
        /// Each needs an operation and a comparison, and one more of both for each address; etcd allows 128 by default.
        const AT_ONCE: usize = 30;
        let _serial = self.inner.allocating.lock().await;
        let mut made = Vec::with_capacity(specs.len());
        for chunk in specs.chunks(AT_ONCE) {
            made.extend(self.create_chunk(chunk).await?);
        }
        Ok(made)
    }

    async fn create_chunk(&self, specs: &[LoadBalancerSpec]) -> Result<Vec<LoadBalancer>> {
        for _ in 0..ATTEMPTS {
            let mut free = self
                .free_public(self.missing(specs).map(|spec| spec.addresses).sum())?
                .into_iter();
            let (mut compare, mut changes, mut made) = (Vec::new(), Vec::new(), Vec::new());
            for spec in specs {
                if let Some(existing) = self.load_balancer(&spec.id) {
                    made.push(existing);
                    continue;
                }
                let addresses: Vec<_> = free.by_ref().take(spec.addresses).collect();
                let leased = lease(&spec.id, &addresses)?;
                compare.extend(leased.0);
                changes.extend(leased.1);
                let load_balancer = LoadBalancer {
                    id: spec.id.clone(),
                    owner: spec.owner.clone(),
                    flavor: spec.flavor.clone(),
                    domain_name: spec.domain_name.clone(),
                    addresses,
                    metered_since: spec.metered.then(|| self.inner.clock.now()),
                };
                let key = key(&spec.id);
                changes.push(encode(&key, &load_balancer)?);
                compare.push(mod_revision_is(key, 0));
                made.push(load_balancer);
            }
            if changes.is_empty() || self.commit(compare, changes).await? {
                return Ok(made);
            }
        }
        let first = specs.first().map(|spec| key(&spec.id));
        Err(CloudError::Contention(first.unwrap_or_default()))
    }

    fn missing<'a>(
        &self,
        specs: &'a [LoadBalancerSpec],
    ) -> impl Iterator<Item = &'a LoadBalancerSpec> {
        let missing = move |spec: &&LoadBalancerSpec| self.load_balancer(&spec.id).is_none();
        specs.iter().filter(missing)
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
