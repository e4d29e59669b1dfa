//! Bad days: VMs and sites that fail, and what is true whatever fails.

use proptest::prelude::*;

use super::*;
use crate::etcd::client::SharedKeyspaces;
use crate::infra::site::{BootFault, BootScope, CapacityFault, DatacenterState};
use crate::infra::vm::Flapping;

const NETWORK: &str = "ng_1";

/// A cloud on `keyspaces`, with room for 24 VMs of 4 vCPU.
async fn cloud_on(keyspaces: SharedKeyspaces, clock: &Clock) -> (Cloud, Workers) {
    let config = CloudConfig {
        hypervisors_per_datacenter: 2,
        hypervisor_vcpus: 16,
        ..CloudConfig::new(keyspaces, clock.clone(), 0)
    };
    let cloud = Cloud::start(config).await.expect("the cloud starts");
    let workers = cloud.act(&Term::for_ever());
    (cloud, workers)
}

fn in_site(id: &str, datacenter: Datacenter) -> VmSpec {
    VmSpec {
        datacenter: Some(datacenter),
        ..spec(id)
    }
}

async fn advance(clock: &Clock, seconds: u64) {
    clock.advance(Duration::from_secs(seconds)).await;
}

#[tokio::test]
async fn a_lost_site_takes_its_vms_along_in_few_transactions_and_they_come_back() {
    let (cloud, clock, _workers) = cloud(1024).await;
    for number in 0..200 {
        let datacenter = Datacenter::ALL[number % 2];
        let vm = in_site(&format!("vm-{number:03}"), datacenter);
        cloud.create_vm(vm).await.unwrap();
    }
    advance(&clock, 200).await;
    let count = |reachable: bool, healthy: bool| {
        let vms = cloud.list_vms();
        let wanted = |vm: &&Arc<Vm>| vm.reachable == reachable && vm.is_healthy() == healthy;
        vms.iter().filter(wanted).count()
    };
    assert_eq!(count(true, true), 200);
    let before = cloud.inner.records.revision();
    for _ in 0..2 {
        let lost = cloud.set_datacenter(Datacenter::Par1, DatacenterState::Lost);
        lost.await.unwrap();
    }
    clock.quiesce().await;
    assert_eq!((count(true, true), count(false, true)), (100, 100));
    advance(&clock, 29).await;
    assert_eq!(count(false, true), 100);
    advance(&clock, 1).await;
    assert_eq!((count(true, true), count(false, false)), (100, 100));
    let transactions = cloud.inner.records.revision() - before;
    assert!(transactions < 15, "{transactions} transactions");
    let refused = cloud.create_vm(in_site("new", Datacenter::Par1)).await;
    assert!(matches!(refused, Err(CloudError::NoCapacity { .. })));
    let elsewhere = cloud.create_vm(spec("elsewhere")).await.unwrap();
    assert_ne!(elsewhere.datacenter, Datacenter::Par1);
    let up = cloud.set_datacenter(Datacenter::Par1, DatacenterState::Up);
    up.await.unwrap();
    clock.quiesce().await;
    assert_eq!(count(false, false), 100, "they boot");
    advance(&clock, 185 + 20).await;
    assert_eq!(count(true, true), 201);
    cloud
        .create_vm(in_site("new", Datacenter::Par1))
        .await
        .unwrap();
}

#[tokio::test]
async fn faults_of_a_vm_are_kept_over_a_kill_and_can_be_cleared() {
    let clock = Clock::new(TimeScale::Manual, Timestamp(0));
    let keyspaces: SharedKeyspaces = Arc::new(MemoryKeyspaces::default());
    let (mut cloud, mut workers) = cloud_on(Arc::clone(&keyspaces), &clock).await;
    for id in ["dead", "hung", "flaps", "unborn"] {
        cloud.create_vm(spec(id)).await.unwrap();
        if id == "unborn" {
            cloud.kill_vm(&VmId::from(id)).await.unwrap();
        }
    }
    advance(&clock, 200).await;
    let id = VmId::from;
    let flapping = Flapping {
        down_seconds: 40,
        up_seconds: 40,
    };
    for _ in 0..2 {
        cloud.kill_vm(&id("dead")).await.unwrap();
        cloud.wedge_vm(&id("hung"), true).await.unwrap();
        cloud.flap_vm(&id("flaps"), Some(flapping)).await.unwrap();
        workers.abort().await;
        cloud.close();
        (cloud, workers) = cloud_on(Arc::clone(&keyspaces), &clock).await;
    }
    let healthy = |cloud: &Cloud| {
        ["dead", "hung", "flaps"].map(|name| cloud.get_vm(&id(name)).unwrap().is_healthy())
    };
    assert_eq!(
        cloud.get_vm(&id("unborn")).unwrap().observed,
        Observed::Failed
    );
    advance(&clock, 30).await;
    assert_eq!(healthy(&cloud), [false, false, false]);
    advance(&clock, 30).await;
    assert_eq!(healthy(&cloud), [false, false, true]);
    advance(&clock, 50).await;
    assert_eq!(healthy(&cloud), [false, false, false]);
    cloud.wedge_vm(&id("hung"), false).await.unwrap();
    cloud.flap_vm(&id("flaps"), None).await.unwrap();
    advance(&clock, 20).await;
    assert_eq!(healthy(&cloud), [false, true, true]);
    let none = Flapping {
        down_seconds: 0,
        up_seconds: 1,
    };
    let refused = cloud.flap_vm(&id("flaps"), Some(none)).await;
    assert!(matches!(refused, Err(CloudError::OutOfRange { .. })));
    let missing = cloud.kill_vm(&id("nobody")).await;
    assert!(matches!(missing, Err(CloudError::VmNotFound(_))));
}

