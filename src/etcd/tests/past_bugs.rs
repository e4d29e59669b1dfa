//! Bugs that etcd had, where no other test is at hand. `tests/harness/past_bugs.rs` has the list of all.

use std::time::{Duration, Instant};

use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{TxnRequest, WatchCreateRequest, WatchRequest};
use etcd_proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Fixture, bytes};
use crate::etcd::client::{self, Client, prefix_range};

/// 17247: a transaction that reads what it writes, before and after, is told of once.
#[tokio::test]
async fn a_transaction_that_reads_what_it_writes_is_one_event_each() {
    let fixture = Fixture::new().await;
    let client = Client::new(fixture.channel());
    let mut watch = client.watch_prefix("", 2).await.expect("a watch");
    for round in 0..20 {
        let keys = ["a", "b", "c"];
        let reads = || keys.into_iter().map(client::get);
        let writes = keys
            .into_iter()
            .map(|key| client::put(key, round.to_string()));
        let transaction = TxnRequest {
            success: reads().chain(writes).chain(reads()).collect(),
            ..TxnRequest::default()
        };
        let answer = client.txn(transaction).await.expect("txn");
        assert!(answer.succeeded && answer.responses.len() == 9);
        let told = watch.next().await.expect("events").events;
        let told: Vec<_> = told
            .into_iter()
            .map(|event| (event.r#type(), event.kv.expect("a key")))
            .map(|(kind, kv)| (kind, kv.key, kv.mod_revision, kv.version))
            .collect();
        let expected = keys.map(|key| (EventType::Put, bytes(key), round + 2, round + 1));
        assert_eq!(told, expected);
    }
}

/// Watchers of something else.
const IDLE: usize = 20_000;
/// Puts that are timed together, in one transaction, so that they share all other costs.
const PUTS: usize = 100;
/// Times that they are timed; the fastest counts, so that a busy machine does not.
const TRIALS: usize = 60;
/// How much slower they may be. A look at each idle watcher would make them five times as slow.
const SLOWDOWN: u32 = 3;

/// 19064: what a put costs has nothing to do with watchers of other keys.
#[tokio::test]
async fn idle_watchers_cost_a_put_nothing() {
    let fixture = Fixture::new().await;
    let before = fastest_puts(&fixture).await;
    let (requests, outgoing) = mpsc::channel(100);
    let channel = fixture.channel();
    let mut watch = etcd_proto::etcdserverpb::watch_client::WatchClient::new(channel);
    let opened = watch.watch(ReceiverStream::new(outgoing)).await;
    let mut answers = opened.expect("a stream").into_inner();
    for idle in 0..IDLE {
        // Single keys and ranges, each another one.
        let (key, range_end) = if idle % 2 == 0 {
            (bytes(&format!("idle/{idle}")), bytes(""))
        } else {
            prefix_range(bytes(&format!("idle/{idle}/")))
        };
        let create = WatchCreateRequest {
            key,
            range_end,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(request).await.expect("sent");
        let created = answers.message().await.expect("open").expect("an answer");
        assert!(created.created && !created.canceled);
    }
    let after = fastest_puts(&fixture).await;
    assert!(
        after < before * SLOWDOWN,
        "{PUTS} puts took {before:?}, and {after:?} with {IDLE} idle watchers"
    );
}

async fn fastest_puts(fixture: &Fixture) -> Duration {
    let client = Client::new(fixture.channel());
    let mut fastest = Duration::MAX;
    for _ in 0..TRIALS {
        let transaction = TxnRequest {
            success: (0..PUTS)
                .map(|n| client::put(format!("busy/{n}"), "value"))
                .collect(),
            ..TxnRequest::default()
        };
        let started = Instant::now();
        client.txn(transaction).await.expect("txn");
        fastest = fastest.min(started.elapsed());
    }
    fastest
}
