//! FoundationDB's limits, enforced by every engine.

use crate::Error;
use bytes::Bytes;
use std::time::Duration;

/// Longest key, in bytes (error 2102): FoundationDB's 10,000 without an installation's longest prefix, so that what fits
/// one engine fits the other.
pub const KEY_SIZE_LIMIT: usize = 10_000 - (PREFIX_LIMIT + 2);
/// Longest value, in bytes (error 2103).
pub const VALUE_SIZE_LIMIT: usize = 100_000;
/// Largest transaction, in bytes (error 2101): the keys and values it writes, and its conflict ranges.
pub const TRANSACTION_SIZE_LIMIT: usize = 10_000_000;
/// A transaction may read and commit for this long after it took its read version (error 1007).
pub const TRANSACTION_LIFE: Duration = Duration::from_secs(5);
/// Watches that one database holds at a time (error 1032).
pub const MAX_WATCHES: usize = 10_000;
/// Longest name of an installation's part of a FoundationDB cluster, in bytes.
pub const PREFIX_LIMIT: usize = 64;
/// Versions advance by about this many per second.
pub const VERSIONS_PER_SECOND: i64 = 1_000_000;
/// The end of the keys that a user may write: keys are in `"" .. "\xff"`.
pub(crate) const MAX_KEY: &[u8] = b"\xff";

/// # Errors
/// 2004 for a key that no user may write, 2102 for one that is too long.
pub(crate) fn check_key(key: &[u8]) -> Result<(), Error> {
    if key >= MAX_KEY {
        return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
    }
    if key.len() > KEY_SIZE_LIMIT {
        return Err(Error::KEY_TOO_LARGE);
    }
    Ok(())
}

pub(crate) fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > VALUE_SIZE_LIMIT {
        return Err(Error::VALUE_TOO_LARGE);
    }
    Ok(())
}

pub(crate) fn check_range(begin: &[u8], end: &[u8]) -> Result<(), Error> {
    if begin > end {
        return Err(Error::INVERTED_RANGE);
    }
    if end > MAX_KEY {
        return Err(Error::KEY_OUTSIDE_LEGAL_RANGE);
    }
    Ok(())
}

/// There are no keys longer than the limit, so a bound that is longer can be cut behind it.
pub(crate) fn clamped(bound: Bytes) -> Bytes {
    if bound.len() > KEY_SIZE_LIMIT {
        bound.slice(..=KEY_SIZE_LIMIT)
    } else {
        bound
    }
}
