//! How long VMs take to boot and to go.
//!
//! Drawn from the seed and the VM's id, not from a shared generator: so the time does not depend on the
//! order in which VMs are created. A distribution is a table of quantiles, read by linear interpolation
//! in whole milliseconds: no floating point, so every machine draws the same.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::vm::{Image, VmId};

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

pub(super) fn boot_time(seed: u64, id: &VmId, image: Image) -> Duration {
    let quantiles = match image {
        Image::Worker => WORKER,
        Image::ControlPlane => CONTROL_PLANE,
    };
    draw(quantiles, seed, "boot", id)
}

pub(super) fn deletion_time(seed: u64, id: &VmId) -> Duration {
    draw(DELETION, seed, "delete", id)
}

fn draw(quantiles: Quantiles, seed: u64, what: &str, id: &VmId) -> Duration {
    let digest = Sha256::new()
        .chain_update(seed.to_be_bytes())
        .chain_update(what)
        .chain_update([0])
        .chain_update(&id.0)
        .finalize();
    let mut generator = ChaCha8Rng::from_seed(digest.into());
    interpolate(quantiles, generator.random_range(0..1_000_000))
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
        let time = |seed, id: &str| boot_time(seed, &VmId::from(id), Image::Worker);
        assert_eq!(time(1, "a"), time(1, "a"));
        assert_ne!(time(1, "a"), time(2, "a"));
        assert_ne!(time(1, "a"), time(1, "b"));
    }

    #[test]
    fn the_median_worker_takes_about_45_seconds() {
        let mut times: Vec<u128> = (0..1001)
            .map(|n| boot_time(0, &VmId(format!("vm-{n}")), Image::Worker).as_millis())
            .collect();
        times.sort_unstable();
        assert!((43_000..47_000).contains(&times[500]), "{}", times[500]);
        assert!(times[0] >= 26_000 && times[1000] <= 185_000);
    }
}
