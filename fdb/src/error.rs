//! FoundationDB's numbered errors.

use std::fmt;

/// An error as FoundationDB numbers it (`fdb_error_t`); its text is FoundationDB's own.
///
/// Compare with the constants: `if error == Error::NOT_COMMITTED`. The predicates answer what
/// `fdb_error_predicate` answers; every retry decision goes through them, never through a list of codes
/// kept elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub struct Error(i32);

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        impl Error {
            $($(#[$doc])* pub const $name: Error = Error($code);)*

            /// FoundationDB's text for this code; `"Unknown error"` for a code this crate never returns.
            #[must_use]
            pub const fn message(self) -> &'static str {
                match self.0 {
                    $($code => $text,)*
                    _ => "Unknown error",
                }
            }

            /// The constant's name as FoundationDB spells it in its sources, in upper case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($code => stringify!($name),)*
                    _ => "UNKNOWN_ERROR",
                }
            }
        }
    };
}

errors! {
    /// The read version is older than the five seconds that the store remembers.
    TRANSACTION_TOO_OLD = 1007, "Transaction is too old to perform reads or be committed";
    /// The read version is newer than what the store serves yet.
    FUTURE_VERSION = 1009, "Request for future version";
    /// Something that the transaction read was changed by another one since.
    NOT_COMMITTED = 1020, "Transaction not committed due to conflict with another transaction";
    /// The commit may or may not have happened: only an idempotent transaction may be repeated.
    COMMIT_UNKNOWN_RESULT = 1021, "Transaction may or may not have committed";
    /// The transaction was dropped or reset while something still waited on it.
    TRANSACTION_CANCELLED = 1025, "Operation aborted because the transaction was cancelled";
    /// The transaction's own timeout passed.
    TRANSACTION_TIMED_OUT = 1031, "Operation aborted because the transaction timed out";
    /// The database has as many watches as it allows.
    TOO_MANY_WATCHES = 1032, "Too many watches currently set";
    /// The key's value depends on a versionstamp that is not known before commit.
    ACCESSED_UNREADABLE = 1036, "Read or wrote an unreadable key";
    /// The storage process lags behind.
    PROCESS_BEHIND = 1037, "Storage process does not have recent mutations";
    /// The database is locked by an administrator.
    DATABASE_LOCKED = 1038, "Database is locked";
    /// The cluster's protocol changed under the client.
    CLUSTER_VERSION_CHANGED = 1039, "The protocol version of the cluster has changed";
    /// Too much is waiting to be committed.
    COMMIT_PROXY_MEMORY_LIMIT_EXCEEDED = 1042, "CommitProxy commit memory limit exceeded";
    /// The database was closed.
    SHUTDOWN_IN_PROGRESS = 1043, "Operation no longer supported due to shutdown";
    /// Batch-priority transactions are being throttled.
    BATCH_TRANSACTION_THROTTLED = 1051, "Batch GRV request rate limit exceeded";
    /// Too many read-version requests are waiting.
    GRV_PROXY_MEMORY_LIMIT_EXCEEDED = 1078, "GetReadVersion proxy memory limit exceeded";
    /// The waiting side was dropped.
    OPERATION_CANCELLED = 1101, "Asynchronous operation cancelled";
    /// The transaction's tag is being throttled.
    TAG_THROTTLED = 1213, "Transaction tag is being throttled";
    /// The transaction's tag was throttled for too long.
    PROXY_TAG_THROTTLED = 1223, "Exceeded maximum proxy tag throttling duration";
    /// A hot shard throttles its writers.
    TRANSACTION_THROTTLED_HOT_SHARD = 1235, "Transaction throttled due to hot shard";
    /// The disk failed; the engine refuses everything until it is opened again.
    IO_ERROR = 1510, "Disk i/o operation failed";
    /// An argument makes no sense, e.g. a versionstamp's offset outside its key.
    CLIENT_INVALID_OPERATION = 2000, "Invalid API call";
    /// The key is not in `"" .. "\xff"`.
    KEY_OUTSIDE_LEGAL_RANGE = 2004, "Key outside legal range";
    /// A range's begin is after its end.
    INVERTED_RANGE = 2005, "Range begin key larger than end key";
    /// An option's value is outside what it allows.
    INVALID_OPTION_VALUE = 2006, "Option set with an invalid value";
    /// A range's limits make no sense.
    RANGE_LIMITS_INVALID = 2012, "Range limits not valid";
    /// The transaction is being committed. Here the types rule it out: `commit` takes the transaction.
    USED_DURING_COMMIT = 2017, "Operation issued while a commit was outstanding";
    /// A read-only transaction has no commit version, hence no versionstamp.
    NO_COMMIT_VERSION = 2021, "Transaction is read-only and therefore does not have a commit version";
    /// More than [`TRANSACTION_SIZE_LIMIT`](crate::TRANSACTION_SIZE_LIMIT) bytes.
    TRANSACTION_TOO_LARGE = 2101, "Transaction exceeds byte limit";
    /// More than [`KEY_SIZE_LIMIT`](crate::KEY_SIZE_LIMIT) bytes.
    KEY_TOO_LARGE = 2102, "Key length exceeds limit";
    /// More than [`VALUE_SIZE_LIMIT`](crate::VALUE_SIZE_LIMIT) bytes.
    VALUE_TOO_LARGE = 2103, "Value length exceeds limit";
}

