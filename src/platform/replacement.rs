//! How the VMs of a pool come, are replaced one at a time, and go.
//!
//! A pool is the workers of a node group, or the VMs of one role of a control plane: replicas that are
//! alike, of which so many are asked for. One mechanism heals it and rolls it: a replica that failed,
//! that is of another version than it should be, or that would be better off at another site, gets a successor; once the successor serves, the old one
//! is drained, deleted, and struck from the record when its VM is gone. So nothing is ever missing that
//! was not missing before, with one replica as with many.
//!
//! Worked example (two workers, `a` and `b`; `b` dies at 0 s):
//!
//! ```text
//!  0 s  a serves   b does not answer
//! 30 s  a serves   b is unhealthy (probes)
//! 50 s  a serves   b still is: c is recorded, replaces b       ─ one change at a time: d for a must wait
//! 95 s  a serves   b leaves, drained by force                   c serves, replaces nobody
//! 140 s a serves   b's VM is gone: b is struck                  c serves
//! ```
//!
//! Rules, each for a reason:
//! - a replica that recovers before its successor is recorded stays; afterwards the successor is kept and
//!   the old one goes, so that a flapping VM cannot make two of itself;
//! - one that never served is not worth a successor: it goes at once, and another takes its place after
//!   a pause that grows with every failure in a row;
//! - one that does not come to run in [`BOOT_LIMIT`] has failed, wherever it is;
//! - a successor that fails is one that never served; its predecessor then waits for the next;
//! - failures come before planned changes, and a planned change waits until every replica is healthy;
//! - a move to a better site is given up when that site turns out to have no room, and begun again later;
//! - a replica that cannot be reached is not waited for when it is drained;
//! - deleting a VM takes its time in the background: the next change need not wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::infra::Datacenter;
use crate::kubernetes::Drain;

use super::placement;
use super::vm_state::VmState;

/// How long a VM that served may be unhealthy, after the probes said so, before it is replaced.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a VM may take to run: its site may have lost its power meanwhile, and never come back. The slowest boot
/// takes three minutes, and nine in a degraded site.
pub const BOOT_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long pods may hold up the drain of a node; then they are deleted.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5 * 60);
/// Between two rounds of evictions.
const DRAIN_INTERVAL: Duration = Duration::from_secs(5);
/// The pause after the first failure; doubles with each in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// After so long, room is looked for again at a site that was full: nobody tells here when somebody else's
/// VM goes.
pub const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// Replicas that a round changes at most: each change needs operations of one transaction, and etcd allows
/// 128 by default. The change of the record brings the next round.
const MAX_CHANGED: usize = 32;

/// What is kept of a replica's coming and going.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// Id of the one that goes once this one serves; `None`: it is one of those asked for.
    pub replaces: Option<String>,
    /// That one is well, and would only be better off at this one's site.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
    /// It was healthy long enough to count.
    pub served: bool,
    /// Since when it is seen unhealthy.
    pub unhealthy_since: Option<Timestamp>,
    pub leaving: Option<Leaving>,
    /// Sites that had no room for it since the last pause.
    pub refused: BTreeSet<Datacenter>,
    /// No VM is asked for before.
    pub retry_at: Option<Timestamp>,
}

/// A replica on its way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// From then on, pods are not waited for.
    pub deadline: Timestamp,
    pub drained: bool,
    /// Name of its successor.
    pub replaced_by: Option<String>,
}

/// Failures of a pool in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tries {
    pub failures: u32,
    /// No new replica before.
    pub not_before: Option<Timestamp>,
}

impl Tries {
    /// Counts a failure. Returns when to try again.
    pub fn fail(&mut self, now: Timestamp) -> Timestamp {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        let at = now.saturating_add(pause);
        self.not_before = Some(at);
        at
    }

    pub fn may_try(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }
}

/// One of a pool.
pub trait Replica {
    fn id(&self) -> &str;
    fn name(&self) -> &str;
    fn number(&self) -> u32;
    fn datacenter(&self) -> Datacenter;
    fn set_datacenter(&mut self, datacenter: Datacenter);
    fn life(&self) -> &Lifecycle;
    fn life_mut(&mut self) -> &mut Lifecycle;

