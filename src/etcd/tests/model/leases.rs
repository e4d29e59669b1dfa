//! The model's leases: granted, kept alive, revoked, run out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use etcd_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, RangeRequest,
};
use rand::Rng as _;
use tonic::{Code, Status};

use super::super::{Fixture, bytes};
use super::{Model, Source, refusal, told};

/// Ids of leases are 1 up to this: few, so that they meet again.
const IDS: i64 = 6;
/// The shortest TTL, in seconds.
const MIN_TTL: i64 = 2;
/// Many more than the sequencer needs to end leases.
const TURNS: u32 = 10_000;
/// The longest TTL, in seconds.
const MAX_TTL: i64 = 9_000_000_000;

/// TTL in seconds, and time left in milliseconds.
#[derive(Clone, Copy)]
struct Lease {
    ttl: i64,
    left_ms: i64,
}

#[derive(Clone, Default)]
pub(super) struct Leases(BTreeMap<i64, Lease>);

impl Leases {
    pub(super) fn contains(&self, id: i64) -> bool {
        self.0.contains_key(&id)
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Result<i64, Status> {
        if ttl > MAX_TTL {
            return Err(refusal(Code::OutOfRange, "too large lease TTL"));
        }
        if self.contains(id) {
            return Err(refusal(Code::FailedPrecondition, "lease already exists"));
        }
        let ttl = ttl.max(MIN_TTL);
        let left_ms = ttl.saturating_mul(1_000);
        self.0.insert(id, Lease { ttl, left_ms });
        Ok(ttl)
    }

    fn renew(&mut self, id: i64) -> i64 {
        self.0.get_mut(&id).map_or(0, |lease| {
            lease.left_ms = lease.ttl.saturating_mul(1_000);
            lease.ttl
        })
    }

    /// Lets time pass and takes out what has run out, the first to run out first.
    fn pass(&mut self, ms: i64) -> Vec<i64> {
        let mut over = Vec::new();
        for (id, lease) in &mut self.0 {
            lease.left_ms -= ms;
            if lease.left_ms <= 0 {
                over.push((lease.left_ms, *id));
            }
        }
        over.sort_unstable();
        over.into_iter().map(|(_, id)| id).collect()
    }

    /// The soonest to run out first.
    fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<(i64, i64)> = self.0.iter().map(|(id, l)| (l.left_ms, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }
}

pub(super) fn not_found() -> Status {
    refusal(Code::NotFound, "requested lease not found")
}

impl Source {
    pub(super) fn lease_id(&mut self) -> i64 {
        self.0.random_range(1..=IDS)
    }
}

impl Model {
    fn keys_of(&self, lease: i64) -> Vec<Bytes> {
        let keys = self.now().values().filter(|kv| kv.lease == lease);
        keys.map(|kv| kv.key.clone()).collect()
    }

    /// The lease ends; its keys go at one revision, if there are any.
    fn end_lease(&mut self, id: i64) {
        self.leases.0.remove(&id);
        let doomed = self.keys_of(id);
        if doomed.is_empty() {
            return;
        }
        let mut keys = self.now().clone();
        for key in &doomed {
            keys.remove(key);
        }
        self.commit(keys);
    }
}

async fn ids(fixture: &Fixture) -> Vec<i64> {
    let answer = fixture.lease().lease_leases(LeaseLeasesRequest {}).await;
    let leases = answer.expect("answered").into_inner().leases;
    leases.into_iter().map(|lease| lease.id).collect()
}

async fn keep_alive(fixture: &Fixture, id: i64) -> i64 {
    let once = tokio_stream::once(LeaseKeepAliveRequest { id });
    let answers = fixture.lease().lease_keep_alive(once).await;
    let mut answers = answers.expect("answered").into_inner();
    answers.message().await.expect("answer").expect("one").ttl
}

async fn revision(fixture: &Fixture) -> i64 {
    let request = RangeRequest {
        key: bytes("none"),
        count_only: true,
        ..RangeRequest::default()
    };
    let response = fixture.range(request).await.expect("range");
    response.header.expect("header").revision
}

/// One thing that is done with leases.
pub(super) async fn step(fixture: &Fixture, model: &mut Model, source: &mut Source) {
    let id = source.lease_id();
    match source.0.random_range(0..8) {
        0..3 => {
            let ttl = match source.0.random_range(0..10) {
                0 => MAX_TTL + 1,
                _ => source.0.random_range(0..20),
            };
            let request = LeaseGrantRequest { id, ttl };
            let granted = fixture.lease().lease_grant(request).await;
            let granted = granted.map(|granted| granted.into_inner().ttl);
            assert_eq!(
                told(granted),
                told(model.leases.grant(id, ttl)),
                "{id} {ttl}"
            );
        }
        3 => {
            let request = LeaseRevokeRequest { id };
            let revoked = fixture.lease().lease_revoke(request).await;
            let revoked = revoked.map(|r| r.into_inner().header.expect("header").revision);
            let expected = if model.leases.contains(id) {
                model.end_lease(id);
                Ok(model.revision())
            } else {
                Err(not_found())
            };
            assert_eq!(told(revoked), told(expected), "{id}");
        }
        4 => assert_eq!(
            keep_alive(fixture, id).await,
            model.leases.renew(id),
            "{id}"
        ),
        5 | 6 => {
            let request = LeaseTimeToLiveRequest { id, keys: true };
            let answer = fixture.lease().lease_time_to_live(request).await;
            let found = answer.expect("answered").into_inner();
            let expected = match model.leases.0.get(&id) {
                Some(lease) => (lease.left_ms / 1_000, lease.ttl, model.keys_of(id)),
                None => (-1, 0, Vec::new()),
            };
            assert_eq!((found.ttl, found.granted_ttl, found.keys), expected, "{id}");
        }
        _ => {
            let ms = source.0.random_range(1..6_000);
            for id in model.leases.pass(ms) {
                model.end_lease(id);
            }
            let passed = Duration::from_millis(ms.unsigned_abs());
            fixture.clock.advance(passed).await;
            // Without a wall clock: the sequencer needs its turns, no time.
            let mut turns = 0;
            while ids(fixture).await.len() > model.leases.0.len()
                || revision(fixture).await < model.revision()
            {
                turns += 1;
                assert!(turns < TURNS, "leases that have run out are still there");
                tokio::task::yield_now().await;
            }
            assert_eq!(revision(fixture).await, model.revision());
        }
    }
    assert_eq!(ids(fixture).await, model.leases.ids());
}

/// No lease is lost, none has less time than it had; from here on they have all of it.
pub(super) async fn after_restart(fixture: &Fixture, model: &mut Model) {
    let mut found = ids(fixture).await;
    found.sort_unstable();
    let known: Vec<i64> = model.leases.0.keys().copied().collect();
    assert_eq!(found, known);
    for id in known {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let answer = fixture.lease().lease_time_to_live(request).await;
        let found = answer.expect("answered").into_inner();
        let lease = model.leases.0[&id];
        assert!(
            found.ttl >= lease.left_ms / 1_000 && found.ttl <= lease.ttl,
            "{found:?}"
        );
        assert_eq!(found.keys, model.keys_of(id));
        assert_eq!(keep_alive(fixture, id).await, model.leases.renew(id));
    }
}
