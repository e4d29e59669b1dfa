//! Lives of VMs, as tables of instants.

use std::net::Ipv4Addr;

use super::super::site::DatacenterState::{self, Degraded, Lost, Partitioned, Up};
use super::super::vm::{Datacenter, Image, Load, Requested, VmId, VmSpec};
use super::*;

fn vm() -> Vm {
    Vm {
        spec: VmSpec {
            id: VmId::from("a"),
            name: String::from("a"),
            owner: String::from("somebody"),
            datacenter: None,
            image: Image::Worker,
            vcpus: 1,
            ram_gb: 1,
            network_group: None,
            guest: serde_json::Value::Null,
        },
        datacenter: Datacenter::Par1,
        hypervisor: String::from("h"),
        address: Ipv4Addr::LOCALHOST,
        requested: Requested::Running,
        observed: Observed::Provisioning,
        created_at: Timestamp(0),
        boots_at: Timestamp(50_000),
        boot_fails: false,
        reboots: 0,
        site_losses: 0,
        gone_at: None,
        metered_since: None,
        power: Power::On,
        wedged: false,
        flapping: None,
        disturbed_at: Timestamp(0),
        reachable: false,
        reachability_changed_at: Timestamp(0),
        health: Health::Healthy,
        load: Load::default(),
        guest_load: Load::default(),
        user_load: None,
    }
}

/// What is done to the VM at an instant.
type VmChange = (i64, fn(&mut Vm));

/// Lets the VM live, waking as it says, through changes of its site and itself. Returns what it was at
/// each instant at which it changed: `on`, reachable or not, healthy or not.
fn live(
    mut vm: Vm,
    until: i64,
    site_changes: &[(i64, DatacenterState)],
    vm_changes: &[VmChange],
) -> Vec<(i64, &'static str)> {
    let mut site = Site::default();
    let mut log = Vec::new();
    let mut now = 0;
    while now <= until {
        for (_, state) in site_changes.iter().filter(|(at, _)| *at == now) {
            site.losses += u32::from(*state == Lost);
            site.state = *state;
            site.since = Timestamp(now * 1000);
        }
        for (_, change) in vm_changes.iter().filter(|(at, _)| *at == now) {
            change(&mut vm);
            vm.disturbed_at = Timestamp(now * 1000);
        }
        let wake = loop {
            match follow(&vm, &site, Timestamp(now * 1000), 0) {
                Fate::Changes(next) => vm = *next,
                Fate::Rests { wake } => break wake,
                Fate::Goes => panic!("nobody asked for that"),
            }
        };
        let state = match (vm.observed, vm.reachable, vm.health) {
            (Observed::Provisioning, ..) => "boots",
            (Observed::Failed, ..) => "failed",
            (_, true, Health::Healthy) => "well",
            (_, false, Health::Healthy) => "silent",
            (_, false, Health::Unhealthy { .. }) => "ill",
            (_, true, Health::Unhealthy { .. }) => "recovers",
        };
        if log.last().is_none_or(|(_, last)| *last != state) {
            log.push((now, state));
        }
        let changes = site_changes
            .iter()
            .map(|(at, _)| *at)
            .chain(vm_changes.iter().map(|(at, _)| *at));
        let next_change = changes.filter(|at| *at > now).min();
        // A wake between two seconds is looked at late.
        let wake = wake.map(|at| at.0.div_euclid(1000) + i64::from(at.0 % 1000 != 0));
        match [wake, next_change].into_iter().flatten().min() {
            Some(next) => {
                assert!(next > now, "it would wake for ever");
                now = next;
            }
            None => break,
        }
    }
    log
}

