use std::time::Duration;

use etcd_proto::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest,
};
use tonic::{Code, Status};

use super::{Fixture, bytes};

async fn grant(fixture: &Fixture, id: i64, ttl: i64) -> Result<(i64, i64), Status> {
    let request = LeaseGrantRequest { ttl, id };
    let granted = fixture.lease().lease_grant(request).await?.into_inner();
    Ok((granted.id, granted.ttl))
}

async fn attach(fixture: &Fixture, key: &str, lease: i64) -> Result<i64, Status> {
    let request = PutRequest {
        key: bytes(key),
        lease,
        ..PutRequest::default()
    };
    let response = fixture.kv().put(request).await?.into_inner();
    Ok(response.header.expect("header").revision)
}

async fn time_to_live(fixture: &Fixture, id: i64) -> LeaseTimeToLiveResponse {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    let answer = fixture.lease().lease_time_to_live(request).await;
    LeaseTimeToLiveResponse {
        header: None,
        ..answer.expect("answered").into_inner()
    }
}

async fn keep_alive(fixture: &Fixture, id: i64) -> i64 {
    let once = tokio_stream::once(LeaseKeepAliveRequest { id });
    let answers = fixture.lease().lease_keep_alive(once).await;
    let mut answers = answers.expect("answered").into_inner();
    answers.message().await.expect("answer").expect("one").ttl
}

async fn ids(fixture: &Fixture) -> Vec<i64> {
    let answer = fixture.lease().lease_leases(LeaseLeasesRequest {}).await;
    let leases = answer.expect("answered").into_inner().leases;
    leases.into_iter().map(|lease| lease.id).collect()
}

fn told<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("refused");
    (status.code(), status.message().to_owned())
}

fn refusal(code: Code, text: &str) -> (Code, String) {
    (code, format!("etcdserver: {text}"))
}

