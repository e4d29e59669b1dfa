//! The cloud's interface, and the machinery behind it: what is requested is recorded in one
//! transaction, and what follows happens when the clock reads the record's deadline.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::{Compare, RequestOp, TxnRequest};
use parking_lot::Mutex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Timestamp};
use crate::etcd::client::{Client, delete, header_revision, mod_revision_is, put};
use crate::leader::Term;

use super::fleet::{self, Hypervisor, Room};
use super::lifecycle;
use super::record::{self, AddressLease, Inventory, Record};
use super::reflector::{Observer, Records, Reflector, Stored};
use super::site::Site;
use super::vm::{Datacenter, PendingVms, Vm, VmEvent, VmEventKind, VmId, VmWatch};
use super::work_queue::{WorkQueue, Workers};
use super::{
    CloudConfig, CloudError, KEYSPACE, Observed, Requested, address_pool, boot, clock_reading,
};

/// How often a change is tried again after somebody else's came first.
const ATTEMPTS: usize = 32;

use agenda::Agenda;

type Result<T> = std::result::Result<T, CloudError>;

/// The simulated cloud. Cheap to clone.
#[derive(Clone)]
pub struct Cloud {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    clock: Clock,
    seed: u64,
    records: Reflector<Record>,
    /// The addresses of the records, which are ordered by their spelling.
    taken: Arc<Mutex<address_pool::Taken>>,
    /// Serves allocations of this process one after the other: each sees what the one before took.
    allocating: tokio::sync::Mutex<()>,
    watches: Mutex<Vec<std::sync::Weak<PendingVms>>>,
    cancel: CancellationToken,
}

/// What the cloud works on by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// Some of the VMs that something is to be done about: see [`Agenda`].
    Vms,
}

impl Cloud {
    /// Reads the state, and builds the hypervisors on a fresh store. See [`Cloud::act`].
    pub async fn start(config: CloudConfig) -> Result<Cloud> {
        let client = config.keyspaces.client(KEYSPACE);
        let cancel = CancellationToken::new();
        let records = Reflector::start(
            client.clone(),
            record::decode,
            &config.clock,
            cancel.clone(),
        )
        .await?;
        let taken: Arc<Mutex<address_pool::Taken>> = Arc::default();
        let held = Arc::clone(&taken);
        records.observe(Box::new(move |change| {
            let address = change.key.strip_prefix(record::ADDRESS);
            if let Some(address) = address.and_then(|address| address.parse().ok()) {
                let mut held = held.lock();
                match change.new {
                    Some(_) => held.insert(address),
                    None => held.remove(&address),
                };
            }
            true
        }));
        let cloud = Cloud {
            inner: Arc::new(Inner {
                taken,
                client,
                clock: config.clock.clone(),
                seed: config.seed,
                records,
                allocating: tokio::sync::Mutex::new(()),
                watches: Mutex::new(Vec::new()),
                cancel,
            }),
        };
        cloud.build_fleet(&config).await?;
        Ok(cloud)
    }

    /// Starts the machinery: what the records say is to happen does, from now on.
    pub fn act(&self, term: &Term) -> Workers {
        let queue = WorkQueue::new(self.inner.clock.clone(), term.clone());
        let agenda: Arc<Mutex<Agenda>> = Arc::default();
        let (changed, noted) = (queue.clone(), Arc::clone(&agenda));
        self.observe(Box::new(move |change| {
            if noted.lock().note(change) {
                changed.push(Task::Vms);
            }
            !changed.is_closed()
        }));
        let cloud = self.clone();
        let workers = queue.start(move |Task::Vms| {
            let (cloud, agenda) = (cloud.clone(), Arc::clone(&agenda));
            async move { cloud.work_on_vms(&agenda).await }
        });
        let (client, clock) = (self.inner.client.clone(), self.inner.clock.clone());
        workers.beside(clock_reading::keep(client, clock, term.clone()))
    }

    /// Ends every watch: nothing is seen here any more.
    pub fn close(&self) {
        self.inner.records.close();
        for watch in self.inner.watches.lock().drain(..) {
            if let Some(watch) = watch.upgrade() {
                watch.close();
            }
        }
    }

