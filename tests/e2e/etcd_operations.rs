//! `cke etcd` as its operators run it: TLS, certificates of clients, limits, metrics, health.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use etcd_proto::health::HealthCheckRequest;
use etcd_proto::health::health_check_response::ServingStatus;
use etcd_proto::health::health_client::HealthClient;

use crate::certificates::{Authority, Pair, text, trusting};
use crate::command;
use crate::etcdctl::Etcdctl;
use crate::harness::{CkeEtcd, cke, on_foundationdb};
use crate::http::{self, Auth};

/// An authority, its server and a directory for them.
struct Pki {
    _directory: tempfile::TempDir,
    ours: Authority,
    foreign: Authority,
    server: Pair,
}

impl Pki {
    fn new() -> Pki {
        let directory = tempfile::tempdir().expect("a directory");
        let ours = Authority::new(directory.path(), "ours");
        let foreign = Authority::new(directory.path(), "foreign");
        Pki {
            server: ours.server(),
            ours,
            foreign,
            _directory: directory,
        }
    }

    fn start(&self, more: &[&str]) -> CkeEtcd {
        let flags = self.server.server_flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        CkeEtcd::start_with("https", &[&flags, more].concat())
    }

    /// With certificates asked of clients.
    fn start_mutual(&self, more: &[&str]) -> CkeEtcd {
        let authority = self.ours.file();
        let flags = ["--client-cert-auth=true", "--trusted-ca-file", &authority];
        self.start(&[&flags, more].concat())
    }
}

/// A client that gets nowhere.
#[track_caller]
fn check_refused(server: &CkeEtcd, flags: Vec<String>, expect: &str) {
    let said = Etcdctl::with(&server.endpoint(), flags).run(&["get", "key"]);
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.stderr.contains(expect), "{said:#?}");
}

#[test]
fn tls() {
    let pki = Pki::new();
    let server = pki.start(&[]);
    let etcdctl = Etcdctl::with(&server.endpoint(), trusting(&pki.ours));
    assert_eq!(etcdctl.ok(&["put", "key", "value"]), "OK\n");
    assert_eq!(etcdctl.ok(&["get", "key"]), "key\nvalue\n");
    let watch = etcdctl.start(&["watch", "key", "--rev", "2"]);
    assert_eq!(watch.lines(3), ["PUT", "key", "value"]);
    // A client that trusts somebody else.
    check_refused(&server, trusting(&pki.foreign), "context deadline exceeded");
    // And one that does not speak TLS.
    let plain = server.endpoint().replace("https", "http");
    let timeouts = ["--command-timeout=3s", "--dial-timeout=2s"];
    let said = Etcdctl::with(&plain, timeouts.map(str::to_owned).to_vec()).run(&["get", "key"]);
    assert_ne!(said.code, Some(0), "{said:#?}");
    server.finish();
}

#[test]
fn certificates_of_clients() {
    let pki = Pki::new();
    let revoked = pki.ours.client("mallory");
    let list = pki.ours.revoke(&["mallory"]);
    let server = pki.start_mutual(&["--client-crl-file", &list]);
    let alice = pki.ours.client("alice");
    let etcdctl = Etcdctl::with(&server.endpoint(), alice.client_flags(&pki.ours));
    assert_eq!(etcdctl.ok(&["put", "key", "value"]), "OK\n");

    let refused = "context deadline exceeded";
    check_refused(&server, trusting(&pki.ours), refused);
    let expired = pki.ours.expired_client("bob");
    check_refused(&server, expired.client_flags(&pki.ours), refused);
    let foreign = pki.foreign.client("alice");
    check_refused(&server, foreign.client_flags(&pki.ours), refused);
    check_refused(&server, revoked.client_flags(&pki.ours), refused);
    // A server's certificate is none of a client.
    check_refused(&server, pki.ours.server().client_flags(&pki.ours), refused);

    // The list is read again: now alice is revoked, and mallory is not.
    pki.ours.revoke(&["alice"]);
    let mallory = Etcdctl::with(&server.endpoint(), revoked.client_flags(&pki.ours));
    assert_eq!(mallory.ok(&["get", "key"]), "key\nvalue\n");
    check_refused(&server, alice.client_flags(&pki.ours), refused);
    server.finish();
}

