//! A virtual machine: what is requested of it, and what is observed.
//!
//! ```text
//!   create_vm          boot time                       delete_vm             about 40 s
//!  ───────────▶ Provisioning ──────▶ Running { since } ──────────▶ Deleting ──────────▶ (no record)
//!                    └───▶ Failed ───────────────────────▲
//! ```
//!
//! A VM that runs may still be of no use: it was killed, hangs, or its site is away. Then it is not
//! [`reachable`](Vm::reachable), from that instant on; and after [`UNHEALTHY_AFTER`] failed probes,
//! one every [`PROBE_INTERVAL`], it is [`Unhealthy`](Health::Unhealthy).

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::{Activity, Timestamp};

/// Id of a VM, chosen by whoever creates it: so that creating twice is creating once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub String);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for VmId {
    fn from(id: &str) -> VmId {
        VmId(id.to_owned())
    }
}

/// One of the three sites in Paris.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Datacenter {
    #[serde(rename = "par-1")]
    Par1,
    #[serde(rename = "par-2")]
    Par2,
    #[serde(rename = "par-3")]
    Par3,
}

impl Datacenter {
    pub const ALL: [Datacenter; 3] = [Datacenter::Par1, Datacenter::Par2, Datacenter::Par3];

    pub fn as_str(self) -> &'static str {
        match self {
            Datacenter::Par1 => "par-1",
            Datacenter::Par2 => "par-2",
            Datacenter::Par3 => "par-3",
        }
    }

    /// The other way round.
    pub fn from_name(name: &str) -> Option<Datacenter> {
        Datacenter::ALL
            .into_iter()
            .find(|datacenter| datacenter.as_str() == name)
    }
}

impl fmt::Display for Datacenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How long a VM takes to run, as a kind of image: the platform's own boot faster than workers, which
/// also install what they need to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Image {
    ControlPlane,
    Worker,
}

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmSpec {
    pub id: VmId,
    pub name: String,
    /// Whose it is: opaque here; the platform writes a path, see `platform::store`.
    pub owner: String,
    /// `None`: wherever there is most room.
    pub datacenter: Option<Datacenter>,
    pub image: Image,
    pub vcpus: u32,
    /// Units of 1024³ bytes.
    pub ram_gb: u32,
    /// Id of the network group that it is a member of.
    #[serde(default)]
    pub network_group: Option<String>,
    /// What runs inside, like cloud-init's user data: opaque here.
    pub guest: serde_json::Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Requested {
    Running,
    Deleted,
}

/// Simulated time between two probes of a VM's health.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// So many failed probes in a row make a VM unhealthy.
pub const UNHEALTHY_AFTER: u32 = 3;
/// So many good probes in a row make it healthy again.
pub const HEALTHY_AFTER: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Observed {
    Provisioning,
    Running {
        since: Timestamp,
    },
    /// It never came to run, and never will: its boot failed, or it was killed before.
    Failed,
    Deleting,
}

/// Whether a VM that was booted is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Power {
    #[default]
    On,
    /// Went off with its site, and boots again when the site is back.
    Lost,
    /// Its site is back: it is on at [`Vm::boots_at`].
    Rebooting,
    /// Killed: off for good.
    Off,
}

/// What the health probes say. A VM that boots is healthy until they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy {
        since: Timestamp,
    },
}

/// A VM that does not answer for `down_seconds`, then answers for `up_seconds`, and so on: the first
/// time from when it was set. Shorter than what the probes need, it changes reachability and not health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flapping {
    /// At least 1.
    pub down_seconds: u32,
    /// At least 1.
    pub up_seconds: u32,
}

/// CPU and memory in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Thousandths of a vCPU. May be more than the VM has: work then waits.
    pub cpu_millis: u64,
    pub memory_kib: u64,
}

impl std::ops::Add for Load {
    type Output = Load;

    fn add(self, other: Load) -> Load {
        Load {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_kib: self.memory_kib.saturating_add(other.memory_kib),
        }
    }
}

