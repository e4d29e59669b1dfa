//! Requests at the edges: limits, refusals, sizes, headers, plain HTTP.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use etcd_proto::etcdserverpb::auth_client::AuthClient;
use etcd_proto::etcdserverpb::cluster_client::ClusterClient;
use etcd_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_proto::etcdserverpb::{
    AuthenticateRequest, CompactionRequest, DeleteRangeRequest, MemberListRequest, PutRequest,
    RangeRequest, StatusRequest, TxnRequest,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{Fixture, bytes, everything};
use crate::etcd::client::{self, Client, Keyspaces as _};

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("refused");
    (status.code(), status.message().to_owned())
}

fn refusal(code: Code, text: &str) -> (Code, String) {
    (code, format!("etcdserver: {text}"))
}

fn put(key: &str, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: bytes(key),
        value: value.into(),
        ..PutRequest::default()
    }
}

#[tokio::test]
async fn requests_are_refused_in_etcds_words() {
    let fixture = Fixture::new().await;
    let mut kv = fixture.kv();
    let invalid = |text| refusal(Code::InvalidArgument, text);
    assert_eq!(
        refused(kv.put(put("", "v")).await),
        invalid("key is not provided")
    );
    assert_eq!(
        refused(fixture.range(RangeRequest::default()).await),
        invalid("key is not provided")
    );
    let request = RangeRequest {
        sort_order: 9,
        ..everything()
    };
    assert_eq!(
        refused(fixture.range(request).await),
        invalid("invalid sort option")
    );
    let request = PutRequest {
        ignore_lease: true,
        lease: 1,
        ..put("k", "")
    };
    assert_eq!(refused(kv.put(request).await), invalid("lease is provided"));
    let request = PutRequest {
        ignore_lease: true,
        ..put("k", "v")
    };
    assert_eq!(refused(kv.put(request).await), invalid("key not found"));
    let request = TxnRequest {
        success: vec![client::put("k", "1"), client::put("k", "2")],
        ..TxnRequest::default()
    };
    assert_eq!(
        refused(kv.txn(request).await),
        invalid("duplicate key given in txn request")
    );
    let request = CompactionRequest {
        revision: 2,
        physical: false,
    };
    assert_eq!(
        refused(kv.compact(request).await),
        refusal(
            Code::OutOfRange,
            "mvcc: required revision is a future revision"
        )
    );
    assert_eq!(fixture.put("k", "v").await, 2, "nothing was changed");
}

/// 18667: a compacted revision is as gone inside a transaction as outside.
#[tokio::test]
async fn a_compacted_revision_is_gone_in_transactions_too() {
    let fixture = Fixture::new().await;
    for value in ["1", "2", "3"] {
        fixture.put("a", value).await;
    }
    fixture.compact(3).await;
    for writes in [false, true] {
        let mut request = TxnRequest {
            success: vec![client::get("a")],
            ..TxnRequest::default()
        };
        if let Some(etcd_proto::etcdserverpb::request_op::Request::RequestRange(range)) =
            &mut request.success[0].request
        {
            range.revision = 2;
        }
        if writes {
            request.success.push(client::put("b", "1"));
        }
        assert_eq!(
            refused(fixture.kv().txn(request).await),
            refusal(
                Code::OutOfRange,
                "mvcc: required revision has been compacted"
            )
        );
    }
    assert_eq!(fixture.dump().await, ["a=3"]);
}

#[tokio::test]
async fn sizes() {
    let fixture = Fixture::new().await;
    let mut kv = fixture.kv();
    let large = vec![7; 1_560_000];
    kv.put(put("large", large.clone())).await.expect("fits");
    let too_large = kv.put(put("too large", vec![7; 1_700_000])).await;
    assert_eq!(
        refused(too_large),
        refusal(Code::InvalidArgument, "request is too large")
    );
    let beyond = kv.put(put("beyond", vec![7; 2_100_000])).await;
    let (code, text) = refused(beyond);
    assert_eq!(code, Code::ResourceExhausted);
    assert!(
        text.starts_with("grpc: received message larger than max (2100"),
        "{text}"
    );
    for n in 0..10 {
        kv.put(put(&format!("large{n}"), large.clone()))
            .await
            .expect("fits");
    }
    let fixture = fixture.restart().await;
    let response = fixture
        .range(everything())
        .await
        .expect("15 MB in one answer");
    assert_eq!(response.kvs.len(), 11);
    assert!(response.kvs.iter().all(|kv| kv.value == large));
}

/// More than one transaction of the store holds.
#[tokio::test]
async fn a_huge_delete_is_one_revision() {
    const KEYS: usize = 3_000;
    let fixture = Fixture::new().await;
    let name = "n".repeat(4_000);
    for part in 0..KEYS / 100 {
        let puts = (0..100).map(|n| client::put(format!("{name}{}", part * 100 + n), "v"));
        let request = TxnRequest {
            success: puts.collect(),
            ..TxnRequest::default()
        };
        fixture.kv().txn(request).await.expect("txn");
    }
    let before = fixture.put("z", "stays").await;
    let request = DeleteRangeRequest {
        key: bytes("n"),
        range_end: bytes("o"),
        prev_kv: false,
    };
    let response = fixture.kv().delete_range(request).await.expect("delete");
    let response = response.into_inner();
    assert_eq!(usize::try_from(response.deleted), Ok(KEYS));
    assert_eq!(response.header.expect("header").revision, before + 1);
    let fixture = fixture.restart().await;
    assert_eq!(fixture.dump().await, ["z=stays"]);
    let request = RangeRequest {
        revision: before,
        count_only: true,
        ..everything()
    };
    let count = fixture.range(request).await.expect("range").count;
    assert_eq!(usize::try_from(count), Ok(KEYS + 1));
}

