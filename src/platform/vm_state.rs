//! What the platform sees of a VM that it asked for.

use crate::clock::Timestamp;
use crate::infra::{Observed, Vm};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    Absent,
    Provisioning {
        outdated: bool,
    },
    /// `healthy`: the probes do not say otherwise.
    Running {
        since: Timestamp,
        outdated: bool,
        healthy: bool,
    },
    Failed,
    Deleting,
}

impl VmState {
    /// `guest` is what should run inside.
    pub fn of(vm: &Vm, guest: &serde_json::Value) -> VmState {
        let outdated = vm.spec.guest != *guest;
        match vm.observed {
            Observed::Provisioning => VmState::Provisioning { outdated },
            Observed::Running { since } => VmState::Running {
                since,
                outdated,
                healthy: vm.is_healthy(),
            },
            Observed::Failed => VmState::Failed,
            Observed::Deleting => VmState::Deleting,
        }
    }

    pub fn is_running(self) -> bool {
        matches!(self, VmState::Running { .. })
    }

    /// It runs and is healthy: what is on it works.
    pub fn is_serving(self) -> bool {
        matches!(self, VmState::Running { healthy: true, .. })
    }

    /// Something else than it should runs, or will run, inside.
    pub fn is_outdated(self) -> bool {
        matches!(
            self,
            VmState::Provisioning { outdated: true } | VmState::Running { outdated: true, .. }
        )
    }
}
