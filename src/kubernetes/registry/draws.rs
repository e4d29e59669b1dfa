//! Random names and uids that do not depend on the order in which requests come.
//!
//! Several components write to a cluster at once. Each draw is a function of the seed, of what it is for and
//! of the instant: so under a manual clock a pod has the same uid in every run, whoever else was faster.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;

/// Keys that are counted within one instant; more begin a new epoch, whose draws are others.
const KEYS_LIMIT: usize = 1 << 16;

pub struct Draws {
    seed: [u8; 32],
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    instant: i64,
    epoch: u64,
    /// Draws so far at this instant and in this epoch, by what they were for.
    by_key: BTreeMap<String, u64>,
}

impl Draws {
    pub fn new(seed: [u8; 32]) -> Draws {
        Draws {
            seed,
            counts: Mutex::default(),
        }
    }

    /// The next draw for `key`; never the same twice.
    pub fn draw(&self, key: &str, now: Timestamp) -> [u8; 32] {
        let (epoch, count) = {
            let mut counts = self.counts.lock();
            if counts.instant != now.0 {
                *counts = Counts {
                    instant: now.0,
                    ..Counts::default()
                };
            }
            if counts.by_key.len() >= KEYS_LIMIT {
                counts.by_key.clear();
                counts.epoch += 1;
            }
            let epoch = counts.epoch;
            let count = counts.by_key.entry(key.to_owned()).or_default();
            *count += 1;
            (epoch, *count)
        };
        let mut hash = Sha256::new();
        hash.update(self.seed);
        for number in [
            now.0.to_be_bytes(),
            epoch.to_be_bytes(),
            count.to_be_bytes(),
        ] {
            hash.update(number);
        }
        hash.update(key.as_bytes());
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_what_they_are_for_and_not_the_order() {
        let now = Timestamp(1_000);
        let one = Draws::new([7; 32]);
        let other = Draws::new([7; 32]);
        let first = (one.draw("a", now), one.draw("b", now), one.draw("a", now));
        let b = other.draw("b", now);
        let a = other.draw("a", now);
        assert_eq!(first, (a, b, other.draw("a", now)));
        assert_ne!(first.0, first.2);
        assert_ne!(one.draw("a", Timestamp(1_001)), first.0);
        assert_ne!(Draws::new([8; 32]).draw("a", now), first.0);
    }

    #[test]
    fn a_new_epoch_repeats_nothing() {
        let draws = Draws::new([7; 32]);
        let now = Timestamp(1_000);
        let first = draws.draw("a", now);
        for index in 1..KEYS_LIMIT {
            draws.draw(&index.to_string(), now);
        }
        assert_ne!(draws.draw("a", now), first);
        assert!(draws.counts.lock().by_key.len() < KEYS_LIMIT);
    }
}
