//! How a server is set up. Names and defaults are etcd's where they mean the same.

use std::sync::Arc;
use std::time::Duration;

use super::auth::{TokenKind, token};
use super::auto_compaction::AutoCompaction;
use super::keyspace_choice::{KeyspaceByCn, KeyspaceByUser};
use super::metrics::Metrics;

/// etcd's, 2 GiB.
const DEFAULT_QUOTA_BYTES: u64 = 2 << 30;
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
    /// Memory for values, all keyspaces together.
    pub total_value_cache_bytes: usize,
    /// Which keyspace a client's certificate stands for.
    pub keyspace_by_cn: KeyspaceByCn,
    /// Which keyspace a user belongs to.
    pub keyspace_by_user: KeyspaceByUser,
    /// How long a keyspace stays in memory without requests, watches and leases; `None` is for ever. The
    /// default keyspace always stays.
    pub keyspace_idle_timeout: Option<Duration>,
    /// Keyspaces in memory at once; requests to more are refused.
    pub max_keyspaces: usize,
    /// Write requests of one keyspace that wait at once; more are refused.
    pub max_keyspace_pending: usize,
    /// Connections over TCP at once; more wait to be accepted.
    pub max_connections: usize,
    /// Requests and streams at once on one connection.
    pub max_concurrent_streams: u32,
    /// How long an HTTP/2 connection may be silent before it is pinged; `None` is for ever.
    pub keepalive_interval: Option<Duration>,
    /// Shortest time between two pings of a client. One that pings more often is sent away.
    pub ping_interval: Duration,
    /// How long the answer to a ping may take.
    pub keepalive_timeout: Duration,
    /// Bytes of one keyspace's history, above which writes are refused; 0 is etcd's default, negative is no limit.
    pub quota_backend_bytes: i64,
    /// Cost of password hashes, 4 to 31: each one more doubles the work.
    pub bcrypt_cost: u32,
    /// What stands for a user who has given their password.
    pub auth_token: TokenKind,
    /// How long a simple token lives without being used.
    pub auth_token_ttl: Duration,
    /// Other servers write to the same store: everything is asked of it that they may have changed.
    pub shared_store: bool,
    /// Compacts every keyspace by itself.
    pub auto_compaction: Option<AutoCompaction>,
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
            total_value_cache_bytes: 1 << 30,
            keyspace_by_cn: KeyspaceByCn::default(),
            keyspace_by_user: KeyspaceByUser::default(),
            keyspace_idle_timeout: Some(Duration::from_secs(300)),
            max_keyspaces: 100_000,
            max_keyspace_pending: 5_000,
            max_connections: 10_000,
            max_concurrent_streams: u32::MAX,
            keepalive_interval: Some(Duration::from_secs(7_200)),
            ping_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(20),
            quota_backend_bytes: 0,
            bcrypt_cost: 10,
            auth_token: TokenKind::Simple,
            auth_token_ttl: token::SIMPLE_TTL,
            shared_store: false,
            auto_compaction: None,
            metrics: Arc::default(),
        }
    }
}

impl EtcdConfig {
    /// Largest message that the gRPC layer takes.
    pub fn max_message_bytes(&self) -> usize {
        self.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES)
    }

    /// The limit on one keyspace's history, if there is one.
    pub fn quota_bytes(&self) -> Option<u64> {
        match self.quota_backend_bytes {
            0 => Some(DEFAULT_QUOTA_BYTES),
            bytes => u64::try_from(bytes).ok(),
        }
    }

    /// One keyspace's memory for values if all have the same.
    pub fn value_cache_share(&self, keyspaces: usize) -> usize {
        let share = self.total_value_cache_bytes / keyspaces.max(1);
        self.value_cache_bytes.min(share)
    }

    pub fn progress_interval(&self) -> Duration {
        self.watch_progress_notify_interval
            .max(MIN_PROGRESS_INTERVAL)
    }
}
