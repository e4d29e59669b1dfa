//! `cke etcd` and etcd side by side under the same load, in one run.
//!
//! Both servers are started afresh on empty directories of the same disk, with default settings and
//! fsync on. Every case runs on one, then on the other, `ROUNDS` times in alternation; the table
//! shows each server's median, and the ratio. CPU is the server process's own, from `/proc`.
//!
//! ```text
//! tests/install-clients && cargo bench --bench etcd            # every case
//! cargo bench --bench etcd -- put-64 range                     # the cases whose names contain a word
//! CKE_BENCH_SECONDS=5 CKE_BENCH_ROUNDS=5 cargo bench --bench etcd
//! ```

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cke::etcd::client::{self, Client};
use etcd_proto::etcdserverpb::{RangeRequest, TxnRequest};
use etcd_proto::mvccpb::event::EventType;
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Server {
    child: Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Peer {
    Cke,
    Etcd,
}

impl Server {
    fn start(peer: Peer, etcd: &Path) -> Result<Server, Failure> {
        let directory = tempfile::tempdir()?;
        let url = format!("http://127.0.0.1:{}", free_port()?);
        let mut command = match peer {
            Peer::Cke => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_cke"));
                command.arg("etcd");
                command
            }
            Peer::Etcd => {
                let peer_url = format!("http://127.0.0.1:{}", free_port()?);
                let mut command = Command::new(etcd);
                command
                    .args(["--log-level", "error", "--listen-peer-urls", &peer_url])
                    .args(["--initial-advertise-peer-urls", &peer_url])
                    .args(["--initial-cluster", &format!("default={peer_url}")]);
                command
            }
        };
        let child = command
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Server {
            child,
            url,
            _directory: directory,
        })
    }

    /// Clock ticks (10 ms) that the process has spent.
    fn cpu(&self) -> Result<Duration, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let fields: Vec<&str> = after_name.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[derive(Clone, Copy)]
enum Operation {
    Put,
    /// As kube-apiserver updates: compare the mod revision, put, else read.
    Update,
    Get {
        serializable: bool,
    },
    /// 10,000 keys in pages of 500; one operation is the whole list.
    List,
    /// So many watchers of one prefix, one writer; one operation is one event delivered.
    Watch {
        watchers: usize,
    },
}

struct Case {
    name: &'static str,
    operation: Operation,
    clients: usize,
    value_bytes: usize,
}

const CASES: &[Case] = &[
    case("put-1", Operation::Put, 1, 256),
    case("put-64", Operation::Put, 64, 256),
    case("put-256", Operation::Put, 256, 256),
    case("update-64", Operation::Update, 64, 1024),
    case(
        "get-64",
        Operation::Get {
            serializable: false,
        },
        64,
        256,
    ),
    case(
        "get-256",
        Operation::Get {
            serializable: false,
        },
        256,
        256,
    ),
    case(
        "get-serializable-64",
        Operation::Get { serializable: true },
        64,
        256,
    ),
    case("list-4", Operation::List, 4, 1024),
    case("watch-100", Operation::Watch { watchers: 100 }, 1, 256),
];

const fn case(
    name: &'static str,
    operation: Operation,
    clients: usize,
    value_bytes: usize,
) -> Case {
    Case {
        name,
        operation,
        clients,
        value_bytes,
    }
}

/// What one run of one case showed.
#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

const KEYS: usize = 10_000;

fn key(index: usize) -> Bytes {
    Bytes::from(format!("/registry/bench/namespace/object-{index:06}"))
}

/// Connections: as many as clients, up to 16, each shared evenly.
async fn connect(url: &str, clients: usize) -> Result<Vec<Client>, Failure> {
    let mut connections = Vec::new();
    for _ in 0..clients.min(16) {
        connections.push(Client::connect(url).await?);
    }
    Ok((0..clients)
        .map(|client| connections[client % connections.len()].clone())
        .collect())
}

async fn fill(client: &Client, value_bytes: usize) -> Result<(), Failure> {
    let value = Bytes::from(vec![b'x'; value_bytes]);
    for chunk in 0..KEYS / 100 {
        let success = (0..100)
            .map(|index| client::put(key(chunk * 100 + index), value.clone()))
            .collect();
        client
            .txn(TxnRequest {
                success,
                ..TxnRequest::default()
            })
            .await?;
    }
    Ok(())
}