    /// Keeps the clock's reading, for a restart. A clock that runs has it done by itself; whoever advances a
    /// manual one does it before saying so, or a restart takes the time back to the last change of a record.
    pub async fn save_reading(&self) -> Result<()> {
        Ok(clock_reading::save(&self.inner.client, self.inner.clock.now()).await?)
    }

    /// Whether a VM of that size would find a place in the site now.
    pub fn has_room(&self, datacenter: Datacenter, room: Room) -> bool {
        self.inner.records.with(|records| {
            let site = |datacenter| site_of(records, datacenter).0;
            fleet::choose(hypervisors(records), site, Some(datacenter), room).is_some()
        })
    }

    /// Requests that a VM go away. One that is not there, or going, is left as it is.
    pub async fn delete_vm(&self, id: &VmId) -> Result<()> {
        let deleted = self.change_vm(id, |vm, now| self.deleted(vm, now));
        deleted.await.map(drop)
    }

    /// As [`Cloud::delete_vm`] for each, many in a transaction.
    pub async fn delete_vms(&self, ids: &[VmId]) -> Result<()> {
        /// Each needs two operations at most; etcd allows 128 by default.
        const AT_ONCE: usize = 50;
        if let [id] = ids {
            return self.delete_vm(id).await;
        }
        for chunk in ids.chunks(AT_ONCE) {
            self.inner.records.catch_up().await?;
            let (mut compare, mut changes) = (Vec::new(), Vec::new());
            for id in chunk {
                let key = vm_key(id);
                let now = self.inner.clock.now();
                let Some((vm, revision)) = self.stored_vm(&key) else {
                    continue;
                };
                let Some(mut going) = self.deleted(&vm, now) else {
                    continue;
                };
                changes.extend(Self::meter(&vm, &mut going, now)?);
                changes.push(encode(&key, &going)?);
                compare.push(mod_revision_is(key, revision));
            }
            if changes.is_empty() || self.commit(compare, changes).await? {
                continue;
            }
            // One of them was changed meanwhile.
            for id in chunk {
                self.delete_vm(id).await?;
            }
        }
        Ok(())
    }

    /// The VM on its way out; `None` if it is already.
    fn deleted(&self, vm: &Vm, now: Timestamp) -> Option<Vm> {
        if vm.requested == Requested::Deleted {
            return None;
        }
        let time = boot::deletion_time(self.inner.seed, &vm.spec.id);
        Some(Vm {
            requested: Requested::Deleted,
            observed: Observed::Deleting,
            reachable: false,
            gone_at: Some(now.saturating_add(time)),
            ..vm.clone()
        })
    }

    /// Replaces what runs inside a VM, as new user data would.
    pub async fn update_guest(&self, id: &VmId, guest: &serde_json::Value) -> Result<()> {
        let found = self
            .change_vm(id, |vm, _| {
                (vm.spec.guest != *guest).then(|| {
                    let mut vm = vm.clone();
                    vm.spec.guest = guest.clone();
                    vm
                })
            })
            .await?;
        if found {
            Ok(())
        } else {
            Err(CloudError::VmNotFound(id.clone()))
        }
    }

    /// Applies `change` to the VM until nobody comes in between. Returns whether it is there.
    async fn change_vm(
        &self,
        id: &VmId,
        change: impl Fn(&Vm, Timestamp) -> Option<Vm>,
    ) -> Result<bool> {
        let key = vm_key(id);
        // Only what was there before the call counts as "not there".
        self.inner.records.catch_up().await?;
        for _ in 0..ATTEMPTS {
            let Some((vm, revision)) = self.stored_vm(&key) else {
                return Ok(false);
            };
            let now = self.inner.clock.now();
            let Some(mut changed) = change(&vm, now) else {
                return Ok(true);
            };
            if changed.gone_at.is_none() {
                // What the change does at once is seen at once.
                let (site, _) = self.stored_site(vm.datacenter);
                lifecycle::settle(&mut changed, &site, now, self.inner.seed);
            }
            let compare = vec![mod_revision_is(key.clone(), revision)];
            let mut changes = Self::meter(&vm, &mut changed, now)?;
            changes.push(encode(&key, &changed)?);
            if self.commit(compare, changes).await? {
                return Ok(true);
            }
        }
        Err(CloudError::Contention(key))
    }

