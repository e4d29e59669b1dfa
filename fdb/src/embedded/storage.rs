//! The files: one fjall database, written in batches that are whole or absent after a crash.
//!
//! ```text
//! <directory>/lock        locked as long as the store is open
//! <directory>/store/      the fjall database
//! <directory>/store.new/  one that was being created when the process died: removed
//! ```
//!
//! Creating a database takes several steps on disk; they happen under another name, so that a directory either
//! has no store or a complete one.

use super::{EmbeddedOptions, journal};
use crate::OpenError;
use bytes::Bytes;
use fjall::{Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

/// Under this key of the `system` keyspace: the newest commit version, big-endian.
const VERSION: &[u8] = b"version";
/// Under this key of the `system` keyspace: the value of the empty key, which fjall does not take.
const EMPTY_KEY: &[u8] = b"empty-key";

/// Memory for writes that are not yet in a table file. Two of them at most wait to be flushed before writers wait.
const MEMTABLE_BYTES: u64 = 32 << 20;
/// The same for the keyspace that gets one small item per batch.
const SYSTEM_MEMTABLE_BYTES: u64 = 8 << 20;
/// The journal is cut off behind flushed tables before it exceeds this; what recovery has to replay at most.
const JOURNAL_BYTES: u64 = 256 << 20;

/// What a batch writes: the value that each key has after it.
pub(crate) type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// A pair of a range read.
pub(crate) type Pair = (Bytes, Bytes);

pub(crate) struct Storage {
    database: fjall::Database,
    data: Keyspace,
    system: Keyspace,
    fsync: bool,
    /// After the database, so that it is dropped last.
    _lock: Lock,
}

/// The directory's lock. Given up explicitly: a process that is being spawned at this moment has a copy of the file
/// descriptor until it executes its program, and closing ours alone would leave the lock to it.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot unlock the store's directory");
        }
    }
}

