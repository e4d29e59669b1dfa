//! What can be ordered: topologies, flavors, versions, rates. The one source of each of these facts
//! (spec, "Cluster topologies", "Supported versions", "Pricing"; contract cke-models 3 and 9).

use super::model::{Flavor, TopologyKind};
use super::rates::{Rate, Rates, VmRates};

/// Versions that can be ordered, oldest first.
pub const AVAILABLE_VERSIONS: [&str; 3] = ["1.34", "1.35", "1.36"];
/// Version of a cluster that asks for none.
pub const DEFAULT_VERSION: &str = "1.36";
/// Versions that existed and can no longer be ordered.
pub const UNSUPPORTED_VERSIONS: [&str; 1] = ["1.33"];
/// The one location.
pub const LOCATION: &str = "par";
/// How often each control-plane VM may be replicated.
pub const REPLICATION_FACTOR: std::ops::RangeInclusive<u8> = 1..=5;
/// Kubernetes' own limit of pods on a node.
pub const MAX_PODS: u32 = 110;
/// Ephemeral storage of a node, in KiB, as measured on real nodes.
pub const EPHEMERAL_STORAGE_KIB: u64 = 40_971_488;
/// Hours of a month, for prices (30 × 24).
pub const HOURS_PER_MONTH: u32 = 720;

/// What a VM of a flavor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlavorSize {
    pub vcpus: u32,
    /// Units of 1024³ bytes.
    pub ram_gb: u32,
    /// What the kernel of such a VM sees, in KiB. Measured on real nodes up to M.
    pub visible_memory_kib: u64,
}

impl Flavor {
    pub fn size(self) -> FlavorSize {
        let (vcpus, ram_gb, visible_memory_kib) = match self {
            Flavor::Xxs => (4, 4, 3_911_884),
            Flavor::Xs => (6, 8, 7_937_580),
            Flavor::S => (8, 12, 11_957_148),
            Flavor::M => (10, 16, 15_988_992),
            Flavor::L => (12, 24, 23_983_488),
            Flavor::Xl => (16, 32, 31_977_984),
        };
        FlavorSize {
            vcpus,
            ram_gb,
            visible_memory_kib,
        }
    }
}

impl TopologyKind {
    /// Flavors of control-plane VMs, from small to large.
    pub fn flavors(self) -> &'static [Flavor] {
        let smallest = match self {
            TopologyKind::AllInOne => 2,
            TopologyKind::DedicatedCompute => 1,
            TopologyKind::Distributed => 0,
        };
        const { &Flavor::ALL }.split_at(smallest).1
    }
}

/// What a VM is billed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Billed {
    /// A worker of a node group, or a bundle of an ALL_IN_ONE cluster.
    Compute,
    /// A control-plane VM of DEDICATED_COMPUTE or DISTRIBUTED.
    ControlPlane,
}

/// As long as nobody changes them. Of load balancers and storage no price is public: they cost nothing until
/// somebody sets a rate, and ends the beta.
pub const RATES: Rates = Rates {
    compute: VmRates {
        vcpu: Rate::euro(2),
        ram_gb: Rate::euro(4),
    },
    control_plane: VmRates {
        vcpu: Rate::euro(3),
        ram_gb: Rate::euro(6),
    },
    load_balancer: Rate::ZERO,
    storage_gb: Rate::ZERO,
    beta: true,
};

/// What can be ordered, as a value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Catalog;

/// A line of the product description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyOffer {
    pub topology: TopologyKind,
    pub flavors: &'static [Flavor],
    pub replication_factor: std::ops::RangeInclusive<u8>,
}

impl Catalog {
    pub fn topologies(&self) -> Vec<TopologyOffer> {
        TopologyKind::ALL
            .into_iter()
            .map(|topology| TopologyOffer {
                topology,
                flavors: topology.flavors(),
                replication_factor: REPLICATION_FACTOR,
            })
            .collect()
    }

    pub fn versions(&self) -> &'static [&'static str] {
        &AVAILABLE_VERSIONS
    }

    pub fn default_version(&self) -> &'static str {
        DEFAULT_VERSION
    }

    pub fn latest_version(&self) -> &'static str {
        AVAILABLE_VERSIONS[AVAILABLE_VERSIONS.len() - 1]
    }
}

/// Place of a version in time, or `None` if it never was one of the platform's.
pub fn version_order(version: &str) -> Option<usize> {
    UNSUPPORTED_VERSIONS
        .iter()
        .chain(&AVAILABLE_VERSIONS)
        .position(|known| *known == version)
}

/// The version at a place in time: see [`version_order`].
pub fn known_version(order: usize) -> Option<&'static str> {
    let mut known = UNSUPPORTED_VERSIONS.iter().chain(&AVAILABLE_VERSIONS);
    known.nth(order).copied()
}

/// Version as nodes report it, such as `v1.36.0`.
pub fn kubelet_version(version: &str) -> String {
    format!("v{version}.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavors_of_a_topology_start_at_its_smallest() {
        let check = |topology: TopologyKind, expect: &str| {
            let names: Vec<_> = topology.flavors().iter().map(|f| f.as_str()).collect();
            assert_eq!(names.join(" "), expect, "{topology}");
        };
        check(TopologyKind::AllInOne, "S M L XL");
        check(TopologyKind::DedicatedCompute, "XS S M L XL");
        check(TopologyKind::Distributed, "2XS XS S M L XL");
    }

    #[test]
    fn the_default_version_can_be_ordered() {
        assert!(AVAILABLE_VERSIONS.contains(&DEFAULT_VERSION));
        assert!(version_order("1.33") < version_order("1.34"));
        assert_eq!(version_order("0.99"), None);
    }
}
