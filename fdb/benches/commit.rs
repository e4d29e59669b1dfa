//! How many etcd-shaped writes the embedded engine commits, and how fast it reads.
//!
//! `cargo bench -p fdb --bench commit` (add `-- <directory>` to choose the disk, `-- --seconds 10` for longer runs).
//!
//! A write is what one etcd put costs the layer above: three keys of 20 to 60 bytes with 300 bytes each. Committers
//! are tasks that each commit one transaction after the other; with many of them the fsync is shared.

use bytes::Bytes;
use fdb::{Database, EmbeddedOptions, Error, RangeOption, WriteStage};
use futures::TryStreamExt;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

struct Options {
    directory: Option<PathBuf>,
    seconds: f64,
}

fn options() -> Options {
    let mut options = Options {
        directory: None,
        seconds: 3.0,
    };
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let seconds = arguments.next().and_then(|seconds| seconds.parse().ok());
            options.seconds = seconds.expect("--seconds needs a number");
        } else {
            options.directory = Some(argument.into());
        }
    }
    options
}

#[tokio::main]
async fn main() {
    let options = options();
    let parent = options
        .directory
        .clone()
        .unwrap_or_else(|| std::env::current_dir().expect("a current directory"));
    let duration = Duration::from_secs_f64(options.seconds);
    println!("disk: {}", parent.display());
    println!();
    println!(
        "{:<28} {:>10} {:>9} {:>9} {:>9} {:>10}",
        "commits of 3 x 300 bytes", "commits/s", "fsyncs/s", "p50 us", "p99 us", "us CPU/op"
    );
    for committers in [1, 64, 256] {
        commits(&parent, committers, duration, true)
            .await
            .expect("commits");
    }
    commits(&parent, 256, duration, false)
        .await
        .expect("commits");
    println!();
    println!(
        "{:<28} {:>10} {:>9} {:>9}",
        "reads", "reads/s", "p50 us", "p99 us"
    );
    reads(&parent, duration).await.expect("reads");
}

