//! The simulated cloud: VMs, addresses, load balancers and networks in three datacenters.
//!
//! It stands where a real IaaS would: callers request states ([`Cloud::create_vm`],
//! [`Cloud::delete_vm`]) and observe what became of them ([`Cloud::watch`]). A request is answered
//! as soon as it is recorded; the machine itself takes its time. Everything is kept in the etcd
//! keyspace `infra`, with deadlines as readings of the clock, so a restart changes nothing.
//!
//! May use `leader`, `etcd::client` and `clock`. Must never know what runs inside a VM, nor who owns it beyond
//! a name.

pub mod address_pool;
mod boot;
mod clock_reading;
pub mod fleet;
mod lifecycle;
pub mod metering;
pub mod network_group;
pub mod record;
pub mod reflector;
pub mod site;
pub mod vm;
pub mod volume;
pub mod work_queue;

mod cloud;
#[cfg(test)]
pub(crate) mod testing;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Timestamp};
use crate::etcd::client::{ClientError, SharedKeyspaces};

pub use clock_reading::{last_reading, save as save_reading, stamp};
pub use cloud::Cloud;
pub use network_group::Peer;
pub use record::Inventory;
pub use site::{BootFault, BootScope, CapacityFault, DatacenterState, Site};
pub use vm::{
    Datacenter, Flapping, Health, Image, Load, Observed, Power, Requested, Vm, VmEvent,
    VmEventKind, VmId, VmSpec, VmWatch,
};
pub use volume::Volume;

/// Name of the keyspace that holds everything of this layer.
pub const KEYSPACE: &str = "infra";

/// What the clock must read at least when it starts; `None` on a fresh store.
pub async fn last_instant(keyspaces: &SharedKeyspaces) -> Result<Option<Timestamp>, ClientError> {
    last_reading(&keyspaces.client(KEYSPACE)).await
}

#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    #[error("no hypervisor{} has {vcpus} vCPU and {ram_gb} GB free", in_datacenter(*.datacenter))]
    NoCapacity {
        datacenter: Option<Datacenter>,
        vcpus: u32,
        ram_gb: u32,
    },
    #[error("fewer than {count} {kind} addresses are free")]
    AddressesExhausted { kind: &'static str, count: usize },
    #[error("VM {0} is not there")]
    VmNotFound(VmId),
    /// The id is taken by a VM that is being deleted, or by one of another shape.
    #[error("VM {0} exists and is not what is asked for")]
    VmConflict(VmId),
    #[error("{what} must be {least} to {most}, and is {given}")]
    OutOfRange {
        what: &'static str,
        least: u64,
        most: u64,
        given: u64,
    },
    #[error("network {0} is not there")]
    NetworkNotFound(String),
    #[error("network {0} still has VMs")]
    NetworkInUse(String),
    #[error("volume {0} is not there")]
    VolumeNotFound(String),
    #[error("volume {0} exists and is not what is asked for")]
    VolumeConflict(String),
    #[error("too many changes at once to {0}")]
    Contention(String),
    #[error(transparent)]
    Store(#[from] ClientError),
    #[error("a record of {key} cannot be kept: {source}")]
    Encode {
        key: String,
        source: serde_json::Error,
    },
}

fn in_datacenter(datacenter: Option<Datacenter>) -> String {
    datacenter.map_or_else(String::new, |name| format!(" in {name}"))
}

/// What a simulated cloud is made of.
#[derive(Clone)]
pub struct CloudConfig {
    pub keyspaces: SharedKeyspaces,
    pub clock: Clock,
    pub seed: u64,
    pub hypervisors_per_datacenter: u32,
    pub hypervisor_vcpus: u32,
    pub hypervisor_ram_gb: u32,
}

impl CloudConfig {
    /// Room for about 2,400 organisations at the default quota, and for 10,000 VMs of 8 vCPU with a whole
    /// site lost.
    pub fn new(keyspaces: SharedKeyspaces, clock: Clock, seed: u64) -> CloudConfig {
        CloudConfig {
            keyspaces,
            clock,
            seed,
            hypervisors_per_datacenter: 80,
            hypervisor_vcpus: 512,
            hypervisor_ram_gb: 2048,
        }
    }
}

/// A load balancer of the shared fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    pub id: String,
    /// Whose it is, as [`VmSpec::owner`].
    pub owner: String,
    /// Such as `XS-duo`.
    pub flavor: String,
    pub domain_name: String,
    /// Public; its own as long as it exists.
    pub addresses: Vec<Ipv4Addr>,
    /// Since when it is on the meter: see [`metering`]. `None`: it never is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metered_since: Option<Timestamp>,
}

/// A request for a load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancerSpec {
    pub id: String,
    /// Whose it is, as [`VmSpec::owner`].
    pub owner: String,
    /// Such as `XS-duo`.
    pub flavor: String,
    pub domain_name: String,
    /// How many public addresses it has.
    pub addresses: usize,
    /// Whether it is on the meter; else it is a part of something that is.
    pub metered: bool,
}

/// A network between VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub id: String,
    /// Whose it is, as [`VmSpec::owner`].
    pub owner: String,
    pub kind: NetworkKind,
    /// Host number of the address that a VM got last; 0 before the first.
    #[serde(default)]
    pub last_host: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NetworkKind {
    /// A WireGuard mesh.
    NetworkGroup,
    /// What joins a cluster to the load balancer fleet.
    LoadBalancer,
}
