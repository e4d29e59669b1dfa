//! The clock's last reading, kept so that it does not go backwards over a restart.
//!
//! A clock that runs faster than real time is ahead of the machine's when the process ends. Every
//! transaction of the platform and of the cloud also writes the reading at which it was made, and a
//! timer writes it now and then: so a clock that starts at [`last_reading`] never reads less than what
//! any record says. (It may read less than what a request without any effect was told.)

use bytes::Bytes;
use etcd_proto::etcdserverpb::RequestOp;

use crate::clock::Timestamp;
use crate::etcd::client::{Client, ClientError, put};

const KEY: Bytes = Bytes::from_static(b"/clock");

/// An operation to add to a transaction made at `now`.
pub fn stamp(now: Timestamp) -> RequestOp {
    put(KEY, encode(now))
}

pub async fn save(client: &Client, now: Timestamp) -> Result<(), ClientError> {
    client.put(KEY, encode(now)).await.map(drop)
}

/// `None` on a keyspace that was never used.
pub async fn last_reading(client: &Client) -> Result<Option<Timestamp>, ClientError> {
    let found = client.get(KEY).await?.value;
    Ok(found.and_then(|kv| {
        std::str::from_utf8(&kv.value)
            .ok()?
            .parse()
            .ok()
            .map(Timestamp)
    }))
}

/// Milliseconds since the epoch, in decimal.
fn encode(now: Timestamp) -> Bytes {
    Bytes::from(now.0.to_string())
}
