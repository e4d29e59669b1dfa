//! The bugs that etcd itself had (contracts/etcd.md, section 2), and the tests that would find them here.
//!
//! `harness` is `tests/harness` (its rounds check every promise on recorded histories), `unit` is
//! `src/etcd/tests`, `fdb` is `fdb/tests`.
//!
//! | etcd issue | what went wrong | found by |
//! |---|---|---|
//! | 13766 | inconsistent revision after a crash under load | harness `rounds`: kills at full load; `Rule::RealTime`, `Rule::Answer`, `Rule::Log` |
//! | 14370 | acknowledged write lost on a crash | harness `rounds`, `torn_tail`, planted [`Bug::LostWrite`](crate::plant::Bug::LostWrite); fdb `crash` |
//! | 14571 | auth changes not ordered with writes | `tests/e2e/etcd_auth.rs`: `users_and_what_they_may_survive_a_crash` |
//! | 14685 | crash during defragment | here; harness `rounds` defragment while they are killed |
//! | 15220 | progress ahead of events | unit `watches::progress_follows_events`; harness `Rule::WatchProgress` |
//! | 15271 | watch went back in time | harness `rounds`: each watch is resumed on the server's next life; `Rule::WatchEvents` |
//! | 17247 | duplicated event from a transaction | unit `past_bugs`; harness transactions that read what they write; planted [`Bug::DuplicatedEvent`](crate::plant::Bug::DuplicatedEvent) |
//! | 17529 | events lost on a starved stream | unit `watches::a_slow_stream_gets_everything_and_delays_nobody`; harness: watchers that pause |
//! | 17780 | revision decreased after a crash in a compaction | here; harness `rounds` compact while they are killed |
//! | 18089 | delete event dropped by a compaction at it | unit `watches::a_watch_from_the_compacted_revision_sees_its_events`; unit `model::watch` |
//! | 18055 | two snapshots in a row | `tests/e2e/etcd_maintenance.rs`: `snapshots_do_not_disturb_one_another` |
//! | 18667 | compacted revision readable in a transaction | unit `api::a_compacted_revision_is_gone_in_transactions_too`; harness transactions that read the past |
//! | 19179 | delete event missing at the compacted revision | as 18089; here |
//! | 20221 | events or progress before a future revision | unit `watches::a_future_revision_is_waited_for_in_silence`; harness: watches of the future |
//! | 20418 | stale read after a pause | harness `rounds`: SIGSTOP and SIGCONT; planted [`Bug::StaleRead`](crate::plant::Bug::StaleRead). A store has one server: fdb `store::a_directory_has_one_opener` |
//! | 19064 | idle watchers slow down writes | unit `past_bugs` |
//! | 20271 | corrupt storage | harness `torn_tail`; fdb `crash`: every byte of the journal, tables |

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cke::etcd::client::{self, COMPACTED, Client, header_revision};
use etcd_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_proto::etcdserverpb::{DefragmentRequest, RangeRequest, TxnRequest, WatchCreateRequest};
use etcd_proto::mvccpb::KeyValue;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::instance::{Instance, Kind};

/// Crashes inside a compaction.
const CRASHES: usize = 8;
/// Keys, all of which each round writes.
const KEYS: usize = 120;

async fn connect(instance: &Instance) -> (String, Client) {
    let endpoint = instance.endpoint().borrow().clone().expect("it is up");
    let client = Client::connect(&endpoint).await.expect("a connection");
    (endpoint, client)
}

/// The store's revision now, and everything as of `revision`; `None` if that is compacted.
async fn everything(client: &Client, revision: i64) -> (i64, Option<Vec<KeyValue>>) {
    let request = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..RangeRequest::default()
    };
    match client.range(request).await {
        Ok(response) => (header_revision(response.header), Some(response.kvs)),
        Err(error) if error.is_compacted() => (0, None),
        Err(error) => panic!("{error} at {revision}"),
    }
}

