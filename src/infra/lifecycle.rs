//! What becomes of a VM: a function of its record, its site's, and the time.
//!
//! Every deadline is in a record, so whoever looks late, or again after a crash, finds the same. An
//! instant that is written is the deadline's, not the one at which somebody looked.
//!
//! Worked example (probes every 10 s, 3 bad ones count): a VM runs since 0 s; at 100 s its site loses
//! power. The VM is unreachable from 100 s, and unhealthy from 130 s. At 200 s the site is back: the VM
//! boots, which takes it 45 s, is reachable from 245 s, and healthy from 265 s.

use crate::clock::Timestamp;

use super::boot;
use super::site::Site;
use super::vm::{
    Flapping, HEALTHY_AFTER, Health, Observed, PROBE_INTERVAL, Power, UNHEALTHY_AFTER, Vm,
};

/// What is to be done about a VM at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing, until `wake` if nobody changes anything before.
    Rests { wake: Option<Timestamp> },
    /// Its record becomes this.
    Changes(Box<Vm>),
    /// Its record goes, with all that it holds.
    Goes,
}

/// What `vm` is to become at `now`.
pub(super) fn follow(vm: &Vm, site: &Site, now: Timestamp, seed: u64) -> Fate {
    if let Some(gone_at) = vm.gone_at {
        return if gone_at <= now {
            Fate::Goes
        } else {
            Fate::Rests {
                wake: Some(gone_at),
            }
        };
    }
    let mut next = vm.clone();
    settle(&mut next, site, now, seed);
    if next == *vm {
        Fate::Rests {
            wake: wake(vm, site, now),
        }
    } else {
        Fate::Changes(Box::new(next))
    }
}

/// Brings a VM that is not going away to where it is at `now`.
pub(super) fn settle(vm: &mut Vm, site: &Site, now: Timestamp, seed: u64) {
    follow_power(vm, site, seed);
    finish_boot(vm, now);
    follow_reachability(vm, site, now);
    follow_probes(vm, now);
}

fn follow_power(vm: &mut Vm, site: &Site, seed: u64) {
    let was_off = vm.power == Power::Lost || vm.site_losses != site.losses;
    vm.site_losses = site.losses;
    let has_power_of_its_own = vm.power != Power::Off
        && matches!(
            vm.observed,
            Observed::Provisioning | Observed::Running { .. }
        );
    if !has_power_of_its_own || !was_off {
        return;
    }
    if !site.has_power() {
        vm.power = Power::Lost;
        return;
    }
    vm.reboots = vm.reboots.saturating_add(1);
    vm.boots_at = site
        .since
        .saturating_add(boot::time(seed, &vm.spec, vm.reboots, site));
    vm.power = if vm.is_running() {
        Power::Rebooting
    } else {
        Power::On
    };
}

fn finish_boot(vm: &mut Vm, now: Timestamp) {
    if vm.boots_at > now {
        return;
    }
    match (vm.observed, vm.power) {
        (Observed::Provisioning, Power::On) if vm.boot_fails => vm.observed = Observed::Failed,
        (Observed::Provisioning, Power::On) => {
            vm.observed = Observed::Running { since: vm.boots_at };
            vm.reachability_changed_at = vm.boots_at;
        }
        (Observed::Running { .. }, Power::Rebooting) => vm.power = Power::On,
        _ => {}
    }
}

fn follow_reachability(vm: &mut Vm, site: &Site, now: Timestamp) {
    let phase = vm
        .flapping
        .map(|flapping| phase(flapping, vm.disturbed_at, now));
    let reachable = is_on(vm, site) && phase.is_none_or(|phase| phase.answers);
    if reachable == vm.reachable {
        return;
    }
    // The last change of what it depends on is what changed it.
    let causes = [
        Some(site.since),
        Some(vm.disturbed_at),
        Some(vm.boots_at),
        phase.map(|phase| phase.since),
    ];
    let at = causes
        .into_iter()
        .flatten()
        .filter(|cause| *cause <= now)
        .max()
        .unwrap_or(now)
        .max(vm.reachability_changed_at);
    follow_probes(vm, at);
    vm.reachable = reachable;
    vm.reachability_changed_at = at;
}

/// Whether it would answer, were it not for its flapping.
fn is_on(vm: &Vm, site: &Site) -> bool {
    vm.is_running() && vm.power == Power::On && !vm.wedged && site.is_reachable()
}

fn follow_probes(vm: &mut Vm, now: Timestamp) {
    let Some(at) = probes_turn_at(vm).filter(|at| *at <= now) else {
        return;
    };
    vm.health = match vm.health {
        Health::Healthy => Health::Unhealthy { since: at },
        Health::Unhealthy { .. } => Health::Healthy,
    };
}

/// When the probes will have said often enough that the VM's health is another.
fn probes_turn_at(vm: &Vm) -> Option<Timestamp> {
    let probes = match (vm.health, vm.reachable) {
        (Health::Healthy, false) => UNHEALTHY_AFTER,
        (Health::Unhealthy { .. }, true) => HEALTHY_AFTER,
        _ => return None,
    };
    vm.is_running().then(|| {
        vm.reachability_changed_at
            .saturating_add(PROBE_INTERVAL * probes)
    })
}

/// When a VM that is where it should be moves next, if nothing happens to it.
fn wake(vm: &Vm, site: &Site, now: Timestamp) -> Option<Timestamp> {
    let boot = match (vm.observed, vm.power) {
        (Observed::Provisioning, Power::On) | (Observed::Running { .. }, Power::Rebooting) => {
            Some(vm.boots_at)
        }
        _ => None,
    };
    let flap = vm
        .flapping
        .filter(|_| is_on(vm, site))
        .map(|flapping| phase(flapping, vm.disturbed_at, now).until);
    [boot, flap, probes_turn_at(vm)].into_iter().flatten().min()
}

/// A stretch of time during which a flapping VM answers, or does not.
#[derive(Clone, Copy)]
struct Phase {
    answers: bool,
    since: Timestamp,
    until: Timestamp,
}

/// Where a VM that flaps since `first` is at `now`.
fn phase(flapping: Flapping, first: Timestamp, now: Timestamp) -> Phase {
    let millis = |seconds: u32| i64::from(seconds.max(1)) * 1000;
    let (down, up) = (millis(flapping.down_seconds), millis(flapping.up_seconds));
    let into = now.0.saturating_sub(first.0).max(0) % (down + up);
    let cycle = now.0.saturating_sub(into);
    let (answers, from, to) = if into < down {
        (false, cycle, cycle.saturating_add(down))
    } else {
        (
            true,
            cycle.saturating_add(down),
            cycle.saturating_add(down + up),
        )
    };
    Phase {
        answers,
        since: Timestamp(from),
        until: Timestamp(to),
    }
}

#[cfg(test)]
mod tests;
