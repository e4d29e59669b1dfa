//! Quotes: how many the library answers a second, and how many `POST /_sim/price` does.
//!
//! ```text
//! cargo bench --bench pricing            # both
//! cargo bench --bench pricing -- library # or `cheapest`, `http`
//! ```
//!
//! `CKE_BENCH_SECONDS` says how long each case runs, 3 unless given. The HTTP load comes from this process, over
//! kept connections, and shares the machine's cores with the server.

use std::hint::black_box;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cke::platform::TopologyKind;
use cke::platform::catalog::RATES;
use cke::platform::cheapest::{MOST, Wanted, cheapest};
use cke::platform::pricing::quote;
use cke::platform::quota::Resources;
use cke::platform::shape::Shape;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// From the smallest to one with every component its own and many node groups.
const SHAPES: [&str; 4] = [
    "ALL_IN_ONE:S:1",
    "DEDICATED_COMPUTE:XS:3+web=M:3",
    "DISTRIBUTED:2XS:1,apiserver=S:3+web=M:3+batch=XL:2",
    "DISTRIBUTED:XS:3+a=2XS:1+b=XS:2+c=S:3+d=M:4+e=L:5+f=XL:6+g=S:7+h=M:8",
];

/// The same shape as the third, as a request.
const REQUEST: &str = r#"{"topologyConfig":{"topology":"DISTRIBUTED","components":{
"apiserver":{"flavor":"S","replicationFactor":3},"controllerManager":{"flavor":"2XS","replicationFactor":1},
"scheduler":{"flavor":"2XS","replicationFactor":1},"nodeGroupOperator":{"flavor":"2XS","replicationFactor":1},
"cloudControllerManager":{"flavor":"2XS","replicationFactor":1}}},
"nodeGroups":[{"name":"web","flavor":"M","targetNodeCount":3},{"name":"batch","flavor":"XL","targetNodeCount":2}]}"#;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let seconds = std::env::var("CKE_BENCH_SECONDS").map_or(Ok(3), |text| text.parse())?;
    let time = Duration::from_secs(seconds);
    println!("{:<72} {:>10}", "case", "a second");
    if chosen("library") {
        for text in SHAPES {
            let shape: Shape = text.parse()?;
            let per_second = repeat(time, || quote(black_box(&shape), &RATES));
            println!("{:<72} {per_second:>10.0}", format!("library {text}"));
        }
    }
    if chosen("cheapest") {
        let default = Resources {
            vcpus: 40,
            ram_gb: 40,
        };
        for (name, capacity, survives, within) in [
            ("within the default quota", [16, 20], false, Some(default)),
            (
                "with a datacenter lost, 400 vCPU and 800 GB",
                [400, 800],
                true,
                None,
            ),
            (
                "with a datacenter lost, as much as can be",
                [MOST.vcpus, MOST.ram_gb],
                true,
                None,
            ),
        ] {
            let wanted = Wanted {
                capacity: Resources {
                    vcpus: capacity[0],
                    ram_gb: capacity[1],
                },
                survives_a_datacenter: survives,
                within,
                topologies: TopologyKind::ALL.to_vec(),
            };
            let per_second = repeat(time, || cheapest(black_box(&wanted), &RATES));
            println!("{:<72} {per_second:>10.0}", format!("cheapest {name}"));
        }
    }
    if chosen("http") {
        let server = Server::start()?;
        for connections in [1, 8, 32] {
            let figures = load(&server.address, connections, time).await?;
            let name = format!("http POST /_sim/price, {connections} connections");
            let [p50, p99] = figures.latencies_us;
            println!(
                "{name:<72} {:>10.0}  p50 {p50} us, p99 {p99} us",
                figures.per_second
            );
        }
    }
    Ok(())
}

fn repeat<T>(time: Duration, mut work: impl FnMut() -> T) -> f64 {
    let (started, mut count) = (Instant::now(), 0u64);
    while started.elapsed() < time {
        for _ in 0..16 {
            black_box(work());
        }
        count += 16;
    }
    count as f64 / started.elapsed().as_secs_f64()
}

/// A `cke serve` with a directory of its own; killed when dropped.
struct Server {
    address: String,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Result<Server, Failure> {
        use std::io::BufRead as _;
        let directory = tempfile::tempdir()?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_cke"))
            .args(["serve", "--time-scale", "manual", "--data-dir"])
            .arg(directory.path().join("data"))
            .args([
                "--listen-http",
                "127.0.0.1:0",
                "--listen-kubernetes",
                "127.0.0.1:0",
            ])
            .args(["--listen-etcd", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no output of the server")?;
        let mut address = None;
        let mut lines = std::io::BufReader::new(stdout).lines();
        for line in lines.by_ref() {
            let line = line?;
            if let Some(url) = line.strip_prefix("export API_HOST=http://") {
                address = Some(url.to_owned());
            }
            if line.starts_with("ready") {
                break;
            }
        }
        // Read on, so that the server never blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Server {
            address: address.ok_or("the server did not say where it is")?,
            child,
            _directory: directory,
        })
    }
}

struct Figures {
    per_second: f64,
    /// Of 50 and of 99 of 100 requests.
    latencies_us: [u128; 2],
}

async fn load(address: &str, connections: usize, time: Duration) -> Result<Figures, Failure> {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(client(address.to_owned(), started + time));
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let last = latencies
        .len()
        .checked_sub(1)
        .ok_or("nothing was answered")?;
    let at = |percent: usize| latencies[last * percent / 100].as_micros();
    Ok(Figures {
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        latencies_us: [at(50), at(99)],
    })
}

/// One connection, one request after the other.
async fn client(address: String, until: Instant) -> Result<Vec<Duration>, Failure> {
    let stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let sent = Instant::now();
        let request = Request::post("/_sim/price")
            .header("host", &address)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(REQUEST.as_bytes())))?;
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status != 200 || !body.windows(7).any(|it| it == b"1004.00") {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
        }
        latencies.push(sent.elapsed());
    }
    Ok(latencies)
}