#[test]
fn certificates_are_replaced_while_serving() {
    let pki = Pki::new();
    let server = pki.start(&[]);
    let old = Etcdctl::with(&server.endpoint(), trusting(&pki.ours));
    assert_eq!(old.ok(&["put", "key", "1"]), "OK\n");
    let watch = old.start(&["watch", "key", "--rev", "2"]);
    assert_eq!(watch.lines(3), ["PUT", "key", "1"]);

    // Half of a pair is of no use: the old one stays.
    let other = pki.foreign.server();
    std::fs::copy(&other.certificate, &pki.server.certificate).expect("a copy");
    assert_eq!(old.ok(&["get", "key"]), "key\n1\n");
    std::fs::copy(&other.key, &pki.server.key).expect("a copy");
    let new = Etcdctl::with(&server.endpoint(), trusting(&pki.foreign));
    assert_eq!(new.ok(&["put", "key", "2"]), "OK\n");
    check_refused(&server, trusting(&pki.ours), "context deadline exceeded");
    // The connection from before goes on.
    assert_eq!(watch.lines(3), ["PUT", "key", "2"]);
    // No file at all.
    std::fs::remove_file(&pki.server.key).expect("a removal");
    assert_eq!(new.ok(&["get", "key"]), "key\n2\n");
    server.finish();
}

#[test]
fn a_certificate_of_its_own() {
    let server = CkeEtcd::start_with("https", &["--auto-tls"]);
    let certificate = server.directory().join("data/fixtures/client/cert.pem");
    let flags = vec![format!("--cacert={}", text(&certificate))];
    let etcdctl = Etcdctl::with(&server.endpoint(), flags);
    assert_eq!(etcdctl.ok(&["put", "key", "value"]), "OK\n");
    server.finish();
}

#[test]
fn keyspaces_by_certificate() {
    let pki = Pki::new();
    let server = pki.start_mutual(&["--keyspace-by-cn", "alice=blue,bob=green"]);
    let client = |name: &str| {
        let flags = pki.ours.client(name).client_flags(&pki.ours);
        Etcdctl::with(&server.endpoint(), flags)
    };
    for name in ["alice", "bob", "carol"] {
        assert_eq!(client(name).ok(&["put", "key", name]), "OK\n");
    }
    for name in ["alice", "bob", "carol"] {
        let found = client(name).ok(&["get", "", "--prefix"]);
        assert_eq!(found, format!("key\n{name}\n"));
    }
    // Nobody else has touched the default one.
    let json = client("dave").ok(&["get", "key", "-w", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["header"]["revision"], 2);
    server.finish();

    let server = pki.start_mutual(&["--keyspace-by-cn", "*"]);
    let client = |name: &str| {
        let flags = pki.ours.client(name).client_flags(&pki.ours);
        Etcdctl::with(&server.endpoint(), flags)
    };
    client("alice").ok(&["put", "key", "alice"]);
    assert_eq!(client("bob").ok(&["get", "key"]), "");
    server.finish();
}

/// The samples of an answer by name.
fn samples(body: &str) -> BTreeMap<String, f64> {
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// Where the metrics' own listener is.
fn metrics_url(server: &CkeEtcd) -> String {
    let said = server.said.iter();
    let url = said
        .filter_map(|line| line.strip_prefix("metrics: "))
        .next();
    url.expect("it says where").to_owned()
}

#[test]
fn metrics_and_health() {
    let metrics = ["--listen-metrics-urls", "http://127.0.0.1:0"];
    let server = CkeEtcd::start_with("http", &metrics);
    let etcdctl = Etcdctl::new(&server.endpoint());
    for round in 0..10 {
        etcdctl.ok(&["put", "key", &round.to_string()]);
    }
    let separate = metrics_url(&server);
    for base in [separate.clone(), server.endpoint()] {
        let answer = http::send(&base, "GET", "/metrics", Auth::None, None);
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; version=0.0.4; charset=utf-8")
        );
        let found = samples(&answer.body);
        assert_eq!(found["etcd_mvcc_put_total"], 10.0);
        assert_eq!(found["etcd_server_has_leader"], 1.0);
        assert_eq!(found["etcd_debugging_mvcc_current_revision"], 11.0);
        if on_foundationdb() {
            println!("not checked on FoundationDB: this process writes no log of its own to time");
        } else {
            assert!(found["etcd_disk_wal_fsync_duration_seconds_count"] >= 10.0);
            assert!(found["etcd_disk_wal_fsync_duration_seconds_sum"] > 0.0);
        }
        assert!(found["process_start_time_seconds"] > 0.0);
        let health = http::send(&base, "GET", "/health", Auth::None, None);
        assert_eq!(health.ok()["health"], "true");
    }
    // That address is for scrapers alone.
    let timeouts = ["--command-timeout=3s", "--dial-timeout=2s"];
    let wrong = Etcdctl::with(&separate, timeouts.map(str::to_owned).to_vec());
    let said = wrong.run(&["get", "key"]);
    assert_ne!(said.code, Some(0), "{said:#?}");

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut client = HealthClient::connect(server.endpoint())
            .await
            .expect("a connection");
        let answer = client.check(HealthCheckRequest::default()).await;
        let status = answer.expect("an answer").into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
        let watched = client.watch(HealthCheckRequest::default()).await;
        let mut watched = watched.expect("a watch").into_inner();
        let first = watched.message().await.expect("an answer");
        assert_eq!(
            first.map(|answer| answer.status()),
            Some(ServingStatus::Serving)
        );
    });
    server.finish();
}

