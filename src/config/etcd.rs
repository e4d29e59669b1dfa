//! More of etcd's flags: TLS, limits, keyspaces, and those that one member has no use for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::etcd::tls::{self, TlsConfig, TlsError, TlsVersion, TlsVersions};
use crate::etcd::{AutoCompaction, KeyspaceByCn, KeyspaceByUser};

/// A URL to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    pub https: bool,
    pub address: SocketAddr,
}

impl ListenUrl {
    pub fn scheme(self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

/// `http://HOST:PORT` or `https://HOST:PORT`. The host is an address or `localhost`, as etcd asks.
pub fn listen_url(url: &str) -> Result<ListenUrl, String> {
    let (https, authority) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(authority), _) => (true, authority),
        (None, Some(authority)) => (false, authority),
        (None, None) => {
            return Err(format!(
                "`{url}`: the URL must start with http:// or https://"
            ));
        }
    };
    let authority = authority.trim_end_matches('/');
    let address = match authority.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => authority.to_owned(),
    };
    let address = address
        .parse()
        .map_err(|_| format!("`{url}`: expected http://ADDRESS:PORT or https://ADDRESS:PORT"))?;
    Ok(ListenUrl { https, address })
}

/// `TLS1.2` or `TLS1.3`.
fn tls_version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "TLS1.2" => Ok(TlsVersion::Tls12),
        "TLS1.3" => Ok(TlsVersion::Tls13),
        _ => Err(String::from("possible values: TLS1.2, TLS1.3")),
    }
}

/// As [`tls_version`], and nothing for the newest.
fn newest_tls_version(text: &str) -> Result<TlsVersion, String> {
    if text.is_empty() {
        return Ok(TlsVersion::Tls13);
    }
    tls_version(text)
}

/// Shortest time between a client's pings if none is set, as grpc-go has it.
const DEFAULT_PING_INTERVAL: Duration = Duration::from_secs(300);
/// Not even a connection limit of the machine's would let more be of use.
const MAX_CONNECTIONS: u64 = 1 << 20;

#[derive(Args, Clone, Debug)]
pub struct TlsOptions {
    /// PEM file with the certificate that clients are shown; https:// URLs need one
    #[arg(long, env = "ETCD_CERT_FILE", value_name = "FILE")]
    pub cert_file: Option<PathBuf>,

    /// PEM file with the certificate's private key
    #[arg(long, env = "ETCD_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Ask every client for a certificate of an authority in --trusted-ca-file
    #[arg(long, env = "ETCD_CLIENT_CERT_AUTH", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    pub client_cert_auth: bool,

    /// PEM file with the authorities of clients' certificates; implies --client-cert-auth
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE", value_name = "FILE")]
    pub trusted_ca_file: Option<PathBuf>,

    /// File with revoked certificates of clients, PEM or DER
    #[arg(long, env = "ETCD_CLIENT_CRL_FILE", value_name = "FILE")]
    pub client_crl_file: Option<PathBuf>,

    /// Without --cert-file: make a self-signed certificate, in the data directory
    #[arg(long, env = "ETCD_AUTO_TLS", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    pub auto_tls: bool,

    /// Years that a certificate of --auto-tls lasts
    #[arg(long, env = "ETCD_SELF_SIGNED_CERT_VALIDITY", value_name = "YEARS", default_value_t = tls::SELF_SIGNED_YEARS, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub self_signed_cert_validity: u32,

    /// Oldest TLS version that is spoken
    #[arg(long, env = "ETCD_TLS_MIN_VERSION", value_name = "TLS1.2|TLS1.3", default_value = "TLS1.2", value_parser = tls_version)]
    pub tls_min_version: TlsVersion,

    /// Newest TLS version that is spoken
    #[arg(long, env = "ETCD_TLS_MAX_VERSION", value_name = "TLS1.2|TLS1.3", default_value = "TLS1.3", value_parser = newest_tls_version)]
    pub tls_max_version: TlsVersion,

    /// Cipher suites of TLS 1.2, by IANA's names, separated by commas
    #[arg(
        long,
        env = "ETCD_CIPHER_SUITES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub cipher_suites: Vec<String>,
}

/// Why the TLS flags do not go together.
#[derive(Debug, thiserror::Error)]
pub enum TlsOptionsError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "TLS key/cert (--cert-file, --key-file) must be provided for client url {scheme}://{address} with HTTPS scheme"
    )]
    NoCertificate {
        scheme: &'static str,
        address: SocketAddr,
    },
    #[error("--cert-file and --key-file must both be present")]
    HalfAPair,
    #[error("--client-cert-auth needs --trusted-ca-file: the authorities of clients' certificates")]
    NoAuthorities,
    #[error("--client-crl-file needs --trusted-ca-file: the authorities of clients' certificates")]
    RevocationsOfNobody,
}