/// A VM as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vm {
    pub spec: VmSpec,
    pub datacenter: Datacenter,
    pub hypervisor: String,
    /// In the private network of the platform.
    pub address: Ipv4Addr,
    pub requested: Requested,
    pub observed: Observed,
    pub created_at: Timestamp,
    /// When its last boot is over, if nothing happens to it.
    pub boots_at: Timestamp,
    /// Its boot fails at `boots_at`.
    #[serde(default)]
    pub boot_fails: bool,
    /// How often it was booted again: each boot takes its own time.
    #[serde(default)]
    pub reboots: u32,
    /// [`Site::losses`](super::site::Site::losses) as the VM has gone through them.
    #[serde(default)]
    pub site_losses: u32,
    /// When it will be gone, once its deletion is requested.
    pub gone_at: Option<Timestamp>,
    /// Since when it is on the meter: see [`metering`](super::metering).
    #[serde(default)]
    pub metered_since: Option<Timestamp>,
    #[serde(default)]
    pub power: Power,
    /// It runs and answers nothing.
    #[serde(default)]
    pub wedged: bool,
    #[serde(default)]
    pub flapping: Option<Flapping>,
    /// When a fault of the VM itself was last set or cleared.
    #[serde(default)]
    pub disturbed_at: Timestamp,
    /// Whether it answers: it runs, is on, does not hang, and its site can be reached.
    #[serde(default = "yes")]
    pub reachable: bool,
    /// When `reachable` last changed: the probes count from here.
    #[serde(default)]
    pub reachability_changed_at: Timestamp,
    #[serde(default)]
    pub health: Health,
    /// Always the sum of the two below.
    #[serde(default)]
    pub load: Load,
    /// What the guest says that it uses.
    #[serde(default)]
    pub guest_load: Load,
    /// Set by the user, on top of the guest's.
    #[serde(default)]
    pub user_load: Option<Load>,
}

fn yes() -> bool {
    true
}

impl Vm {
    /// Whether it came to run. It may be unreachable or unhealthy all the same.
    pub fn is_running(&self) -> bool {
        matches!(self.observed, Observed::Running { .. })
    }

    pub fn is_healthy(&self) -> bool {
        self.health == Health::Healthy
    }

    /// Sets what the load consists of.
    pub(super) fn set_loads(&mut self, guest: Load, user: Option<Load>) {
        self.guest_load = guest;
        self.user_load = user;
        self.load = guest + user.unwrap_or_default();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEventKind {
    /// The VM is there, in this state.
    Applied,
    /// The VM is gone; this is the last that was seen of it.
    Deleted,
}

/// What became of a VM. A manual clock stands still until the event is dropped: hold it while it
/// causes work.
pub struct VmEvent {
    pub vm: Arc<Vm>,
    pub kind: VmEventKind,
    pub activity: Activity,
}

/// A stream of what becomes of VMs, which starts with every VM that there is. Level-triggered: states
/// of one VM that nobody took in time are told as the last one, so what waits is bounded by the
/// number of VMs. Ends when the cloud shuts down.
pub struct VmWatch {
    pub(super) pending: Arc<PendingVms>,
}

/// What a watcher has not taken yet, in the order of the VMs' ids.
#[derive(Default)]
pub(super) struct PendingVms {
    state: Mutex<PendingState>,
}

#[derive(Default)]
struct PendingState {
    events: BTreeMap<VmId, VmEvent>,
    waker: Option<Waker>,
    closed: bool,
}

impl PendingVms {
    pub(super) fn push(&self, event: VmEvent) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.events.insert(event.vm.spec.id.clone(), event);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.events.clear();
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl VmWatch {
    /// The next event; `None` once the cloud has shut down.
    pub async fn next(&mut self) -> Option<VmEvent> {
        futures::StreamExt::next(self).await
    }
}

impl futures::Stream for VmWatch {
    type Item = VmEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<VmEvent>> {
        let mut state = self.pending.state.lock();
        match state.events.pop_first() {
            Some((_, event)) => Poll::Ready(Some(event)),
            None if state.closed => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for VmWatch {
    fn drop(&mut self) {
        // Otherwise what nobody will take would keep a manual clock from moving.
        self.pending.close();
    }
}
