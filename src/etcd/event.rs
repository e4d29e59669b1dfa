//! What a revision changed, as watchers see it.

use std::sync::OnceLock;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::record::SharedRecord;

/// Fields of `mvccpb.Event`.
const TYPE_FIELD: u32 = 1;
const KV_FIELD: u32 = 2;
const PREV_KV_FIELD: u32 = 3;
const TYPE_DELETE: u64 = 1;

/// One change. Its encoding is made once and shared by all watchers.
#[derive(Debug)]
pub struct Event {
    /// What the key became. Its value is in memory.
    pub record: SharedRecord,
    /// The live record before, if there was one and it is not compacted.
    pub previous: Option<SharedRecord>,
    encoded: OnceLock<Bytes>,
    encoded_with_previous: OnceLock<Bytes>,
}

/// Everything that one revision changed, in the transaction's order. Not empty.
#[derive(Debug)]
pub struct RevisionEvents {
    pub revision: i64,
    pub events: Vec<Event>,
    /// Roughly the memory that holding the events costs, in bytes.
    pub size_bytes: usize,
}

impl RevisionEvents {
    pub fn new(revision: i64, events: Vec<Event>) -> RevisionEvents {
        let of = |event: &Event| {
            let previous = event.previous.as_ref().map_or(0, |p| p.cached_bytes());
            event.record.cached_bytes() + previous + size_of::<Event>()
        };
        RevisionEvents {
            revision,
            size_bytes: events.iter().map(of).sum(),
            events,
        }
    }
}

impl Event {
    pub fn new(record: SharedRecord, previous: Option<SharedRecord>) -> Event {
        Event {
            record,
            previous,
            encoded: OnceLock::new(),
            encoded_with_previous: OnceLock::new(),
        }
    }

    /// The encoded `mvccpb.Event` without the previous record.
    pub fn encoded(&self) -> Bytes {
        self.encoded.get_or_init(|| self.encode(None)).clone()
    }

    /// The encoded `mvccpb.Event` with the previous record: this event's own if that is in memory,
    /// else `fetched`.
    pub fn encoded_with_previous(&self, fetched: Option<&SharedRecord>) -> Bytes {
        match self.previous.as_ref() {
            None => self.encoded(),
            Some(previous) if previous.is_cached() => self
                .encoded_with_previous
                .get_or_init(|| self.encode(Some(previous)))
                .clone(),
            Some(_) => self.encode(fetched),
        }
    }

    fn encode(&self, previous: Option<&SharedRecord>) -> Bytes {
        let record = self.record.encoded().unwrap_or_default();
        let previous = previous.and_then(|previous| previous.encoded());
        let field_len = |field, body: &[u8]| {
            key_len(field) + encoded_len_varint(body.len() as u64) + body.len()
        };
        let len = 2
            + field_len(KV_FIELD, record)
            + previous.map_or(0, |previous| field_len(PREV_KV_FIELD, previous));
        let mut buffer = BytesMut::with_capacity(len);
        if self.record.is_tombstone() {
            encode_key(TYPE_FIELD, WireType::Varint, &mut buffer);
            encode_varint(TYPE_DELETE, &mut buffer);
        }
        for (field, body) in [(KV_FIELD, Some(record)), (PREV_KV_FIELD, previous)] {
            if let Some(body) = body {
                encode_key(field, WireType::LengthDelimited, &mut buffer);
                encode_varint(body.len() as u64, &mut buffer);
                buffer.put_slice(body);
            }
        }
        buffer.freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use etcd_proto::mvccpb;
    use prost::Message as _;

    use super::*;
    use crate::etcd::record::{Record, Revision};

    #[test]
    fn encodes_as_the_message_does() {
        let key = Bytes::from_static(b"k");
        let at = |main| Revision { main, sub: 0 };
        let first = Arc::new(Record::put(&key, Bytes::from_static(b"1"), 5, at(2), None));
        let second = Arc::new(Record::put(&key, Bytes::new(), 0, at(3), Some(&first)));
        let gone = Arc::new(Record::tombstone(&second, at(4)));
        for (record, previous, deleted) in [
            (&first, None, 0),
            (&second, Some(&first), 0),
            (&gone, Some(&second), 1),
        ] {
            let event = Event::new(Arc::clone(record), previous.cloned());
            let kv = if deleted == 1 {
                mvccpb::KeyValue {
                    key: key.clone(),
                    mod_revision: 4,
                    ..Default::default()
                }
            } else {
                record.to_key_value().expect("cached")
            };
            let mut expected = mvccpb::Event {
                r#type: deleted,
                kv: Some(kv),
                prev_kv: None,
            };
            assert_eq!(event.encoded(), expected.encode_to_vec());
            expected.prev_kv = previous.and_then(|previous| previous.to_key_value());
            assert_eq!(event.encoded_with_previous(None), expected.encode_to_vec());
        }
    }
}