impl Storage {
    /// Opens the store, or creates it, and tells the newest commit version.
    pub(crate) fn open(
        directory: &Path,
        options: &EmbeddedOptions,
    ) -> Result<(Storage, i64), OpenError> {
        let io_error = |source| OpenError::Io {
            directory: directory.to_path_buf(),
            source,
        };
        fs::create_dir_all(directory).map_err(io_error)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(io_error)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse {
                directory: directory.to_path_buf(),
            },
            TryLockError::Error(source) => io_error(source),
        })?;
        let lock = Lock(lock);

        let store = directory.join("store");
        let new = directory.join("store.new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(io_error)?;
        }
        let open = |path: &Path| {
            open_database(path, options).map_err(|error| open_error(directory, error))
        };
        if store.exists() {
            journal::repair(&store)
                .map_err(|error| open_error(directory, fjall::Error::Io(error)))?;
        } else {
            drop(open(&new)?);
            fs::rename(&new, &store).map_err(io_error)?;
            sync_directory(directory).map_err(io_error)?;
            // Its own name, in case it has just been created.
            if let Ok(parent) = fs::canonicalize(directory.join("..")) {
                sync_directory(&parent).map_err(io_error)?;
            }
        }
        let (database, data, system) = open(&store)?;
        let version = match system
            .get(VERSION)
            .map_err(|error| open_error(directory, error))?
        {
            None => 0,
            Some(bytes) => {
                let bytes = bytes.as_ref().try_into().map_err(|_| OpenError::Damaged {
                    directory: directory.to_path_buf(),
                    reason: "the commit version is not eight bytes long".to_owned(),
                })?;
                i64::from_be_bytes(bytes)
            }
        };
        let storage = Storage {
            database,
            data,
            system,
            fsync: options.fsync,
            _lock: lock,
        };
        Ok((storage, version))
    }

    /// What is readable now: everything that was written.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.database.snapshot()
    }

    pub(crate) fn get(&self, snapshot: &Snapshot, key: &[u8]) -> fjall::Result<Option<Bytes>> {
        let value = if key.is_empty() {
            snapshot.get(&self.system, EMPTY_KEY)
        } else {
            snapshot.get(&self.data, key)
        };
        value.map(|value| value.map(Bytes::from))
    }

    /// The pairs of `begin..end`, from either end. The iterator keeps the snapshot.
    pub(crate) fn range(
        &self,
        snapshot: &Snapshot,
        begin: &Bytes,
        end: &Bytes,
    ) -> impl DoubleEndedIterator<Item = fjall::Result<Pair>> + Send + use<> {
        use std::ops::Bound::{Excluded, Included};
        let empty_key = (begin.is_empty() && begin < end)
            .then(|| self.get(snapshot, b"").transpose())
            .flatten()
            .map(|value| value.map(|value| (Bytes::new(), value)));
        // An empty bound means nothing to fjall, and "" itself is not in there: begin with the next key.
        let first: &[u8] = if begin.is_empty() { b"\0" } else { begin };
        let pairs = (first < end.as_ref()).then(|| {
            snapshot
                .range::<&[u8], _>(&self.data, (Included(first), Excluded(end.as_ref())))
                .map(|pair| {
                    pair.into_inner()
                        .map(|(key, value)| (key.into(), value.into()))
                })
        });
        empty_key.into_iter().chain(pairs.into_iter().flatten())
    }

    /// Writes a batch with its version and returns when it is on disk. Whatever the error, the batch may or may
    /// not be there after the next start.
    pub(crate) fn write(&self, version: i64, changes: &Changes) -> fjall::Result<()> {
        // The journal's size and place on the disk are synced with its data; the time of its last change need not
        // be, which would be a write of its own.
        let durability = if self.fsync {
            PersistMode::SyncData
        } else {
            PersistMode::Buffer
        };
        let mut batch =
            fjall::OwnedWriteBatch::with_capacity(self.database.clone(), changes.len() + 1)
                .durability(Some(durability));
        batch.insert(&self.system, VERSION, version.to_be_bytes());
        for (key, value) in changes {
            let (keyspace, key) = if key.is_empty() {
                (&self.system, Bytes::from_static(EMPTY_KEY))
            } else {
                (&self.data, key.clone())
            };
            match value {
                Some(value) => batch.insert(keyspace, key, value.clone()),
                None => batch.remove(keyspace, key),
            }
        }
        batch.commit()
    }

    /// Rewrites the tables without what was deleted or overwritten.
    pub(crate) fn defragment(&self) -> fjall::Result<()> {
        self.data.major_compact()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell the size of the store");
            0
        })
    }
}

fn open_database(
    path: &Path,
    options: &EmbeddedOptions,
) -> fjall::Result<(fjall::Database, Keyspace, Keyspace)> {
    let database = fjall::Database::builder(path)
        .cache_size(options.cache_bytes)
        .max_journaling_size(JOURNAL_BYTES)
        .manual_journal_persist(true)
        .worker_threads(2)
        .open()?;
    let data = database.keyspace("data", || {
        KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
    })?;
    let system = database.keyspace("system", || {
        KeyspaceCreateOptions::default().max_memtable_size(SYSTEM_MEMTABLE_BYTES)
    })?;
    database.persist(PersistMode::SyncAll)?;
    Ok((database, data, system))
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn open_error(directory: &Path, error: fjall::Error) -> OpenError {
    let directory = directory.to_path_buf();
    match error {
        fjall::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
            OpenError::Damaged {
                directory,
                reason: source.to_string(),
            }
        }
        fjall::Error::Io(source) => OpenError::Io { directory, source },
        fjall::Error::Storage(lsm_error) => {
            let reason = lsm_error.to_string();
            match std::error::Error::source(&lsm_error)
                .and_then(|source| source.downcast_ref::<io::Error>())
            {
                Some(source) => OpenError::Io {
                    directory,
                    source: io::Error::new(source.kind(), reason),
                },
                None => OpenError::Damaged { directory, reason },
            }
        }
        fjall::Error::Locked => OpenError::InUse { directory },
        error => OpenError::Damaged {
            directory,
            reason: error.to_string(),
        },
    }
}
