//! Many keyspaces in one server: nothing crosses them, and those that nobody uses cost nothing.

use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_proto::etcdserverpb::TxnRequest;
use futures::StreamExt as _;
use tonic::Code;

use super::Fixture;
use crate::etcd::EtcdConfig;
use crate::etcd::client::{self, Client, ClientError, Keyspaces as _};
use crate::etcd::keyspace::Keyspace;

const IDLE: Duration = Duration::from_secs(60);
/// How often the clock may be moved on by a quarter of [`IDLE`] before something is wrong.
const LOOKS: usize = 1000;

async fn fixture(config: EtcdConfig) -> Fixture {
    let config = EtcdConfig {
        keyspace_idle_timeout: Some(IDLE),
        ..config
    };
    Fixture::with(config, None).await
}

impl Fixture {
    fn loaded(&self) -> Vec<String> {
        let loaded = self.server.inner().loaded();
        let mut names: Vec<_> = loaded.iter().map(|it| it.name.to_string()).collect();
        names.sort();
        names
    }

    /// Lets time pass until only these are loaded.
    #[track_caller]
    fn until_loaded<'a>(&'a self, expect: &'a [&'a str]) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            for _ in 0..LOOKS {
                if self.loaded() == expect {
                    return;
                }
                self.clock.advance(IDLE / 4).await;
                tokio::task::yield_now().await;
            }
            panic!("{caller}: loaded are still {:?}", self.loaded());
        }
    }

    /// Lets much time pass, in which nothing may be unloaded.
    async fn pass_time(&self, expect: &[&str]) {
        for _ in 0..40 {
            self.clock.advance(IDLE / 4).await;
            tokio::task::yield_now().await;
            assert_eq!(self.loaded(), expect);
        }
    }
}

async fn value(client: &Client, key: &'static str) -> Option<String> {
    let found = client.get(key).await.expect("get").value;
    found.map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
}

#[tokio::test]
async fn an_idle_keyspace_is_unloaded_and_comes_back() {
    let fixture = fixture(EtcdConfig::default()).await;
    let tenant = fixture.server.client("tenant");
    assert_eq!(tenant.put("key", "1").await.expect("put"), 2);
    let held: Weak<Keyspace> = {
        let loaded = fixture.server.inner().loaded();
        let tenant = loaded.iter().find(|it| &*it.name == "tenant");
        Arc::downgrade(tenant.expect("it is loaded"))
    };
    fixture.until_loaded(&["default"]).await;
    assert!(held.upgrade().is_none(), "its memory was not given back");
    for revision in 3..6 {
        assert_eq!(tenant.put("key", "2").await.expect("put"), revision);
        assert_eq!(fixture.loaded(), ["default", "tenant"]);
        fixture.until_loaded(&["default"]).await;
    }
    assert_eq!(value(&tenant, "key").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_slot_that_nobody_uses_is_forgotten() {
    let fixture = fixture(EtcdConfig::default()).await;
    for tenant in 0..10 {
        let client = fixture.server.client(&format!("tenant-{tenant}"));
        client.put("key", "1").await.expect("put");
    }
    for _ in 0..LOOKS {
        fixture.clock.advance(IDLE / 4).await;
        tokio::task::yield_now().await;
        if fixture.server.inner().slots.lock().len() == 1 {
            return;
        }
    }
    let slots = fixture.server.inner().slots.lock().len();
    panic!("{slots} slots are left");
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let fixture = fixture(EtcdConfig::default()).await;
    let watched = fixture.server.client("watched");
    let mut watch = watched.watch_prefix("key", 0).await.expect("a watch");
    fixture.pass_time(&["default", "watched"]).await;
    watched.put("key", "1").await.expect("put");
    let events = watch.next().await.expect("events").events;
    assert_eq!(events.len(), 1);
    drop(watch);
    fixture.until_loaded(&["default"]).await;

    // As long as the lease lives, and then its key goes in time.
    let leased = fixture.server.client("leased");
    leased.put("other", "1").await.expect("put");
    let lease = leased.lease_grant(100_000).await.expect("a lease");
    fixture.pass_time(&["default", "leased"]).await;
    leased.lease_revoke(lease).await.expect("revoked");
    fixture.until_loaded(&["default"]).await;
    assert_eq!(value(&leased, "other").await.as_deref(), Some("1"));
}

/// Requests never see that their keyspace is being unloaded, however close they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unloading_loses_no_request() {
    let fixture = fixture(EtcdConfig::default()).await;
    let server = fixture.server.clone();
    let puts = tokio::spawn(async move {
        for round in 0..300 {
            let client = server.client("tenant");
            let revision = client.put("key", "1").await.expect("put");
            assert_eq!(revision, round + 2);
            tokio::task::yield_now().await;
        }
    });
    while !puts.is_finished() {
        // Each look is as good as two idle timeouts.
        fixture.clock.advance(IDLE * 2).await;
        tokio::task::yield_now().await;
    }
    puts.await.expect("every put succeeds");
    let unloaded = fixture
        .server
        .inner()
        .config
        .metrics
        .keyspaces_unloaded
        .get();
    assert!(unloaded > 0, "the test never met an unloading");
}

#[tokio::test]
async fn keyspaces_have_a_limit() {
    let fixture = fixture(EtcdConfig {
        max_keyspaces: 3,
        ..EtcdConfig::default()
    })
    .await;
    for name in ["a", "b"] {
        fixture
            .server
            .client(name)
            .put("key", name)
            .await
            .expect("put");
    }
    let refused = fixture.server.client("c").put("key", "c").await;
    let Err(ClientError::Status(status)) = refused else {
        panic!("not refused: {refused:?}");
    };
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "etcdserver: too many requests")
    );
    fixture.until_loaded(&["default"]).await;
    fixture
        .server
        .client("c")
        .put("key", "c")
        .await
        .expect("room");
}