    pub fn get_vm(&self, id: &VmId) -> Option<Arc<Vm>> {
        self.vm(id)
    }

    /// In the order of their ids.
    pub fn list_vms(&self) -> Vec<Arc<Vm>> {
        let listed = self.inner.records.list(record::VM);
        listed
            .iter()
            .filter_map(|(_, stored)| as_vm(stored))
            .collect()
    }

    /// See [`VmWatch`].
    pub fn watch(&self) -> VmWatch {
        let pending = Arc::new(PendingVms::default());
        let clock = self.inner.clock.clone();
        let watcher = Arc::downgrade(&pending);
        {
            let mut watches = self.inner.watches.lock();
            watches.retain(|watch| watch.strong_count() > 0);
            watches.push(watcher.clone());
        }
        self.observe(Box::new(move |change| {
            let Some(pending) = watcher.upgrade() else {
                return false;
            };
            let (record, kind) = match (change.new, change.old) {
                (Some(new), _) => (new, VmEventKind::Applied),
                (None, Some(old)) => (old, VmEventKind::Deleted),
                (None, None) => return true,
            };
            if let Record::Vm(vm) = record.as_ref() {
                pending.push(VmEvent {
                    vm: Arc::clone(vm),
                    kind,
                    activity: clock.activity(),
                });
            }
            true
        }));
        if self.inner.cancel.is_cancelled() {
            pending.close();
        }
        VmWatch { pending }
    }

    /// Tells of every record, and of every change of one. For a layer above that decides from state.
    pub fn observe(&self, observer: Observer<Record>) {
        self.inner.records.observe(observer);
    }

    /// Holds `count` public addresses for `resource`. Doing it again returns the same ones.
    pub async fn allocate_public_ips(&self, resource: &str, count: usize) -> Result<Vec<Ipv4Addr>> {
        let _serial = self.inner.allocating.lock().await;
        for _ in 0..ATTEMPTS {
            let held = self.public_addresses_of(resource);
            if !held.is_empty() {
                return Ok(held);
            }
            let free = self.free_public(count)?;
            let (compare, changes) = lease(resource, &free)?;
            if self.commit(compare, changes).await? {
                return Ok(free);
            }
        }
        Err(CloudError::Contention(record::ADDRESS.to_owned()))
    }

    /// Frees what [`Cloud::allocate_public_ips`] holds for `resource`.
    pub async fn release_public_ips(&self, resource: &str) -> Result<()> {
        self.inner.records.catch_up().await?;
        let held = self.public_addresses_of(resource);
        let changes: Vec<RequestOp> = held.iter().map(|a| delete(address_key(*a))).collect();
        if !changes.is_empty() {
            self.commit(Vec::new(), changes).await?;
        }
        Ok(())
    }

    fn public_addresses_of(&self, holder: &str) -> Vec<Ipv4Addr> {
        let leases = self.inner.records.list(record::ADDRESS);
        leases
            .iter()
            .filter(|(_, stored)| {
                matches!(stored.record.as_ref(), Record::Address(lease) if lease.holder == holder)
            })
            .filter_map(|(key, _)| key[record::ADDRESS.len()..].parse().ok())
            .filter(|address| address_pool::is_public(*address))
            .collect()
    }

    fn free_public(&self, count: usize) -> Result<Vec<Ipv4Addr>> {
        address_pool::free_public(count, &self.inner.taken.lock()).ok_or(
            CloudError::AddressesExhausted {
                kind: "public",
                count,
            },
        )
    }

    /// Everything that there is, as of now.
    pub async fn inventory(&self) -> Result<Inventory> {
        self.inner.records.catch_up().await?;
        Ok(self.seen())
    }

    /// As [`Cloud::inventory`], as far as it is seen here.
    pub fn seen(&self) -> Inventory {
        self.inner.records.with(|records| {
            let mut inventory = Inventory::default();
            for (key, stored) in records {
                inventory.insert(key, &stored.record);
            }
            inventory
        })
    }

    /// The state of a datacenter, and the faults that are set for it.
    pub fn site(&self, datacenter: Datacenter) -> Site {
        self.stored_site(datacenter).0
    }

    fn stored_site(&self, datacenter: Datacenter) -> (Site, i64) {
        self.inner
            .records
            .with(|records| site_of(records, datacenter))
    }

