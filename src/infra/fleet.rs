//! Hypervisors: how much room there is, and where a VM goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::site::Site;
use super::vm::{Datacenter, VmId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    pub vcpus: u32,
    pub ram_gb: u32,
}

/// A machine that hosts VMs. Its record names them, so what is used is never a count of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hypervisor {
    pub name: String,
    pub datacenter: Datacenter,
    pub capacity: Room,
    pub placed: BTreeMap<VmId, Room>,
}

impl Hypervisor {
    /// What is left of the part that the site lets VMs use.
    pub fn free(&self, site: &Site) -> Room {
        let used = |of: fn(&Room) -> u32| self.placed.values().map(of).fold(0, u32::saturating_add);
        let usable = site.usable(self.capacity);
        Room {
            vcpus: usable.vcpus.saturating_sub(used(|room| room.vcpus)),
            ram_gb: usable.ram_gb.saturating_sub(used(|room| room.ram_gb)),
        }
    }
}

/// The hypervisor with most room among those where `room` fits; the first by name among equals.
pub fn choose<'a>(
    fleet: impl Iterator<Item = &'a Hypervisor>,
    site: impl Fn(Datacenter) -> Site,
    datacenter: Option<Datacenter>,
    room: Room,
) -> Option<&'a Hypervisor> {
    fleet
        .filter(|candidate| datacenter.is_none_or(|wanted| candidate.datacenter == wanted))
        .map(|candidate| (candidate, candidate.free(&site(candidate.datacenter))))
        .filter(|(_, free)| free.vcpus >= room.vcpus && free.ram_gb >= room.ram_gb)
        .max_by(|(a, a_free), (b, b_free)| {
            (a_free.vcpus, a_free.ram_gb, &b.name).cmp(&(b_free.vcpus, b_free.ram_gb, &a.name))
        })
        .map(|(candidate, _)| candidate)
}

/// `count` hypervisors in each datacenter, named as their records are.
pub fn of_size(count: u32, capacity: Room) -> Vec<Hypervisor> {
    Datacenter::ALL
        .into_iter()
        .flat_map(|datacenter| {
            (0..count).map(move |number| Hypervisor {
                name: format!("{datacenter}-hv{number:02}"),
                datacenter,
                capacity,
                placed: BTreeMap::new(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_goes_where_most_room_is() {
        let mut fleet = of_size(
            2,
            Room {
                vcpus: 16,
                ram_gb: 32,
            },
        );
        let mut check = |datacenter, vcpus, ram_gb, expect: Option<&str>| {
            let room = Room { vcpus, ram_gb };
            let chosen =
                choose(fleet.iter(), |_| Site::default(), datacenter, room).map(|h| h.name.clone());
            assert_eq!(chosen.as_deref(), expect);
            if let Some(hypervisor) = fleet.iter_mut().find(|h| Some(&h.name) == chosen.as_ref()) {
                let id = VmId(format!("vm-{}", hypervisor.placed.len()));
                hypervisor.placed.insert(id, room);
            }
        };
        check(None, 8, 8, Some("par-1-hv00"));
        check(None, 8, 8, Some("par-1-hv01"));
        check(Some(Datacenter::Par1), 8, 24, Some("par-1-hv00"));
        check(Some(Datacenter::Par1), 16, 8, None);
        check(Some(Datacenter::Par1), 8, 24, Some("par-1-hv01"));
        check(Some(Datacenter::Par1), 1, 1, None);
        check(Some(Datacenter::Par3), 16, 32, Some("par-3-hv00"));
        check(None, 17, 1, None);
    }
}
