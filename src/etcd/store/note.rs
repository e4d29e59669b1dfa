//! What a batch did besides writing keys, told to the other servers on the store.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// How many batches' notes are kept. A server that is further behind reads all leases instead.
pub const NOTES_KEPT: u64 = 1000;

/// Leases change between revisions: after which one matters to the keys that hang on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    Grant {
        after: i64,
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    Revoke {
        after: i64,
        id: i64,
    },
    /// Alarms were raised or disarmed: read them.
    Alarms,
    /// Users, roles or permissions have changed: read them.
    Auth,
}

const GRANT: u8 = 1;
const REVOKE: u8 = 2;
const ALARMS: u8 = 3;
const AUTH: u8 = 4;

impl Note {
    pub fn encode_all(notes: &[Note]) -> Bytes {
        let mut value = BytesMut::with_capacity(notes.len() * 25);
        for note in notes {
            match *note {
                Note::Grant { after, id, ttl } => {
                    value.put_u8(GRANT);
                    value.put_i64(after);
                    value.put_i64(id);
                    value.put_i64(ttl);
                }
                Note::Revoke { after, id } => {
                    value.put_u8(REVOKE);
                    value.put_i64(after);
                    value.put_i64(id);
                }
                Note::Alarms => value.put_u8(ALARMS),
                Note::Auth => value.put_u8(AUTH),
            }
        }
        value.freeze()
    }

    pub fn decode_all(mut value: &[u8]) -> Option<Vec<Note>> {
        let mut notes = Vec::new();
        while !value.is_empty() {
            notes.push(match value.get_u8() {
                GRANT => Note::Grant {
                    after: value.try_get_i64().ok()?,
                    id: value.try_get_i64().ok()?,
                    ttl: value.try_get_i64().ok()?,
                },
                REVOKE => Note::Revoke {
                    after: value.try_get_i64().ok()?,
                    id: value.try_get_i64().ok()?,
                },
                ALARMS => Note::Alarms,
                AUTH => Note::Auth,
                _ => return None,
            });
        }
        Some(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_read_back() {
        let notes = [
            Note::Grant {
                after: 7,
                id: -1,
                ttl: 60,
            },
            Note::Auth,
            Note::Revoke { after: 8, id: -1 },
            Note::Alarms,
        ];
        let value = Note::encode_all(&notes);
        assert_eq!(Note::decode_all(&value).as_deref(), Some(notes.as_slice()));
        assert_eq!(Note::decode_all(&value[..5]), None);
        assert_eq!(Note::decode_all(&[9]), None);
    }
}
