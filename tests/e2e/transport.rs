//! HTTP itself: what a client may get wrong.

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;

use crate::clever::Clever;
use crate::harness::{Cke, FAST, SEED_API_TOKEN};
use crate::http::{self, Auth};

#[test]
fn odd_requests_get_an_error_in_the_apis_shape() {
    let cke = Cke::start(FAST);
    let clusters = format!(
        "/v4/kubernetes/organisations/{}/clusters",
        cke.organisation()
    );
    let check = |method: &str, target: &str, body: Option<&str>, status: u16, code: &str| {
        let answer = cke.request(method, target, body);
        assert_eq!(answer.status, status, "{method} {target}: {answer:#?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let error = answer.json();
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["apiRequestId"].as_str(), answer.header("sozu-id"));
    };
    check("GET", "/v4/nothing", None, 404, "clever.core.not-found");
    check("GET", "/", None, 404, "clever.core.not-found");
    check(
        "PUT",
        &clusters,
        None,
        405,
        "clever.core.method-not-allowed",
    );
    check("POST", &clusters, None, 400, "clever.core.bad-request");
    check("POST", &clusters, Some("{"), 400, "clever.core.bad-request");
    check(
        "POST",
        &clusters,
        Some("\"x\""),
        400,
        "clever.core.bad-request",
    );
    check(
        "GET",
        &format!("{clusters}?status=SLEEPING"),
        None,
        400,
        "clever.core.bad-request",
    );
    let huge = format!("\"{}\"", "x".repeat(1_100_000));
    check(
        "POST",
        &clusters,
        Some(&huge),
        413,
        "clever.core.payload-too-large",
    );
    let legacy = cke.request("GET", "/v2/nothing", None).json();
    assert_eq!(legacy["type"], "error");
    assert!(legacy["message"].is_string() && legacy["id"].is_number());
    assert_eq!(cke.get("/clusters"), json!([]));
    cke.finish();
}

/// A host with a trailing slash makes `//v4/…`.
#[test]
fn a_trailing_slash_after_the_host_is_forgiven() {
    let cke = Cke::start(FAST);
    let host = format!("{}/", cke.api());
    let clever = Clever::new(&cke).with("API_HOST", &host);
    let said = clever.ok(&["k8s", "list", "--org", "acme"]);
    assert!(said.contains("No cluster found"), "{said}");
    cke.finish();
}

/// A client that hangs up right after it asked has asked all the same.
#[test]
fn a_write_outlives_its_client() {
    let cke = Cke::start(FAST);
    let address = cke.api().strip_prefix("http://").expect("an http URL");
    let body = json!({"name": "orphan"}).to_string();
    let request = format!(
        "POST /v4/kubernetes/organisations/{}/clusters HTTP/1.1\r\nHost: {address}\r\n\
         Authorization: Bearer {SEED_API_TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        cke.organisation(),
        body.len()
    );
    // Whether the server had read the request when the connection went is the network's to say: in
    // either case the state is whole, and of many at least one is granted.
    for _ in 0..5 {
        let mut stream = TcpStream::connect(address).expect("the server listens");
        stream.write_all(request.as_bytes()).expect("it is sent");
        drop(stream);
    }
    let clusters = cke.wait_until("/clusters", |clusters| {
        let clusters = clusters.as_array().expect("a list");
        !clusters.is_empty() && clusters.iter().all(|it| it["status"] == "ACTIVE")
    });
    assert_eq!(clusters[0]["name"], "orphan");
    // Half a request is none.
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let half = &request.as_bytes()[..request.len() - 5];
    stream.write_all(half).expect("it is sent");
    drop(stream);
    let answer = http::send(cke.api(), "GET", "/v4/kubernetes-product", Auth::None, None);
    assert_eq!(answer.status, 200);
    cke.finish();
}