    fn vm(&self, id: &VmId) -> Option<Arc<Vm>> {
        as_vm(&self.inner.records.get(&vm_key(id))?)
    }

    fn stored_vm(&self, key: &str) -> Option<(Arc<Vm>, i64)> {
        let stored = self.inner.records.get(key)?;
        Some((as_vm(&stored)?, stored.mod_revision))
    }

    /// Makes `changes` if `compare` holds. Returns whether it held. Either way the view then shows
    /// what the transaction saw.
    async fn commit(&self, compare: Vec<Compare>, mut changes: Vec<RequestOp>) -> Result<bool> {
        changes.push(clock_reading::stamp(self.inner.clock.now()));
        let response = self
            .inner
            .client
            .txn(TxnRequest {
                compare,
                success: changes,
                failure: Vec::new(),
            })
            .await?;
        let revision = header_revision(response.header);
        self.inner.records.wait_for(revision).await;
        Ok(response.succeeded)
    }

    async fn build_fleet(&self, config: &CloudConfig) -> Result<()> {
        let capacity = Room {
            vcpus: config.hypervisor_vcpus,
            ram_gb: config.hypervisor_ram_gb,
        };
        let fleet = fleet::of_size(config.hypervisors_per_datacenter, capacity);
        let mut missing = Vec::new();
        for hypervisor in &fleet {
            let key = hypervisor_key(&hypervisor.name);
            if self.inner.records.get(&key).is_none() {
                missing.push((mod_revision_is(key.clone(), 0), encode(&key, hypervisor)?));
            }
        }
        // etcd allows 128 operations a transaction by default.
        for chunk in missing.chunks(100) {
            let (compare, changes) = chunk.iter().cloned().unzip();
            self.commit(compare, changes).await?;
        }
        Ok(())
    }
}

fn as_vm(stored: &Stored<Record>) -> Option<Arc<Vm>> {
    match stored.record.as_ref() {
        Record::Vm(vm) => Some(Arc::clone(vm)),
        _ => None,
    }
}

/// Comparisons and changes that give free addresses to a holder.
fn lease(holder: &str, addresses: &[Ipv4Addr]) -> Result<(Vec<Compare>, Vec<RequestOp>)> {
    let lease = AddressLease {
        holder: holder.to_owned(),
    };
    let mut changes = Vec::new();
    for address in addresses {
        changes.push(encode(&address_key(*address), &lease)?);
    }
    let free = |address: &Ipv4Addr| mod_revision_is(address_key(*address), 0);
    Ok((addresses.iter().map(free).collect(), changes))
}

fn encode(key: &str, record: &impl Serialize) -> Result<RequestOp> {
    let value = serde_json::to_vec(record).map_err(|source| CloudError::Encode {
        key: key.to_owned(),
        source,
    })?;
    Ok(put(key.to_owned(), Bytes::from(value)))
}

fn vm_key(id: &VmId) -> String {
    format!("{}{id}", record::VM)
}

fn site_key(datacenter: Datacenter) -> String {
    format!("{}{datacenter}", record::SITE)
}

/// The site, and the revision of its record: 0 while it has none.
fn site_of(records: &Records<Record>, datacenter: Datacenter) -> (Site, i64) {
    let stored = records.get(&site_key(datacenter));
    match stored.map(|stored| (stored.record.as_ref(), stored.mod_revision)) {
        Some((Record::Site(_, site), revision)) => (*site, revision),
        _ => (Site::default(), 0),
    }
}

fn hypervisors(records: &Records<Record>) -> impl Iterator<Item = &Hypervisor> {
    let stored = super::reflector::under(records, record::HYPERVISOR);
    stored.filter_map(|(_, stored)| match stored.record.as_ref() {
        Record::Hypervisor(hypervisor) => Some(hypervisor),
        _ => None,
    })
}

fn hypervisor_key(name: &str) -> String {
    format!("{}{name}", record::HYPERVISOR)
}

fn address_key(address: Ipv4Addr) -> String {
    format!("{}{address}", record::ADDRESS)
}

mod agenda;
mod faults;
mod load_balancers;
mod metering;
mod networks;
mod vm_creation;
mod vm_work;
mod volumes;

#[cfg(test)]
mod tests;
