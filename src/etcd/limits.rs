//! What the machine allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are not connections: the store's, logs, listeners. As many as etcd keeps back.
const RESERVED_FILES: u64 = 150;

#[derive(Debug, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, and {RESERVED_FILES} are needed beside connections: raise it (ulimit -n)"
)]
pub struct TooFewFiles {
    limit: u64,
}

/// Raises the limit of open files as far as this process may, and tells how many connections that
/// leaves.
///
/// # Errors
/// It leaves none.
pub fn connections() -> Result<usize, TooFewFiles> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays");
            current
        }
    };
    let limit = limit.unwrap_or(u64::MAX);
    let left = limit.saturating_sub(RESERVED_FILES);
    if left == 0 {
        return Err(TooFewFiles { limit });
    }
    Ok(usize::try_from(left).unwrap_or(usize::MAX))
}
