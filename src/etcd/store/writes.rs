//! What a batch writes.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

use super::note::Note;
use crate::etcd::alarm::Alarms;
use crate::etcd::auth::{AuthState, Touched};
use crate::etcd::encoding::{CHUNK_BYTES, CHUNKED, Subspace};
use crate::etcd::lease::{Granted, Stamp};
use crate::etcd::record::Record;

/// What a batch writes besides the head.
#[derive(Default)]
pub struct Writes {
    /// New entries of the log, and chunks: they do not count before the head does.
    pub(super) log: Vec<(Bytes, Bytes)>,
    /// Leases, alarms, users and roles: set or cleared, in order, together with the head.
    pub(super) rest: Vec<(Bytes, Option<Bytes>)>,
    /// The same, for the other servers on the store.
    pub(super) notes: Vec<Note>,
    /// Leases that run out with this batch, and the stamps of their last keep-alives as far as this server knows:
    /// if the store has others, the batch must not be written.
    pub(super) expiring: Vec<(i64, Option<Stamp>)>,
    size_bytes: usize,
}

impl Writes {
    pub fn is_empty(&self) -> bool {
        self.log.is_empty() && self.rest.is_empty()
    }

    /// Whether leases, alarms or users change.
    pub fn has_notes(&self) -> bool {
        !self.notes.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn append(&mut self, key: Bytes, value: Bytes) {
        self.size_bytes += key.len() + value.len();
        self.log.push((key, value));
    }

    pub fn record(&mut self, space: Subspace, record: &Record) {
        let Some(stored) = record.stored() else {
            return;
        };
        if stored.len() <= CHUNK_BYTES {
            self.append(space.log(record.revision), stored.clone());
            return;
        }
        let mut entry = BytesMut::with_capacity(5);
        entry.put_u8(CHUNKED);
        entry.put_u32(u32::try_from(stored.len()).unwrap_or(u32::MAX));
        self.append(space.log(record.revision), entry.freeze());
        for (chunk, start) in (0..).zip((0..stored.len()).step_by(CHUNK_BYTES)) {
            let end = stored.len().min(start + CHUNK_BYTES);
            self.append(
                space.chunk(record.revision, chunk),
                stored.slice(start..end),
            );
        }
    }

    /// After revision `after`.
    pub fn grant(&mut self, space: Subspace, after: i64, id: i64, ttl: i64) {
        let value = Granted { ttl, left: None }.encode();
        self.rest.push((space.lease(id), Some(value)));
        self.notes.push(Note::Grant { after, id, ttl });
    }

    pub fn checkpoint(&mut self, space: Subspace, id: i64, granted: Granted) {
        self.rest.push((space.lease(id), Some(granted.encode())));
    }

    /// Whether authentication is on, its revision, and what a change has touched.
    pub fn auth(&mut self, space: Subspace, auth: &AuthState, touched: &[Touched]) {
        let mut value = BytesMut::with_capacity(9);
        value.put_u8(u8::from(auth.enabled));
        value.put_u64(auth.revision);
        self.rest.push((space.auth(), Some(value.freeze())));
        for touched in touched {
            let (key, value) = match touched {
                Touched::User(name) => {
                    let user = auth.user(name).map(Message::encode_to_vec);
                    (space.user(name), user)
                }
                Touched::Role(name) => {
                    let role = auth.role(name).map(Message::encode_to_vec);
                    (space.role(name), role)
                }
            };
            self.rest.push((key, value.map(Bytes::from)));
        }
        self.notes.push(Note::Auth);
    }

    pub fn alarms(&mut self, space: Subspace, alarms: Alarms) {
        let bits = Bytes::copy_from_slice(&[alarms.bits()]);
        self.rest.push((space.alarms(), Some(bits)));
        self.notes.push(Note::Alarms);
    }

    /// After revision `after`.
    pub fn revoke(&mut self, space: Subspace, after: i64, id: i64) {
        self.rest.push((space.lease(id), None));
        self.notes.push(Note::Revoke { after, id });
    }

    /// The batch holds only while nobody has kept the lease alive since this stamp.
    pub fn expire(&mut self, id: i64, stamp: Option<Stamp>) {
        self.expiring.push((id, stamp));
    }
}