    fn is_leaving(&self) -> bool {
        self.life().leaving.is_some()
    }

    /// Whether it is one of those asked for: not on its way out, and nobody's successor yet.
    fn counts(&self) -> bool {
        !self.is_leaving() && self.life().replaces.is_none()
    }
}

/// What is seen of a pool.
pub struct Sight<'a> {
    pub now: Timestamp,
    /// By id; one that is not there is not in here.
    pub vms: &'a BTreeMap<String, VmState>,
    /// Outcome of this round's evictions, by id.
    pub drains: &'a BTreeMap<String, Drain>,
    /// How long a VM must have run to count.
    pub join: Duration,
}

impl Sight<'_> {
    pub fn vm(&self, id: &str) -> VmState {
        self.vms.get(id).copied().unwrap_or(VmState::Absent)
    }
}

/// What a round found to be done.
#[derive(Debug)]
pub struct Walk<R> {
    /// Ids whose VMs are to be made.
    pub create: Vec<String>,
    /// Ids whose VMs are to be deleted.
    pub delete: Vec<String>,
    /// Gone: their names are free.
    pub struck: Vec<R>,
    /// Names of those that never served and go.
    pub failed: Vec<String>,
    /// Names of successors and predecessors.
    pub took_over: Vec<(String, String)>,
    pub wake: Option<Timestamp>,
}

impl<R> Default for Walk<R> {
    fn default() -> Self {
        Walk {
            create: Vec::new(),
            delete: Vec::new(),
            struck: Vec::new(),
            failed: Vec::new(),
            took_over: Vec::new(),
            wake: None,
        }
    }
}

