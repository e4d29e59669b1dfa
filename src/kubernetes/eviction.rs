//! Evictions: a pod is asked to leave its node.

use super::registry::{Deleted, Place, Preconditions, Registry};
use super::status::ApiError;

/// What an eviction insists on.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub preconditions: Preconditions,
    pub dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    Gone,
    /// It has been told to end, and takes its time.
    Ending,
}

/// Deletes the pod.
pub async fn evict(
    registry: &Registry,
    place: Place<'_>,
    name: &str,
    options: &Options,
) -> Result<Evicted, ApiError> {
    let deleted = registry
        .delete(place, name, &options.preconditions, options.dry_run)
        .await?;
    Ok(match deleted {
        Deleted::Now(_) => Evicted::Gone,
        Deleted::Later(_) => Evicted::Ending,
    })
}
