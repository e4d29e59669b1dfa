//! What is done to a cloud, and when.
//!
//! A step names what it is about by a number, taken modulo how many there are at the time: so a list of
//! steps means something whatever is left out of it, and can be shrunk.

use proptest::prelude::*;

use crate::infra::{CapacityFault, Datacenter, DatacenterState};

/// A step, and how long it comes after the one before.
#[derive(Clone, Debug)]
pub struct Timed {
    pub after_seconds: u64,
    pub step: Step,
}

#[derive(Clone, Debug)]
pub enum Step {
    CreateCluster(Shape),
    DeleteCluster(u8),
    Upgrade(u8),
    Redeploy(u8),
    Resume(u8),
    AddStorage(u8),
    ClusterAutoscaling(u8, bool),
    CreateGroup {
        cluster: u8,
        nodes: u32,
        autoscaling: bool,
    },
    Resize {
        group: u8,
        nodes: u32,
    },
    GroupAutoscaling(u8, bool),
    DeleteGroup(u8),
    CreateNode(u8),
    Limits {
        vcpus: u64,
        ips: u32,
    },
    CreateLoadBalancer(u8),
    DeleteLoadBalancer(u8),
    Volume(VolumeStep),
    Kill(u8),
    Wedge(u8, bool),
    Flap {
        vm: u8,
        down_seconds: u32,
        up_seconds: u32,
    },
    /// What a VM's CPU and memory are used by the user, in percent of the CPU.
    Load(u8, u64),
    Site(Datacenter, DatacenterState),
    Capacity(Datacenter, CapacityFault),
    Boots {
        slow_factor_percent: u32,
        failure_per_mille: u32,
    },
    /// Whether disruption budgets hold up drains.
    Budgets(bool),
    /// The process is killed at so many transactions from now, and started again.
    Crash {
        transactions: u32,
        makes_last: bool,
    },
}

/// What is done to volumes.
#[derive(Clone, Debug)]
pub enum VolumeStep {
    /// As a claim asks for it.
    Create {
        cluster: u8,
        mib: u32,
    },
    /// By so much.
    Grow {
        volume: u8,
        mib: u32,
    },
    Delete(u8),
    /// So much of it is written.
    Write {
        volume: u8,
        percent: u64,
    },
}

/// A cluster that is asked for.
#[derive(Clone, Debug)]
pub struct Shape {
    /// ALL_IN_ONE, DEDICATED_COMPUTE, DISTRIBUTED.
    pub topology: u8,
    pub replicas: u8,
    /// Place among the available versions.
    pub version: u8,
    pub autoscaling: bool,
    pub storage: bool,
    /// Nodes of a first group; none: no group.
    pub nodes: u32,
}

/// Longer than this is a time of peace: what is at fault is mended, and then all is looked at.
pub const PEACE_SECONDS: u64 = 12 * 3600;

/// About a month of them.
pub fn month() -> impl Strategy<Value = Vec<Timed>> {
    proptest::collection::vec(timed(), 60..140)
}

fn timed() -> impl Strategy<Value = Timed> {
    let after_seconds = prop_oneof![
        6 => 0u64..30,
        4 => 30u64..400,
        2 => 400u64..5000,
        // Twenty-seven hours on average.
        2 => PEACE_SECONDS..(3 * PEACE_SECONDS),
    ];
    (after_seconds, step()).prop_map(|(after_seconds, step)| Timed {
        after_seconds,
        step,
    })
}

fn volume_step() -> impl Strategy<Value = VolumeStep> {
    let (any, mib) = (any::<u8>, || 0u32..200_000);
    prop_oneof![
        4 => (any(), mib()).prop_map(|(cluster, mib)| VolumeStep::Create { cluster, mib }),
        2 => (any(), mib()).prop_map(|(volume, mib)| VolumeStep::Grow { volume, mib }),
        1 => any().prop_map(VolumeStep::Delete),
        1 => (any(), 0u64..=100).prop_map(|(volume, percent)| VolumeStep::Write { volume, percent }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let datacenter = || prop::sample::select(Datacenter::ALL.to_vec());
    let shape = (0u8..3, 1u8..=5, 0u8..3, any::<[bool; 2]>(), 0u32..4);
    let shape = shape.prop_map(|(topology, replicas, version, features, nodes)| Shape {
        topology,
        // Five components of five replicas are more than anybody has room for.
        replicas: if topology == 2 {
            1 + replicas % 3
        } else {
            replicas
        },
        version,
        autoscaling: features[0],
        storage: features[1],
        nodes,
    });
    let state = prop_oneof![
        3 => Just(DatacenterState::Up),
        2 => Just(DatacenterState::Lost),
        1 => Just(DatacenterState::Partitioned),
        1 => Just(DatacenterState::Degraded),
    ];
    let capacity = prop_oneof![
        2 => Just(CapacityFault::None),
        1 => Just(CapacityFault::Exhausted),
        1 => (0u32..100).prop_map(CapacityFault::Percent),
    ];
    let boots = (prop::sample::select(vec![50, 100, 300, 1000]), 0u32..600);
    let requests = prop_oneof![
        5 => shape.prop_map(Step::CreateCluster),
        1 => any::<u8>().prop_map(Step::DeleteCluster),
        3 => any::<u8>().prop_map(Step::Upgrade),
        1 => any::<u8>().prop_map(Step::Redeploy),
        1 => any::<u8>().prop_map(Step::Resume),
        1 => any::<u8>().prop_map(Step::AddStorage),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(it, on)| Step::ClusterAutoscaling(it, on)),
        3 => (any::<u8>(), 0u32..5, any::<bool>()).prop_map(|(cluster, nodes, autoscaling)| {
            Step::CreateGroup { cluster, nodes, autoscaling }
        }),
        5 => (any::<u8>(), 0u32..7).prop_map(|(group, nodes)| Step::Resize { group, nodes }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(it, on)| Step::GroupAutoscaling(it, on)),
        1 => any::<u8>().prop_map(Step::DeleteGroup),
        1 => any::<u8>().prop_map(Step::CreateNode),
        1 => (20u64..300, 0u32..8).prop_map(|(vcpus, ips)| Step::Limits { vcpus, ips }),
        2 => any::<u8>().prop_map(Step::CreateLoadBalancer),
        1 => any::<u8>().prop_map(Step::DeleteLoadBalancer),
        8 => volume_step().prop_map(Step::Volume),
    ];
    let faults = prop_oneof![
        6 => any::<u8>().prop_map(Step::Kill),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(vm, on)| Step::Wedge(vm, on)),
        2 => (any::<u8>(), 5u32..100, 5u32..100).prop_map(|(vm, down_seconds, up_seconds)| {
            Step::Flap { vm, down_seconds, up_seconds }
        }),
        4 => (any::<u8>(), 0u64..150).prop_map(|(vm, percent)| Step::Load(vm, percent)),
        4 => (datacenter(), state).prop_map(|(site, state)| Step::Site(site, state)),
        2 => (datacenter(), capacity).prop_map(|(site, fault)| Step::Capacity(site, fault)),
        2 => boots.prop_map(|(slow_factor_percent, failure_per_mille)| {
            Step::Boots { slow_factor_percent, failure_per_mille }
        }),
        1 => any::<bool>().prop_map(Step::Budgets),
        2 => (1u32..30, any::<bool>()).prop_map(|(transactions, makes_last)| {
            Step::Crash { transactions, makes_last }
        }),
    ];
    prop_oneof![requests, faults]
}
