//! The cloud on a manual clock.

use std::collections::BTreeSet;

use futures::{FutureExt, StreamExt};

use super::super::testing::MemoryKeyspaces;
use super::super::vm::{Datacenter, Image, Load, Power, VmSpec};
use super::*;
use crate::clock::TimeScale;
use crate::infra::metering::{Metered, Run, Usage};
use crate::infra::{LoadBalancerSpec, NetworkKind};
use std::time::Duration;

async fn cloud(hypervisor_vcpus: u32) -> (Cloud, Clock, Workers) {
    let clock = Clock::new(TimeScale::Manual, Timestamp(0));
    let keyspaces = Arc::new(MemoryKeyspaces::default());
    let config = CloudConfig {
        hypervisors_per_datacenter: 2,
        hypervisor_vcpus,
        ..CloudConfig::new(keyspaces, clock.clone(), 0)
    };
    let cloud = Cloud::start(config).await.expect("the cloud starts");
    let workers = cloud.act(&Term::for_ever());
    (cloud, clock, workers)
}

fn spec(id: &str) -> VmSpec {
    VmSpec {
        id: VmId::from(id),
        name: id.to_owned(),
        owner: String::from("somebody"),
        datacenter: None,
        image: Image::Worker,
        vcpus: 4,
        ram_gb: 4,
        network_group: None,
        guest: serde_json::json!({"a": 1}),
    }
}

#[tokio::test]
async fn a_vm_boots_runs_and_goes_when_its_time_has_come() {
    let (cloud, clock, _workers) = cloud(64).await;
    let id = VmId::from("a");
    let vm = cloud.create_vm(spec("a")).await.unwrap();
    let boot = Timestamp(0).until(vm.boots_at);
    clock.advance(boot - Duration::from_millis(1)).await;
    assert_eq!(cloud.get_vm(&id).unwrap().observed, Observed::Provisioning);
    clock.advance(Duration::from_millis(1)).await;
    let running = Observed::Running { since: vm.boots_at };
    assert_eq!(cloud.get_vm(&id).unwrap().observed, running);

    cloud.delete_vm(&id).await.unwrap();
    let going = cloud.get_vm(&id).unwrap();
    assert_eq!(going.observed, Observed::Deleting);
    cloud.delete_vm(&id).await.unwrap();
    assert_eq!(cloud.get_vm(&id).unwrap(), going, "twice is once");
    clock.advance(Duration::from_secs(60)).await;
    assert_eq!(cloud.get_vm(&id), None);
    let left = cloud.inventory().await.unwrap();
    assert!(left.addresses.is_empty());
    assert!(left.hypervisors.iter().all(|h| h.placed.is_empty()));
    cloud.delete_vm(&id).await.unwrap();
}

#[tokio::test]
async fn creating_twice_is_creating_once_and_an_id_means_one_shape() {
    let (cloud, _clock, _workers) = cloud(64).await;
    let vm = cloud.create_vm(spec("a")).await.unwrap();
    assert_eq!(cloud.create_vm(spec("a")).await.unwrap(), vm);
    let larger = VmSpec {
        vcpus: 8,
        ..spec("a")
    };
    let refused = cloud.create_vm(larger).await;
    assert!(matches!(refused, Err(CloudError::VmConflict(_))));
    cloud.delete_vm(&VmId::from("a")).await.unwrap();
    let refused = cloud.create_vm(spec("a")).await;
    assert!(
        matches!(refused, Err(CloudError::VmConflict(_))),
        "it still goes"
    );
}

#[tokio::test]
async fn a_year_in_which_nothing_happens_writes_nothing() {
    let (cloud, clock, _workers) = cloud(64).await;
    cloud.create_vm(spec("a")).await.unwrap();
    clock.advance(Duration::from_secs(600)).await;
    let revision = cloud.inner.records.revision();
    clock.advance(Duration::from_secs(366 * 86_400)).await;
    cloud.inner.records.catch_up().await.unwrap();
    assert_eq!(cloud.inner.records.revision(), revision);
    // Whoever advanced it says where it is now, and a restart goes on from there.
    cloud.save_reading().await.unwrap();
    let kept = clock_reading::last_reading(&cloud.inner.client).await;
    assert_eq!(kept.unwrap(), Some(clock.now()));
}

