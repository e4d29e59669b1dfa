//! The clock's last reading, kept so that it does not go backwards over a restart.
//!
//! A clock that runs faster than real time is ahead of the machine's when the process ends. Every
//! transaction of the platform and of the cloud also writes the reading at which it was made: so a clock
//! that starts at [`last_reading`] never reads less than what any record says.
//!
//! Between two transactions nothing is written while time merely passes. A manual clock moves only when
//! somebody advances it, and who does keeps the reading before saying that it is done: an advance over an
//! idle year is one write. A clock that runs by itself is followed by [`keep`]; the last second of the
//! machine's time, or the last 30 of its own, may be lost to a kill, and no record with it.

use std::time::Duration;

use bytes::Bytes;
use etcd_proto::etcdserverpb::RequestOp;

use crate::clock::{Clock, TimeScale, Timestamp};
use crate::etcd::client::{Client, ClientError, put};
use crate::leader::Term;

const KEY: Bytes = Bytes::from_static(b"/clock");
/// How old the kept reading of a clock that runs may grow, in its own time.
const OLDEST: Duration = Duration::from_secs(30);
/// Between two looks at it. Real time on purpose: a clock that makes a day of a second would otherwise
/// have 2,880 readings written in it.
const LOOK: Duration = Duration::from_secs(1);

/// An operation to add to a transaction made at `now`.
pub fn stamp(now: Timestamp) -> RequestOp {
    put(KEY, encode(now))
}

pub async fn save(client: &Client, now: Timestamp) -> Result<(), ClientError> {
    client.put(KEY, encode(now)).await.map(drop)
}

/// Keeps the reading of a clock that runs by itself, as long as it is polled and `term` lasts.
pub async fn keep(client: Client, clock: Clock, term: Term) {
    let mut kept = clock.now();
    while term.holds() {
        tokio::time::sleep(LOOK).await;
        let now = clock.now();
        if clock.scale() == TimeScale::Manual || kept.until(now) < OLDEST {
            continue;
        }
        match save(&client, now).await {
            Ok(()) => kept = now,
            Err(error) => tracing::warn!(%error, "cannot keep the clock's reading"),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::client::Keyspaces as _;
    use crate::infra::testing::MemoryKeyspaces;

    /// What is kept of a clock of that scale after some seconds of the machine's time.
    async fn kept_after(scale: TimeScale, seconds: u64) -> Option<i64> {
        let client = MemoryKeyspaces::default().client("infra");
        let clock = Clock::new(scale, Timestamp(0));
        let keeping = keep(client.clone(), clock, Term::for_ever());
        let time = tokio::time::sleep(Duration::from_secs(seconds));
        tokio::select! {
            () = keeping => {}
            () = time => {}
        }
        let reading = last_reading(&client).await.expect("a reading");
        reading.map(|reading| reading.0)
    }

    #[tokio::test]
    async fn only_a_clock_that_runs_is_followed() {
        let (manual, slow, fast) = tokio::join!(
            kept_after(TimeScale::Manual, 2),
            kept_after(TimeScale::Factor(1.0), 2),
            kept_after(TimeScale::Factor(3_600.0), 2),
        );
        assert_eq!((manual, slow), (None, None));
        assert!(fast >= Some(3_600_000), "{fast:?}");
    }
}
