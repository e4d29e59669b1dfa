//! An ordered, transactional key-value store with FoundationDB's semantics.
//!
//! The contract is FoundationDB's, to the letter, and the layers above are written against it: keys and values are
//! bytes; a [`Transaction`] reads at one version and sees its own writes; it commits only if nothing that it read
//! has changed since (strict serializability by optimistic concurrency), and is answered when it is durable. Errors
//! carry FoundationDB's numbers, limits are its limits, and [`Database::transact`] retries by its rules.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let database = fdb::Database::open_embedded(directory.path(), fdb::EmbeddedOptions::default()).await?;
//! database
//!     .transact(|transaction| async move {
//!         if transaction.get(b"motd", false).await?.is_none() {
//!             transaction.set("motd", "hello");
//!         }
//!         Ok::<_, fdb::Error>(())
//!     })
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! # The embedded engine
//!
//! ```text
//!  Transaction --- read ------> View (one version) -----------+
//!      |                          ^                            v
//!      | commit                   | publish, after fsync     fjall: journal, memtables, tables
//!      v                          |                            ^
//!  bounded queue ---> committer thread: resolver, batch -------+  one write and one fsync per batch
//! ```
//!
//! | file | concept |
//! |---|---|
//! | `transaction.rs` | what one transaction has read and written |
//! | `overlay.rs`, `read.rs` | read-your-writes |
//! | `embedded/committer.rs` | group commit; what happens when the disk fails |
//! | `embedded/resolver.rs` | conflicts with recent commits |
//! | `embedded/storage.rs`, `embedded/journal.rs` | files, recovery |
//! | `watch.rs`, `faults.rs` | watches, fault mode |
//!
//! Invariants:
//! - Nothing is readable before it is durable, and nothing is acknowledged before it is readable.
//! - A commit is whole or absent after a crash at any byte, and an acknowledged one is whole.
//! - Commit versions grow with every batch, over crashes too; every version that was ever given out is smaller than
//!   every later commit's.
//! - This crate knows nothing of etcd, and of time only its [`TimeSource`]; waiting (backoff, timeouts, injected
//!   delays) is tokio's.
//!
//! Where it differs from FoundationDB: a watch on a key that its own transaction changes afterwards fires at the
//! commit, not at the write; a write that arrives while its transaction is being committed cannot be expressed
//! ([`Transaction::commit`] takes the transaction); there are no system keys (`\xff`), tenants or special keys.
//!
//! # FoundationDB
//!
//! With the cargo feature `foundationdb` the same types are a thin layer over FoundationDB's own client: see
//! `foundationdb/mod.rs`. Everything of an installation is behind a prefix, so that several can share a cluster.
//!
//! # Why fjall, and this shape
//!
//! Per etcd-shaped write (three keys, 64 per fsync) fjall 3.1 costs about half the CPU of redb 4; reads, which
//! redb serves faster, are mostly answered from the layer above. `benches/commit.rs` keeps the numbers honest. One
//! committer thread rather than a lock: fsync blocks, and the order in which conflicts are decided must be the order
//! in the journal. Reads run on the caller's thread: they are mostly memory, and a hop costs more than the read.

mod database;
mod embedded;
mod error;
mod faults;
#[cfg(feature = "foundationdb")]
mod foundationdb;
mod limits;
mod mutation;
mod overlay;
mod range;
mod read;
mod time;
mod transaction;
mod watch;

pub use database::{Database, Pairs, TransactError};
pub use embedded::{EmbeddedOptions, WriteHook, WriteStage};
pub use error::{Error, OpenError};
pub use faults::Faults;
#[cfg(feature = "foundationdb")]
pub use foundationdb::FoundationDbOptions;
pub use limits::{
    KEY_SIZE_LIMIT, MAX_WATCHES, PREFIX_LIMIT, TRANSACTION_LIFE, TRANSACTION_SIZE_LIMIT,
    VALUE_SIZE_LIMIT, VERSIONS_PER_SECOND,
};
pub use mutation::{MutationType, VERSIONSTAMP_LENGTH};
pub use range::{KeySelector, RangeOption, RangeResult};
pub use time::{ManualTime, MonotonicTime, TimeSource};
pub use transaction::{CommitError, Committed, Transaction, TransactionOption, Versionstamp};
pub use watch::Watch;

/// Stops FoundationDB's network thread, which runs from the first opened cluster on. Call it before the process ends, when
/// no database is used any more: afterwards none can be, nor a new one opened. Without the feature `foundationdb`, or if
/// no cluster was opened, it does nothing.
pub fn stop_network() {
    #[cfg(feature = "foundationdb")]
    foundationdb::stop_network();
}
