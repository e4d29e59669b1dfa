//! A keyspace's whole history as etcd keeps it in its own database: for hashes and snapshots.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::error::Error;
use super::keyspace::Keyspace;
use super::record::{Record, Revision, SharedRecord};
use super::view::{Fetched, State};

/// Records whose values are fetched at a time.
const PAGE_LEN: usize = 512;
/// Bytes of a revision in etcd's database; a tombstone's has a mark behind it.
const REVISION_BYTES: usize = 17;

/// Every version that there is, in the order of revisions. Compaction must be held off while it is in use (see
/// [`Keyspace::hold_compaction`]), or values may be gone when they are asked for. Other servers of the store cannot be
/// held off.
pub struct History {
    pub records: Vec<SharedRecord>,
    pub revision: i64,
    pub compacted: i64,
}

impl History {
    pub fn of(state: &State) -> History {
        let mut records = Vec::new();
        state
            .index
            .versions_of_all(|record| records.push(Arc::clone(record)));
        records.sort_unstable_by_key(|record| record.revision);
        // Compaction may not have got to them yet.
        let compacted = state.compacted;
        records.retain(|record| {
            record.revision.main > compacted
                || (record.is_tombstone() && record.revision.main == compacted)
                || state
                    .index
                    .get(&record.key, compacted)
                    .is_some_and(|live| live.revision == record.revision)
        });
        History {
            records,
            revision: state.revision,
            compacted,
        }
    }

    /// Visits each record with its value, until told to stop.
    ///
    /// # Errors
    /// A value cannot be read, or was removed although compaction was held off.
    pub async fn visit(
        &self,
        keyspace: &Keyspace,
        mut visit: impl FnMut(&Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        for page in self.records.chunks(PAGE_LEN) {
            let fetched = fetch(keyspace, page).await?;
            for record in page {
                if visit(with_value(keyspace, record, &fetched)?).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The values of these records that are not in memory.
pub async fn fetch(keyspace: &Keyspace, records: &[SharedRecord]) -> Result<Fetched, Error> {
    let missing: Vec<Revision> = records
        .iter()
        .filter(|record| !record.is_cached())
        .map(|record| record.revision)
        .collect();
    let mut fetched = Fetched::new();
    keyspace.fetch(&missing, &mut fetched).await?;
    Ok(fetched)
}

/// # Errors
/// The value is gone, although compaction is held off: another server of the store has compacted, or something is wrong.
pub fn with_value<'a>(
    keyspace: &Keyspace,
    record: &'a Record,
    fetched: &'a Fetched,
) -> Result<&'a Record, Error> {
    if record.is_cached() {
        return Ok(record);
    }
    match fetched.get(&record.revision) {
        Some(fetched) => Ok(fetched),
        None if keyspace.store.is_shared() => Err(Error::Compacted),
        None => Err(Error::Corrupt),
    }
}

/// The record's key in etcd's database.
pub fn stored_key(record: &Record) -> Bytes {
    let mut key = revision_bytes(record.revision);
    if record.is_tombstone() {
        key.put_u8(b't');
    }
    key.freeze()
}

pub fn stored_key_len(record: &Record) -> usize {
    REVISION_BYTES + usize::from(record.is_tombstone())
}

/// A revision as etcd writes it.
pub fn revision_bytes(revision: Revision) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(REVISION_BYTES + 1);
    bytes.put_i64(revision.main);
    bytes.put_u8(b'_');
    bytes.put_i64(i64::from(revision.sub));
    bytes
}

/// The record's value in etcd's database; a tombstone's has nothing but the key.
pub fn stored_value(record: &Record) -> Result<Bytes, Error> {
    if record.is_tombstone() {
        return Ok(tombstone(record).encode_to_vec().into());
    }
    let stored = record.stored().ok_or(Error::Corrupt)?;
    Ok(stored.slice(1..))
}

pub fn stored_value_len(record: &Record) -> usize {
    if record.is_tombstone() {
        tombstone(record).encoded_len()
    } else {
        record.stored_len() - 1
    }
}

fn tombstone(record: &Record) -> etcd_proto::mvccpb::KeyValue {
    etcd_proto::mvccpb::KeyValue {
        key: record.key.clone(),
        ..etcd_proto::mvccpb::KeyValue::default()
    }
}
