//! How long VMs take to boot and to go.
//!
//! Drawn from the seed and the VM's id, not from a shared generator: so the time does not depend on the
//! order in which VMs are created. A distribution is a table of quantiles, read by linear interpolation
//! in whole milliseconds: no floating point, so every machine draws the same. What is drawn is rounded up to
//! whole seconds: of ten thousand VMs many then come at one instant, and what follows is done for all of
//! them together.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::site::Site;
use super::vm::{Image, VmId, VmSpec};

/// Per mille of the draws, and the seconds that they stay below.
type Quantiles = &'static [(u32, u64)];

/// Workers: measured 26 to 60 s, up to 185 s (contract cke-models 6.6); median 45 s.
const WORKER: Quantiles = &[
    (0, 26),
    (250, 38),
    (500, 45),
    (750, 52),
    (950, 62),
    (990, 90),
    (1000, 185),
];
/// Control-plane VMs: such that a cluster takes about a minute in all.
const CONTROL_PLANE: Quantiles = &[(0, 24), (500, 30), (950, 36), (1000, 45)];
/// Deletion: about 40 s.
const DELETION: Quantiles = &[(0, 34), (500, 40), (1000, 46)];

/// Of the boot that follows `reboots` others, begun while the site is as it is.
pub(super) fn time(seed: u64, spec: &VmSpec, reboots: u32, site: &Site) -> Duration {
    let time = boot_time(seed, &spec.id, spec.image, reboots);
    let millis = time.as_millis() * u128::from(site.boot_slowness()) / 100;
    whole_seconds(Duration::from_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
    ))
}

/// Rounded up.
fn whole_seconds(time: Duration) -> Duration {
    let begun = u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(time.as_secs().saturating_add(begun))
}

fn boot_time(seed: u64, id: &VmId, image: Image, reboots: u32) -> Duration {
    let quantiles = match image {
        Image::Worker => WORKER,
        Image::ControlPlane => CONTROL_PLANE,
    };
    match reboots {
        0 => draw(quantiles, seed, "boot", id),
        again => draw(quantiles, seed, &format!("boot {again}"), id),
    }
}

/// Whether the VM's boot fails, when `per_mille` of all do. One that fails at some rate fails at every
/// higher one.
pub(super) fn fails(seed: u64, id: &VmId, per_mille: u32) -> bool {
    generator(seed, "boot failure", id).random_range(0..1000) < per_mille
}

pub(super) fn deletion_time(seed: u64, id: &VmId) -> Duration {
    whole_seconds(draw(DELETION, seed, "delete", id))
}

fn draw(quantiles: Quantiles, seed: u64, what: &str, id: &VmId) -> Duration {
    interpolate(
        quantiles,
        generator(seed, what, id).random_range(0..1_000_000),
    )
}

fn generator(seed: u64, what: &str, id: &VmId) -> ChaCha8Rng {
    let digest = Sha256::new()
        .chain_update(seed.to_be_bytes())
        .chain_update(what)
        .chain_update([0])
        .chain_update(&id.0)
        .finalize();
    ChaCha8Rng::from_seed(digest.into())
}

/// `at` is in millionths.
fn interpolate(quantiles: Quantiles, at: u32) -> Duration {
    let at = u64::from(at);
    for pair in quantiles.windows(2) {
        let [(from, low), (to, high)] = pair else {
            continue;
        };
        let (from, to) = (u64::from(*from) * 1000, u64::from(*to) * 1000);
        if (from..to).contains(&at) {
            let millis = low * 1000 + (high - low) * 1000 * (at - from) / (to - from);
            return Duration::from_millis(millis);
        }
    }
    Duration::from_secs(quantiles.last().map_or(0, |(_, longest)| *longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_meets_the_table() {
        let check = |at: u32, expect: u64| {
            assert_eq!(
                interpolate(WORKER, at).as_millis(),
                u128::from(expect),
                "{at}"
            );
        };
        check(0, 26_000);
        check(250_000, 38_000);
        check(375_000, 41_500);
        check(500_000, 45_000);
        check(1_000_000, 185_000);
    }

    #[test]
    fn times_depend_on_seed_and_id_alone() {
        let time = |seed, id: &str| boot_time(seed, &VmId::from(id), Image::Worker, 0);
        assert_eq!(time(1, "a"), time(1, "a"));
        assert_ne!(time(1, "a"), time(2, "a"));
        assert_ne!(time(1, "a"), time(1, "b"));
    }

    #[test]
    fn a_second_that_has_begun_counts() {
        let check = |millis: u64, expect: u64| {
            let rounded = whole_seconds(Duration::from_millis(millis));
            assert_eq!(rounded, Duration::from_secs(expect), "{millis}");
        };
        check(0, 0);
        check(26_000, 26);
        check(26_001, 27);
        check(26_999, 27);
    }

    #[test]
    fn so_many_of_a_thousand_boots_fail_and_more_at_a_higher_rate() {
        let failing = |per_mille| -> Vec<u32> {
            (0..2000)
                .filter(|n| fails(7, &VmId(format!("vm-{n}")), per_mille))
                .collect()
        };
        assert!(failing(0).is_empty());
        assert_eq!(failing(1000).len(), 2000);
        let (some, more) = (failing(100), failing(300));
        assert!((150..250).contains(&some.len()), "{}", some.len());
        assert!((530..670).contains(&more.len()), "{}", more.len());
        assert!(some.iter().all(|id| more.contains(id)));
    }

    #[test]
    fn the_median_worker_takes_about_45_seconds() {
        let mut times: Vec<u128> = (0..1001)
            .map(|n| boot_time(0, &VmId(format!("vm-{n}")), Image::Worker, 0).as_millis())
            .collect();
        times.sort_unstable();
        assert!((43_000..47_000).contains(&times[500]), "{}", times[500]);
        assert!(times[0] >= 26_000 && times[1000] <= 185_000);
    }
}
