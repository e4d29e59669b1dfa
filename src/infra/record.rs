//! What lies in the keyspace `infra`, and under which keys.
//!
//! | key | value |
//! |---|---|
//! | `/vm/<id>` | [`Vm`] |
//! | `/hypervisor/<name>` | [`Hypervisor`] |
//! | `/address/<ipv4>` | [`AddressLease`] |
//! | `/load-balancer/<id>` | [`LoadBalancer`] |
//! | `/network/<id>` | [`Network`] |
//! | `/metering/interval/<owner>/<start>/<resource>` | [`Interval`] |
//! | `/metering/rolled-up/<owner>/<end>` | [`RolledUp`](super::metering::RolledUp), read when asked for |
//! | `/clock` | [`ClockReading`](super::clock_reading) |

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fleet::Hypervisor;
use super::metering::{INTERVAL, Interval};
use super::vm::Vm;
use super::{LoadBalancer, Network};

pub const VM: &str = "/vm/";
pub const HYPERVISOR: &str = "/hypervisor/";
pub const ADDRESS: &str = "/address/";
pub const LOAD_BALANCER: &str = "/load-balancer/";
pub const NETWORK: &str = "/network/";

/// An address that somebody holds. A free one has no record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressLease {
    pub holder: String,
}

#[derive(Clone, Debug)]
pub enum Record {
    Vm(Vm),
    Hypervisor(Hypervisor),
    Address(AddressLease),
    LoadBalancer(LoadBalancer),
    Network(Network),
    Interval(Interval),
}

impl Record {
    /// As it is kept.
    pub fn to_json(&self) -> serde_json::Value {
        fn of(record: &impl Serialize) -> serde_json::Value {
            // It was read from JSON, or written as such.
            serde_json::to_value(record).unwrap_or_default()
        }
        match self {
            Record::Vm(record) => of(record),
            Record::Hypervisor(record) => of(record),
            Record::Address(record) => of(record),
            Record::LoadBalancer(record) => of(record),
            Record::Network(record) => of(record),
            Record::Interval(record) => of(record),
        }
    }
}

pub(super) fn decode(key: &str, value: &[u8]) -> Option<Record> {
    fn read<T: DeserializeOwned>(
        key: &str,
        value: &[u8],
        wrap: impl FnOnce(T) -> Record,
    ) -> Option<Record> {
        match serde_json::from_slice(value) {
            Ok(record) => Some(wrap(record)),
            Err(error) => {
                tracing::error!(key, %error, "cannot read a record");
                None
            }
        }
    }
    if key.starts_with(VM) {
        read(key, value, Record::Vm)
    } else if key.starts_with(HYPERVISOR) {
        read(key, value, Record::Hypervisor)
    } else if key.starts_with(ADDRESS) {
        read(key, value, Record::Address)
    } else if key.starts_with(LOAD_BALANCER) {
        read(key, value, Record::LoadBalancer)
    } else if key.starts_with(NETWORK) {
        read(key, value, Record::Network)
    } else if key.starts_with(INTERVAL) {
        read(key, value, Record::Interval)
    } else {
        None
    }
}

/// Everything that the cloud holds, at one revision.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub vms: Vec<Vm>,
    pub hypervisors: Vec<Hypervisor>,
    pub addresses: BTreeMap<Ipv4Addr, AddressLease>,
    pub load_balancers: Vec<LoadBalancer>,
    pub networks: Vec<Network>,
}

impl Inventory {
    pub(super) fn insert(&mut self, key: &str, record: &Record) {
        match record {
            Record::Vm(vm) => self.vms.push(vm.clone()),
            Record::Hypervisor(hypervisor) => self.hypervisors.push(hypervisor.clone()),
            Record::Address(lease) => {
                if let Ok(address) = key[ADDRESS.len()..].parse() {
                    self.addresses.insert(address, lease.clone());
                }
            }
            Record::LoadBalancer(load_balancer) => self.load_balancers.push(load_balancer.clone()),
            Record::Network(network) => self.networks.push(network.clone()),
            Record::Interval(_) => {}
        }
    }
}
