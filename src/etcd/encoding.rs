//! How keyspaces are laid out in the store.
//!
//! | key | holds |
//! |---|---|
//! | `i` | this store's cluster and member id |
//! | `n` name | the keyspace's number |
//! | `c` | how many numbers were given out |
//! | `k` number `h` | [`Head`] |
//! | `k` number `l` revision sub | one change: the record, or its length if it is in chunks |
//! | `k` number `b` revision sub chunk | a chunk of a record over [`CHUNK_BYTES`] |
//! | `k` number `e` lease id | the lease: its TTL, and what it had left at its last checkpoint, if there was one |
//! | `k` number `t` lease id | stamp of the lease's last keep-alive, where several servers share the store |
//! | `k` number `j` count | what one batch did to leases, alarms and users, where several servers share the store |
//! | `k` number `q` server | number of the server's last batch, where several servers share the store; and when, in milliseconds |
//! | `k` number `w` server | a server that wants to write and was overtaken |
//! | `k` number `a` | raised alarms, a byte |
//! | `k` number `m` | whether authentication is on, a byte, and its revision |
//! | `k` number `u` name, `k` number `r` name | a user, a role |
//! | `d` | version that a downgrade was asked for |
//!
//! The log is all there is of a key: the index in memory says which of its entries are live, and
//! is made from the log when the keyspace is loaded. So a put costs one store key, 18 bytes long and
//! greater than all before it (an append to the newest block, in every ordered store), its record,
//! and a share of the batch's `head`. The same entries replay watches, and tell other servers on
//! the same store what happened. Compaction clears entries that no revision from the compacted one
//! on can see.
//!
//! Keys of etcd are inside the records, never part of a store key, so the store's limit on
//! keys does not limit them.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::record::Revision;

/// Records over this size are cut up. FoundationDB takes values up to 100,000 bytes.
pub const CHUNK_BYTES: usize = 90_000;
/// First byte of a log entry whose record is in chunks; the length follows.
pub const CHUNKED: u8 = 0xff;

pub const IDENTITY: &[u8] = b"i";
pub const KEYSPACE_COUNT: &[u8] = b"c";
pub const DOWNGRADE: &[u8] = b"d";

pub fn keyspace_name(name: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + name.len());
    key.put_u8(b'n');
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// The part of the store that one keyspace has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subspace(pub u32);

impl Subspace {
    fn key(self, kind: u8, capacity: usize) -> BytesMut {
        let mut key = BytesMut::with_capacity(6 + capacity);
        key.put_u8(b'k');
        key.put_u32(self.0);
        key.put_u8(kind);
        key
    }

    /// Everything of the keyspace.
    pub fn all(self) -> (Bytes, Bytes) {
        (self.key(0, 0).freeze(), self.key(0xff, 0).freeze())
    }

    pub fn head(self) -> Bytes {
        self.key(b'h', 0).freeze()
    }

    pub fn log(self, revision: Revision) -> Bytes {
        self.at(b'l', revision, 0).freeze()
    }

    /// The log from a revision on.
    pub fn log_from(self, main: i64) -> Bytes {
        self.log(Revision { main, sub: 0 })
    }

    pub fn log_end(self) -> Bytes {
        self.key(b'l' + 1, 0).freeze()
    }

    pub fn chunk(self, revision: Revision, chunk: u16) -> Bytes {
        let mut key = self.at(b'b', revision, 2);
        key.put_u16(chunk);
        key.freeze()
    }

    /// The chunks of one record, or of all from a revision on.
    pub fn chunks(self, revision: Revision) -> (Bytes, Bytes) {
        let next = Revision {
            sub: revision.sub.saturating_add(1),
            ..revision
        };
        let end = self.at(b'b', next, 0).freeze();
        (self.at(b'b', revision, 0).freeze(), end)
    }

    pub fn chunks_end(self) -> Bytes {
        self.key(b'b' + 1, 0).freeze()
    }

    pub fn lease(self, id: i64) -> Bytes {
        let mut key = self.key(b'e', 8);
        key.put_i64(id);
        key.freeze()
    }

    /// Where a keep-alive leaves its stamp.
    pub fn renewal(self, id: i64) -> Bytes {
        let mut key = self.key(b't', 8);
        key.put_i64(id);
        key.freeze()
    }

    /// What the batch did that raised [`Head::changes`] to `count`.
    pub fn change(self, count: u64) -> Bytes {
        let mut key = self.key(b'j', 8);
        key.put_u64(count);
        key.freeze()
    }

    /// The number of the server's last batch.
    pub fn last_batch(self, server: ServerId) -> Bytes {
        let mut key = self.key(b'q', 8);
        key.put_slice(&server);
        key.freeze()
    }

    pub fn last_batches(self) -> (Bytes, Bytes) {
        (self.key(b'q', 0).freeze(), self.key(b'q' + 1, 0).freeze())
    }

    pub fn intent(self, server: ServerId) -> Bytes {
        let mut key = self.key(b'w', 8);
        key.put_slice(&server);
        key.freeze()
    }

    pub fn intents(self) -> (Bytes, Bytes) {
        (self.key(b'w', 0).freeze(), self.key(b'w' + 1, 0).freeze())
    }