#[tokio::test]
async fn capacity_and_boots_fail_where_and_while_they_are_told_to() {
    let (cloud, clock, _workers) = cloud(64).await;
    let par1 = Datacenter::Par1;
    let room = async |id: &str| cloud.create_vm(in_site(id, par1)).await.is_ok();
    cloud
        .set_capacity(par1, CapacityFault::Exhausted)
        .await
        .unwrap();
    assert!(!room("a").await);
    // An eighth of 2 × 64 vCPU is room for 2 × 2 VMs.
    cloud
        .set_capacity(par1, CapacityFault::Percent(13))
        .await
        .unwrap();
    for id in ["a", "b", "c", "d"] {
        assert!(room(id).await);
    }
    assert!(!room("e").await);
    cloud.set_capacity(par1, CapacityFault::None).await.unwrap();
    assert!(room("e").await);
    let fault = BootFault {
        slow_factor_percent: 1000,
        failure_per_mille: 1000,
    };
    let scope = BootScope::Datacenter(Datacenter::Par2);
    cloud.set_boot_fault(scope, fault).await.unwrap();
    let slow = cloud
        .create_vm(in_site("slow", Datacenter::Par2))
        .await
        .unwrap();
    assert!(room("f").await);
    assert!(slow.boots_at >= Timestamp(260_000));
    clock.advance(Timestamp(0).until(slow.boots_at)).await;
    let observed = |id: &str| cloud.get_vm(&VmId::from(id)).unwrap().observed;
    assert_eq!(observed("slow"), Observed::Failed);
    assert!(matches!(observed("f"), Observed::Running { .. }));
    cloud
        .set_boot_fault(BootScope::Everywhere, BootFault::default())
        .await
        .unwrap();
    let sound = cloud
        .create_vm(in_site("sound", Datacenter::Par2))
        .await
        .unwrap();
    assert!(!sound.boot_fails);
}

#[tokio::test]
async fn loads_add_up() {
    let (cloud, _clock, _workers) = cloud(64).await;
    cloud.create_vm(spec("a")).await.unwrap();
    let id = VmId::from("a");
    let load = |cpu_millis| Load {
        cpu_millis,
        memory_kib: 10,
    };
    cloud.report_guest_load(&id, load(300)).await.unwrap();
    cloud.set_user_load(&id, Some(load(50))).await.unwrap();
    cloud.report_guest_load(&id, load(400)).await.unwrap();
    let both = Load {
        cpu_millis: 450,
        memory_kib: 20,
    };
    assert_eq!(cloud.get_vm(&id).unwrap().load, both);
    cloud.set_user_load(&id, None).await.unwrap();
    assert_eq!(cloud.get_vm(&id).unwrap().load, load(400));
}

#[tokio::test]
async fn volumes_grow_and_hold_no_more_than_they_are() {
    let (cloud, _clock, _workers) = cloud(64).await;
    let volume = cloud.create_volume("v", "me", 100).await.unwrap();
    assert_eq!(cloud.create_volume("v", "me", 100).await.unwrap(), volume);
    let other = cloud.create_volume("v", "me", 101).await;
    assert!(matches!(other, Err(CloudError::VolumeConflict(_))));
    assert!(cloud.create_volume("w", "me", 0).await.is_err());
    cloud.set_volume_usage("v", 100).await.unwrap();
    assert!(cloud.set_volume_usage("v", 101).await.is_err());
    assert!(cloud.resize_volume("v", 99).await.is_err());
    cloud.resize_volume("v", 200).await.unwrap();
    cloud.set_volume_usage("v", 101).await.unwrap();
    cloud.create_volume("x", "you", 1).await.unwrap();
    let mine = cloud.volumes_of("me");
    let mine: Vec<_> = mine.iter().map(|v| (v.size_bytes, v.used_bytes)).collect();
    assert_eq!(mine, [(200, 101)]);
    for _ in 0..2 {
        cloud.delete_volume("v").await.unwrap();
    }
    assert_eq!(cloud.volumes_of("me"), []);
    let gone = cloud.resize_volume("v", 300).await;
    assert!(matches!(gone, Err(CloudError::VolumeNotFound(_))));
}