async fn run(server: &Server, case: &Case, duration: Duration) -> Result<Figures, Failure> {
    let clients = connect(&server.url, case.clients).await?;
    fill(&clients[0], case.value_bytes).await?;
    if let Operation::Watch { watchers } = case.operation {
        return watch(server, &clients[0], watchers, case.value_bytes, duration).await;
    }
    let value = Bytes::from(vec![b'y'; case.value_bytes]);
    let stop = Arc::new(AtomicBool::new(false));
    let cpu = server.cpu()?;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        let (stop, value, operation, step) = (
            Arc::clone(&stop),
            value.clone(),
            case.operation,
            case.clients,
        );
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut index = number;
            let mut revision = 0;
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                revision = operate(&client, operation, index % KEYS, &value, revision).await?;
                latencies.push(begun.elapsed());
                if !matches!(operation, Operation::Update) {
                    index += step;
                }
            }
            Ok::<_, Failure>(latencies)
        });
    }
    tokio::time::sleep(duration).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    figures(latencies, started.elapsed(), server.cpu()? - cpu)
}

async fn operate(
    client: &Client,
    operation: Operation,
    index: usize,
    value: &Bytes,
    revision: i64,
) -> Result<i64, Failure> {
    match operation {
        Operation::Put => Ok(client.put(key(index), value.clone()).await?),
        Operation::Update => {
            let response = client
                .txn(TxnRequest {
                    compare: vec![client::mod_revision_is(key(index), revision)],
                    success: vec![client::put(key(index), value.clone())],
                    failure: vec![client::get(key(index))],
                })
                .await?;
            if response.succeeded {
                return Ok(client::header_revision(response.header));
            }
            Ok(client
                .get(key(index))
                .await?
                .value
                .map_or(0, |kv| kv.mod_revision))
        }
        Operation::Get { serializable } => {
            let request = RangeRequest {
                key: key(index),
                serializable,
                ..RangeRequest::default()
            };
            let response = client.range(request).await?;
            assert_eq!(response.kvs.len(), 1, "a key is missing");
            Ok(0)
        }
        Operation::List => {
            let (mut from, end) = client::prefix_range(Bytes::from_static(b"/registry/bench/"));
            let (mut revision, mut seen) = (0, 0);
            loop {
                let page = client
                    .range(RangeRequest {
                        key: from,
                        range_end: end.clone(),
                        limit: 500,
                        revision,
                        ..RangeRequest::default()
                    })
                    .await?;
                seen += page.kvs.len();
                match page.kvs.last() {
                    Some(last) if page.more => {
                        from = Bytes::from([&last.key[..], b"\0"].concat());
                    }
                    _ => break,
                }
                revision = client::header_revision(page.header);
            }
            assert_eq!(seen, KEYS, "keys are missing from the list");
            Ok(0)
        }
        Operation::Watch { .. } => Ok(0),
    }
}

/// Latency is from the moment of the put, which the value carries, to the event's arrival.
async fn watch(
    server: &Server,
    writer: &Client,
    watchers: usize,
    value_bytes: usize,
    duration: Duration,
) -> Result<Figures, Failure> {
    let connections = connect(&server.url, 16).await?;
    let epoch = Instant::now();
    let written = Arc::new(AtomicU64::new(u64::MAX));
    let mut tasks = JoinSet::new();
    for number in 0..watchers {
        let mut watch = connections[number % connections.len()]
            .watch_prefix(Bytes::from_static(b"/registry/bench/"), 0)
            .await?;
        let written = Arc::clone(&written);
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while (latencies.len() as u64) < written.load(Ordering::Acquire) {
                let response = watch.next().await?;
                let now = epoch.elapsed();
                for event in response.events {
                    assert_eq!(event.r#type, i32::from(EventType::Put));
                    let value = event.kv.ok_or("an event without a key")?.value;
                    let sent = u64::from_be_bytes(value[..8].try_into()?);
                    latencies.push(now.saturating_sub(Duration::from_nanos(sent)));
                }
            }
            Ok::<_, Failure>(latencies)
        });
    }
    let cpu = server.cpu()?;
    let started = Instant::now();
    let mut puts = 0;
    while started.elapsed() < duration {
        let mut value = vec![0; value_bytes];
        value[..8].copy_from_slice(&u64::try_from(epoch.elapsed().as_nanos())?.to_be_bytes());
        writer.put(key(puts % KEYS), value).await?;
        puts += 1;
    }
    // One more put wakes the watchers that already have everything up to it.
    written.store(puts as u64, Ordering::Release);
    let mut value = vec![0; value_bytes];
    value[..8].copy_from_slice(&u64::try_from(epoch.elapsed().as_nanos())?.to_be_bytes());
    writer.put(key(0), value).await?;
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    figures(latencies, started.elapsed(), server.cpu()? - cpu)
}