/// 14685, 17780, 19179: kill -9 while old revisions are being freed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_inside_a_compaction_changes_nothing_that_is_left() {
    let mut random = ChaCha8Rng::seed_from_u64(17_780);
    let mut instance = Instance::new(Kind::Program);
    instance.start().await;
    let mut states: BTreeMap<i64, Vec<KeyValue>> = BTreeMap::new();
    let mut newest = 1;
    for crash in 0..CRASHES {
        let (endpoint, etcd) = connect(&instance).await;
        for _ in 0..6 {
            let operations = (0..KEYS).map(|key| {
                let key = format!("k{key:03}");
                if random.random_ratio(1, 3) {
                    client::delete(key)
                } else {
                    client::put(key, random.random::<u64>().to_string())
                }
            });
            let transaction = TxnRequest {
                success: operations.collect(),
                ..TxnRequest::default()
            };
            let response = etcd.txn(transaction).await.expect("txn");
            newest = header_revision(response.header);
            let (_, state) = everything(&etcd, newest).await;
            states.insert(newest, state.expect("it is the newest"));
        }
        let compacted = newest - random.random_range(0..4);
        let compaction = tokio::spawn({
            let etcd = etcd.clone();
            // Asked for, and perhaps answered: the crash decides.
            async move { etcd.compact(compacted).await.is_ok() }
        });
        let defragmentation = tokio::spawn(async move {
            let maintenance = MaintenanceClient::connect(endpoint).await;
            if let Ok(mut maintenance) = maintenance {
                let _ = maintenance.defragment(DefragmentRequest {}).await;
            }
        });
        tokio::time::sleep(Duration::from_micros(random.random_range(0..9_000))).await;
        instance.kill().await;
        let answered = compaction.await.expect("no panic");
        defragmentation.await.expect("no panic");
        instance.start().await;

        let (_, etcd) = connect(&instance).await;
        assert_eq!(everything(&etcd, 0).await.0, newest, "crash {crash}");
        for (revision, state) in &states {
            let (_, found) = everything(&etcd, *revision).await;
            match found {
                Some(found) => assert_eq!(&found, state, "crash {crash} at {revision}"),
                None => assert!(*revision < compacted, "crash {crash}: {revision} is gone"),
            }
            if answered && *revision < compacted {
                let request = RangeRequest {
                    key: Bytes::from_static(b"k"),
                    revision: *revision,
                    ..RangeRequest::default()
                };
                let refused = etcd.range(request).await.expect_err("compacted");
                assert!(refused.to_string().contains(COMPACTED), "{refused}");
            }
        }
        check_watch(&etcd, &states, compacted, newest).await;
    }
}

/// A watch from the compacted revision on leads from each state to the next.
async fn check_watch(
    etcd: &Client,
    states: &BTreeMap<i64, Vec<KeyValue>>,
    compacted: i64,
    newest: i64,
) {
    let all = WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: compacted,
        ..WatchCreateRequest::default()
    };
    let mut watch = etcd.watch(all).await.expect("a watch");
    let mut state: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
    if let Some(before) = states.get(&(compacted - 1)) {
        state.extend(before.iter().map(|kv| (kv.key.clone(), kv.clone())));
    }
    let mut told = compacted - 1;
    while told < newest {
        let response = watch.next().await.expect("events");
        let events: Vec<KeyValue> = response.events.into_iter().filter_map(|e| e.kv).collect();
        for revision in events.chunk_by(|a, b| a.mod_revision == b.mod_revision) {
            assert_eq!(revision[0].mod_revision, told + 1);
            told += 1;
            for kv in revision {
                match kv.version {
                    0 => assert!(state.remove(&kv.key).is_some(), "{kv:?}"),
                    _ => drop(state.insert(kv.key.clone(), kv.clone())),
                }
            }
            let state: Vec<KeyValue> = state.values().cloned().collect();
            assert_eq!(&state, &states[&told], "after the events of {told}");
        }
    }
}
