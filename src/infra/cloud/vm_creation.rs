//! Requests of VMs: many in one transaction.
//!
//! What they take (room, addresses, places in networks) is taken one after the other in a [`Draft`], as if
//! each had been asked for alone; then all of it is written, with a comparison of each record that it was
//! decided from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use etcd_proto::etcdserverpb::{Compare, RequestOp};

use crate::clock::Timestamp;
use crate::etcd::client::mod_revision_is;
use crate::infra::fleet::{self, Hypervisor, Room};
use crate::infra::network_group::{self, Peer};
use crate::infra::record::{AddressLease, Record};
use crate::infra::vm::{Datacenter, Health, Load, Power, Vm, VmSpec};
use crate::infra::{Network, Observed, Requested, address_pool, boot};

use super::networks::{network_key, peer_key};
use super::{
    ATTEMPTS, Cloud, CloudError, Result, address_key, encode, hypervisor_key, hypervisors,
    site_key, site_of, vm_key,
};

/// VMs in a transaction: each needs three operations and two comparisons of its own at most, and one of each for its
/// hypervisor, its site and its network. etcd allows 128 by default.
const AT_ONCE: usize = 24;

/// What a transaction is to write, and what it was decided from.
#[derive(Default)]
struct Draft {
    compare: Vec<Compare>,
    changes: Vec<RequestOp>,
    /// With the revision of the record that was changed, as the others.
    hypervisors: BTreeMap<String, (Hypervisor, i64)>,
    networks: BTreeMap<String, (Network, i64)>,
    /// Addresses of the peers that come, by network.
    peers: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    sites: BTreeMap<Datacenter, i64>,
    addresses: BTreeSet<Ipv4Addr>,
}

impl Cloud {
    /// Requests a VM. Doing it again, with the same id and shape, changes nothing.
    pub async fn create_vm(&self, spec: VmSpec) -> Result<Arc<Vm>> {
        let mut outcomes = self.create_vms(std::slice::from_ref(&spec)).await?;
        let outcome = outcomes.pop();
        outcome.unwrap_or_else(|| Err(CloudError::Contention(vm_key(&spec.id))))
    }

    /// As [`Cloud::create_vm`] for each, in order. What one is refused for is its own outcome.
    pub async fn create_vms(&self, specs: &[VmSpec]) -> Result<Vec<Result<Arc<Vm>>>> {
        let _serial = self.inner.allocating.lock().await;
        let mut outcomes = Vec::with_capacity(specs.len());
        for chunk in specs.chunks(AT_ONCE) {
            outcomes.extend(self.create_at_once(chunk).await?);
        }
        Ok(outcomes)
    }

    async fn create_at_once(&self, specs: &[VmSpec]) -> Result<Vec<Result<Arc<Vm>>>> {
        for _ in 0..ATTEMPTS {
            let now = self.inner.clock.now();
            let mut draft = Draft::default();
            let drafted = specs.iter().map(|spec| self.draft(spec, now, &mut draft));
            let drafted: Vec<_> = drafted.collect();
            let (compare, changes) = draft.finish()?;
            if changes.is_empty() || self.commit(compare, changes).await? {
                return Ok(drafted);
            }
        }
        let first = specs.first().map(|spec| vm_key(&spec.id));
        Err(CloudError::Contention(first.unwrap_or_default()))
    }

    /// Takes what the VM needs.
    fn draft(&self, spec: &VmSpec, now: Timestamp, draft: &mut Draft) -> Result<Arc<Vm>> {
        if let Some(existing) = self.vm(&spec.id) {
            let same = existing.spec.vcpus == spec.vcpus
                && existing.spec.ram_gb == spec.ram_gb
                && existing.spec.owner == spec.owner
                && existing.requested == Requested::Running;
            return if same {
                Ok(existing)
            } else {
                Err(CloudError::VmConflict(spec.id.clone()))
            };
        }
        let room = Room {
            vcpus: spec.vcpus,
            ram_gb: spec.ram_gb,
        };
        let (hypervisor, datacenter) = self.choose_hypervisor(spec, room, draft)?;
        let (site, site_seen) = self.stored_site(datacenter);
        let free = address_pool::free_private(datacenter, &self.inner.taken.lock(), |address| {
            draft.addresses.contains(address)
        });
        let address = free.ok_or(CloudError::AddressesExhausted {
            kind: "private",
            count: 1,
        })?;
        let vm = Vm {
            datacenter,
            hypervisor: hypervisor.clone(),
            address,
            requested: Requested::Running,
            observed: Observed::Provisioning,
            created_at: now,
            boots_at: now.saturating_add(boot::time(self.inner.seed, spec, 0, &site)),
            boot_fails: boot::fails(self.inner.seed, &spec.id, site.boot.failure_per_mille),
            reboots: 0,
            site_losses: site.losses,
            gone_at: None,
            metered_since: None,
            power: Power::On,
            wedged: false,
            flapping: None,
            disturbed_at: now,
            reachable: false,
            reachability_changed_at: now,
            health: Health::Healthy,
            load: Load::default(),
            guest_load: Load::default(),
            user_load: None,
            spec: spec.clone(),
        };
        let peer = self.join(&vm, draft)?;
        // From here on nothing is refused.
        let key = vm_key(&spec.id);
        let lease = AddressLease {
            holder: spec.id.0.clone(),
        };
        draft.changes.push(encode(&key, &vm)?);
        draft.changes.push(encode(&address_key(address), &lease)?);
        draft.changes.extend(peer);
        draft.compare.push(mod_revision_is(key, 0));
        draft.compare.push(mod_revision_is(address_key(address), 0));
        draft.addresses.insert(address);
        draft.sites.insert(datacenter, site_seen);
        if let Some((chosen, _)) = draft.hypervisors.get_mut(&hypervisor) {
            chosen.placed.insert(spec.id.clone(), room);
        }
        Ok(Arc::new(vm))
    }

