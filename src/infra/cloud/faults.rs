//! The provider's bad days, on demand. Every fault is kept in a record until it is cleared, so a restart
//! changes nothing; setting one twice is setting it once.

use crate::clock::Timestamp;
use crate::etcd::client::mod_revision_is;
use crate::infra::site::{
    BootFault, BootScope, CapacityFault, DatacenterState, MAX_SLOW_FACTOR_PERCENT, Site,
};
use crate::infra::vm::{Datacenter, Flapping, Load, Observed, Power, Vm, VmId};

use super::{ATTEMPTS, Cloud, CloudError, Result, encode, site_key};

/// The longest that a phase of a flapping VM may last: a day.
const MAX_FLAPPING_SECONDS: u32 = 86_400;
/// More than any VM has.
const MAX_LOAD: u64 = 1 << 40;

impl Cloud {
    /// Powers a VM off, for good. One that has not booted yet never will.
    pub async fn kill_vm(&self, id: &VmId) -> Result<()> {
        self.disturb(id, |vm| {
            if vm.observed == Observed::Provisioning {
                vm.observed = Observed::Failed;
            }
            vm.power = Power::Off;
        })
        .await
    }

    /// Makes a VM hang: it runs, and answers nothing; or lets it go on.
    pub async fn wedge_vm(&self, id: &VmId, wedged: bool) -> Result<()> {
        self.disturb(id, |vm| vm.wedged = wedged).await
    }

    /// Makes a VM come and go, until `None` is set.
    pub async fn flap_vm(&self, id: &VmId, flapping: Option<Flapping>) -> Result<()> {
        if let Some(flapping) = flapping {
            for seconds in [flapping.down_seconds, flapping.up_seconds] {
                let limits = (1, u64::from(MAX_FLAPPING_SECONDS));
                in_range("a phase in seconds", limits, seconds.into())?;
            }
        }
        self.disturb(id, |vm| vm.flapping = flapping).await
    }

    async fn disturb(&self, id: &VmId, disturb: impl Fn(&mut Vm)) -> Result<()> {
        self.change_existing(id, |vm, now| {
            disturb(vm);
            vm.disturbed_at = now;
        })
        .await
    }

    /// Sets what the user says that a VM uses, on top of what its guest does.
    pub async fn set_user_load(&self, id: &VmId, load: Option<Load>) -> Result<()> {
        check_load(load.unwrap_or_default())?;
        self.change_existing(id, |vm, _| vm.set_loads(vm.guest_load, load))
            .await
    }

    /// Says what the guest of a VM uses.
    pub async fn report_guest_load(&self, id: &VmId, load: Load) -> Result<()> {
        check_load(load)?;
        self.change_existing(id, |vm, _| vm.set_loads(load, vm.user_load))
            .await
    }

    /// Applies `change` unless it changes nothing but the time at which it was asked for.
    async fn change_existing(&self, id: &VmId, change: impl Fn(&mut Vm, Timestamp)) -> Result<()> {
        let found = self
            .change_vm(id, |vm, now| {
                let mut next = vm.clone();
                change(&mut next, now);
                let same = Vm {
                    disturbed_at: vm.disturbed_at,
                    ..next.clone()
                } == *vm;
                (!same).then_some(next)
            })
            .await?;
        if found {
            Ok(())
        } else {
            Err(CloudError::VmNotFound(id.clone()))
        }
    }

    /// What happens to a whole datacenter. Its VMs follow at the same instant.
    pub async fn set_datacenter(
        &self,
        datacenter: Datacenter,
        state: DatacenterState,
    ) -> Result<()> {
        self.change_sites(&[datacenter], |site, now| {
            if site.state == state {
                return;
            }
            if state == DatacenterState::Lost {
                site.losses = site.losses.saturating_add(1);
            }
            site.state = state;
            site.since = now;
        })
        .await
    }

    /// How much room new VMs find. Those that are there stay.
    pub async fn set_capacity(
        &self,
        datacenter: Datacenter,
        capacity: CapacityFault,
    ) -> Result<()> {
        if let CapacityFault::Percent(percent) = capacity {
            in_range("a percentage of the capacity", (0, 100), percent.into())?;
        }
        self.change_sites(&[datacenter], |site, _| site.capacity = capacity)
            .await
    }

    /// What happens to boots that begin from now on. Cleared by [`BootFault::default`].
    pub async fn set_boot_fault(&self, scope: BootScope, fault: BootFault) -> Result<()> {
        let slowest = u64::from(MAX_SLOW_FACTOR_PERCENT);
        in_range(
            "a factor of boot times in percent",
            (1, slowest),
            fault.slow_factor_percent.into(),
        )?;
        in_range(
            "a failure rate per mille",
            (0, 1000),
            fault.failure_per_mille.into(),
        )?;
        self.change_sites(&scope.datacenters(), |site, _| site.boot = fault)
            .await
    }

    async fn change_sites(
        &self,
        datacenters: &[Datacenter],
        change: impl Fn(&mut Site, Timestamp),
    ) -> Result<()> {
        self.inner.records.catch_up().await?;
        for _ in 0..ATTEMPTS {
            let now = self.inner.clock.now();
            let (mut compare, mut changes) = (Vec::new(), Vec::new());
            for datacenter in datacenters {
                let (site, revision) = self.stored_site(*datacenter);
                let mut next = site;
                change(&mut next, now);
                if next != site {
                    let key = site_key(*datacenter);
                    changes.push(encode(&key, &next)?);
                    compare.push(mod_revision_is(key, revision));
                }
            }
            if changes.is_empty() || self.commit(compare, changes).await? {
                return Ok(());
            }
        }
        Err(CloudError::Contention(String::from("a datacenter")))
    }
}

fn check_load(load: Load) -> Result<()> {
    in_range("CPU in thousandths", (0, MAX_LOAD), load.cpu_millis)?;
    in_range("memory in KiB", (0, MAX_LOAD), load.memory_kib)
}

fn in_range(what: &'static str, (least, most): (u64, u64), given: u64) -> Result<()> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    Err(CloudError::OutOfRange {
        what,
        least,
        most,
        given,
    })
}
