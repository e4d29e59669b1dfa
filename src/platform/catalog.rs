//! What can be ordered: topologies, flavors, versions, rates. The one source of each of these facts
//! (spec, "Cluster topologies", "Supported versions", "Pricing"; contract cke-models 3 and 9).

use super::model::{Flavor, TopologyKind};
use super::rates::{Rate, Rates, VmRates};

/// Minor version of the newest Kubernetes 1 that the platform begins with.
pub const FIRST_NEWEST_MINOR: u32 = 36;
/// Minor version of the oldest that any cluster of the platform ever had.
const OLDEST_MINOR: u32 = 33;
/// How many minor versions are supported: the newest and those before it, as Kubernetes does (spec,
/// "Supported versions").
const SUPPORTED: u32 = 3;
/// Nothing is known of what comes after Kubernetes 1.
pub const NEWEST_MINOR_LIMIT: u32 = 99;
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

/// What can be ordered. It changes when a version comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Catalog {
    newest_minor: u32,
}

impl Default for Catalog {
    fn default() -> Catalog {
        Catalog::new(FIRST_NEWEST_MINOR)
    }
}

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

    /// As of the time when `1.<newest_minor>` is the newest.
    pub fn new(newest_minor: u32) -> Catalog {
        let newest_minor = newest_minor.clamp(FIRST_NEWEST_MINOR, NEWEST_MINOR_LIMIT);
        Catalog { newest_minor }
    }

    /// Versions that can be ordered, oldest first.
    pub fn versions(&self) -> Vec<String> {
        let oldest = self.newest_minor + 1 - SUPPORTED;
        (oldest..=self.newest_minor).map(of_minor).collect()
    }

    /// Version of a cluster that asks for none.
    pub fn default_version(&self) -> String {
        self.latest_version()
    }

    pub fn latest_version(&self) -> String {
        of_minor(self.newest_minor)
    }

    pub fn is_supported(&self, version: &str) -> bool {
        minor(version)
            .is_some_and(|it| it + SUPPORTED > self.newest_minor && it <= self.newest_minor)
    }

    /// The version after `version`, if it is out: the only one that a cluster can be updated to.
    pub fn next_version(&self, version: &str) -> Option<String> {
        let next = minor(version)? + 1;
        (next <= self.newest_minor).then(|| of_minor(next))
    }
}

fn of_minor(minor: u32) -> String {
    format!("1.{minor}")
}

/// The minor version, or `None` if it never was one of the platform's.
pub fn minor(version: &str) -> Option<u32> {
    let minor = version.strip_prefix("1.")?.parse().ok()?;
    let is_spelled_so = of_minor(minor) == version;
    (is_spelled_so && (OLDEST_MINOR..=NEWEST_MINOR_LIMIT).contains(&minor)).then_some(minor)
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
    fn three_versions_are_supported_and_the_window_moves_on() {
        let check = |newest: u32, versions: &str, supported: &[(&str, bool)]| {
            let catalog = Catalog::new(newest);
            assert_eq!(catalog.versions().join(" "), versions);
            assert!(catalog.versions().contains(&catalog.default_version()));
            for (version, expect) in supported {
                let found = catalog.is_supported(version);
                assert_eq!(found, *expect, "{version} at 1.{newest}");
            }
        };
        let now = [
            ("1.33", false),
            ("1.34", true),
            ("1.36", true),
            ("1.37", false),
        ];
        check(36, "1.34 1.35 1.36", &now);
        check(37, "1.35 1.36 1.37", &[("1.34", false), ("1.37", true)]);
        check(0, "1.34 1.35 1.36", &[]);
        for wrong in ["0.99", "1.32", "1.036", "1.100", "v1.36", "1.36.0", ""] {
            assert_eq!(minor(wrong), None, "{wrong}");
        }
        let next = |version: &str| Catalog::default().next_version(version);
        assert_eq!(next("1.33").as_deref(), Some("1.34"));
        assert_eq!(next("1.36"), None);
    }
}