#[test]
fn health_follows_probes_and_reachability_does_not_wait_for_them() {
    let check =
        |site: &[(i64, DatacenterState)], vm_changes: &[VmChange], expect: &[(i64, &str)]| {
            assert_eq!(live(vm(), 1000, site, vm_changes), expect, "{site:?}");
        };
    let (boots, runs) = ((0, "boots"), (50, "well"));
    check(&[], &[], &[boots, runs]);
    // Killed: for good.
    let kill: fn(&mut Vm) = |vm| vm.power = Power::Off;
    check(
        &[],
        &[(100, kill)],
        &[boots, runs, (100, "silent"), (130, "ill")],
    );
    // Wedged for less than three probes: nobody noticed.
    let wedge: fn(&mut Vm) = |vm| vm.wedged = true;
    let free: fn(&mut Vm) = |vm| vm.wedged = false;
    check(
        &[],
        &[(100, wedge), (129, free)],
        &[boots, runs, (100, "silent"), (129, "well")],
    );
    check(
        &[],
        &[(100, wedge), (140, free)],
        &[
            boots,
            runs,
            (100, "silent"),
            (130, "ill"),
            (140, "recovers"),
            (160, "well"),
        ],
    );
    // A relapse before the second good probe.
    check(
        &[],
        &[(100, wedge), (140, free), (150, wedge)],
        &[
            boots,
            runs,
            (100, "silent"),
            (130, "ill"),
            (140, "recovers"),
            (150, "ill"),
        ],
    );
    check(
        &[(100, Partitioned), (200, Up)],
        &[],
        &[
            boots,
            runs,
            (100, "silent"),
            (130, "ill"),
            (200, "recovers"),
            (220, "well"),
        ],
    );
    check(&[(100, Degraded), (200, Up)], &[], &[boots, runs]);
    // It boots behind a partition, and nobody ever sees it well.
    check(
        &[(10, Partitioned)],
        &[],
        &[boots, (50, "silent"), (80, "ill")],
    );
    let flap: fn(&mut Vm) = |vm| {
        vm.flapping = Some(Flapping {
            down_seconds: 40,
            up_seconds: 30,
        });
    };
    let rest: fn(&mut Vm) = |vm| vm.flapping = None;
    check(
        &[],
        &[(100, flap), (215, rest)],
        &[
            boots,
            runs,
            (100, "silent"),
            (130, "ill"),
            (140, "recovers"),
            (160, "well"),
            (170, "silent"),
            (200, "ill"),
            (210, "recovers"),
            (230, "well"),
        ],
    );
}

#[test]
fn a_vm_boots_again_when_its_lost_site_is_back() {
    let check = |losses: &[(i64, DatacenterState)], back: i64, reboots: u32| {
        let mut expect = vec![(0, "boots"), (50, "well"), (100, "silent"), (130, "ill")];
        let again = boot::time(0, &vm().spec, reboots, &Site::default());
        let again = i64::try_from(again.as_millis().div_ceil(1000)).unwrap();
        expect.extend([(back + again, "recovers"), (back + again + 20, "well")]);
        assert_eq!(live(vm(), 1000, losses, &[]), expect, "{losses:?}");
    };
    check(&[(100, Lost), (200, Up)], 200, 1);
    // Lost again while it boots.
    check(&[(100, Lost), (140, Up), (145, Lost), (300, Up)], 300, 2);
    // Nobody looked in between, and it was off all the same.
    let mut site = Site {
        since: Timestamp(100_000),
        losses: 1,
        ..Site::default()
    };
    let mut seen = vm();
    settle(&mut seen, &Site::default(), Timestamp(60_000), 0);
    assert!(seen.reachable);
    settle(&mut seen, &site, Timestamp(100_000), 0);
    assert_eq!((seen.power, seen.reachable), (Power::Rebooting, false));
    // A VM that was killed, or never booted, has no power to lose or to get back.
    let mut dead = vm();
    dead.power = Power::Off;
    dead.observed = Observed::Failed;
    site.state = Lost;
    settle(&mut dead, &site, Timestamp(100_000), 0);
    assert_eq!(dead.power, Power::Off);
}

#[test]
fn a_boot_that_is_interrupted_begins_anew_and_a_failing_one_fails_when_it_would_be_over() {
    let again = boot::time(0, &vm().spec, 1, &Site::default());
    let again = i64::try_from(again.as_millis().div_ceil(1000)).unwrap();
    assert_eq!(
        live(vm(), 1000, &[(20, Lost), (70, Up)], &[]),
        [(0, "boots"), (70 + again, "well")]
    );
    let mut failing = vm();
    failing.boot_fails = true;
    assert_eq!(
        live(failing, 1000, &[], &[]),
        [(0, "boots"), (50, "failed")]
    );
}
