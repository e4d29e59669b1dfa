//! The database: opens an engine, makes transactions, and runs the retry loop.

use crate::{
    Error, OpenError, Transaction,
    embedded::{self, Embedded, EmbeddedOptions},
    transaction,
};
use bytes::Bytes;
use std::{path::Path, sync::Arc};

/// Keys and values in the order of the keys: see [`Database::pairs`].
pub type Pairs = Box<dyn Iterator<Item = Result<(Bytes, Bytes), Error>> + Send>;

/// An open store; clones share it. It closes when the last clone and the last transaction are dropped, or by
/// [`Database::close`].
#[derive(Debug, Clone)]
pub struct Database {
    engine: Engine,
}

#[derive(Debug, Clone)]
enum Engine {
    Embedded(Arc<Embedded>),
    #[cfg(feature = "foundationdb")]
    FoundationDb(Arc<crate::foundationdb::FoundationDb>),
}

/// An error that a [`Database::transact`] closure may return: the store's own, or one that carries it.
pub trait TransactError: From<Error> {
    /// The store's error, for the retry rules; `Err` gives back an error of another kind, which is not retried.
    ///
    /// # Errors
    /// The error itself, if it is not the store's.
    fn try_into_error(self) -> Result<Error, Self>;
}

impl TransactError for Error {
    fn try_into_error(self) -> Result<Error, Self> {
        Ok(self)
    }
}

impl Database {
    /// Opens the embedded engine in `directory` and creates it if need be. The directory is locked: there is one
    /// opener at a time.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_embedded(
        directory: &Path,
        options: EmbeddedOptions,
    ) -> Result<Database, OpenError> {
        let path = directory.to_path_buf();
        let opened = tokio::task::spawn_blocking(move || Embedded::open(&path, options)).await;
        let engine = opened.unwrap_or_else(|died| {
            Err(OpenError::Damaged {
                directory: directory.to_path_buf(),
                reason: died.to_string(),
            })
        })?;
        Ok(Database {
            engine: Engine::Embedded(Arc::new(engine)),
        })
    }

    /// Opens a FoundationDB cluster, and starts the process' network thread unless it runs already. Call it inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`OpenError::FoundationDb`]: no or a wrong cluster file, or a client library that is too old. A cluster that
    /// cannot be reached is no error: what is asked of it waits.
    #[cfg(feature = "foundationdb")]
    pub fn open_foundationdb(options: crate::FoundationDbOptions) -> Result<Database, OpenError> {
        let engine = crate::foundationdb::FoundationDb::open(options)?;
        Ok(Database {
            engine: Engine::FoundationDb(engine),
        })
    }

    /// Whether other processes may write to it at the same time.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !matches!(self.engine, Engine::Embedded(_))
    }

    /// A new transaction. Costs nothing until it is used.
    #[must_use]
    pub fn create_transaction(&self) -> Transaction {
        Transaction(match &self.engine {
            Engine::Embedded(engine) => {
                transaction::Engine::Embedded(embedded::Transaction::new(engine.clone()))
            }
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(engine) => transaction::Engine::FoundationDb(
                crate::foundationdb::Transaction::new(engine.clone()),
            ),
        })
    }

    /// Runs `f` in a transaction and commits it, again and again while the error is retryable.
    ///
    /// `f` may run several times, and after [`Error::COMMIT_UNKNOWN_RESULT`] it may run again although the attempt
    /// before was committed: it must be idempotent. It gets a handle of the transaction, so that its future is
    /// `Send` and can be spawned; committing is not its business. A handle that it keeps is of no use afterwards
    /// (2017, 1025).
    ///
    /// ```
    /// # async fn count(database: fdb::Database) -> Result<u8, fdb::Error> {
    /// let count = database
    ///     .transact(|transaction| async move {
    ///         let count = transaction.get(b"count", false).await?.map_or(0, |count| count[0]);
    ///         transaction.set("count", vec![count + 1]);
    ///         Ok::<_, fdb::Error>(count + 1)
    ///     })
    ///     .await?;
    /// # Ok(count) }
    /// ```
    ///
    /// # Errors
    /// What `f` returned, if that is not a retryable error of the store; otherwise the store's.
    pub async fn transact<T, E, F, R>(&self, mut f: F) -> Result<T, E>
    where
        E: TransactError,
        F: FnMut(Transaction) -> R,
        R: Future<Output = Result<T, E>>,
    {
        let mut transaction = self.create_transaction();
        loop {
            let error = match f(transaction.share()).await {
                Err(error) => error.try_into_error()?,
                Ok(value) => match transaction.commit().await {
                    Ok(_) => return Ok(value),
                    Err(failed) => {
                        transaction = failed.transaction;
                        failed.error
                    }
                },
            };
            transaction = transaction.on_error(error).await?;
        }
    }

    /// Bytes on disk, the journal's preallocated space included. Zero after the database was closed. Of FoundationDB an
    /// estimate of the keys and values, seconds old.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match &self.engine {
            Engine::Embedded(engine) => engine.size_bytes(),
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(engine) => engine.size_bytes(),
        }
    }

    /// Every pair from `begin` up to, not including, `end`, as of now, however long reading them takes. `None` if other
    /// processes may write to the store: FoundationDB has no version that lives so long.
    ///
    /// Each step may block for a read from the disk.
    ///
    /// # Errors
    /// The store is closed, or its disk failed.
    pub fn pairs(&self, begin: &[u8], end: &[u8]) -> Result<Option<Pairs>, Error> {
        match &self.engine {
            Engine::Embedded(engine) => {
                let view = engine.view()?;
                let (begin, end) = (Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
                Ok(Some(Box::new(view.range(&begin, &end))))
            }
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(_) => Ok(None),
        }
    }

    /// Rewrites the files without what was deleted or overwritten. Takes as long as copying everything; others go on meanwhile.
    /// FoundationDB does so by itself, always.
    ///
    /// # Errors
    /// The disk's, or the store is closed.
    pub async fn defragment(&self) -> Result<(), Error> {
        match &self.engine {
            Engine::Embedded(engine) => {
                let engine = engine.clone();
                tokio::task::spawn_blocking(move || engine.defragment())
                    .await
                    .unwrap_or(Err(Error::IO_ERROR))
            }
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(_) => Ok(()),
        }
    }

    /// Commits what is queued and stops. Later operations fail with [`Error::SHUTDOWN_IN_PROGRESS`]. The directory
    /// can be opened again when no transaction is left that has read.
    pub async fn close(&self) {
        match &self.engine {
            Engine::Embedded(engine) => {
                let engine = engine.clone();
                if let Err(died) = tokio::task::spawn_blocking(move || engine.stop()).await {
                    tracing::error!(%died, "closing the store failed");
                }
            }
            #[cfg(feature = "foundationdb")]
            Engine::FoundationDb(engine) => engine.close(),
        }
    }
}