impl<R> Walk<R> {
    fn wake_by(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Whether a drain of this replica no longer waits for pods.
pub fn must_force(leaving: &Leaving, state: VmState, now: Timestamp) -> bool {
    leaving.deadline <= now || !state.is_serving()
}

/// Sends a replica away: drained first, unless it does not answer anyway.
pub fn send_away<R: Replica>(replica: &mut R, state: VmState, now: Timestamp) {
    if replica.is_leaving() {
        return;
    }
    let deadline = if state.is_serving() {
        now.saturating_add(DRAIN_LIMIT)
    } else {
        now
    };
    let life = replica.life_mut();
    life.leaving = Some(Leaving {
        deadline,
        drained: false,
        replaced_by: None,
    });
    life.replaces = None;
}

/// Brings every replica of the pool a step further.
pub fn walk<R: Replica>(pool: &mut Vec<R>, tries: &mut Tries, sight: &Sight<'_>) -> Walk<R> {
    let mut walk = Walk::default();
    let mut kept = Vec::with_capacity(pool.len());
    let mut changed = 0;
    for mut replica in pool.drain(..) {
        if changed >= MAX_CHANGED {
            kept.push(replica);
            continue;
        }
        let before = replica.life().clone();
        let state = sight.vm(replica.id());
        let stays = if replica.is_leaving() {
            leave(&mut replica, state, sight, &mut walk)
        } else {
            serve(&mut replica, state, tries, sight, &mut walk);
            true
        };
        if !stays || *replica.life() != before {
            changed += 1;
        }
        if stays {
            kept.push(replica);
        } else {
            walk.struck.push(replica);
        }
    }
    *pool = kept;
    take_over(pool, tries, sight, &mut walk);
    walk
}

/// One on its way out. Returns whether it is still there.
fn leave<R: Replica>(
    replica: &mut R,
    state: VmState,
    sight: &Sight<'_>,
    walk: &mut Walk<R>,
) -> bool {
    let drain = sight.drains.get(replica.id()).copied();
    let id = replica.id().to_owned();
    let Some(leaving) = replica.life_mut().leaving.as_mut() else {
        return true;
    };
    if !leaving.drained {
        // Nothing was ever on a VM that never ran, and nobody can be asked about it.
        let gone = !state.is_running();
        let forced = drain.is_some() && must_force(leaving, state, sight.now);
        leaving.drained = gone || forced || drain == Some(Drain::Drained);
    }
    if !leaving.drained {
        walk.wake_by(sight.now.saturating_add(DRAIN_INTERVAL));
        return true;
    }
    match state {
        VmState::Absent => false,
        VmState::Deleting => true,
        _ => {
            walk.delete.push(id);
            true
        }
    }
}

/// One that is to serve.
fn serve<R: Replica>(
    replica: &mut R,
    state: VmState,
    tries: &mut Tries,
    sight: &Sight<'_>,
    walk: &mut Walk<R>,
) {
    let now = sight.now;
    let mut given_up = false;
    let (id, name) = (replica.id().to_owned(), replica.name().to_owned());
    let life = replica.life_mut();
    match state {
        VmState::Absent => match life.retry_at {
            Some(at) if at > now => walk.wake_by(at),
            _ => walk.create.push(id),
        },
        VmState::Deleting => {}
        // It served once, so it ran: it cannot be on its way to that again.
        VmState::Provisioning { since } => {
            let until = since.saturating_add(BOOT_LIMIT);
            if now < until {
                walk.wake_by(until);
            } else {
                given_up = !life.served;
            }
        }
        VmState::Failed => {
            given_up = !life.served;
            life.unhealthy_since.get_or_insert(now);
        }
        VmState::Running {
            since,
            healthy: true,
            ..
        } => {
            life.unhealthy_since = None;
            life.retry_at = None;
            life.refused.clear();
            let joined = since.saturating_add(sight.join);
            if joined <= now {
                life.served = true;
            } else if !life.served {
                walk.wake_by(joined);
            }
        }
        VmState::Running { healthy: false, .. } => {
            let since = *life.unhealthy_since.get_or_insert(now);
            let until = since.saturating_add(PATIENCE);
            if now < until {
                walk.wake_by(until);
            } else {
                given_up = !life.served;
            }
        }
    }
    if given_up {
        walk.wake_by(tries.fail(now));
        walk.failed.push(name);
        send_away(replica, state, now);
    }
}

/// A successor that serves takes its predecessor's place; one whose predecessor goes anyway is one of
/// those asked for, and then one too many if need be.
fn take_over<R: Replica>(pool: &mut [R], tries: &mut Tries, sight: &Sight<'_>, walk: &mut Walk<R>) {
    for index in 0..pool.len() {
        let replica = &pool[index];
        let Some(old) = replica.life().replaces.clone() else {
            continue;
        };
        let name = replica.name().to_owned();
        let state = sight.vm(replica.id());
        let serves = replica.life().served && state.is_healthy();
        let old = pool.iter().position(|other| other.id() == old);
        match old.filter(|old| !pool[*old].is_leaving()) {
            None => pool[index].life_mut().replaces = None,
            Some(old) if serves => {
                pool[index].life_mut().replaces = None;
                let state = sight.vm(pool[old].id());
                send_away(&mut pool[old], state, sight.now);
                if let Some(leaving) = pool[old].life_mut().leaving.as_mut() {
                    leaving.replaced_by = Some(name.clone());
                }
                *tries = Tries::default();
                walk.took_over.push((name, pool[old].name().to_owned()));
            }
            Some(_) => {}
        }
    }
}

fn is_well<R: Replica>(replica: &R, sight: &Sight<'_>) -> bool {
    replica.life().served && sight.vm(replica.id()).is_healthy()
}

/// Whether a change of one is under way: nobody else's begins.
fn is_changing<R: Replica>(replica: &R) -> bool {
    let life = replica.life();
    let draining = |leaving: &Leaving| !leaving.drained && leaving.replaced_by.is_some();
    life.replaces.is_some() || life.leaving.as_ref().is_some_and(draining)
}

/// Why a replica gets a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its VM failed or does not answer.
    Unhealthy,
    /// It is of another version or generation than it should be.
    Outdated,
    /// It would be better off at another site, where there is room.
    Misplaced,
}

/// Who gets a successor now, if anybody: one at a time, failures first. `misplaced` is asked of a place in the
/// pool.
pub fn to_replace<R: Replica>(
    pool: &[R],
    tries: &Tries,
    sight: &Sight<'_>,
    outdated: impl Fn(&R) -> bool,
    misplaced: impl Fn(usize) -> bool,
) -> Option<(usize, Reason)> {
    if !tries.may_try(sight.now) || pool.iter().any(is_changing) {
        return None;
    }
    let counted = || pool.iter().enumerate().filter(|(_, r)| r.counts());
    let overdue = |replica: &R| match (replica.life(), sight.vm(replica.id())) {
        (life, VmState::Failed) => life.served,
        (life, VmState::Running { healthy: false, .. }) => {
            let since = life.unhealthy_since.unwrap_or(sight.now);
            life.served && since.saturating_add(PATIENCE) <= sight.now
        }
        _ => false,
    };
    let failed = counted().filter(|(_, replica)| overdue(replica));
    let first = failed.min_by_key(|(_, r)| (r.life().unhealthy_since, r.number()));
    if let Some((index, _)) = first {
        return Some((index, Reason::Unhealthy));
    }
    if !counted().all(|(_, replica)| is_well(replica, sight)) {
        return None;
    }
    let old = counted().find(|(_, replica)| outdated(replica));
    if let Some((index, _)) = old {
        return Some((index, Reason::Outdated));
    }
    let far = counted().find(|(index, _)| misplaced(*index));
    far.map(|(index, _)| (index, Reason::Misplaced))
}

/// Where those of the pool are that stay, but for the one at `without`.
pub fn sites<R: Replica>(pool: &[R], without: Option<usize>) -> Vec<Datacenter> {
    let others = pool.iter().enumerate();
    let others = others.filter(|(index, replica)| Some(*index) != without && !replica.is_leaving());
    others.map(|(_, replica)| replica.datacenter()).collect()
}

/// Whether nothing of the pool changes: as many as are asked for serve, and nobody else is there but
/// those whose VMs are going.
pub fn is_at_rest<R: Replica>(pool: &[R], wanted: usize, sight: &Sight<'_>) -> bool {
    let mut counted = pool.iter().filter(|replica| replica.counts());
    let changing = pool.iter().any(is_changing);
    !changing && counted.clone().count() == wanted && counted.all(|replica| is_well(replica, sight))
}

/// Has the site of `id` refused it for want of room: the next best is tried, and when all have refused,
/// all are tried again after a pause. One that was to move another has no other purpose: it is struck, and
/// returned, when no site is left where that one would be better off.
pub fn refuse<R: Replica>(
    pool: &mut Vec<R>,
    tries: &mut Tries,
    id: &str,
    rule: placement::Rule,
    now: Timestamp,
) -> Option<R> {
    let index = pool.iter().position(|replica| replica.id() == id)?;
    let predecessor = pool[index].life().replaces.clone();
    let moved = pool
        .iter()
        .find(|old| Some(old.id()) == predecessor.as_deref());
    let moved = moved.filter(|old| !old.is_leaving() && old.life().unhealthy_since.is_none());
    let moved = moved.map(Replica::datacenter);
    let stays = |other: &&R| {
        other.id() != id && Some(other.id()) != predecessor.as_deref() && !other.is_leaving()
    };
    let others: Vec<Datacenter> = pool.iter().filter(stays).map(Replica::datacenter).collect();
    let replica = &mut pool[index];
    let site = replica.datacenter();
    replica.life_mut().refused.insert(site);
    let open: BTreeSet<Datacenter> = Datacenter::ALL
        .into_iter()
        .filter(|site| !replica.life().refused.contains(site))
        .collect();
    if let (true, Some(from)) = (replica.life().moves, moved) {
        match placement::better(rule, from, &others, &open) {
            Some(next) => replica.set_datacenter(next),
            None => {
                // Not at once again, should the site go on to say that it has room.
                tries.fail(now);
                return Some(pool.remove(index));
            }
        }
        return None;
    }
    match placement::choose(rule, site, &others, &open) {
        Some(next) => replica.set_datacenter(next),
        None => {
            let at = tries.fail(now);
            let life = replica.life_mut();
            life.refused.clear();
            life.retry_at = Some(at);
            let all = BTreeSet::from(Datacenter::ALL);
            if let Some(next) = placement::choose(rule, site, &others, &all) {
                replica.set_datacenter(next);
            }
        }
    }
    None
}