/// Waits, without a wall clock, until the keyspace's revision is `revision`.
async fn until(fixture: &Fixture, revision: i64) {
    loop {
        let request = RangeRequest {
            key: bytes("x"),
            count_only: true,
            ..RangeRequest::default()
        };
        let now = fixture.range(request).await.expect("range").header;
        if now.expect("header").revision >= revision {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_lease_that_runs_out_deletes_its_keys_at_one_revision() {
    let fixture = Fixture::new().await;
    assert_eq!(grant(&fixture, 7, 10).await.expect("granted"), (7, 10));
    attach(&fixture, "a", 7).await.expect("put");
    attach(&fixture, "b", 7).await.expect("put");
    attach(&fixture, "c", 7).await.expect("put");
    // A put without a lease takes the key off it.
    assert_eq!(attach(&fixture, "c", 0).await.expect("put"), 5);
    let found = time_to_live(&fixture, 7).await;
    assert_eq!((found.ttl, found.granted_ttl), (10, 10));
    assert_eq!(found.keys, [bytes("a"), bytes("b")]);

    fixture.clock.advance(Duration::from_secs(9)).await;
    assert_eq!(time_to_live(&fixture, 7).await.ttl, 1);
    assert_eq!(keep_alive(&fixture, 7).await, 10);
    fixture.clock.advance(Duration::from_millis(9_999)).await;
    assert_eq!(fixture.dump().await, ["a=", "b=", "c="]);
    fixture.clock.advance(Duration::from_millis(1)).await;
    until(&fixture, 6).await;
    assert_eq!(fixture.dump().await, ["c="]);
    assert_eq!(keep_alive(&fixture, 7).await, 0);
    assert_eq!(time_to_live(&fixture, 7).await.ttl, -1);
    assert_eq!(ids(&fixture).await, [0; 0]);
    assert_eq!(fixture.put("d", "").await, 7);
}

#[tokio::test]
async fn a_revoked_lease_deletes_its_keys() {
    let fixture = Fixture::new().await;
    let (id, ttl) = grant(&fixture, 0, 1).await.expect("granted");
    assert!(id > 0);
    assert_eq!(ttl, 2, "the shortest there is");
    attach(&fixture, "a", id).await.expect("put");
    attach(&fixture, "b", id).await.expect("put");
    let delete = DeleteRangeRequest {
        key: bytes("a"),
        ..DeleteRangeRequest::default()
    };
    fixture.kv().delete_range(delete).await.expect("delete");
    let request = LeaseRevokeRequest { id };
    let revoked = fixture
        .lease()
        .lease_revoke(request)
        .await
        .expect("revoked");
    assert_eq!(revoked.into_inner().header.expect("header").revision, 5);
    assert_eq!(fixture.dump().await, [""; 0]);
    let again = fixture.lease().lease_revoke(request).await;
    let missing = refusal(Code::NotFound, "requested lease not found");
    assert_eq!(told(again), missing);
    assert_eq!(told(attach(&fixture, "a", id).await), missing);
}

#[tokio::test]
async fn grants_are_refused_as_etcd_does() {
    let fixture = Fixture::new().await;
    grant(&fixture, 5, 60).await.expect("granted");
    assert_eq!(
        told(grant(&fixture, 5, 60).await),
        refusal(Code::FailedPrecondition, "lease already exists")
    );
    assert_eq!(
        told(grant(&fixture, 6, 9_000_000_001).await),
        refusal(Code::OutOfRange, "too large lease TTL")
    );
    assert_eq!(
        grant(&fixture, 6, 9_000_000_000).await.expect("granted").0,
        6
    );
    assert_eq!(grant(&fixture, -3, 0).await.expect("granted"), (-3, 2));
    assert_eq!(ids(&fixture).await, [-3, 5, 6], "by deadline");
}

#[tokio::test]
async fn leases_survive_a_restart() {
    let fixture = Fixture::new().await;
    grant(&fixture, 7, 100).await.expect("granted");
    grant(&fixture, 8, 50).await.expect("granted");
    attach(&fixture, "a", 7).await.expect("put");
    fixture.clock.advance(Duration::from_secs(20)).await;
    let request = LeaseRevokeRequest { id: 8 };
    fixture
        .lease()
        .lease_revoke(request)
        .await
        .expect("revoked");
    let fixture = fixture.restart().await;
    assert_eq!(ids(&fixture).await, [7]);
    let found = time_to_live(&fixture, 7).await;
    assert!(found.ttl >= 80, "at least what it had left: {}", found.ttl);
    assert_eq!(found.keys, [bytes("a")]);
    fixture.clock.advance(Duration::from_secs(100)).await;
    until(&fixture, 3).await;
    assert_eq!(fixture.dump().await, [""; 0]);
}

#[tokio::test]
async fn a_restart_gives_a_long_lease_what_its_checkpoint_says() {
    let fixture = Fixture::new().await;
    grant(&fixture, 7, 1000).await.expect("granted");
    grant(&fixture, 8, 1000).await.expect("granted");
    attach(&fixture, "a", 7).await.expect("put");
    fixture.clock.advance(Duration::from_secs(299)).await;
    let fixture = fixture.restart().await;
    assert_eq!(
        time_to_live(&fixture, 7).await.ttl,
        1000,
        "no checkpoint yet"
    );
    fixture.clock.advance(Duration::from_secs(300)).await;
    // The sequencer makes checkpoints by itself, with what it is asked for at the latest.
    fixture.put("x", "").await;
    assert_eq!(keep_alive(&fixture, 8).await, 1000);
    let fixture = fixture.restart().await;
    assert_eq!(time_to_live(&fixture, 7).await.ttl, 700);
    assert_eq!(time_to_live(&fixture, 7).await.granted_ttl, 1000);
    assert_eq!(time_to_live(&fixture, 8).await.ttl, 1000);
    fixture.clock.advance(Duration::from_secs(700)).await;
    until(&fixture, 4).await;
    assert_eq!(ids(&fixture).await, [8]);
    assert_eq!(fixture.dump().await, ["x="]);
}
