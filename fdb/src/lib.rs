//! An ordered, transactional key-value store with FoundationDB's semantics.

mod database;
mod embedded;
mod error;
mod faults;
mod limits;
mod mutation;
mod overlay;
mod range;
mod read;
mod time;
mod transaction;
mod watch;

pub use database::{Database, TransactError};
pub use embedded::{EmbeddedOptions, WriteHook, WriteStage};
pub use error::{Error, OpenError};
pub use faults::Faults;
pub use limits::{
    KEY_SIZE_LIMIT, MAX_WATCHES, TRANSACTION_LIFE, TRANSACTION_SIZE_LIMIT, VALUE_SIZE_LIMIT,
    VERSIONS_PER_SECOND,
};
pub use mutation::{MutationType, VERSIONSTAMP_LENGTH};
pub use range::{KeySelector, RangeOption, RangeResult};
pub use time::{ManualTime, MonotonicTime, TimeSource};
pub use transaction::{CommitError, Committed, Transaction, TransactionOption, Versionstamp};
pub use watch::Watch;
