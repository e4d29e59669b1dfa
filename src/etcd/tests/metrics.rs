//! `/metrics`, health and reflection, as a scraper and a prober see them.

use std::collections::BTreeMap;

use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, PutRequest, TxnRequest, WatchCreateRequest,
    WatchRequest, watch_request::RequestUnion,
};
use etcd_proto::health::health_check_response::ServingStatus;
use etcd_proto::health::health_client::HealthClient;
use etcd_proto::health::{HealthCheckRequest, HealthListRequest};
use tonic::Code;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::{Fixture, bytes, everything};
use crate::etcd::client::{self, prefix_range};

/// Every sample by its name with labels; fails on what is not the text format.
pub fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            if let Some(kind) = comment.strip_prefix("TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a type");
                assert!(types.insert(name, kind).is_none(), "{name} is there twice");
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let bare = name.split('{').next().expect("a name");
        let known = ["", "_bucket", "_sum", "_count"].iter().any(|suffix| {
            let family = bare.strip_suffix(suffix);
            family.is_some_and(|family| types.contains_key(family))
        });
        assert!(known, "{line} has no type before it");
        let value = value.parse().expect("a number");
        let before = samples.insert(name.to_owned(), value);
        assert!(before.is_none(), "{name} is there twice");
    }
    samples
}

impl Fixture {
    fn metrics(&self) -> BTreeMap<String, f64> {
        parse(&self.server.metrics_text().expect("metrics"))
    }
}

#[tokio::test]
async fn counts_what_clients_do() {
    let fixture = Fixture::new().await;
    for key in ["a", "b", "c"] {
        fixture.put(key, "value").await;
    }
    fixture.delete("a").await;
    fixture.range(everything()).await.expect("range");
    let txn = TxnRequest {
        success: vec![client::put("d", "1"), client::get("a"), client::delete("b")],
        ..TxnRequest::default()
    };
    fixture.kv().txn(txn).await.expect("txn");
    fixture.compact(4).await;
    let refused = fixture.kv().put(PutRequest::default()).await;
    refused.expect_err("no key");
    let grant = LeaseGrantRequest { id: 7, ttl: 60 };
    fixture.lease().lease_grant(grant).await.expect("grant");
    let revoke = LeaseRevokeRequest { id: 7 };
    fixture.lease().lease_revoke(revoke).await.expect("revoke");

    let found = fixture.metrics();
    for (name, expect) in [
        ("etcd_server_has_leader", 1.0),
        ("etcd_server_is_leader", 1.0),
        ("etcd_server_version{server_version=\"3.6.13\"}", 1.0),
        ("etcd_cluster_version{cluster_version=\"3.6\"}", 1.0),
        ("etcd_mvcc_put_total", 4.0),
        ("etcd_debugging_mvcc_put_total", 4.0),
        ("etcd_mvcc_delete_total", 2.0),
        ("etcd_mvcc_range_total", 2.0),
        ("etcd_mvcc_txn_total", 1.0),
        ("etcd_debugging_mvcc_keys_total", 2.0),
        ("etcd_debugging_mvcc_current_revision", 6.0),
        ("etcd_debugging_mvcc_compact_revision", 4.0),
        ("cke_keyspace_revision{keyspace=\"default\"}", 6.0),
        ("cke_keyspace_keys{keyspace=\"default\"}", 2.0),
        ("etcd_debugging_lease_granted_total", 1.0),
        ("etcd_debugging_lease_revoked_total", 1.0),
        ("etcd_debugging_server_lease_expired_total", 0.0),
        ("etcd_debugging_lease_ttl_total_bucket{le=\"64\"}", 1.0),
        ("etcd_debugging_lease_ttl_total_bucket{le=\"32\"}", 0.0),
        // Puts, delete, txn, compaction, grant, revoke.
        ("etcd_server_proposals_committed_total", 8.0),
        ("etcd_server_proposals_pending", 0.0),
        (
            "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}",
            4.0,
        ),
        (
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}",
            3.0,
        ),
        (
            "grpc_server_handled_total{grpc_code=\"InvalidArgument\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}",
            1.0,
        ),
        (
            "grpc_server_msg_received_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}",
            4.0,
        ),
        (
            "grpc_server_msg_sent_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}",
            3.0,
        ),
    ] {
        assert_eq!(found.get(name), Some(&expect), "{name}");
    }
    let commits = found["etcd_disk_backend_commit_duration_seconds_count"];
    assert!(commits >= 8.0, "{commits} commits");
    assert!(found["etcd_network_client_grpc_received_bytes_total"] > 30.0);
    assert!(found["etcd_network_client_grpc_sent_bytes_total"] > 100.0);
    assert!(found["etcd_mvcc_db_total_size_in_bytes"] > 0.0);
    assert!(found["process_resident_memory_bytes"] > 1e6);
}