#[tokio::test]
async fn identity_and_revision_survive_a_restart() {
    let fixture = Fixture::new().await;
    let header = |fixture: &Fixture| {
        let channel = fixture.channel();
        async move {
            let status = MaintenanceClient::new(channel)
                .status(StatusRequest {})
                .await;
            let status = status.expect("status").into_inner();
            assert_eq!(status.version, crate::etcd::VERSION);
            assert!(status.db_size > 0);
            assert_eq!(status.leader, status.header.expect("header").member_id);
            status.header.expect("header")
        }
    };
    assert_eq!(header(&fixture).await.revision, 1);
    fixture.put("a", "1").await;
    fixture.delete("a").await;
    let before = header(&fixture).await;
    assert_eq!(before.revision, 3);
    fixture.compact(3).await;
    let fixture = fixture.restart().await;
    assert_eq!(header(&fixture).await, before);
    let members = ClusterClient::new(fixture.channel())
        .member_list(MemberListRequest::default())
        .await
        .expect("members")
        .into_inner()
        .members;
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].id, before.member_id);
}

#[tokio::test]
async fn nobody_authenticates_while_nobody_is_asked() {
    let fixture = Fixture::new().await;
    let authenticate = AuthClient::new(fixture.channel())
        .authenticate(AuthenticateRequest::default())
        .await;
    let expect = String::from("etcdserver: authentication is not enabled");
    assert_eq!(refused(authenticate), (Code::FailedPrecondition, expect));
}

#[tokio::test]
async fn keyspaces_are_apart() {
    let fixture = Fixture::new().await;
    let one = fixture.server.client("one");
    let two = fixture.server.client("two");
    assert_eq!(one.put("a", "1").await.expect("put"), 2);
    assert_eq!(one.put("a", "2").await.expect("put"), 3);
    assert_eq!(two.put("a", "3").await.expect("put"), 2);
    let value = async |client: &Client| {
        let found = client.get("a").await.expect("get").value;
        found.map(|kv| kv.value)
    };
    assert_eq!(value(&one).await, Some(bytes("2")));
    assert_eq!(value(&two).await, Some(bytes("3")));
    fixture
        .server
        .remove_keyspace("one")
        .await
        .expect("removed");
    fixture
        .server
        .remove_keyspace("never was")
        .await
        .expect("removed");
    assert_eq!(value(&one).await, None);
    let fixture = fixture.restart().await;
    assert_eq!(value(&fixture.server.client("two")).await, Some(bytes("3")));
    assert_eq!(value(&fixture.server.client("one")).await, None);
    assert_eq!(fixture.dump().await, [""; 0]);
}

#[tokio::test]
async fn one_port_speaks_grpc_and_plain_http() {
    let fixture = Fixture::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, shutdown) = (fixture.server.clone(), shutdown.clone());
        async move { server.serve(listener, shutdown).await }
    });
    let client = Client::connect(&format!("http://{address}"))
        .await
        .expect("connects");
    assert_eq!(client.put("a", "1").await.expect("put"), 2);
    let mut watch = client.watch_prefix("a", 0).await.expect("watches");

    let get = |path: &'static str| {
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).expect("connects");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("sends");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answers");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
            (head[9..12].to_owned(), body.to_owned())
        })
    };
    for (path, status, body) in [
        ("/health", "200", "{\"health\":\"true\",\"reason\":\"\"}"),
        ("/livez", "200", "ok\n"),
        ("/readyz", "200", "ok\n"),
        ("/livez?verbose", "200", "[+]serializable_read ok\nok\n"),
        ("/nothing", "404", "404 page not found\n"),
    ] {
        let answer = get(path).await.expect("no panic");
        assert_eq!(answer, (status.to_owned(), body.to_owned()), "{path}");
    }
    let (_, version) = get("/version").await.expect("no panic");
    assert!(version.starts_with("{\"etcdserver\":\"3.6."), "{version}");

    shutdown.cancel();
    assert!(watch.next().await.is_err(), "the stream ends");
    serving.await.expect("no panic").expect("drains");
    let client = fixture.server.client("default");
    assert_eq!(client.put("a", "2").await.expect("within the process"), 3);
}

#[tokio::test]
async fn a_client_that_pings_too_often_is_sent_away() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let fixture = Fixture::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, shutdown) = (fixture.server.clone(), shutdown.clone());
        async move { server.serve(listener, shutdown).await }
    });
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connects");
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    let ping = b"\0\0\x08\x06\0\0\0\0\0abcdefgh";
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
    stream.write_all(&preface).await.expect("sends");
    // Under the manual clock all are at the same time.
    for _ in 0..4 {
        stream.write_all(ping).await.expect("sends");
    }
    let mut said = Vec::new();
    // The end may come as a reset.
    let _ = stream.read_to_end(&mut said).await;
    assert!(said.ends_with(b"\x0btoo_many_pings"), "{said:?}");

    shutdown.cancel();
    serving.await.expect("no panic").expect("drains");
}