impl Error {
    /// The error with this number.
    #[cfg(feature = "foundationdb")]
    pub(crate) const fn from_code(code: i32) -> Error {
        Error(code)
    }

    /// The number, as `fdb_error_t`.
    #[must_use]
    pub const fn code(self) -> i32 {
        self.0
    }

    /// May the same transaction be tried again, as far as its author allows for a commit that happened unseen?
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self.is_maybe_committed() || self.is_retryable_not_committed()
    }

    /// Retryable, and the failed attempt may nevertheless have been committed.
    #[must_use]
    pub fn is_maybe_committed(self) -> bool {
        matches!(
            self,
            Error::COMMIT_UNKNOWN_RESULT | Error::CLUSTER_VERSION_CHANGED
        )
    }

    /// Retryable, and the failed attempt has certainly not been committed.
    #[must_use]
    pub fn is_retryable_not_committed(self) -> bool {
        matches!(
            self,
            Error::NOT_COMMITTED
                | Error::TRANSACTION_TOO_OLD
                | Error::FUTURE_VERSION
                | Error::DATABASE_LOCKED
                | Error::GRV_PROXY_MEMORY_LIMIT_EXCEEDED
                | Error::COMMIT_PROXY_MEMORY_LIMIT_EXCEEDED
                | Error::TRANSACTION_THROTTLED_HOT_SHARD
                | Error::BATCH_TRANSACTION_THROTTLED
                | Error::PROCESS_BEHIND
                | Error::TAG_THROTTLED
                | Error::PROXY_TAG_THROTTLED
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message(), self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({} {})", self.0, self.name())
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another [`Database`](crate::Database) of this one, has the directory open.
    #[error("{directory} is in use by another process")]
    InUse {
        /// The directory that was asked for.
        directory: std::path::PathBuf,
    },
    /// The directory cannot be created, read or written.
    #[error("cannot open the store in {directory}: {source}")]
    Io {
        /// The directory that was asked for.
        directory: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// FoundationDB's client library refuses.
    #[error("cannot open the FoundationDB cluster of {cluster_file}: {reason}")]
    FoundationDb {
        /// The cluster file that was asked for.
        cluster_file: std::path::PathBuf,
        /// What the library said.
        reason: String,
    },
    /// The files are not what this version wrote: damaged, or of another version. Nothing was changed.
    #[error("the store in {directory} is damaged or of another version: {reason}")]
    Damaged {
        /// The directory that was asked for.
        directory: std::path::PathBuf,
        /// What was found.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicates_say_what_fdb_error_predicate_says() {
        let check = |error: Error, maybe_committed: bool, not_committed: bool| {
            assert_eq!(error.is_maybe_committed(), maybe_committed, "{error:?}");
            assert_eq!(
                error.is_retryable_not_committed(),
                not_committed,
                "{error:?}"
            );
            assert_eq!(
                error.is_retryable(),
                maybe_committed || not_committed,
                "{error:?}"
            );
        };
        check(Error::NOT_COMMITTED, false, true);
        check(Error::TRANSACTION_TOO_OLD, false, true);
        check(Error::FUTURE_VERSION, false, true);
        check(Error::COMMIT_UNKNOWN_RESULT, true, false);
        check(Error::TRANSACTION_TIMED_OUT, false, false);
        check(Error::TRANSACTION_CANCELLED, false, false);
        check(Error::IO_ERROR, false, false);
        check(Error::VALUE_TOO_LARGE, false, false);
        check(Error::KEY_OUTSIDE_LEGAL_RANGE, false, false);
    }

    #[test]
    fn text_and_number_are_shown() {
        assert_eq!(
            Error::NOT_COMMITTED.to_string(),
            "Transaction not committed due to conflict with another transaction (1020)"
        );
        assert_eq!(
            format!("{:?}", Error::INVERTED_RANGE),
            "Error(2005 INVERTED_RANGE)"
        );
    }
}