/// Whether a watch of a client that pings every 100 ms outlives three answers, a second apart.
fn outlives_its_pings(min_time: &str) -> bool {
    let min_time = format!("--grpc-keepalive-min-time={min_time}");
    let server = CkeEtcd::start_with("http", &["--watch-progress-notify-interval=1s", &min_time]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let lives = runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(server.endpoint())
            .expect("an endpoint")
            .http2_keep_alive_interval(Duration::from_millis(100))
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.expect("a connection");
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key: b"key".to_vec().into(),
                progress_notify: true,
                ..WatchCreateRequest::default()
            })),
        };
        let requests = futures::StreamExt::chain(
            tokio_stream::once(create),
            tokio_stream::pending::<WatchRequest>(),
        );
        let answers = WatchClient::new(channel).watch(requests).await;
        let mut answers = answers.expect("a watch").into_inner();
        let started = Instant::now();
        // Created, then progress.
        for _ in 0..3 {
            if answers.message().await.is_err() {
                return false;
            }
        }
        assert!(started.elapsed() >= Duration::from_secs(1));
        true
    });
    server.finish();
    lives
}

/// grpc-go's policy: kube-apiserver's pings, every 30 s, are well within it.
#[test]
fn who_pings_too_often_is_disconnected() {
    assert!(outlives_its_pings("10ms"));
    assert!(!outlives_its_pings("5s"));
}

#[test]
fn connections_have_a_limit() {
    use std::io::{Read, Write};
    let server = CkeEtcd::start_with(
        "http",
        &[
            "--max-connections=1",
            "--listen-metrics-urls=http://127.0.0.1:0",
        ],
    );
    let address = server.endpoint().replace("http://", "");
    // An answer shows that the connection was accepted; it stays open.
    let mut first = std::net::TcpStream::connect(&address).expect("a connection");
    let timeout = Some(Duration::from_secs(30));
    first
        .set_read_timeout(timeout)
        .expect("a timeout can be set");
    first
        .write_all(b"GET /version HTTP/1.1\r\nHost: etcd\r\n\r\n")
        .expect("it is sent");
    let mut answer = [0; 12];
    first.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    let impatient = ["--command-timeout=1s", "--dial-timeout=1s"];
    check_refused(
        &server,
        impatient.map(str::to_owned).to_vec(),
        "context deadline exceeded",
    );
    // Probes are not kept out.
    let health = http::send(&metrics_url(&server), "GET", "/health", Auth::None, None);
    assert_eq!(health.ok()["health"], "true");
    drop(first);
    let etcdctl = Etcdctl::new(&server.endpoint());
    assert_eq!(etcdctl.ok(&["put", "key", "value"]), "OK\n");
    server.finish();
}