fn member(id: &str) -> VmSpec {
    VmSpec {
        network_group: Some(String::from(NETWORK)),
        ..spec(id)
    }
}

#[tokio::test]
async fn peers_follow_the_vms_of_a_network_group() {
    let (cloud, clock, _workers) = cloud(64).await;
    let refused = cloud.create_vm(member("a")).await;
    assert!(matches!(refused, Err(CloudError::NetworkNotFound(_))));
    let created = cloud.create_network(NETWORK, "me", NetworkKind::NetworkGroup);
    created.await.unwrap();
    for id in ["a", "b", "c"] {
        cloud.create_vm(member(id)).await.unwrap();
    }
    let peers = cloud.network_peers(NETWORK);
    let b = &peers[1];
    let text = cloud.wireguard_configuration(NETWORK, &b.vm).unwrap();
    for peer in &peers {
        assert_eq!(text.contains(&peer.public_key), peer.vm != b.vm);
        assert!(text.contains(&peer.address.to_string()));
    }
    let in_use = cloud.delete_network(NETWORK).await;
    assert!(matches!(in_use, Err(CloudError::NetworkInUse(_))));
    cloud.delete_vm(&VmId::from("b")).await.unwrap();
    advance(&clock, 60).await;
    cloud.create_vm(member("d")).await.unwrap();
    let peers = cloud.network_peers(NETWORK);
    let ids: Vec<&str> = peers.iter().map(|peer| peer.vm.0.as_str()).collect();
    assert_eq!(ids, ["a", "c", "d"]);
    let addresses: BTreeSet<_> = peers.iter().map(|peer| peer.address).collect();
    assert_eq!(addresses.len(), 3);
    for id in ids {
        cloud.delete_vm(&VmId::from(id)).await.unwrap();
    }
    advance(&clock, 60).await;
    cloud.delete_network(NETWORK).await.unwrap();
    cloud.delete_network(NETWORK).await.unwrap();
}