fn figures(
    mut latencies: Vec<Duration>,
    elapsed: Duration,
    cpu: Duration,
) -> Result<Figures, Failure> {
    if latencies.is_empty() {
        return Err("nothing was done in the time given".into());
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = ((latencies.len() - 1) as f64 * share) as usize;
        latencies[index].as_secs_f64() * 1e6
    };
    let count = latencies.len() as f64;
    Ok(Figures {
        per_second: count / elapsed.as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        cpu_us: cpu.as_secs_f64() * 1e6 / count,
    })
}

fn median(runs: &[Figures], field: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(field).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let etcd = std::env::var_os("CKE_BENCH_ETCD").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache/clients/bin/etcd"),
        PathBuf::from,
    );
    if !etcd.exists() {
        return Err(format!(
            "no etcd at {}: run tests/install-clients, or name one in CKE_BENCH_ETCD",
            etcd.display()
        )
        .into());
    }
    let duration = Duration::from_secs(setting("CKE_BENCH_SECONDS", 3));
    let rounds = setting("CKE_BENCH_ROUNDS", 3);
    println!("{rounds} rounds of {duration:?} a case and server; medians; ratio = cke / etcd");
    println!(
        "{:<20} {:>11} {:>11} {:>6}  {:>9} {:>9} {:>6}  {:>9} {:>9} {:>6}  {:>8} {:>8} {:>6}",
        "case",
        "cke op/s",
        "etcd op/s",
        "ratio",
        "p50 us",
        "etcd",
        "ratio",
        "p99 us",
        "etcd",
        "ratio",
        "CPU us",
        "etcd",
        "ratio"
    );
    for case in CASES {
        if !words.is_empty() && !words.iter().any(|word| case.name.contains(word)) {
            continue;
        }
        let mut runs: HashMap<Peer, Vec<Figures>> = HashMap::new();
        for _ in 0..rounds {
            for peer in [Peer::Cke, Peer::Etcd] {
                let server = Server::start(peer, &etcd)?;
                until_ready(&server.url).await?;
                let figures = run(&server, case, duration).await?;
                runs.entry(peer).or_default().push(figures);
            }
        }
        let (cke, etcd) = (&runs[&Peer::Cke], &runs[&Peer::Etcd]);
        let column = |field: fn(&Figures) -> f64| {
            let (ours, theirs) = (median(cke, field), median(etcd, field));
            (ours, theirs, ours / theirs)
        };
        let (rate, rate_etcd, rate_ratio) = column(|figures| figures.per_second);
        let (p50, p50_etcd, p50_ratio) = column(|figures| figures.p50_us);
        let (p99, p99_etcd, p99_ratio) = column(|figures| figures.p99_us);
        let (cpu, cpu_etcd, cpu_ratio) = column(|figures| figures.cpu_us);
        println!(
            "{:<20} {rate:>11.0} {rate_etcd:>11.0} {rate_ratio:>6.2}  {p50:>9.0} {p50_etcd:>9.0} \
             {p50_ratio:>6.2}  {p99:>9.0} {p99_etcd:>9.0} {p99_ratio:>6.2}  {cpu:>8.1} \
             {cpu_etcd:>8.1} {cpu_ratio:>6.2}",
            case.name
        );
    }
    Ok(())
}

async fn until_ready(url: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(client) = Client::connect(url).await
            && client.get(Bytes::from_static(b"ready")).await.is_ok()
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{url} does not answer").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