impl TlsOptions {
    /// The listeners' TLS; `None` if every URL is http://.
    pub fn resolve(
        self,
        urls: &[ListenUrl],
        data_dir: &Path,
    ) -> Result<Option<TlsConfig>, TlsOptionsError> {
        let first = urls.iter().find(|url| url.https);
        let Some(first) = first else {
            if self.cert_file.is_some() || self.key_file.is_some() || self.auto_tls {
                tracing::warn!("every URL is http://: the certificate is not used");
            }
            return Ok(None);
        };
        let pair = match (self.cert_file, self.key_file) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if self.auto_tls => {
                let mut hosts: Vec<_> = urls
                    .iter()
                    .map(|url| url.address.ip().to_string())
                    .collect();
                hosts.push(String::from("localhost"));
                hosts.dedup();
                let directory = data_dir.join("fixtures").join("client");
                tls::self_signed(&directory, &hosts, self.self_signed_cert_validity)?
            }
            (None, None) => {
                return Err(TlsOptionsError::NoCertificate {
                    scheme: first.scheme(),
                    address: first.address,
                });
            }
            _ => return Err(TlsOptionsError::HalfAPair),
        };
        if self.trusted_ca_file.is_none() {
            if self.client_cert_auth {
                return Err(TlsOptionsError::NoAuthorities);
            }
            if self.client_crl_file.is_some() {
                return Err(TlsOptionsError::RevocationsOfNobody);
            }
        }
        Ok(Some(TlsConfig {
            cert_file: pair.0,
            key_file: pair.1,
            trusted_ca_file: self.trusted_ca_file,
            client_crl_file: self.client_crl_file,
            versions: TlsVersions {
                min: self.tls_min_version,
                max: self.tls_max_version,
            },
            cipher_suites: self.cipher_suites,
        }))
    }
}

#[derive(Args, Clone, Debug)]
pub struct LimitOptions {
    /// Requests and streams at once on one connection
    #[arg(
        long,
        env = "ETCD_MAX_CONCURRENT_STREAMS",
        value_name = "N",
        default_value_t = u32::MAX,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_concurrent_streams: u32,

    /// Connections at once; more wait [default: what the limit of open files leaves]
    #[arg(long, env = "CKE_MAX_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS))]
    pub max_connections: Option<u64>,

    /// Shortest time between a client's pings; who pings more often is disconnected
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_MIN_TIME", value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    pub grpc_keepalive_min_time: Duration,

    /// How long a connection may be silent before it is pinged; 0s is never
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_INTERVAL", value_name = "DURATION", default_value = "2h", value_parser = humantime::parse_duration)]
    pub grpc_keepalive_interval: Duration,

    /// How long the answer to a ping may take before the connection is closed
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    pub grpc_keepalive_timeout: Duration,

    /// Bytes of a keyspace's history above which writes are refused; 0 is 2 GiB, negative is no limit
    #[arg(
        long,
        env = "ETCD_QUOTA_BACKEND_BYTES",
        value_name = "BYTES",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub quota_backend_bytes: i64,

    /// Cost of password hashes; each one more doubles the work
    #[arg(long, env = "ETCD_BCRYPT_COST", value_name = "COST", default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=31))]
    pub bcrypt_cost: u32,

    /// Tokens of users: simple, or jwt,sign-method=METHOD,priv-key=FILE[,pub-key=FILE][,ttl=DURATION]
    #[arg(
        long,
        env = "ETCD_AUTH_TOKEN",
        value_name = "KIND",
        default_value = "simple"
    )]
    pub auth_token: String,

    /// Seconds that a simple token lives without being used
    #[arg(long, env = "ETCD_AUTH_TOKEN_TTL", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub auth_token_ttl: u32,

    /// What --auto-compaction-retention counts
    #[arg(
        long,
        env = "ETCD_AUTO_COMPACTION_MODE",
        value_name = "MODE",
        default_value = "periodic"
    )]
    pub auto_compaction_mode: CompactionMode,

    /// History that is kept when compacting by itself: a duration such as 30m, or hours, in the mode periodic; revisions in
    /// the mode revision. 0 is never to compact
    #[arg(
        long,
        env = "ETCD_AUTO_COMPACTION_RETENTION",
        value_name = "RETENTION",
        default_value = "0"
    )]
    pub auto_compaction_retention: String,

    /// URLs for /metrics and /health alone, separated by commas
    #[arg(long, env = "ETCD_LISTEN_METRICS_URLS", value_name = "URL", value_delimiter = ',', value_parser = listen_url)]
    pub listen_metrics_urls: Vec<ListenUrl>,
}