#[derive(Clone, Debug)]
enum Event {
    Create(u8),
    Delete(u8),
    Kill(u8),
    Wedge(u8, bool),
    Flap(u8, bool),
    Site(u8, DatacenterState),
    Capacity(u8, CapacityFault),
    Boots(u32),
    Restart,
    Advance(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let vm = 0u8..12;
    let state = prop_oneof![
        Just(DatacenterState::Up),
        Just(DatacenterState::Lost),
        Just(DatacenterState::Partitioned),
        Just(DatacenterState::Degraded),
    ];
    let capacity = prop_oneof![
        Just(CapacityFault::None),
        Just(CapacityFault::Exhausted),
        Just(CapacityFault::Percent(50)),
    ];
    prop_oneof![
        6 => vm.clone().prop_map(Event::Create),
        2 => vm.clone().prop_map(Event::Delete),
        1 => vm.clone().prop_map(Event::Kill),
        2 => (vm.clone(), any::<bool>()).prop_map(|(vm, on)| Event::Wedge(vm, on)),
        2 => (vm, any::<bool>()).prop_map(|(vm, on)| Event::Flap(vm, on)),
        2 => (0u8..3, state).prop_map(|(site, state)| Event::Site(site, state)),
        1 => (0u8..3, capacity).prop_map(|(site, fault)| Event::Capacity(site, fault)),
        1 => (0u32..500).prop_map(Event::Boots),
        1 => Just(Event::Restart),
        6 => (1u64..90).prop_map(Event::Advance),
    ]
}

/// What is true at every instant: of room, of addresses, of peers.
async fn check_always(cloud: &Cloud) {
    let inventory = cloud.inventory().await.unwrap();
    let mut on: std::collections::BTreeMap<&str, u32> = Default::default();
    for vm in &inventory.vms {
        *on.entry(&vm.hypervisor).or_default() += vm.spec.vcpus;
    }
    for hypervisor in &inventory.hypervisors {
        let used = on.remove(hypervisor.name.as_str()).unwrap_or(0);
        let placed: u32 = hypervisor.placed.values().map(|room| room.vcpus).sum();
        assert_eq!(used, placed);
        assert!(used <= hypervisor.capacity.vcpus);
    }
    let held: BTreeSet<_> = inventory.vms.iter().map(|vm| vm.address).collect();
    assert_eq!(held, inventory.addresses.keys().copied().collect());
    assert_eq!(held.len(), inventory.vms.len());
    let vms: Vec<_> = inventory.vms.iter().map(|vm| &vm.spec.id).collect();
    let peers: Vec<_> = inventory.peers.iter().map(|peer| &peer.vm).collect();
    assert_eq!(vms, peers);
    let within: BTreeSet<_> = inventory.peers.iter().map(|peer| peer.address).collect();
    assert_eq!(within.len(), peers.len());
}

/// Lets the events happen, then all faults stop. Returns the history.
async fn run(events: &[Event]) -> Vec<String> {
    let clock = Clock::new(TimeScale::Manual, Timestamp(0));
    let keyspaces: SharedKeyspaces = Arc::new(MemoryKeyspaces::default());
    let history: Arc<Mutex<Vec<String>>> = Arc::default();
    let watch = |cloud: &Cloud| {
        let told = Arc::clone(&history);
        cloud.observe(Box::new(move |change| {
            told.lock().push(format!("{} {:?}", change.key, change.new));
            true
        }));
    };
    let (mut cloud, mut workers) = cloud_on(Arc::clone(&keyspaces), &clock).await;
    watch(&cloud);
    let created = cloud.create_network(NETWORK, "me", NetworkKind::NetworkGroup);
    created.await.unwrap();
    let id = |vm: &u8| VmId(format!("vm-{vm:02}"));
    let site = |site: &u8| Datacenter::ALL[usize::from(*site)];
    let refused = |outcome: Result<()>| {
        let expected = outcome.is_ok() || matches!(outcome, Err(CloudError::VmNotFound(_)));
        assert!(expected, "{outcome:?}");
    };
    let flapping = Flapping {
        down_seconds: 35,
        up_seconds: 5,
    };
    for event in events {
        match event {
            Event::Create(vm) => match cloud.create_vm(member(&id(vm).0)).await {
                Ok(_) | Err(CloudError::NoCapacity { .. } | CloudError::VmConflict(_)) => {}
                Err(other) => panic!("{other}"),
            },
            Event::Delete(vm) => cloud.delete_vm(&id(vm)).await.unwrap(),
            Event::Kill(vm) => refused(cloud.kill_vm(&id(vm)).await),
            Event::Wedge(vm, on) => refused(cloud.wedge_vm(&id(vm), *on).await),
            Event::Flap(vm, on) => {
                refused(cloud.flap_vm(&id(vm), on.then_some(flapping)).await);
            }
            Event::Site(at, state) => cloud.set_datacenter(site(at), *state).await.unwrap(),
            Event::Capacity(at, fault) => cloud.set_capacity(site(at), *fault).await.unwrap(),
            Event::Boots(failure_per_mille) => {
                let fault = BootFault {
                    failure_per_mille: *failure_per_mille,
                    ..BootFault::default()
                };
                cloud
                    .set_boot_fault(BootScope::Everywhere, fault)
                    .await
                    .unwrap();
            }
            Event::Restart => {
                workers.abort().await;
                cloud.close();
                (cloud, workers) = cloud_on(Arc::clone(&keyspaces), &clock).await;
                watch(&cloud);
            }
            Event::Advance(seconds) => advance(&clock, *seconds).await,
        }
        clock.quiesce().await;
        check_always(&cloud).await;
    }
    for datacenter in Datacenter::ALL {
        let up = cloud.set_datacenter(datacenter, DatacenterState::Up);
        up.await.unwrap();
        clock.quiesce().await;
    }
    for vm in cloud.list_vms() {
        cloud.wedge_vm(&vm.spec.id, false).await.unwrap();
        clock.quiesce().await;
        cloud.flap_vm(&vm.spec.id, None).await.unwrap();
        clock.quiesce().await;
    }
    advance(&clock, 3 * 185 + 60).await;
    check_always(&cloud).await;
    for vm in cloud.list_vms() {
        let alive = vm.power == Power::On;
        match vm.observed {
            Observed::Running { .. } => {
                assert_eq!((vm.reachable, vm.is_healthy()), (alive, alive), "{vm:?}");
            }
            Observed::Failed => assert!(vm.boot_fails || !alive, "{vm:?}"),
            _ => panic!("{vm:?} is still on its way"),
        }
    }
    history.lock().clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_fails_the_cloud_keeps_its_books_and_health_becomes_the_truth(
        events in prop::collection::vec(event(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let first = runtime.block_on(run(&events));
        let second = runtime.block_on(run(&events));
        prop_assert_eq!(first, second, "one history for one seed");
    }
}
