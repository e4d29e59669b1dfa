//! How a server is set up. Names and defaults are etcd's where they mean the same.

use std::sync::Arc;
use std::time::Duration;

use super::metrics::Metrics;

/// Shortest interval of progress notifications.
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// What the gRPC layer takes beyond [`EtcdConfig::max_request_bytes`], so that the refusal can be
/// etcd's own.
const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The member's name.
    pub name: String,
    /// URLs that clients are told of.
    pub advertise_client_urls: Vec<String>,
    /// How long a watch that asked for progress may be silent; at least 100 ms.
    pub watch_progress_notify_interval: Duration,
    /// Largest write request, encoded.
    pub max_request_bytes: usize,
    /// Most operations in each list of a transaction.
    pub max_txn_ops: usize,
    /// Memory for values, per keyspace. What does not fit is read from the store when needed.
    pub value_cache_bytes: usize,
    /// The keyspace of clients that come over TCP.
    pub default_keyspace: String,
    /// What the server counts; shared with the store, which measures its fsyncs.
    pub metrics: Arc<Metrics>,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        EtcdConfig {
            name: String::from("default"),
            advertise_client_urls: Vec::new(),
            watch_progress_notify_interval: Duration::from_secs(600),
            max_request_bytes: 1_572_864,
            max_txn_ops: 128,
            value_cache_bytes: 512 << 20,
            default_keyspace: String::from("default"),
            metrics: Arc::default(),
        }
    }
}

impl EtcdConfig {
    /// Largest message that the gRPC layer takes.
    pub fn max_message_bytes(&self) -> usize {
        self.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES)
    }

    pub fn progress_interval(&self) -> Duration {
        self.watch_progress_notify_interval
            .max(MIN_PROGRESS_INTERVAL)
    }
}
