//! What the platform sees of a VM that it asked for.

use crate::clock::Timestamp;
use crate::infra::{Observed, Vm};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    Absent,
    Provisioning {
        /// When it was asked for.
        since: Timestamp,
    },
    Running {
        since: Timestamp,
        /// What the health probes say: they take a while to change their mind.
        healthy: bool,
        /// It answers at this instant.
        reachable: bool,
    },
    /// It never ran and never will.
    Failed,
    Deleting,
}

impl VmState {
    pub fn of(vm: &Vm) -> VmState {
        match vm.observed {
            Observed::Provisioning => VmState::Provisioning {
                since: vm.created_at,
            },
            Observed::Running { since } => VmState::Running {
                since,
                healthy: vm.is_healthy(),
                reachable: vm.reachable,
            },
            Observed::Failed => VmState::Failed,
            Observed::Deleting => VmState::Deleting,
        }
    }

    pub fn is_running(self) -> bool {
        matches!(self, VmState::Running { .. })
    }

    pub fn is_healthy(self) -> bool {
        matches!(self, VmState::Running { healthy: true, .. })
    }

    /// Healthy, and it answers at this instant.
    pub fn is_serving(self) -> bool {
        matches!(
            self,
            VmState::Running {
                healthy: true,
                reachable: true,
                ..
            }
        )
    }
}
