//! The JSON gateway, request by request beside a real etcd's, and with the Python client `etcd3gw`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::{Value, json};

use crate::command;
use crate::etcdctl::Etcdctl;
use crate::harness::CkeEtcd;
use crate::http::{self, Auth, Response};
use crate::real_etcd::RealEtcd;

fn post(endpoint: &str, path: &str, body: &str) -> Response {
    http::send(endpoint, "POST", path, Auth::None, Some(body))
}

/// An answer without what differs from server to server.
fn comparable(answer: &Response) -> Value {
    let mut body = answer.json();
    if let Some(header) = body["header"].as_object_mut() {
        for id in ["cluster_id", "member_id", "raft_term"] {
            header.remove(id);
        }
    }
    // etcd 3.5 says the message twice, and 3.6 does not.
    if let Some(object) = body.as_object_mut() {
        object.remove("error");
    }
    json!({"status": answer.status, "body": body})
}

#[test]
fn answers_are_etcds() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = RealEtcd::start(&directory.path().join("etcd"));
    let ours = CkeEtcd::start();
    let check = |path: &str, body: &str| {
        let [theirs, mine] = [&real.endpoint, &ours.endpoint()]
            .map(|endpoint| comparable(&post(endpoint, path, body)));
        assert_eq!(mine, theirs, "{path} {body}");
    };
    check("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
    check(
        "/v3/kv/put",
        r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#,
    );
    check(
        "/v3/kv/put",
        r#"{"key":"Zm9w","value":"YmF6","prevKv":true}"#,
    );
    check("/v3/kv/range", r#"{"key":"Zm9v"}"#);
    check(
        "/v3/kv/range",
        r#"{"key":"Zm9v","range_end":"Zm9x","limit":1}"#,
    );
    check(
        "/v3/kv/range",
        r#"{"key":"AA==","range_end":"AA==","sort_order":"DESCEND","sort_target":"KEY","keys_only":true}"#,
    );
    check("/v3/kv/range", r#"{"key":"Zm9v","revision":"2"}"#);
    check("/v3/kv/range", r#"{"key":"Zm9v","count_only":true}"#);
    check("/v3/kv/range", r#"{"key":"bm9uZQ=="}"#);
    check("/v3/kv/range", "{}");
    check("/v3/kv/range", r#"{"key":"Zm9v","revision":"99"}"#);
    check(
        "/v3/kv/txn",
        r#"{"compare":[{"target":"VERSION","key":"Zm9v","version":"2"}],
            "success":[{"request_put":{"key":"Zm9v","value":"dHhu"}},{"requestRange":{"key":"Zm9v"}}],
            "failure":[{"request_delete_range":{"key":"Zm9v"}}]}"#,
    );
    check("/v3/kv/deleterange", r#"{"key":"Zm9v","prev_kv":true}"#);
    check("/v3/lease/grant", r#"{"ID":"77","TTL":"600"}"#);
    check("/v3/lease/grant", r#"{"ID":77,"TTL":600}"#);
    check("/v3/kv/put", r#"{"key":"bGVhc2Vk","lease":"77"}"#);
    check("/v3/lease/leases", "{}");
    check("/v3/kv/lease/leases", "{}");
    check("/v3/lease/revoke", r#"{"ID":"77"}"#);
    check("/v3/kv/lease/revoke", r#"{"ID":"77"}"#);
    check("/v3/kv/compaction", r#"{"revision":"3"}"#);
    check("/v3/kv/compaction", r#"{"revision":"3"}"#);
    check("/v3/maintenance/alarm", "{}");
    check("/v3/cluster/member/remove", r#"{"ID":"1"}"#);
    check("/v3/lock/lock", r#"{"name":"bA==","lease":"99"}"#);
    ours.finish();
}

#[test]
fn what_is_no_request_is_refused() {
    let ours = CkeEtcd::start();
    let endpoint = ours.endpoint();
    let check = |method: &str, path: &str, body: &str, status: u16, code: i64| {
        let answer = http::send(&endpoint, method, path, Auth::None, Some(body));
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert_eq!(answer.json()["code"], code, "{answer:?}");
    };
    check("POST", "/v3/kv/range", "nonsense", 400, 3);
    check("POST", "/v3/kv/range", r#"{"key":"#, 400, 3);
    check("POST", "/v3/kv/range", r#"{"key":"!"}"#, 400, 3);
    check(
        "POST",
        "/v3/kv/range",
        r#"{"key":"Zm9v","limit":"x"}"#,
        400,
        3,
    );
    check("POST", "/v3/kv/nothing", "{}", 404, 5);
    check("GET", "/v3/kv/range", "{}", 405, 12);
    let large = format!(r#"{{"key":"{}"}}"#, "A".repeat(9 << 20));
    check("POST", "/v3/kv/put", &large, 429, 8);
    ours.finish();
}

#[test]
fn a_watch_is_a_line_for_each_answer() {
    let ours = CkeEtcd::start();
    let endpoint = ours.endpoint();
    let address = endpoint.strip_prefix("http://").expect("an http URL");
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let timeout = Some(std::time::Duration::from_secs(30));
    stream
        .set_read_timeout(timeout)
        .expect("a timeout can be set");
    let body = r#"{"create_request":{"key":"Zm9v","prev_kv":true}}"#;
    let request = format!(
        "POST /v3/watch HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut lines = BufReader::new(stream)
        .lines()
        .map(|line| line.expect("the stream goes on"))
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
    let created = lines.next().expect("an answer");
    assert_eq!(created["result"]["created"], true, "{created}");
    let etcdctl = Etcdctl::new(&endpoint);
    etcdctl.ok(&["put", "foo", "1"]);
    etcdctl.ok(&["put", "foo", "2"]);
    etcdctl.ok(&["del", "foo"]);
    let events: Vec<Value> = lines
        .flat_map(|answer| {
            answer["result"]["events"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        })
        .take(3)
        .collect();
    assert_eq!(events[0]["kv"]["value"], "MQ==");
    assert_eq!(events[1]["prev_kv"]["value"], "MQ==");
    assert_eq!(events[2]["type"], "DELETE");
    ours.finish();
}

#[test]
fn the_python_client() {
    let ours = CkeEtcd::start();
    let endpoint = ours.endpoint();
    let port = endpoint.rsplit(':').next().expect("a port");
    let packages = command::clients().with_file_name("etcd3gw");
    assert!(
        packages.exists(),
        "etcd3gw is not installed: run tests/install-clients"
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/etcd3gw_client.py");
    let said = command::run(
        Command::new("python3")
            .args([script, port])
            .env("PYTHONPATH", packages),
    );
    assert_eq!(said.ok(), "all went well\n");
    ours.finish();
}
