//! A datacenter's state, and the faults that a user set for all of it.
//!
//! One record for each site: whatever happens to ten thousand VMs at once is one small change, and the
//! VMs follow in batches. A site without a record is up, whole and has no faults.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::fleet::Room;
use super::vm::Datacenter;

/// Capacity of a degraded site, in percent.
const DEGRADED_CAPACITY: u32 = 50;
/// How long boots take in a degraded site, in percent of what they take otherwise.
const DEGRADED_SLOWNESS: u32 = 300;
/// Boots can be slowed down a thousandfold.
pub const MAX_SLOW_FACTOR_PERCENT: u32 = 100_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DatacenterState {
    #[default]
    Up,
    /// Without power: its VMs are off. When it comes back they boot again.
    Lost,
    /// Its VMs run, and nothing reaches them.
    Partitioned,
    /// Half of its capacity is there, and boots take three times as long.
    Degraded,
}

/// How much of a site's capacity new VMs can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CapacityFault {
    #[default]
    None,
    /// No VM finds room any more.
    Exhausted,
    /// So much of each hypervisor can be used, 0 to 100.
    Percent(u32),
}

/// What happens to boots that begin while it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootFault {
    /// Of the time that a boot takes otherwise: 100 is none the slower. 1 to [`MAX_SLOW_FACTOR_PERCENT`].
    pub slow_factor_percent: u32,
    /// So many of a thousand VMs fail; which ones depends on the seed and their ids. 0 to 1000.
    pub failure_per_mille: u32,
}

impl Default for BootFault {
    fn default() -> BootFault {
        BootFault {
            slow_factor_percent: 100,
            failure_per_mille: 0,
        }
    }
}

/// Where a fault of boots applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BootScope {
    Everywhere,
    Datacenter(Datacenter),
}

impl BootScope {
    pub fn datacenters(self) -> Vec<Datacenter> {
        match self {
            BootScope::Everywhere => Datacenter::ALL.to_vec(),
            BootScope::Datacenter(datacenter) => vec![datacenter],
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Site {
    pub state: DatacenterState,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// How often it lost its power: a VM that sees another number than before was off meanwhile.
    pub losses: u32,
    pub capacity: CapacityFault,
    pub boot: BootFault,
}

impl Site {
    /// Whether what runs there can be reached from outside.
    pub fn is_reachable(&self) -> bool {
        matches!(self.state, DatacenterState::Up | DatacenterState::Degraded)
    }

    pub fn has_power(&self) -> bool {
        self.state != DatacenterState::Lost
    }

    /// How much of a hypervisor's `capacity` VMs may take now.
    pub fn usable(&self, capacity: Room) -> Room {
        let faulty = match self.capacity {
            CapacityFault::None => 100,
            CapacityFault::Exhausted => 0,
            CapacityFault::Percent(percent) => percent.min(100),
        };
        let up = match self.state {
            DatacenterState::Up => 100,
            DatacenterState::Degraded => DEGRADED_CAPACITY,
            // Nobody there can be asked for a VM.
            DatacenterState::Lost | DatacenterState::Partitioned => 0,
        };
        let part = |of: u32| {
            let part = u64::from(of) * u64::from(faulty) * u64::from(up) / 10_000;
            u32::try_from(part).unwrap_or(of)
        };
        Room {
            vcpus: part(capacity.vcpus),
            ram_gb: part(capacity.ram_gb),
        }
    }

    /// How long a boot takes that begins now, in percent of what it takes otherwise.
    pub fn boot_slowness(&self) -> u32 {
        let site = match self.state {
            DatacenterState::Degraded => DEGRADED_SLOWNESS,
            _ => 100,
        };
        let slowness = u64::from(site) * u64::from(self.boot.slow_factor_percent) / 100;
        u32::try_from(slowness).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_and_slowness_follow_state_and_faults() {
        use CapacityFault::{Exhausted, None, Percent};
        use DatacenterState::{Degraded, Lost, Partitioned, Up};
        let check = |state, capacity, slow_factor_percent, vcpus, slowness| {
            let site = Site {
                state,
                capacity,
                boot: BootFault {
                    slow_factor_percent,
                    failure_per_mille: 0,
                },
                ..Site::default()
            };
            let whole = Room {
                vcpus: 64,
                ram_gb: 256,
            };
            let expect = Room {
                vcpus,
                ram_gb: vcpus * 4,
            };
            assert_eq!(site.usable(whole), expect, "{site:?}");
            assert_eq!(site.boot_slowness(), slowness, "{site:?}");
        };
        check(Up, None, 100, 64, 100);
        check(Up, Exhausted, 250, 0, 250);
        check(Up, Percent(25), 100, 16, 100);
        check(Up, Percent(400), 50, 64, 50);
        check(Degraded, None, 100, 32, 300);
        check(Degraded, Percent(50), 200, 16, 600);
        check(Lost, None, 100, 0, 100);
        check(Partitioned, None, 100, 0, 100);
    }
}