async fn open(
    parent: &std::path::Path,
    fsync: bool,
    batches: &Arc<AtomicU64>,
) -> (Database, tempfile::TempDir) {
    let directory = tempfile::tempdir_in(parent).expect("a directory for the store");
    let batches = batches.clone();
    let options = EmbeddedOptions {
        fsync,
        write_hook: Some(Arc::new(move |stage| {
            if stage == WriteStage::After {
                batches.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })),
        ..EmbeddedOptions::default()
    };
    let database = Database::open_embedded(directory.path(), options)
        .await
        .expect("a store");
    (database, directory)
}

/// The keys of one put: the record, its history, the log.
fn put(transaction: &fdb::Transaction, writer: u64, n: u64, value: &Bytes) {
    transaction.set(
        format!("ks1/kv/registry/pods/ns-{writer:03}/pod-{:06}", n % 10_000),
        value.clone(),
    );
    transaction.set(
        format!(
            "ks1/history/registry/pods/ns-{writer:03}/pod-{:06}/{n:012}",
            n % 10_000
        ),
        value.clone(),
    );
    transaction.set(format!("ks1/log/{n:016}/{writer:03}"), value.clone());
}

async fn commits(
    parent: &std::path::Path,
    committers: u64,
    duration: Duration,
    fsync: bool,
) -> Result<(), Error> {
    let batches = Arc::new(AtomicU64::new(0));
    let (database, _directory) = open(parent, fsync, &batches).await;
    let value = Bytes::from(vec![7; 300]);
    let begin = Instant::now();
    let cpu = cpu_time();
    let tasks: Vec<_> = (0..committers)
        .map(|writer| {
            let (database, value) = (database.clone(), value.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut n = 0;
                while begin.elapsed() < duration {
                    let started = Instant::now();
                    let transaction = database.create_transaction();
                    transaction
                        .get(format!("ks1/head/{writer}").as_bytes(), false)
                        .await?;
                    put(&transaction, writer, n, &value);
                    transaction.commit().await?;
                    latencies.push(started.elapsed());
                    n += 1;
                }
                Ok::<_, Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("a committer")?);
    }
    let elapsed = begin.elapsed().as_secs_f64();
    let cpu = (cpu_time() - cpu).as_secs_f64() * 1e6 / latencies.len() as f64;
    let (p50, p99) = percentiles(&mut latencies);
    let name = format!(
        "{committers} committers{}",
        if fsync { "" } else { ", no fsync" }
    );
    let per_second = latencies.len() as f64 / elapsed;
    let fsyncs = if fsync {
        batches.load(Ordering::Relaxed) as f64 / elapsed
    } else {
        0.0
    };
    println!("{name:<28} {per_second:>10.0} {fsyncs:>9.0} {p50:>9.0} {p99:>9.0} {cpu:>10.1}");
    Ok(())
}

async fn reads(parent: &std::path::Path, duration: Duration) -> Result<(), Error> {
    const PAIRS: u64 = 200_000;
    let (database, _directory) = open(parent, false, &Arc::default()).await;
    let key = |n: u64| format!("ks1/kv/registry/pods/ns-{:03}/pod-{n:08}", n % 100);
    let value = Bytes::from(vec![7; 300]);
    for chunk in 0..PAIRS / 1_000 {
        let transaction = database.create_transaction();
        for n in chunk * 1_000..(chunk + 1) * 1_000 {
            transaction.set(key(n), value.clone());
        }
        transaction.commit().await?;
    }

    let measure = async |name: &str, read: &mut dyn AsyncRead| {
        let mut latencies = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < duration {
            let started = Instant::now();
            read.run().await?;
            latencies.push(started.elapsed());
        }
        let per_second = latencies.len() as f64 / begin.elapsed().as_secs_f64();
        let (p50, p99) = percentiles(&mut latencies);
        println!("{name:<28} {per_second:>10.0} {p50:>9.1} {p99:>9.1}");
        Ok::<_, Error>(())
    };

    let mut n = 0u64;
    let mut point = || {
        n = (n + 7_919) % PAIRS;
        let key = key(n);
        let transaction = database.create_transaction();
        Box::pin(async move {
            transaction
                .get(key.as_bytes(), true)
                .await
                .map(|value| assert!(value.is_some()))
        }) as Reading
    };
    measure("point, own transaction", &mut point).await?;
    let mut namespace = 0;
    let mut range = || {
        namespace = (namespace + 1) % 100;
        let transaction = database.create_transaction();
        let mut range = RangeOption::new(
            Bytes::from(format!("ks1/kv/registry/pods/ns-{namespace:03}/")),
            Bytes::from(format!("ks1/kv/registry/pods/ns-{namespace:03}0")),
        );
        range.limit = Some(100);
        range.snapshot = true;
        Box::pin(async move {
            transaction
                .get_range(range)
                .await
                .map(|result| assert_eq!(result.kvs.len(), 100))
        }) as Reading
    };
    measure("range of 100 pairs", &mut range).await?;
    let mut scan = || {
        let transaction = database.create_transaction();
        Box::pin(async move {
            let mut range = RangeOption::new(Bytes::new(), Bytes::from("z"));
            range.snapshot = true;
            let batches: Vec<_> = transaction.get_ranges(range).try_collect().await?;
            assert_eq!(
                batches
                    .iter()
                    .map(|batch| batch.kvs.len() as u64)
                    .sum::<u64>(),
                PAIRS
            );
            Ok(())
        }) as Reading
    };
    measure("scan of 200,000 pairs", &mut scan).await
}

type Reading<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

trait AsyncRead {
    fn run(&mut self) -> Reading<'_>;
}

impl<F: FnMut() -> Reading<'static>> AsyncRead for F {
    fn run(&mut self) -> Reading<'_> {
        self()
    }
}

/// In microseconds.
fn percentiles(latencies: &mut [Duration]) -> (f64, f64) {
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies
            .get(index)
            .or(latencies.last())
            .map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    };
    (at(0.5), at(0.99))
}

/// CPU time of the process so far; zero where there is no `/proc`.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time are fields 14 and 15, in hundredths of a second; the name in field 2 may hold spaces.
    let fields = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .skip(11)
        .take(2);
    Duration::from_millis(
        fields
            .filter_map(|field| field.parse::<u64>().ok())
            .sum::<u64>()
            * 10,
    )
}
