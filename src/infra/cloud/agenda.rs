//! Which VMs something is to be done about, and when: an index over their deadlines.
//!
//! One timer serves all VMs, and what is due at one instant is done in a few transactions: ten thousand
//! VMs cost nothing while nothing happens, and the loss of a site not one round for each of them. It is
//! built from the records when the machinery starts, so nothing is lost with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::infra::record::{self, Record};
use crate::infra::reflector::{self, Change};
use crate::infra::vm::VmId;

#[derive(Default)]
pub(super) struct Agenda {
    /// Something about them changed since they were looked at.
    changed: BTreeSet<VmId>,
    due: BTreeSet<(Timestamp, VmId)>,
    /// The other way round: each VM is in `due` once at most.
    wakes: BTreeMap<VmId, Timestamp>,
}

impl Agenda {
    /// Takes note of what a change concerns. Returns whether that is anything.
    pub fn note(&mut self, change: &Change<'_, Record>) -> bool {
        match (change.new.map(Arc::as_ref), change.old.map(Arc::as_ref)) {
            (Some(Record::Vm(vm)), _) => {
                self.changed.insert(vm.spec.id.clone());
                true
            }
            (None, Some(Record::Vm(vm))) => {
                self.changed.remove(&vm.spec.id);
                self.wake(&vm.spec.id, None);
                false
            }
            (Some(Record::Site(datacenter, _)), _) => {
                for (_, stored) in reflector::under(change.records, record::VM) {
                    if let Record::Vm(vm) = stored.record.as_ref()
                        && vm.datacenter == *datacenter
                    {
                        self.changed.insert(vm.spec.id.clone());
                    }
                }
                true
            }
            _ => false,
        }
    }

    /// Takes up to `count` VMs to look at now: what changed first, then what is due; each in the order
    /// of ids. Whoever cannot finish gives them back.
    pub fn take(&mut self, now: Timestamp, count: usize) -> Vec<VmId> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(id) = self.changed.pop_first()
        {
            taken.push(id);
        }
        while taken.len() < count
            && let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, id)) = self.due.pop_first()
        {
            self.wakes.remove(&id);
            if !taken.contains(&id) {
                taken.push(id);
            }
        }
        taken
    }

    pub fn give_back(&mut self, ids: impl IntoIterator<Item = VmId>) {
        self.changed.extend(ids);
    }

    /// When the VM is to be looked at, if nothing about it changes before.
    pub fn wake(&mut self, id: &VmId, at: Option<Timestamp>) {
        if let Some(before) = self.wakes.remove(id) {
            self.due.remove(&(before, id.clone()));
        }
        if let Some(at) = at {
            self.wakes.insert(id.clone(), at);
            self.due.insert((at, id.clone()));
        }
    }

    /// When there is something to do next; at or before now if there is already.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        if !self.changed.is_empty() {
            return Some(now);
        }
        self.due.first().map(|(at, _)| *at)
    }
}
