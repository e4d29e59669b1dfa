//! What the server counts, under etcd's names, for `/metrics`.
//!
//! The crate `prometheus` rather than `prometheus-client`: the latter writes OpenMetrics alone,
//! whose rules for names etcd's do not keep, and what scrapes an etcd asks for the text format
//! 0.0.4. On a hot path everything is a relaxed atomic add: every label is resolved once, when the
//! server is made ([`rpc`]), and what can be asked of the state is gathered when somebody asks
//! ([`scrape`]).
//!
//! etcd's names count the whole server, all keyspaces together, and so never go back when a
//! keyspace is unloaded. Those of etcd that only make sense for one store (`current_revision`) are
//! the default keyspace's. What one keyspace does is under `cke_keyspace_…{keyspace="…"}`, for
//! those that are loaded.

pub mod rpc;
pub mod scrape;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

use super::batch::{Answer, Batch, Command, LeaseChange};
use super::error::Error;
use super::txn::{OpAnswer, TxnAnswer};

/// From 1 ms, doubling: etcd's buckets for fsyncs and commits, in seconds.
const DISK_BUCKETS: (f64, usize) = (0.001, 14);
/// From 1 s, doubling: etcd's buckets for leases' TTLs.
const TTL_BUCKETS: (f64, usize) = (1.0, 24);

/// The counters of one server.
pub struct Metrics {
    registry: Registry,
    pub rpc: rpc::Methods,
    /// One scrape at a time sets the gauges and reads them.
    scraping: Mutex<scrape::Gauges>,

    ranges: IntCounter,
    puts: IntCounter,
    deletes: IntCounter,
    txns: IntCounter,
    put_bytes: IntCounter,
    committed: IntCounter,
    failed: IntCounter,
    pub leases_renewed: IntCounter,
    leases_granted: IntCounter,
    leases_revoked: IntCounter,
    leases_expired: IntCounter,
    lease_ttl: Histogram,
    pub watch_events: IntCounter,
    watch_streams: IntGauge,
    watchers: IntGauge,
    slow_watchers: IntGauge,
    pub health_successes: IntCounter,
    pub health_failures: IntCounter,
    commit_seconds: Histogram,
    fsync_seconds: Histogram,
    pub keyspaces_opened: IntCounter,
    pub keyspaces_unloaded: IntCounter,
    pub connections: IntGauge,
    pub connections_refused: IntCounter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Registers what has a name of its own. A name given twice is a mistake in this file, and every
/// test of the server would find it.
struct Registrar(Registry);

impl Registrar {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("names and labels are valid");
        let registered = self.0.register(Box::new(collector.clone()));
        registered.expect("every name is used once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, (start, count): (f64, usize)) -> Histogram {
        let buckets = prometheus::exponential_buckets(start, 2.0, count);
        let buckets = buckets.expect("bounds are positive");
        self.add(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets),
        ))
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        let to = Registrar(Registry::new());
        // Fails where there is no /proc; then these are missing.
        if let Err(error) = to.0.register(Box::new(ProcessCollector::for_self())) {
            tracing::warn!(%error, "no metrics of the process");
        }
        Metrics {
            rpc: rpc::Methods::new(&to),
            scraping: Mutex::new(scrape::Gauges::new(&to)),
            ranges: to.counter(
                "etcd_mvcc_range_total",
                "Total number of ranges seen by this member.",
            ),
            puts: to.counter(
                "etcd_mvcc_put_total",
                "Total number of puts seen by this member.",
            ),
            deletes: to.counter(
                "etcd_mvcc_delete_total",
                "Total number of deletes seen by this member.",
            ),
            txns: to.counter(
                "etcd_mvcc_txn_total",
                "Total number of txns seen by this member.",
            ),
            put_bytes: to.counter(
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "The total size of put kv pairs seen by this member.",
            ),
            committed: to.counter(
                "etcd_server_proposals_committed_total",
                "The total number of write requests that are durable.",
            ),
            failed: to.counter(
                "etcd_server_proposals_failed_total",
                "The total number of write requests that the store failed.",
            ),
            leases_granted: to.counter(
                "etcd_debugging_lease_granted_total",
                "The total number of granted leases.",
            ),
            leases_revoked: to.counter(
                "etcd_debugging_lease_revoked_total",
                "The total number of revoked leases.",
            ),
            leases_renewed: to.counter(
                "etcd_debugging_lease_renewed_total",
                "The number of renewed leases.",
            ),
            leases_expired: to.counter(
                "etcd_debugging_server_lease_expired_total",
                "The total number of expired leases.",
            ),
            lease_ttl: to.histogram(
                "etcd_debugging_lease_ttl_total",
                "Bucketed histogram of lease TTLs.",
                TTL_BUCKETS,
            ),
            watch_events: to.counter(
                "etcd_debugging_mvcc_events_total",
                "Total number of events sent by this member.",
            ),
            watch_streams: to.gauge(
                "etcd_debugging_mvcc_watch_stream_total",
                "Total number of watch streams.",
            ),
            watchers: to.gauge(
                "etcd_debugging_mvcc_watcher_total",
                "Total number of watchers.",
            ),
            slow_watchers: to.gauge(
                "etcd_debugging_mvcc_slow_watcher_total",
                "Total number of unsynced slow watchers.",
            ),
            health_successes: to.counter(
                "etcd_server_health_success",
                "The total number of successful health checks.",
            ),
            health_failures: to.counter(
                "etcd_server_health_failures",
                "The total number of failed health checks.",
            ),
            commit_seconds: to.histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "How long a batch of writes takes to be committed.",
                DISK_BUCKETS,
            ),
            fsync_seconds: to.histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "How long the store's journal takes to be written and synced.",
                DISK_BUCKETS,
            ),
            keyspaces_opened: to.counter(
                "cke_keyspaces_opened_total",
                "How often a keyspace was loaded.",
            ),
            keyspaces_unloaded: to.counter(
                "cke_keyspaces_unloaded_total",
                "How often a keyspace was unloaded because nobody used it.",
            ),
            connections: to.gauge("cke_connections", "Connections of clients over TCP."),
            connections_refused: to.counter(
                "cke_connections_refused_total",
                "Connections whose TLS handshake failed.",
            ),
            registry: to.0,
        }
    }
}

