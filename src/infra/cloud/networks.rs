//! Requests about networks, and the peers that come and go with their VMs.

use etcd_proto::etcdserverpb::RequestOp;

use crate::etcd::client::{delete, mod_revision_is};
use crate::infra::network_group::{self, Peer};
use crate::infra::record::{self, Record};
use crate::infra::reflector;
use crate::infra::vm::{Vm, VmId};
use crate::infra::{Network, NetworkKind};

use super::{ATTEMPTS, Cloud, CloudError, Result, encode};

impl Cloud {
    /// Requests a network. Idempotent by id.
    pub async fn create_network(&self, id: &str, owner: &str, kind: NetworkKind) -> Result<()> {
        let key = network_key(id);
        let network = Network {
            id: id.to_owned(),
            owner: owner.to_owned(),
            kind,
            last_host: 0,
        };
        let compare = vec![mod_revision_is(key.clone(), 0)];
        // A comparison that fails says that it is there.
        self.commit(compare, vec![encode(&key, &network)?])
            .await
            .map(drop)
    }

    /// As [`Cloud::create_network`] for each, many in a transaction.
    pub async fn create_networks(&self, wanted: &[(String, String, NetworkKind)]) -> Result<()> {
        /// Each needs one operation and one comparison; etcd allows 128 by default.
        const AT_ONCE: usize = 100;
        let missing = |(id, ..): &&(String, String, NetworkKind)| self.network(id).is_none();
        let missing: Vec<_> = wanted.iter().filter(missing).collect();
        for chunk in missing.chunks(AT_ONCE) {
            let (mut compare, mut changes) = (Vec::new(), Vec::new());
            for (id, owner, kind) in chunk {
                let key = network_key(id);
                let network = Network {
                    id: id.clone(),
                    owner: owner.clone(),
                    kind: *kind,
                    last_host: 0,
                };
                changes.push(encode(&key, &network)?);
                compare.push(mod_revision_is(key, 0));
            }
            if !self.commit(compare, changes).await? {
                // One of them is there already: the others are asked for alone.
                for (id, owner, kind) in chunk {
                    self.create_network(id, owner, *kind).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes a network. Idempotent; one with VMs in it stays, and that is an error.
    pub async fn delete_network(&self, id: &str) -> Result<()> {
        let key = network_key(id);
        self.inner.records.catch_up().await?;
        for _ in 0..ATTEMPTS {
            let Some(stored) = self.inner.records.get(&key) else {
                return Ok(());
            };
            if !self.network_peers(id).is_empty() {
                return Err(CloudError::NetworkInUse(id.to_owned()));
            }
            // A VM that joins changes the record.
            let compare = vec![mod_revision_is(key.clone(), stored.mod_revision)];
            if self.commit(compare, vec![delete(key.clone())]).await? {
                return Ok(());
            }
        }
        Err(CloudError::Contention(key))
    }

    pub fn network(&self, id: &str) -> Option<Network> {
        match self.inner.records.get(&network_key(id))?.record.as_ref() {
            Record::Network(network) => Some(network.clone()),
            _ => None,
        }
    }

    /// Who is in a network group, in the order of the VMs' ids.
    pub fn network_peers(&self, network: &str) -> Vec<Peer> {
        let prefix = peers_of(network);
        self.inner.records.with(|records| {
            reflector::under(records, &prefix)
                .filter_map(|(_, stored)| match stored.record.as_ref() {
                    Record::Peer(peer) => Some(peer.clone()),
                    _ => None,
                })
                .collect()
        })
    }

    /// A peer's configuration as `wg-quick` reads it; `None` if the VM is not in the group.
    pub fn wireguard_configuration(&self, network: &str, vm: &VmId) -> Option<String> {
        let peers = self.network_peers(network);
        let own = peers.iter().find(|peer| peer.vm == *vm)?;
        Some(network_group::configuration(self.inner.seed, own, &peers))
    }

    /// What makes `vm` no peer of its network group, in the transaction that removes the VM.
    pub(super) fn part(vm: &Vm) -> Option<RequestOp> {
        let network = vm.spec.network_group.as_ref()?;
        Some(delete(peer_key(network, &vm.spec.id)))
    }
}

pub(super) fn network_key(id: &str) -> String {
    format!("{}{id}", record::NETWORK)
}

fn peers_of(network: &str) -> String {
    format!("{}{network}/", record::PEER)
}

pub(super) fn peer_key(network: &str, vm: &VmId) -> String {
    format!("{}{vm}", peers_of(network))
}
