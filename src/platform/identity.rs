//! New identifiers: ULIDs whose time is the clock's and whose rest is drawn from the seed, the owner
//! and a number that the owner's ledger counts up in the same transaction. So they are unique, and two
//! runs with the same seed and the same requests mint the same ones.

use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::clock::Timestamp;

/// `scope` and `number` together must never have been used before.
pub fn mint(seed: u64, now: Timestamp, scope: &str, number: u64) -> Ulid {
    let digest = Sha256::new()
        .chain_update(seed.to_be_bytes())
        .chain_update(number.to_be_bytes())
        .chain_update(scope)
        .finalize();
    let mut random = [0; 16];
    random.copy_from_slice(&digest[..16]);
    let millis = u64::try_from(now.0).unwrap_or(0);
    // `from_parts` keeps the lower 48 bits of the time and 80 of the rest.
    Ulid::from_parts(millis, u128::from_be_bytes(random))
}

/// A version 5 UUID within the platform's own namespace: always the same for a name.
pub fn uuid_of(name: &str) -> uuid::Uuid {
    /// Drawn once.
    const NAMESPACE: uuid::Uuid = uuid::uuid!("5c1d9a2e-7f34-4b8b-9d0a-3e6f2b7c8a41");
    uuid::Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_follows_from_its_parts() {
        let now = Timestamp(1_767_225_600_000);
        let id = mint(1, now, "orga", 0);
        assert_eq!(id, mint(1, now, "orga", 0));
        assert_ne!(id, mint(2, now, "orga", 0));
        assert_ne!(id, mint(1, now, "orga", 1));
        assert_ne!(id, mint(1, now, "orgb", 0));
        assert!(id < mint(1, Timestamp(now.0 + 1), "orga", 0));
        assert_eq!(id.to_string().len(), 26);
    }
}