    pub fn parse_intent(self, key: &[u8]) -> Option<ServerId> {
        let server = key.strip_prefix(self.key(b'w', 0).as_ref())?;
        server.try_into().ok()
    }

    pub fn alarms(self) -> Bytes {
        self.key(b'a', 0).freeze()
    }

    pub fn auth(self) -> Bytes {
        self.key(b'm', 0).freeze()
    }

    pub fn user(self, name: &str) -> Bytes {
        let mut key = self.key(b'u', name.len());
        key.put_slice(name.as_bytes());
        key.freeze()
    }

    pub fn users(self) -> (Bytes, Bytes) {
        (self.key(b'u', 0).freeze(), self.key(b'u' + 1, 0).freeze())
    }

    pub fn role(self, name: &str) -> Bytes {
        let mut key = self.key(b'r', name.len());
        key.put_slice(name.as_bytes());
        key.freeze()
    }

    pub fn roles(self) -> (Bytes, Bytes) {
        (self.key(b'r', 0).freeze(), self.key(b'r' + 1, 0).freeze())
    }

    pub fn leases(self) -> (Bytes, Bytes) {
        (self.key(b'e', 0).freeze(), self.key(b'e' + 1, 0).freeze())
    }

    fn at(self, kind: u8, revision: Revision, capacity: usize) -> BytesMut {
        let mut key = self.key(kind, 12 + capacity);
        key.put_i64(revision.main);
        key.put_u32(revision.sub);
        key
    }

    /// The revision in a log entry's key.
    pub fn parse_log(self, key: &[u8]) -> Option<Revision> {
        let rest: &[u8; 12] = key
            .strip_prefix(self.key(b'l', 0).as_ref())?
            .try_into()
            .ok()?;
        let (main, sub) = rest.split_at(8);
        Some(Revision {
            main: i64::from_be_bytes(main.try_into().ok()?),
            sub: u32::from_be_bytes(sub.try_into().ok()?),
        })
    }

    pub fn parse_lease(self, key: &[u8]) -> Option<i64> {
        let id = key.strip_prefix(self.key(b'e', 0).as_ref())?;
        Some(i64::from_be_bytes(id.try_into().ok()?))
    }
}

/// Tells a server from the others on the same store, while it runs.
pub type ServerId = [u8; 8];

/// Names one batch of a sequencer, so that after an unknown commit result one can look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchId {
    pub server: ServerId,
    pub number: u64,
}

/// How far the keyspace has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub revision: i64,
    /// Greatest revision compacted, or -1.
    pub compacted: i64,
    /// The batch that wrote this head.
    pub batch: BatchId,
    /// The log may hold entries after `revision`: parts of a batch that was too large for one
    /// transaction of the store. They do not count until a head counts them in.
    pub spilled: bool,
    /// Batches that changed leases, alarms or users, where several servers share the store.
    pub changes: u64,
}

const HEAD_LEN: usize = 8 + 8 + 16 + 1 + 8;
/// Heads had no changes once.
const OLD_HEAD_LEN: usize = HEAD_LEN - 8;

impl Head {
    pub fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(HEAD_LEN);
        value.put_i64(self.revision);
        value.put_i64(self.compacted);
        value.put_slice(&self.batch.server);
        value.put_u64(self.batch.number);
        value.put_u8(u8::from(self.spilled));
        value.put_u64(self.changes);
        value.freeze()
    }

    pub fn decode(value: &[u8]) -> Option<Head> {
        let (value, changes) = match value.split_at_checked(OLD_HEAD_LEN)? {
            (value, []) => (value, 0),
            (value, changes) => (value, u64::from_be_bytes(changes.try_into().ok()?)),
        };
        Some(Head {
            revision: i64::from_be_bytes(value[..8].try_into().ok()?),
            compacted: i64::from_be_bytes(value[8..16].try_into().ok()?),
            batch: BatchId {
                server: value[16..24].try_into().ok()?,
                number: u64::from_be_bytes(value[24..32].try_into().ok()?),
            },
            spilled: value[32] != 0,
            changes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order_of_revisions() {
        let space = Subspace(7);
        let revisions = [
            (1, 0),
            (1, 1),
            (2, 0),
            (255, 9),
            (256, 0),
            (i64::MAX, u32::MAX),
        ]
        .map(|(main, sub)| Revision { main, sub });
        let keys = revisions.map(|revision| space.log(revision));
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|key| *key < space.log_end()));
        assert_eq!(keys.map(|key| space.parse_log(&key)), revisions.map(Some));
        assert_eq!(Subspace(8).parse_log(&keys_of_other()), None);
        let (start, end) = space.all();
        assert!(start < space.head() && space.lease(-1) < end);
        assert_eq!(space.parse_lease(&space.lease(-5)), Some(-5));
        assert_eq!(space.parse_intent(&space.intent([7; 8])), Some([7; 8]));
    }

    fn keys_of_other() -> Bytes {
        Subspace(7).log_from(1)
    }

    #[test]
    fn heads_read_back() {
        let head = Head {
            revision: 9,
            compacted: -1,
            batch: BatchId {
                server: [3; 8],
                number: 4,
            },
            spilled: true,
            changes: 5,
        };
        assert_eq!(Head::decode(&head.encode()), Some(head));
        assert_eq!(Head::decode(&head.encode()[1..]), None);
    }
}
