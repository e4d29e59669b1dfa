//! Hashes of a keyspace, equal to those of an etcd that has seen the same requests.

use std::ops::ControlFlow;

use super::error::Error;
use super::history::{self, History};
use super::keyspace::Keyspace;
use super::view::View as _;

/// How often it is tried while other servers compact.
const ATTEMPTS: usize = 3;

/// A hash of the history up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyspaceHash {
    pub hash: u32,
    /// The revision now.
    pub revision: i64,
    /// What the hash starts from, and goes up to.
    pub compact_revision: i64,
    pub hash_revision: i64,
}

/// CRC-32C over the name of etcd's bucket, and then keys and values of its records up to `revision`; 0 is now. Of what
/// is older than the last compaction, only what `revision` still sees: members compact at different moments.
///
/// # Errors
/// The revision is compacted, or in the future.
pub async fn up_to(keyspace: &Keyspace, revision: i64) -> Result<KeyspaceHash, Error> {
    for _ in 1..ATTEMPTS {
        match at_once(keyspace, revision).await {
            // Another server may have compacted what this one does not know of yet.
            Err(Error::Compacted) if keyspace.store.is_shared() => keyspace.catch_up().await?,
            outcome => return outcome,
        }
    }
    at_once(keyspace, revision).await
}

async fn at_once(keyspace: &Keyspace, revision: i64) -> Result<KeyspaceHash, Error> {
    let _held = keyspace.hold_compaction().await;
    let state = keyspace.state.read().clone();
    if revision < 0 {
        return Err(Error::Compacted);
    }
    let upto = state.resolve(revision)?;
    let history = History::of(&state);
    let any_live = state.index.any_at(upto);
    let mut hash = crc32c::crc32c(b"key");
    let mut failed = None;
    history
        .visit(keyspace, |record| {
            let main = record.revision.main;
            if main > upto {
                return ControlFlow::Break(());
            }
            let live = || {
                let live = state.index.get(&record.key, upto);
                live.is_some_and(|live| live.revision == record.revision)
            };
            if main <= history.compacted && any_live && !live() {
                return ControlFlow::Continue(());
            }
            if main == history.compacted && record.is_tombstone() {
                return ControlFlow::Continue(());
            }
            hash = crc32c::crc32c_append(hash, &history::stored_key(record));
            match history::stored_value(record) {
                Ok(value) => hash = crc32c::crc32c_append(hash, &value),
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })
        .await?;
    match failed {
        Some(error) => Err(error),
        None => Ok(KeyspaceHash {
            hash,
            revision: state.revision,
            compact_revision: state.compacted,
            hash_revision: upto,
        }),
    }
}