#[tokio::test]
async fn many_at_once_are_as_many_one_after_the_other() {
    let specs: Vec<VmSpec> = (0..60)
        .map(|number| VmSpec {
            network_group: Some(String::from("ng")),
            // Every seventh must be in a site that has room for a few of them.
            datacenter: (number % 7 == 0).then_some(Datacenter::Par2),
            vcpus: if number % 7 == 0 { 16 } else { 1 },
            ..spec(&format!("vm-{number:02}"))
        })
        .collect();
    let (together, _clock, _workers) = cloud(64).await;
    let (apart, _clock, _workers) = cloud(64).await;
    for cloud in [&together, &apart] {
        let network = cloud.create_network("ng", "me", NetworkKind::NetworkGroup);
        network.await.unwrap();
    }
    let before = together.inner.records.revision();
    let mut at_once = together.create_vms(&specs).await.unwrap();
    let transactions = together.inner.records.revision() - before;
    let mut one_by_one = Vec::new();
    for spec in &specs {
        one_by_one.push(apart.create_vm(spec.clone()).await);
    }
    let refused = |outcome: &Result<Arc<Vm>>| matches!(outcome, Err(CloudError::NoCapacity { .. }));
    assert!(at_once.iter().any(refused) && !at_once.iter().all(refused));
    assert!(transactions <= 3, "{transactions}");
    for (at_once, alone) in at_once.drain(..).zip(one_by_one) {
        assert_eq!(refused(&at_once), refused(&alone));
        assert_eq!(at_once.ok(), alone.ok());
    }
    let (at_once, one_by_one) = (
        together.inventory().await.unwrap(),
        apart.inventory().await.unwrap(),
    );
    assert_eq!(format!("{at_once:?}"), format!("{one_by_one:?}"));
    // Asked for again, nothing changes.
    let before = together.inner.records.revision();
    together.create_vms(&specs).await.unwrap();
    assert_eq!(together.inner.records.revision(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_is_never_exceeded_however_many_ask_at_once() {
    // 3 × 2 hypervisors of 16 vCPU hold 24 VMs of 4.
    let (cloud, _clock, _workers) = cloud(16).await;
    let asking = (0..40).map(|number| {
        let cloud = cloud.clone();
        tokio::spawn(async move { cloud.create_vm(spec(&format!("vm-{number}"))).await })
    });
    let outcomes = futures::future::join_all(asking).await;
    let mut addresses = BTreeSet::new();
    let mut refused = 0;
    for outcome in outcomes {
        match outcome.unwrap() {
            Ok(vm) => assert!(addresses.insert(vm.address)),
            Err(CloudError::NoCapacity { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((addresses.len(), refused), (24, 16));
    let full = cloud.create_vm(VmSpec {
        datacenter: Some(Datacenter::Par2),
        ..spec("late")
    });
    assert_eq!(
        full.await.unwrap_err().to_string(),
        "no hypervisor in par-2 has 4 vCPU and 4 GB free"
    );
}

#[tokio::test]
async fn a_watch_starts_with_what_is_there_and_holds_the_clock() {
    let (cloud, clock, workers) = cloud(64).await;
    cloud.create_vm(spec("b")).await.unwrap();
    cloud.create_vm(spec("a")).await.unwrap();
    let mut watch = cloud.watch();
    let ids = |event: VmEvent| (event.vm.spec.id.0.clone(), event.kind);
    assert_eq!(
        watch.next().await.map(ids),
        Some(("a".into(), VmEventKind::Applied))
    );
    assert_eq!(
        watch.next().await.map(ids),
        Some(("b".into(), VmEventKind::Applied))
    );
    assert!(StreamExt::next(&mut watch).now_or_never().is_none());

    cloud.delete_vm(&VmId::from("a")).await.unwrap();
    let event = watch.next().await.unwrap();
    assert_eq!(event.vm.observed, Observed::Deleting);
    let hour = Duration::from_secs(3600);
    let mut advance = Box::pin(clock.advance(hour));
    assert!(
        futures::poll!(advance.as_mut()).is_pending(),
        "the event is held"
    );
    drop(event);
    // States that nobody takes are told as the last one, and the clock waits for each to be taken.
    let mut seen = Vec::new();
    loop {
        tokio::select! {
            _ = &mut advance => break,
            Some(event) = watch.next() => seen.push((event.vm.spec.id.0.clone(), event.kind)),
        }
    }
    assert_eq!(
        seen.iter().filter(|(id, _)| id == "a").collect::<Vec<_>>(),
        [&(String::from("a"), VmEventKind::Deleted)]
    );
    workers.finish().await;
    cloud.close();
    assert!(watch.next().await.is_none());
}

fn load_balancer(id: &str) -> LoadBalancerSpec {
    LoadBalancerSpec {
        id: id.to_owned(),
        owner: String::from("somebody"),
        flavor: String::from("XS-duo"),
        domain_name: String::from("x.test"),
        addresses: 2,
        metered: true,
    }
}

#[tokio::test]
async fn public_addresses_are_held_until_released() {
    let (cloud, _clock, _workers) = cloud(64).await;
    let held = cloud.allocate_public_ips("service", 2).await.unwrap();
    assert_eq!(cloud.allocate_public_ips("service", 2).await.unwrap(), held);
    let load_balancer = cloud
        .create_load_balancer(load_balancer("lb"))
        .await
        .unwrap();
    assert!(
        load_balancer
            .addresses
            .iter()
            .all(|address| !held.contains(address))
    );
    let exhausted = cloud.allocate_public_ips("greedy", 131_575).await;
    assert!(matches!(
        exhausted,
        Err(CloudError::AddressesExhausted { .. })
    ));
    cloud.release_public_ips("service").await.unwrap();
    cloud.release_public_ips("service").await.unwrap();
    cloud.delete_load_balancer("lb").await.unwrap();
    cloud.delete_load_balancer("lb").await.unwrap();
    assert!(cloud.inventory().await.unwrap().addresses.is_empty());
}

#[tokio::test]
async fn a_guest_can_be_replaced() {
    let (cloud, _clock, _workers) = cloud(64).await;
    cloud.create_vm(spec("a")).await.unwrap();
    let id = VmId::from("a");
    let guest = serde_json::json!({"a": 2});
    cloud.update_guest(&id, &guest).await.unwrap();
    assert_eq!(cloud.get_vm(&id).unwrap().spec.guest, guest);
    let missing = cloud.update_guest(&VmId::from("b"), &guest).await;
    assert!(matches!(missing, Err(CloudError::VmNotFound(_))));
}

#[tokio::test]
async fn a_vm_is_metered_from_when_it_runs_to_when_its_deletion_is_asked_for() {
    let (cloud, clock, _workers) = cloud(64).await;
    let hour = Duration::from_secs(3600);
    let boots_at = cloud.create_vm(spec("a")).await.unwrap().boots_at;
    cloud.create_vm(spec("never-runs")).await.unwrap();
    cloud.delete_vm(&VmId::from("never-runs")).await.unwrap();
    assert_eq!(cloud.metered("some").await.unwrap().intervals, []);
    clock.advance(3 * hour).await;

    let (id, now) = (VmId::from("a"), clock.now());
    let under_way = cloud.metered("some").await.unwrap().intervals;
    let [interval] = &under_way[..] else {
        panic!("{under_way:?}");
    };
    assert_eq!((interval.started_at, interval.ended_at), (boots_at, now));
    cloud.delete_vm(&id).await.unwrap();
    clock.advance(hour).await;
    assert_eq!(cloud.metered("some").await.unwrap().intervals, under_way);
    assert_eq!(cloud.metered("other").await.unwrap().intervals, []);
}

#[tokio::test]
async fn load_balancers_and_volumes_are_metered_as_long_as_they_are_there() {
    let (cloud, clock, _workers) = cloud(64).await;
    let hour = Duration::from_secs(3600);
    cloud
        .create_load_balancer(load_balancer("lb"))
        .await
        .unwrap();
    let unmetered = LoadBalancerSpec {
        metered: false,
        ..load_balancer("of-the-control-plane")
    };
    cloud.create_load_balancer(unmetered).await.unwrap();
    // A part of a MiB counts as one.
    cloud
        .create_volume("v", "somebody", (1 << 20) + 1)
        .await
        .unwrap();
    let used = async || {
        let metered = cloud.metered("somebody").await.unwrap();
        let usage: Usage = total(&metered);
        (
            usage.load_balancer_ms / 3_600_000,
            usage.storage_mib_ms / 3_600_000,
        )
    };
    clock.advance(hour).await;
    assert_eq!(used().await, (1, 2));
    cloud.set_volume_usage("v", 100).await.unwrap();
    cloud.resize_volume("v", 5 << 20).await.unwrap();
    clock.advance(hour).await;
    assert_eq!(used().await, (2, 7));
    let until = Timestamp(5_400_000);
    for _ in 0..2 {
        cloud.roll_up("somebody", until, &[]).await.unwrap();
        assert_eq!(used().await, (2, 7));
    }
    for _ in 0..2 {
        cloud.delete_load_balancer("lb").await.unwrap();
        cloud.delete_volume("v").await.unwrap();
        clock.advance(hour).await;
        assert_eq!(used().await, (2, 7));
    }
}

fn total(metered: &Metered) -> Usage {
    let open = metered.intervals.iter();
    let open = open.map(|it| it.level.between(it.started_at, it.ended_at));
    let steps = metered.rolled_up.iter().flat_map(|it| &it.runs);
    let rolled_up = steps.flat_map(Run::steps).map(|step| step.usage);
    open.chain(rolled_up).sum()
}

#[tokio::test]
async fn rolling_up_leaves_every_millisecond_in_one_place() {
    let (cloud, clock, _workers) = cloud(1024).await;
    let hour = Duration::from_secs(3600);
    // More than one transaction can take.
    for number in 0..150 {
        let id = format!("vm-{number:03}");
        cloud.create_vm(spec(&id)).await.unwrap();
    }
    clock.advance(hour).await;
    for number in 0..120 {
        let id = VmId(format!("vm-{number:03}"));
        cloud.delete_vm(&id).await.unwrap();
    }
    clock.advance(hour).await;
    let before = cloud.metered("some").await.unwrap();
    assert_eq!(before.intervals.len(), 150);
    let until = Timestamp(90 * 60_000);
    let owners = cloud.owners_metered_before("", until).await.unwrap();
    assert_eq!(owners.into_iter().collect::<Vec<_>>(), ["somebody"]);
    for _ in 0..2 {
        cloud.roll_up("somebody", until, &[]).await.unwrap();
        let after = cloud.metered("some").await.unwrap();
        assert_eq!(after.rolled_up.len(), 1);
        assert_eq!(after.intervals.len(), 30, "what still runs");
        assert!(after.intervals.iter().all(|it| it.started_at == until));
        assert_eq!(total(&after), total(&before));
    }
    let owners = cloud.owners_metered_before("", until).await.unwrap();
    assert!(owners.is_empty());
}

mod faults;