#[tokio::test]
async fn waiting_writes_have_a_limit() {
    let fixture = fixture(EtcdConfig {
        max_keyspace_pending: 4,
        ..EtcdConfig::default()
    })
    .await;
    let put = |_| fixture.put_once();
    let outcomes: Vec<_> = futures::stream::iter(0..200)
        .map(put)
        .buffer_unordered(200)
        .collect()
        .await;
    let refused: Vec<_> = outcomes.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!(!refused.is_empty(), "200 at once were not too many");
    assert!(refused.len() < 200, "none was served");
    for status in refused {
        assert_eq!(status.message(), "etcdserver: too many requests");
    }
}

impl Fixture {
    async fn put_once(&self) -> Result<(), tonic::Status> {
        let request = etcd_proto::etcdserverpb::PutRequest {
            key: super::bytes("key"),
            ..Default::default()
        };
        self.kv().put(request).await.map(drop)
    }
}

/// 5,000 keyspaces with the same 100 keys each, and a value of its own in each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_keyspaces_do_not_cross() {
    const KEYSPACES: usize = 5_000;
    const AT_ONCE: usize = 32;
    let fixture = fixture(EtcdConfig::default()).await;
    let server = &fixture.server;
    let name = |tenant: usize| format!("tenant-{tenant}");
    let before = resident_bytes(&fixture);
    let filled =
        futures::stream::iter(0..KEYSPACES).for_each_concurrent(AT_ONCE, |tenant| async move {
            let puts =
                (0..100).map(|key| client::put(format!("key-{key:02}"), format!("{tenant}")));
            let txn = TxnRequest {
                success: puts.collect(),
                ..TxnRequest::default()
            };
            let answer = server.client(&name(tenant)).txn(txn).await.expect("txn");
            assert_eq!(client::header_revision(answer.header), 2);
        });
    filled.await;
    assert_eq!(fixture.loaded().len(), KEYSPACES + 1);
    let filled = resident_bytes(&fixture);

    // All are unloaded, slots and connections included, and every one is read again.
    fixture.until_loaded(&["default"]).await;
    let unloaded = resident_bytes(&fixture);
    let read =
        futures::stream::iter(0..KEYSPACES).for_each_concurrent(AT_ONCE, |tenant| async move {
            let client = server.client(&name(tenant));
            let found = client.list("").await.expect("list");
            assert_eq!(found.revision, 2);
            assert_eq!(found.value.len(), 100);
            let expect = format!("{tenant}");
            assert!(found.value.iter().all(|kv| kv.value == expect), "{tenant}");
            let revision = client.put("key-00", "more").await.expect("put");
            assert_eq!(revision, 3);
        });
    read.await;
    let read = resident_bytes(&fixture);
    // A debug build takes about 55 KiB.
    for (when, bytes) in [
        ("filled", filled),
        ("unloaded", unloaded),
        ("read again", read),
    ] {
        let kib = (bytes - before) / 1024.0 / KEYSPACES as f64;
        println!("{when}: {kib:.0} KiB for each of {KEYSPACES} keyspaces");
        assert!(kib < 400.0, "{when}: {kib:.0} KiB for each keyspace");
    }
}

fn resident_bytes(fixture: &Fixture) -> f64 {
    let text = fixture.server.metrics_text().expect("metrics");
    super::metrics::parse(&text)["process_resident_memory_bytes"]
}
