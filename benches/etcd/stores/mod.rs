//! `cke etcd` on FoundationDB beside the embedded engine, by one server and by several that share the keyspace.
//!
//! ```text
//! CKE_BENCH_FDB_CLUSTER_FILE=/etc/foundationdb/fdb.cluster \
//!     cargo bench --bench etcd --features foundationdb -- stores      # or `stores put-64 get`
//! ```
//!
//! Each run has a prefix of its own in the database, which is cleared afterwards. `op/batch` is how many requests the servers
//! committed at a time. Below the rows of a case that only writes stands what FoundationDB's client reaches by itself with
//! as many puts in a batch: one batch at a time, each at the version of the one before, as the sequencer commits; and, as
//! `ratio`, what share of that one server reaches.

mod raw;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cases::{CASES, Case};
use crate::compare::setting;
use crate::figures::{Figures, median};
use crate::keys::{KEYS, TXN_PUTS};
use crate::server::{Peer, Server};
use crate::{Failure, Words};

/// Cases that tell the stores apart, and whether each operation is one write of one key.
const CHOSEN: &[(&str, bool)] = &[
    ("put-1", true),
    ("put-64", true),
    ("put-256", true),
    ("update-64", false),
    ("get-64", false),
    ("get-256", false),
    ("list-4", false),
    ("watch-100", false),
];
/// How long a server may take until it answers: the first one makes the keyspace.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a run's data is, and who serves it.
#[derive(Clone, Copy, Debug)]
enum Setup {
    Embedded,
    FoundationDb { servers: usize },
}

impl Setup {
    fn of(case: &str) -> &'static [Setup] {
        const ONE_AND_TWO: &[Setup] = &[
            Setup::Embedded,
            Setup::FoundationDb { servers: 1 },
            Setup::FoundationDb { servers: 2 },
        ];
        const UP_TO_FOUR: &[Setup] = &[
            Setup::Embedded,
            Setup::FoundationDb { servers: 1 },
            Setup::FoundationDb { servers: 2 },
            Setup::FoundationDb { servers: 4 },
        ];
        // What contention between writers costs.
        if case == "put-64" {
            UP_TO_FOUR
        } else {
            ONE_AND_TWO
        }
    }

    fn name(self) -> String {
        match self {
            Setup::Embedded => "embedded".to_owned(),
            Setup::FoundationDb { servers: 1 } => "fdb, 1 server".to_owned(),
            Setup::FoundationDb { servers } => format!("fdb, {servers} servers"),
        }
    }
}

/// What one run showed.
struct Run {
    figures: Figures,
    /// Requests in one commit.
    batch: f64,
}

pub async fn run(words: &Words) -> Result<(), Failure> {
    let Some(cluster_file) = std::env::var_os("CKE_BENCH_FDB_CLUSTER_FILE").map(PathBuf::from)
    else {
        return Err("CKE_BENCH_FDB_CLUSTER_FILE names no FoundationDB cluster".into());
    };
    let raw = raw::Client::open(&cluster_file)?;
    let duration = Duration::from_secs(setting("CKE_BENCH_SECONDS", 3)?);
    let rounds = setting("CKE_BENCH_ROUNDS", 3)?;
    println!("{rounds} rounds of {duration:?} a case and store; medians");
    println!(
        "{:<12} {:<16} {:>9} {:>9} {:>9} {:>8} {:>9} {:>6}",
        "case", "store", "op/s", "p50 us", "p99 us", "CPU us", "op/batch", "ratio"
    );
    let chosen = CHOSEN.iter().filter(|(name, _)| words.choose(name));
    for (number, (name, writes)) in chosen.enumerate() {
        let case = CASES.iter().find(|case| case.name == *name);
        let case = case.ok_or_else(|| format!("no case {name}"))?;
        let setups = Setup::of(name);
        let mut runs: Vec<Vec<Run>> = setups.iter().map(|_| Vec::new()).collect();
        let mut alone: Vec<Figures> = Vec::new();
        for round in 0..rounds {
            for (setup, runs) in setups.iter().zip(&mut runs) {
                let prefix = format!("bench-{}-{number}-{round}", std::process::id());
                let outcome = once(*setup, case, &cluster_file, &prefix, duration).await;
                raw.clear(&cluster_file, &prefix).await?;
                let run =
                    outcome.map_err(|failure| format!("{name} on {}: {failure}", setup.name()))?;
                if *writes && matches!(setup, Setup::FoundationDb { servers: 1 }) {
                    // Side by side, with batches like those just seen.
                    let puts = (run.batch.round() as usize).max(1);
                    alone.push(raw.put(puts, duration).await?);
                }
                runs.push(run);
            }
        }
        for (setup, runs) in setups.iter().zip(&runs) {
            let rate = median(runs, |run| run.figures.per_second);
            let ratio = match setup {
                Setup::FoundationDb { servers: 1 } if !alone.is_empty() => {
                    format!("{:.2}", rate / median(&alone, |figures| figures.per_second))
                }
                _ => String::new(),
            };
            println!(
                "{name:<12} {:<16} {rate:>9.0} {:>9.0} {:>9.0} {:>8.1} {:>9.1} {ratio:>6}",
                setup.name(),
                median(runs, |run| run.figures.p50_us),
                median(runs, |run| run.figures.p99_us),
                median(runs, |run| run.figures.cpu_us),
                median(runs, |run| run.batch),
            );
        }
        if !alone.is_empty() {
            println!(
                "{name:<12} {:<16} {:>9.0} {:>9.0} {:>9.0}",
                "fdb, raw client",
                median(&alone, |figures| figures.per_second),
                median(&alone, |figures| figures.p50_us),
                median(&alone, |figures| figures.p99_us),
            );
        }
    }
    Ok(())
}

async fn once(
    setup: Setup,
    case: &Case,
    cluster_file: &Path,
    prefix: &str,
    duration: Duration,
) -> Result<Run, Failure> {
    let (count, store) = match setup {
        Setup::Embedded => (1, None),
        Setup::FoundationDb { servers } => {
            let url = format!("fdb://{}?prefix={prefix}", cluster_file.display());
            (servers, Some(url))
        }
    };
    let more: Vec<OsString> = store
        .iter()
        .flat_map(|url| ["--store".into(), url.into()])
        .collect();
    let mut servers = Vec::new();
    for _ in 0..count {
        let server = Server::launch(Peer::Cke, "http", &more)?;
        let ready = Bytes::from_static(b"ready");
        server.until_answers(ready, START_TIMEOUT).await?;
        servers.push(server);
    }
    let figures = case.run(&servers, duration).await?;
    let (mut applied, mut commits) = (0.0, 0.0);
    for server in &servers {
        let metrics = scrape(&server.url).await?;
        applied += sample(&metrics, "etcd_server_proposals_applied_total")?;
        commits += sample(&metrics, "etcd_disk_backend_commit_duration_seconds_count")?;
    }
    // The keys that were there before came one transaction a commit.
    let filling = (KEYS / TXN_PUTS) as f64;
    Ok(Run {
        figures,
        batch: (applied - filling).max(0.0) / (commits - filling).max(1.0),
    })
}

async fn scrape(url: &str) -> Result<String, Failure> {
    let address = url.rsplit('/').next().unwrap_or_default();
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}

fn sample(metrics: &str, name: &str) -> Result<f64, Failure> {
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.ok_or_else(|| format!("no {name} in the metrics"))?;
    Ok(value.trim().parse()?)
}
