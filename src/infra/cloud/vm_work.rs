//! Brings VMs to where the clock says that they are: many in one transaction.
//!
//! The rules are in [`lifecycle`]. A round takes some VMs from the [`Agenda`], and keeps what becomes of
//! them in one transaction that compares each record; if one of them was changed meanwhile, the round is
//! taken again from what is there then.

use std::collections::BTreeMap;

use etcd_proto::etcdserverpb::{Compare, RequestOp};
use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::etcd::client::{delete, mod_revision_is};
use crate::infra::fleet::Hypervisor;
use crate::infra::lifecycle::{self, Fate};
use crate::infra::record::Record;
use crate::infra::vm::{Vm, VmId};

use super::agenda::Agenda;
use super::{ATTEMPTS, Cloud, CloudError, Result, address_key, encode, hypervisor_key, vm_key};

/// VMs looked at in a round. Each needs three operations at most besides its hypervisor's, and etcd
/// allows 128 in a transaction by default.
const AT_ONCE: usize = 30;

#[derive(Default)]
struct Batch {
    compare: Vec<Compare>,
    changes: Vec<RequestOp>,
    /// Those that VMs leave, with the revision of the record that was changed.
    hypervisors: BTreeMap<String, (Hypervisor, i64)>,
    /// When each VM that stays as it is wants to be looked at again.
    wakes: Vec<(VmId, Option<Timestamp>)>,
}

impl Cloud {
    /// One round. Returns when the next is due.
    pub(super) async fn work_on_vms(&self, agenda: &Mutex<Agenda>) -> Result<Option<Timestamp>> {
        let now = self.inner.clock.now();
        let taken = agenda.lock().take(now, AT_ONCE);
        if let Err(error) = self.follow_vms(&taken, agenda).await {
            agenda.lock().give_back(taken);
            return Err(error);
        }
        Ok(agenda.lock().next(self.inner.clock.now()))
    }

    async fn follow_vms(&self, ids: &[VmId], agenda: &Mutex<Agenda>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            // Nobody else may change hypervisors while VMs leave them.
            let _serial = self.inner.allocating.lock().await;
            let mut batch = self.batch(ids)?;
            // Before the commit: a change that comes from it, or after it, is noted again.
            for (id, at) in std::mem::take(&mut batch.wakes) {
                agenda.lock().wake(&id, at);
            }
            for (hypervisor, revision) in batch.hypervisors.into_values() {
                let key = hypervisor_key(&hypervisor.name);
                batch.changes.push(encode(&key, &hypervisor)?);
                batch.compare.push(mod_revision_is(key, revision));
            }
            if batch.changes.is_empty() || self.commit(batch.compare, batch.changes).await? {
                return Ok(());
            }
        }
        Err(CloudError::Contention(String::from("VMs that move on")))
    }

    /// What becomes of the VMs, as they are seen now.
    fn batch(&self, ids: &[VmId]) -> Result<Batch> {
        let mut batch = Batch::default();
        let now = self.inner.clock.now();
        for id in ids {
            let key = vm_key(id);
            let Some((vm, revision)) = self.stored_vm(&key) else {
                batch.wakes.push((id.clone(), None));
                continue;
            };
            let site = self.site(vm.datacenter);
            match lifecycle::follow(&vm, &site, now, self.inner.seed) {
                Fate::Rests { wake } => {
                    batch.wakes.push((id.clone(), wake));
                    continue;
                }
                Fate::Changes(mut next) => {
                    batch.changes.extend(Self::meter(&vm, &mut next, now)?);
                    batch.changes.push(encode(&key, next.as_ref())?);
                }
                Fate::Goes => {
                    batch.changes.push(delete(key.clone()));
                    batch.changes.push(delete(address_key(vm.address)));
                    self.leave_hypervisor(&vm, &mut batch.hypervisors);
                }
            }
            batch.compare.push(mod_revision_is(key, revision));
        }
        Ok(batch)
    }

    fn leave_hypervisor(&self, vm: &Vm, hypervisors: &mut BTreeMap<String, (Hypervisor, i64)>) {
        if !hypervisors.contains_key(&vm.hypervisor)
            && let Some(stored) = self.inner.records.get(&hypervisor_key(&vm.hypervisor))
            && let Record::Hypervisor(hypervisor) = stored.record.as_ref()
        {
            let seen = (hypervisor.clone(), stored.mod_revision);
            hypervisors.insert(vm.hypervisor.clone(), seen);
        }
        if let Some((hypervisor, _)) = hypervisors.get_mut(&vm.hypervisor) {
            hypervisor.placed.remove(&vm.spec.id);
        }
    }
}
