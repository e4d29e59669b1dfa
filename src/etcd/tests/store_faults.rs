//! Many clients at once on a store that misbehaves: nothing acknowledged is lost, nothing doubled.

use std::collections::HashMap;
use std::time::Duration;

use etcd_proto::etcdserverpb::{PutRequest, RangeRequest, TxnRequest};
use fdb::Faults;

use super::{Fixture, bytes, everything};
use crate::etcd::EtcdConfig;
use crate::etcd::client::{mod_revision_is, put};

#[tokio::test]
async fn counters_count_every_success_once() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 30;
    let faults = Faults {
        seed: 5,
        not_committed: 0.15,
        commit_unknown_result: 0.15,
        transaction_too_old: 0.05,
        future_version: 0.05,
        max_delay: Duration::from_micros(200),
    };
    let fixture = Fixture::with(EtcdConfig::default(), Some(faults)).await;
    let clients = (0..CLIENTS).map(|client| {
        let mut kv = fixture.kv();
        tokio::spawn(async move {
            let mut successes = 0;
            for _ in 0..ROUNDS {
                // A counter that all share, by compare and swap; a key of its own besides.
                let read = RangeRequest {
                    key: bytes("counter"),
                    ..RangeRequest::default()
                };
                let found = kv.range(read).await.expect("range").into_inner().kvs.pop();
                let (count, revision) = found.map_or((0, 0), |kv| {
                    let text = String::from_utf8_lossy(&kv.value).into_owned();
                    (text.parse::<usize>().expect("number"), kv.mod_revision)
                });
                let request = TxnRequest {
                    compare: vec![mod_revision_is("counter", revision)],
                    success: vec![put("counter", (count + 1).to_string())],
                    failure: Vec::new(),
                };
                let swapped = kv.txn(request).await.expect("txn").into_inner();
                successes += usize::from(swapped.succeeded);
                let own = PutRequest {
                    key: bytes(&format!("client{client}")),
                    value: bytes(&successes.to_string()),
                    ..PutRequest::default()
                };
                kv.put(own).await.expect("put");
            }
            successes
        })
    });
    let mut successes = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        successes.push(client.await.expect("no panic"));
    }
    let total: usize = successes.iter().sum();
    let writes = CLIENTS * ROUNDS + total;
    let fixture = fixture.restart().await;
    let response = fixture.range(everything()).await.expect("range");
    let revision = response.header.expect("header").revision;
    assert_eq!(usize::try_from(revision), Ok(writes + 1));
    let versions: HashMap<_, _> = response
        .kvs
        .iter()
        .map(|kv| (kv.key.clone(), (kv.value.clone(), kv.version)))
        .collect();
    let count = |n: usize| i64::try_from(n).expect("small");
    assert_eq!(
        versions[&bytes("counter")],
        (bytes(&total.to_string()), count(total))
    );
    for (client, successes) in successes.iter().enumerate() {
        let own = bytes(&format!("client{client}"));
        assert_eq!(
            versions[&own],
            (bytes(&successes.to_string()), count(ROUNDS))
        );
    }
}
