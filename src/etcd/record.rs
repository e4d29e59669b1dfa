//! A key at one revision, in memory and in the store.
//!
//! A record is encoded once, when it is written, as the `mvccpb.KeyValue` that clients get. The same
//! allocation is what the store keeps, what the index holds as the cached value, and what answers
//! and events are made of. The key is a second, small allocation of its own, shared by all versions,
//! so that a record whose value was dropped from memory does not hold on to it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use etcd_proto::mvccpb::KeyValue;
use prost::Message as _;
use prost::encoding::encoded_len_varint;

/// Where a change stands in the history: the transaction's revision, and the change within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Rises by one with each transaction that writes; the first one has 2.
    pub main: i64,
    /// 0 for the transaction's first change.
    pub sub: u32,
}

/// One version of a key; a version of 0 is a tombstone.
#[derive(Debug)]
pub struct Record {
    pub key: Bytes,
    pub revision: Revision,
    pub create_revision: i64,
    pub version: i64,
    pub lease: i64,
    value_start: u32,
    value_len: u32,
    stored_len: u32,
    /// The encoded `KeyValue`, preceded by [`Kind`]; `None` if only the store has it.
    stored: Option<Bytes>,
}

/// First byte of a stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Put = 1,
    Tombstone = 2,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("record is empty")]
    Empty,
    #[error("unknown kind of record {0}")]
    Kind(u8),
    #[error("record at revision {expected} says {found}")]
    Revision { expected: i64, found: i64 },
    #[error(transparent)]
    Message(#[from] prost::DecodeError),
}

impl Record {
    /// `previous` is the live record that this one supersedes.
    pub fn put(
        key: &Bytes,
        value: Bytes,
        lease: i64,
        revision: Revision,
        previous: Option<&Record>,
    ) -> Record {
        let (key, create_revision, version) = match previous {
            Some(previous) => (
                previous.key.clone(),
                previous.create_revision,
                previous.version + 1,
            ),
            // The request's slice would keep its whole frame alive.
            None => (Bytes::copy_from_slice(key), revision.main, 1),
        };
        Record::encode(
            Kind::Put,
            revision,
            KeyValue {
                key,
                create_revision,
                mod_revision: revision.main,
                version,
                value,
                lease,
            },
        )
    }

    pub fn tombstone(deleted: &Record, revision: Revision) -> Record {
        Record::encode(
            Kind::Tombstone,
            revision,
            KeyValue {
                key: deleted.key.clone(),
                mod_revision: revision.main,
                ..KeyValue::default()
            },
        )
    }

    fn encode(kind: Kind, revision: Revision, message: KeyValue) -> Record {
        let mut buffer = BytesMut::with_capacity(1 + message.encoded_len());
        buffer.extend_from_slice(&[kind as u8]);
        message.encode_raw(&mut buffer);
        Record::of(message, revision, buffer.freeze())
    }

    fn of(message: KeyValue, revision: Revision, stored: Bytes) -> Record {
        // The lease is the only field behind the value.
        let lease_len = match message.lease {
            0 => 0,
            lease => 1 + encoded_len_varint(lease.cast_unsigned()),
        };
        let value_len = message.value.len();
        let value_start = stored.len() - lease_len - value_len;
        Record {
            key: message.key,
            revision,
            create_revision: message.create_revision,
            version: message.version,
            lease: message.lease,
            value_start: u32::try_from(value_start).unwrap_or(u32::MAX),
            value_len: u32::try_from(value_len).unwrap_or(u32::MAX),
            stored_len: u32::try_from(stored.len()).unwrap_or(u32::MAX),
            stored: Some(stored),
        }
    }

    /// From what the store keeps under `revision`.
    pub fn decode(revision: Revision, stored: Bytes) -> Result<Record, DecodeError> {
        match stored.first() {
            Some(1 | 2) => {}
            Some(kind) => return Err(DecodeError::Kind(*kind)),
            None => return Err(DecodeError::Empty),
        }
        let mut message = KeyValue::decode(stored.slice(1..))?;
        if message.mod_revision != revision.main {
            return Err(DecodeError::Revision {
                expected: revision.main,
                found: message.mod_revision,
            });
        }
        message.key = Bytes::copy_from_slice(&message.key);
        Ok(Record::of(message, revision, stored))
    }

    /// What the store keeps; `None` if it is not in memory.
    pub fn stored(&self) -> Option<&Bytes> {
        self.stored.as_ref()
    }

    /// The encoded `mvccpb.KeyValue`; `None` if it is not in memory.
    pub fn encoded(&self) -> Option<&[u8]> {
        self.stored.as_ref().map(|stored| &stored[1..])
    }

    pub fn value(&self) -> Option<Bytes> {
        let start = self.value_start as usize;
        self.stored
            .as_ref()
            .map(|stored| stored.slice(start..start + self.value_len as usize))
    }

    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Bytes of [`Record::stored`], in memory or not.
    pub fn stored_len(&self) -> usize {
        self.stored_len as usize
    }

    pub fn is_cached(&self) -> bool {
        self.stored.is_some()
    }

    /// Bytes of memory that dropping the value would free.
    pub fn cached_bytes(&self) -> usize {
        self.stored.as_ref().map_or(0, Bytes::len)
    }

    /// The same record with its value left to the store.
    pub fn without_value(&self) -> Record {
        Record {
            key: self.key.clone(),
            stored: None,
            ..*self
        }
    }

    /// The message with an empty value.
    pub fn to_key_only(&self) -> KeyValue {
        KeyValue {
            key: self.key.clone(),
            create_revision: self.create_revision,
            mod_revision: self.revision.main,
            version: self.version,
            value: Bytes::new(),
            lease: self.lease,
        }
    }

    /// The message; `None` if the value is not in memory.
    pub fn to_key_value(&self) -> Option<KeyValue> {
        let value = self.value()?;
        Some(KeyValue {
            value,
            ..self.to_key_only()
        })
    }
}

pub type SharedRecord = Arc<Record>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_written() {
        let revision = Revision { main: 7, sub: 3 };
        for value in [&b""[..], b"v", &[9; 300]] {
            for lease in [0, 1, -1, i64::MAX] {
                let value = Bytes::copy_from_slice(value);
                let key = Bytes::from_static(b"key");
                let written = Record::put(&key, value.clone(), lease, revision, None);
                let stored = written.stored().expect("fresh").clone();
                let read = Record::decode(revision, stored).expect("valid");
                for record in [&written, &read] {
                    assert_eq!(record.value(), Some(value.clone()));
                    let message = record.to_key_value().expect("cached");
                    assert_eq!(
                        KeyValue::decode(record.encoded().expect("cached")),
                        Ok(message)
                    );
                    assert_eq!((record.version, record.create_revision), (1, 7));
                    assert_eq!(record.lease, lease);
                }
                assert_eq!(read.without_value().value(), None);
            }
        }
    }

    #[test]
    fn damage_is_an_error() {
        let revision = Revision { main: 7, sub: 0 };
        let key = Bytes::from_static(b"key");
        let record = Record::put(&key, Bytes::from_static(b"v"), 0, revision, None);
        let stored = record.stored().expect("fresh").clone();
        let other = Revision { main: 8, sub: 0 };
        assert!(Record::decode(other, stored.clone()).is_err());
        assert!(Record::decode(revision, stored.slice(..stored.len() - 1)).is_err());
        assert!(Record::decode(revision, Bytes::new()).is_err());
        assert!(Record::decode(revision, Bytes::from_static(b"\x09")).is_err());
    }
}