#[tokio::test]
async fn watchers_are_counted_while_they_last() {
    let fixture = Fixture::new().await;
    let (requests, outgoing) = tokio::sync::mpsc::channel(4);
    for prefix in ["a", "b"] {
        let (key, range_end) = prefix_range(bytes(prefix));
        let create = WatchCreateRequest {
            key,
            range_end,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(request).await.expect("the stream is open");
    }
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let watch = WatchClient::new(fixture.channel()).watch(outgoing).await;
    let mut answers = watch.expect("a watch").into_inner();
    for _ in 0..2 {
        answers
            .message()
            .await
            .expect("an answer")
            .expect("created");
    }
    fixture.put("a1", "1").await;
    fixture.put("c1", "1").await;
    let event = answers.message().await.expect("an answer").expect("events");
    assert_eq!(event.events.len(), 1);
    let count = |name: &str| fixture.metrics()[name];
    assert_eq!(count("etcd_debugging_mvcc_watch_stream_total"), 1.0);
    assert_eq!(count("etcd_debugging_mvcc_watcher_total"), 2.0);
    assert_eq!(count("etcd_debugging_mvcc_events_total"), 1.0);
    assert_eq!(count("etcd_debugging_mvcc_slow_watcher_total"), 0.0);
    assert_eq!(count("cke_keyspace_watchers{keyspace=\"default\"}"), 2.0);
    // Who has nothing more to ask is still told.
    drop(requests);
    fixture.put("b1", "1").await;
    let event = answers.message().await.expect("an answer").expect("events");
    assert_eq!(event.events.len(), 1);
    drop(answers);
    while count("etcd_debugging_mvcc_watch_stream_total") != 0.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(count("etcd_debugging_mvcc_watcher_total"), 0.0);
    assert_eq!(count("cke_keyspace_watchers{keyspace=\"default\"}"), 0.0);
}

#[tokio::test]
async fn health_is_serving_until_the_server_stops() {
    let fixture = Fixture::new().await;
    let mut health = HealthClient::new(fixture.channel());
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = health.check(check("")).await.expect("an answer");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let refused = health.check(check("etcdserverpb.Nothing")).await;
    let refused = refused.expect_err("unknown");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, "unknown service")
    );
    let list = health.list(HealthListRequest {}).await.expect("a list");
    let statuses = list.into_inner().statuses;
    assert_eq!(statuses.len(), 1);
    assert_eq!(statuses[""].status(), ServingStatus::Serving);

    let watched = health.watch(check("nothing")).await.expect("a watch");
    let status = watched.into_inner().message().await.expect("an answer");
    assert_eq!(
        status.map(|s| s.status()),
        Some(ServingStatus::ServiceUnknown)
    );
    let watched = health.watch(check("")).await.expect("a watch");
    let mut watched = watched.into_inner();
    let status = watched.message().await.expect("an answer");
    assert_eq!(status.map(|s| s.status()), Some(ServingStatus::Serving));
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let fixture = Fixture::new().await;
    let ask = |request: MessageRequest| {
        let mut client = ServerReflectionClient::new(fixture.channel());
        async move {
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            };
            let answers = client.server_reflection_info(tokio_stream::once(request));
            let mut answers = answers.await.expect("reflection").into_inner();
            let answer = answers.message().await.expect("an answer");
            answer.and_then(|answer| answer.message_response)
        }
    };
    let listed = ask(MessageRequest::ListServices(String::new())).await;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else {
        panic!("not a list: {listed:?}");
    };
    let mut names: Vec<_> = listed.service.into_iter().map(|it| it.name).collect();
    names.sort();
    expect_test::expect![[r#"
        [
            "etcdserverpb.Auth",
            "etcdserverpb.Cluster",
            "etcdserverpb.KV",
            "etcdserverpb.Lease",
            "etcdserverpb.Maintenance",
            "etcdserverpb.Watch",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "v3electionpb.Election",
            "v3lockpb.Lock",
        ]
    "#]]
    .assert_debug_eq(&names);
    let symbol = String::from("etcdserverpb.KV.Range");
    let found = ask(MessageRequest::FileContainingSymbol(symbol)).await;
    assert!(matches!(
        found,
        Some(MessageResponse::FileDescriptorResponse(_))
    ));
}