impl Metrics {
    /// To be given to the store: measures each write of its journal, the fsync included.
    pub fn measure_fsync(self: &Arc<Metrics>) -> fdb::WriteHook {
        let metrics = Arc::clone(self);
        // The store has one writer, so the lock is free.
        let started = Mutex::new(None::<Instant>);
        Arc::new(move |stage| {
            match stage {
                fdb::WriteStage::Before => *started.lock() = Some(Instant::now()),
                fdb::WriteStage::After => {
                    if let Some(started) = started.lock().take() {
                        metrics
                            .fsync_seconds
                            .observe(started.elapsed().as_secs_f64());
                    }
                }
            }
            Ok(())
        })
    }

    /// A read that was answered.
    pub fn count_range(&self) {
        self.ranges.inc();
    }

    /// A transaction that only read.
    pub fn count_read(&self, answer: &TxnAnswer) {
        self.txns.inc();
        self.count_operations(answer);
    }

    fn count_operations(&self, answer: &TxnAnswer) {
        for answer in &answer.answers {
            match answer {
                OpAnswer::Range(_) => self.ranges.inc(),
                OpAnswer::Put(_) => self.puts.inc(),
                OpAnswer::Delete(_) => self.deletes.inc(),
                OpAnswer::Txn(answer) => self.count_operations(answer),
            }
        }
    }

    /// A batch that is durable, with its requests and their answers.
    pub fn count_batch<'a>(
        &self,
        batch: &Batch,
        requests: impl Iterator<Item = (&'a Command, &'a Result<Answer, Error>)>,
    ) {
        let mut committed = 0;
        for (command, answer) in requests {
            committed += 1;
            let Ok(answer) = answer else { continue };
            // Counted among the revoked ones, too, as etcd does.
            if matches!(command, Command::Expire(_)) {
                self.leases_expired.inc();
            }
            match answer {
                Answer::Put(_) => self.puts.inc(),
                Answer::Delete(_) => self.deletes.inc(),
                Answer::Txn(answer) => self.count_read(answer),
                _ => {}
            }
        }
        self.committed.inc_by(committed);
        self.put_bytes.inc_by(batch.writes.size_bytes() as u64);
        for (_, change) in &batch.lease_changes {
            match change {
                LeaseChange::Grant { ttl, .. } => {
                    self.leases_granted.inc();
                    #[expect(
                        clippy::cast_precision_loss,
                        reason = "a bucket is all that is asked"
                    )]
                    self.lease_ttl.observe(*ttl as f64);
                }
                LeaseChange::Revoke { .. } => self.leases_revoked.inc(),
                LeaseChange::Checkpoint { .. } => {}
            }
        }
    }

    pub fn count_commit(&self, started: Instant) {
        self.commit_seconds.observe(started.elapsed().as_secs_f64());
    }

    pub fn count_failed(&self, requests: usize) {
        self.failed.inc_by(requests as u64);
    }
}

/// What one keyspace counts for itself, beside the server's.
pub struct KeyspaceMetrics {
    pub server: Arc<Metrics>,
    watchers: AtomicI64,
}

impl KeyspaceMetrics {
    pub fn new(server: Arc<Metrics>) -> KeyspaceMetrics {
        server.keyspaces_opened.inc();
        KeyspaceMetrics {
            server,
            watchers: AtomicI64::new(0),
        }
    }

    pub fn watchers(&self) -> i64 {
        self.watchers.load(Ordering::Relaxed)
    }
}

/// One watch stream in the gauges. When it is dropped, the stream and its watchers are no longer
/// counted.
#[derive(Default)]
pub struct StreamGauge {
    counted: Option<Arc<Metrics>>,
    watchers: i64,
    slow: i64,
}

impl StreamGauge {
    /// How many watchers the stream has now, and how many of them lag behind.
    pub fn set(&mut self, keyspace: &KeyspaceMetrics, watchers: usize, slow: usize) {
        let server = self.counted.get_or_insert_with(|| {
            keyspace.server.watch_streams.inc();
            Arc::clone(&keyspace.server)
        });
        let watchers = i64::try_from(watchers).unwrap_or(i64::MAX);
        let slow = i64::try_from(slow).unwrap_or(i64::MAX);
        if watchers != self.watchers {
            server.watchers.add(watchers - self.watchers);
            let change = watchers - self.watchers;
            keyspace.watchers.fetch_add(change, Ordering::Relaxed);
            self.watchers = watchers;
        }
        if slow != self.slow {
            server.slow_watchers.add(slow - self.slow);
            self.slow = slow;
        }
    }

    /// The stream is over.
    pub fn end(&mut self, keyspace: &KeyspaceMetrics) {
        if self.counted.is_some() {
            self.set(keyspace, 0, 0);
            keyspace.server.watch_streams.dec();
            self.counted = None;
        }
    }
}
