//! The FoundationDB engine: the same semantics, from the one who set them.
//!
//! Nearly everything is the client library's own: read-your-writes, conflict ranges, retries and their backoff, limits,
//! watches. Here is what differs: errors become [`Error`], keys are behind the installation's prefix (see
//! [`subspace`]), and what is illegal of a key without the prefix is refused before the library sees it.
//!
//! One read takes 0.5 to 1 ms, a commit 2 to 5 ms, on one machine; there is no state here but a handle, so a process can
//! be killed at any time.

mod network;
mod subspace;
mod transaction;

use crate::{Error, OpenError, PREFIX_LIMIT};
use foundationdb::options::DatabaseOption;
pub(crate) use network::stop as stop_network;
use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use subspace::Subspace;
pub(crate) use transaction::Transaction;

/// How often the size is asked for.
const SIZE_INTERVAL: Duration = Duration::from_secs(10);

/// Which cluster, and which part of it. TLS is set up as for every client of FoundationDB, by `FDB_TLS_CERTIFICATE_FILE`,
/// `FDB_TLS_KEY_FILE`, `FDB_TLS_CA_FILE` and `FDB_TLS_VERIFY_PEERS` in the environment.
#[derive(Debug, Clone)]
pub struct FoundationDbOptions {
    /// The cluster file.
    pub cluster_file: PathBuf,
    /// The installation's name: printable ASCII, up to [`PREFIX_LIMIT`] bytes. Its keys are those that begin with the
    /// tuple of this one text, as FoundationDB's tuple layer writes it: `\x02`, the name, `\x00`.
    pub prefix: String,
    /// How long a transaction may take, its retries included, before it fails with 1031. Default 10 seconds.
    pub timeout: Duration,
}

impl FoundationDbOptions {
    /// The defaults.
    #[must_use]
    pub fn new(cluster_file: impl Into<PathBuf>, prefix: impl Into<String>) -> Self {
        FoundationDbOptions {
            cluster_file: cluster_file.into(),
            prefix: prefix.into(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// One open cluster.
pub(crate) struct FoundationDb {
    database: foundationdb::Database,
    space: Subspace,
    closed: AtomicBool,
    size_bytes: AtomicU64,
}

impl fmt::Debug for FoundationDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundationDb")
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}

fn error(error: foundationdb::FdbError) -> Error {
    Error::from_code(error.code())
}

impl FoundationDb {
    pub(crate) fn open(options: FoundationDbOptions) -> Result<Arc<FoundationDb>, OpenError> {
        let FoundationDbOptions {
            cluster_file,
            prefix,
            timeout,
        } = options;
        let refused = |reason: String| OpenError::FoundationDb {
            cluster_file: cluster_file.clone(),
            reason,
        };
        let printable = |byte: u8| byte.is_ascii_graphic();
        if prefix.is_empty() || prefix.len() > PREFIX_LIMIT || !prefix.bytes().all(printable) {
            return Err(refused(format!(
                "the prefix `{prefix}` is not 1 to {PREFIX_LIMIT} characters of printable ASCII"
            )));
        }
        // The library would wait for ever for a file that is not there.
        std::fs::File::open(&cluster_file).map_err(|error| refused(error.to_string()))?;
        network::start().map_err(refused)?;
        let path = cluster_file.to_string_lossy();
        let database = foundationdb::Database::from_path(&path);
        let database = database.map_err(|error| refused(error.to_string()))?;
        let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        database
            .set_option(DatabaseOption::TransactionTimeout(ms))
            .map_err(|error| refused(error.to_string()))?;
        let engine = Arc::new(FoundationDb {
            database,
            space: Subspace::new(&prefix),
            closed: AtomicBool::new(false),
            size_bytes: AtomicU64::new(0),
        });
        tokio::spawn(keep_size(Arc::downgrade(&engine)));
        Ok(engine)
    }

    fn create_transaction(&self) -> Result<foundationdb::Transaction, Error> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::SHUTDOWN_IN_PROGRESS);
        }
        self.database.create_trx().map_err(error)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// There is nothing to end but what comes later.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.size_bytes.store(0, Ordering::Relaxed);
    }

    async fn estimate_size(&self) -> Result<u64, Error> {
        let transaction = self.create_transaction()?;
        let (begin, end) = (self.space.begin(), self.space.end());
        let size = transaction.get_estimated_range_size_bytes(begin, end);
        Ok(u64::try_from(size.await.map_err(error)?).unwrap_or(0))
    }
}

/// Asks for the size now and then, until the database is closed or gone.
async fn keep_size(engine: Weak<FoundationDb>) {
    while let Some(engine) = engine.upgrade() {
        match engine.estimate_size().await {
            Ok(size) => engine.size_bytes.store(size, Ordering::Relaxed),
            Err(Error::SHUTDOWN_IN_PROGRESS) => return,
            Err(error) => tracing::debug!(%error, "the size of the store is not known"),
        }
        drop(engine);
        tokio::time::sleep(SIZE_INTERVAL).await;
    }
}