/// How history is compacted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CompactionMode {
    Periodic,
    Revision,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "--auto-compaction-retention `{0}` is neither a number nor, in the mode periodic, a duration"
)]
pub struct RetentionError(String);

impl LimitOptions {
    pub fn auto_compaction(&self) -> Result<Option<AutoCompaction>, RetentionError> {
        let text = &self.auto_compaction_retention;
        let refused = || RetentionError(text.clone());
        let mode = match (self.auto_compaction_mode, text.parse::<u32>()) {
            (_, Ok(0)) => return Ok(None),
            (CompactionMode::Revision, Ok(revisions)) => AutoCompaction::Revision(revisions.into()),
            (CompactionMode::Periodic, Ok(hours)) => {
                AutoCompaction::Periodic(Duration::from_secs(3600) * hours)
            }
            (CompactionMode::Periodic, Err(_)) => {
                let retention = humantime::parse_duration(text).map_err(|_| refused())?;
                if retention.is_zero() {
                    return Ok(None);
                }
                AutoCompaction::Periodic(retention)
            }
            (CompactionMode::Revision, Err(_)) => return Err(refused()),
        };
        Ok(Some(mode))
    }

    /// How often clients may ping.
    pub fn ping_interval(&self) -> Duration {
        match self.grpc_keepalive_min_time {
            Duration::ZERO => DEFAULT_PING_INTERVAL,
            interval => interval,
        }
    }

    /// The interval of pings, if there are any.
    pub fn keepalive_interval(&self) -> Option<Duration> {
        let interval = self.grpc_keepalive_interval;
        let none = interval.is_zero() || self.grpc_keepalive_timeout.is_zero();
        (!none).then_some(interval)
    }
}

#[derive(Args, Clone, Debug)]
pub struct KeyspaceOptions {
    /// Which keyspace a client certificate's common name stands for: CN=KEYSPACE, separated by
    /// commas; * lets every other client have the keyspace of its common name
    #[arg(
        long,
        env = "CKE_KEYSPACE_BY_CN",
        value_name = "RULES",
        default_value = ""
    )]
    pub keyspace_by_cn: KeyspaceByCn,

    /// Which keyspace has a user, and their password: USER=KEYSPACE, separated by commas. Other users
    /// are the default keyspace's. Whoever has a keyspace by certificate stays there
    #[arg(
        long,
        env = "CKE_KEYSPACE_BY_USER",
        value_name = "RULES",
        default_value = ""
    )]
    pub keyspace_by_user: KeyspaceByUser,

    /// How long a keyspace stays in memory without requests, watches and leases; 0s is for ever
    #[arg(long, env = "CKE_KEYSPACE_IDLE_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub keyspace_idle_timeout: Duration,

    /// Keyspaces in use at once; requests to more are refused
    #[arg(
        long,
        env = "CKE_MAX_KEYSPACES",
        value_name = "N",
        default_value_t = 100_000
    )]
    pub max_keyspaces: usize,

    /// Write requests of one keyspace that may wait at once; more are refused
    #[arg(
        long,
        env = "CKE_MAX_KEYSPACE_PENDING",
        value_name = "N",
        default_value_t = 5_000
    )]
    pub max_keyspace_pending: usize,

    /// Memory for values, all keyspaces together, in bytes
    #[arg(
        long,
        env = "CKE_VALUE_CACHE_BYTES",
        value_name = "BYTES",
        default_value_t = 1 << 30
    )]
    pub value_cache_bytes: usize,
}

/// Declares flags that are taken and not used, all of them text.
macro_rules! unused_flags {
    ($($field:ident $flag:literal $variable:literal,)*) => {
        /// Flags of etcd that have no meaning for one member on a store of its own. They are taken,
        /// so that what starts an etcd can start this, and named in the log.
        #[derive(Args, Clone, Debug, Default)]
        pub struct UnusedOptions {
            $(
                #[arg(long = $flag, env = $variable, hide = true, num_args = 0..=1, default_missing_value = "true")]
                pub $field: Option<String>,
            )*
        }

        impl UnusedOptions {
            /// The names of those that were given.
            pub fn given(&self) -> Vec<&'static str> {
                let all = [$((self.$field.is_some(), $flag),)*];
                all.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag).collect()
            }
        }
    };
}