/// What kubeadm writes into its static pod, apart from paths and addresses.
#[test]
fn flags_of_a_static_pod() {
    let pki = Pki::new();
    let peer = text(&pki.server.certificate);
    let server = pki.start_mutual(&[
        "--experimental-initial-corrupt-check=true",
        "--experimental-watch-progress-notify-interval=5s",
        "--feature-gates=InitialCorruptCheck=true",
        "--initial-advertise-peer-urls=https://10.0.0.1:2380",
        "--initial-cluster=node=https://10.0.0.1:2380",
        "--initial-cluster-state=new",
        "--listen-metrics-urls=http://127.0.0.1:0",
        "--listen-peer-urls=https://10.0.0.1:2380",
        "--name=node",
        "--peer-cert-file",
        &peer,
        "--peer-client-cert-auth=true",
        "--peer-key-file",
        &peer,
        "--peer-trusted-ca-file",
        &peer,
        "--snapshot-count=10000",
        "--logger=zap",
        "--log-outputs=stderr",
        "--max-concurrent-streams=1000",
        "--grpc-keepalive-interval=1h",
        "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    ]);
    let flags = pki.ours.client("apiserver").client_flags(&pki.ours);
    let etcdctl = Etcdctl::with(&server.endpoint(), flags);
    assert_eq!(etcdctl.ok(&["put", "key", "value"]), "OK\n");
    server.finish();
}

#[test]
fn mistakes_are_told_at_the_start() {
    let pki = Pki::new();
    let directory = tempfile::tempdir().expect("a directory");
    let data = text(directory.path());
    let (certificate, key) = (text(&pki.server.certificate), text(&pki.server.key));
    let foreign = text(&pki.foreign.server().key);
    let https = ["--listen-client-urls", "https://127.0.0.1:0"];
    let pair = ["--cert-file", &certificate, "--key-file", &key];
    let check = |arguments: &[&[&str]], expect: &str| {
        let mut command = cke();
        command.args(["etcd", "--data-dir", &data]);
        command.args(arguments.concat());
        let said = command::run(&mut command);
        assert!(said.code.is_some_and(|code| code != 0), "{said:#?}");
        assert!(said.stderr.contains(expect), "{expect}: {said:#?}");
        assert!(!said.stderr.contains("panicked"), "{said:#?}");
    };
    check(
        &[&https],
        "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:0 with HTTPS scheme",
    );
    check(&[&https, &pair[..2]], "must both be present");
    check(
        &[&https, &["--cert-file", "/nowhere.pem", "--key-file", &key]],
        "/nowhere.pem",
    );
    check(
        &[
            &https,
            &["--cert-file", &certificate, "--key-file", &foreign],
        ],
        &foreign,
    );
    check(
        &[&https, &["--cert-file", &key, "--key-file", &key]],
        "has no certificate in it",
    );
    check(
        &[&https, &pair, &["--client-cert-auth"]],
        "--trusted-ca-file",
    );
    check(
        &[
            &https,
            &pair,
            &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        ],
        "greater than max version",
    );
    check(&[&["--tls-min-version=SSL3"]], "TLS1.2, TLS1.3");
    check(
        &[&https, &pair, &["--cipher-suites=TLS_RSA_WITH_RC4_128_SHA"]],
        "unexpected TLS cipher suite \"TLS_RSA_WITH_RC4_128_SHA\"",
    );
    check(
        &[
            &https,
            &pair,
            &[
                "--tls-min-version=TLS1.3",
                "--cipher-suites=TLS_RSA_WITH_RC4_128_SHA",
            ],
        ],
        "cipher suites cannot be configured when only TLS1.3 is enabled",
    );
    check(
        &[&["--initial-cluster=a=http://10.0.0.1:2380,b=http://10.0.0.2:2380"]],
        "--initial-cluster names several members",
    );
    check(&[&["--keyspace-by-cn=alice"]], "expected CN=KEYSPACE or *");
    check(&[&["--max-connections=0"]], "--max-connections");
}