    /// Where most room is, beside what the draft takes: the name and site of the hypervisor, which is in the draft
    /// then.
    fn choose_hypervisor(
        &self,
        spec: &VmSpec,
        room: Room,
        draft: &mut Draft,
    ) -> Result<(String, Datacenter)> {
        let chosen = self.inner.records.with(|records| {
            let site = |datacenter| site_of(records, datacenter).0;
            let drafted = &draft.hypervisors;
            let fleet = hypervisors(records)
                .map(|it| drafted.get(&it.name).map_or(it, |(drafted, _)| drafted));
            let chosen = fleet::choose(fleet, site, spec.datacenter, room)?;
            let stored = records.get(&hypervisor_key(&chosen.name))?;
            Some((chosen.clone(), stored.mod_revision))
        });
        let (chosen, seen) = chosen.ok_or(CloudError::NoCapacity {
            datacenter: spec.datacenter,
            vcpus: spec.vcpus,
            ram_gb: spec.ram_gb,
        })?;
        let (name, datacenter) = (chosen.name.clone(), chosen.datacenter);
        draft
            .hypervisors
            .entry(name.clone())
            .or_insert((chosen, seen));
        Ok((name, datacenter))
    }

    /// Makes `vm` a peer of its network group: an operation to be written with the VM.
    fn join(&self, vm: &Vm, draft: &mut Draft) -> Result<Option<RequestOp>> {
        let Some(id) = &vm.spec.network_group else {
            return Ok(None);
        };
        let known = draft.networks.get(id).map(|(network, _)| network.last_host);
        let last_host = match known {
            Some(last_host) => last_host,
            None => {
                let stored = self.inner.records.get(&network_key(id));
                let Some((Record::Network(network), revision)) = stored
                    .as_ref()
                    .map(|stored| (stored.record.as_ref(), stored.mod_revision))
                else {
                    return Err(CloudError::NetworkNotFound(id.clone()));
                };
                let seen = (network.clone(), revision);
                draft.networks.insert(id.clone(), seen);
                network.last_host
            }
        };
        let coming = draft.peers.entry(id.clone()).or_default();
        let peers = self.network_peers(id);
        let is_taken = |host| {
            let address = network_group::address_of(id, host);
            coming.contains(&address) || peers.iter().any(|peer| peer.address == address)
        };
        let host = network_group::next_host(last_host, is_taken).ok_or(
            CloudError::AddressesExhausted {
                kind: "network group",
                count: 1,
            },
        )?;
        let peer = Peer {
            network: id.clone(),
            vm: vm.spec.id.clone(),
            hostname: vm.spec.name.clone(),
            hypervisor: vm.hypervisor.clone(),
            address: network_group::address_of(id, host),
            endpoint: vm.address,
            public_key: network_group::public_key(self.inner.seed, id, &vm.spec.id),
        };
        let written = encode(&peer_key(id, &vm.spec.id), &peer)?;
        coming.insert(peer.address);
        if let Some((network, _)) = draft.networks.get_mut(id) {
            network.last_host = host;
        }
        Ok(Some(written))
    }
}

impl Draft {
    fn finish(self) -> Result<(Vec<Compare>, Vec<RequestOp>)> {
        let (mut compare, mut changes) = (self.compare, self.changes);
        if changes.is_empty() {
            return Ok((compare, changes));
        }
        for (name, (hypervisor, revision)) in &self.hypervisors {
            let key = hypervisor_key(name);
            changes.push(encode(&key, hypervisor)?);
            compare.push(mod_revision_is(key, *revision));
        }
        for (id, (network, revision)) in &self.networks {
            let key = network_key(id);
            changes.push(encode(&key, network)?);
            compare.push(mod_revision_is(key, *revision));
        }
        for (datacenter, revision) in &self.sites {
            compare.push(mod_revision_is(site_key(*datacenter), *revision));
        }
        Ok((compare, changes))
    }
}