unused_flags! {
    listen_peer_urls "listen-peer-urls" "ETCD_LISTEN_PEER_URLS",
    initial_advertise_peer_urls "initial-advertise-peer-urls" "ETCD_INITIAL_ADVERTISE_PEER_URLS",
    initial_cluster "initial-cluster" "ETCD_INITIAL_CLUSTER",
    initial_cluster_state "initial-cluster-state" "ETCD_INITIAL_CLUSTER_STATE",
    initial_cluster_token "initial-cluster-token" "ETCD_INITIAL_CLUSTER_TOKEN",
    strict_reconfig_check "strict-reconfig-check" "ETCD_STRICT_RECONFIG_CHECK",
    peer_cert_file "peer-cert-file" "ETCD_PEER_CERT_FILE",
    peer_key_file "peer-key-file" "ETCD_PEER_KEY_FILE",
    peer_client_cert_auth "peer-client-cert-auth" "ETCD_PEER_CLIENT_CERT_AUTH",
    peer_trusted_ca_file "peer-trusted-ca-file" "ETCD_PEER_TRUSTED_CA_FILE",
    peer_crl_file "peer-crl-file" "ETCD_PEER_CRL_FILE",
    peer_auto_tls "peer-auto-tls" "ETCD_PEER_AUTO_TLS",
    heartbeat_interval "heartbeat-interval" "ETCD_HEARTBEAT_INTERVAL",
    election_timeout "election-timeout" "ETCD_ELECTION_TIMEOUT",
    initial_election_tick_advance "initial-election-tick-advance" "ETCD_INITIAL_ELECTION_TICK_ADVANCE",
    pre_vote "pre-vote" "ETCD_PRE_VOTE",
    snapshot_count "snapshot-count" "ETCD_SNAPSHOT_COUNT",
    max_snapshots "max-snapshots" "ETCD_MAX_SNAPSHOTS",
    max_wals "max-wals" "ETCD_MAX_WALS",
    wal_dir "wal-dir" "ETCD_WAL_DIR",
    backend_batch_interval "backend-batch-interval" "ETCD_BACKEND_BATCH_INTERVAL",
    backend_batch_limit "backend-batch-limit" "ETCD_BACKEND_BATCH_LIMIT",
    backend_bbolt_freelist_type "backend-bbolt-freelist-type" "ETCD_BACKEND_BBOLT_FREELIST_TYPE",
    socket_reuse_port "socket-reuse-port" "ETCD_SOCKET_REUSE_PORT",
    socket_reuse_address "socket-reuse-address" "ETCD_SOCKET_REUSE_ADDRESS",
    enable_pprof "enable-pprof" "ETCD_ENABLE_PPROF",
    metrics "metrics" "ETCD_METRICS",
    logger "logger" "ETCD_LOGGER",
    log_outputs "log-outputs" "ETCD_LOG_OUTPUTS",
    log_format "log-format" "ETCD_LOG_FORMAT",
    feature_gates "feature-gates" "ETCD_FEATURE_GATES",
    corrupt_check_time "corrupt-check-time" "ETCD_CORRUPT_CHECK_TIME",
    experimental_initial_corrupt_check "experimental-initial-corrupt-check" "ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK",
    experimental_corrupt_check_time "experimental-corrupt-check-time" "ETCD_EXPERIMENTAL_CORRUPT_CHECK_TIME",
    experimental_compact_hash_check_enabled "experimental-compact-hash-check-enabled" "ETCD_EXPERIMENTAL_COMPACT_HASH_CHECK_ENABLED",
    warning_apply_duration "warning-apply-duration" "ETCD_WARNING_APPLY_DURATION",
    warning_unary_request_duration "warning-unary-request-duration" "ETCD_WARNING_UNARY_REQUEST_DURATION",
    max_learners "max-learners" "ETCD_MAX_LEARNERS",
    compaction_batch_limit "compaction-batch-limit" "ETCD_COMPACTION_BATCH_LIMIT",
    compaction_sleep_interval "compaction-sleep-interval" "ETCD_COMPACTION_SLEEP_INTERVAL",
}

impl UnusedOptions {
    /// Members of `--initial-cluster`. More than one cannot be.
    pub fn members(&self) -> usize {
        let cluster = self.initial_cluster.as_deref().unwrap_or_default();
        cluster.split(',').filter(|it| !it.is_empty()).count()
    }
}
