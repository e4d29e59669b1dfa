//! Block volumes, as of a Ceph cluster (RBD): what a claim asked for, and how much of it is written.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub id: String,
    /// Whose it is, as [`VmSpec::owner`](super::VmSpec::owner).
    pub owner: String,
    /// At least 1; grows only.
    pub size_bytes: u64,
    /// At most `size_bytes`.
    pub used_bytes: u64,
    pub created_at: Timestamp,
    /// Since when it is on the meter with its size: see [`metering`](super::metering).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metered_since: Option<Timestamp>,
}
