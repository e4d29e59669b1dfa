//! What the user may set: flags, `CKE_*` environment variables and a TOML file, in this order of
//! precedence, all from one struct.

pub mod etcd;
pub mod etcd_file;
pub mod store;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use self::etcd::{KeyspaceOptions, LimitOptions, ListenUrl, TlsOptions, UnusedOptions};
use self::store::StoreUrl;

use crate::clever::account::{AccountsConfig, ConsumerConfig, OrganisationConfig, UserConfig};
use crate::clock::TimeScale;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration file {path} is not valid: {source}")]
    Parse {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
}

/// Options of `cke serve`. In the TOML file the names are the flags' without the dashes in front.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServeOptions {
    /// Directory for everything that must survive a restart [default: ./cke-data]
    #[arg(long, env = "CKE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where everything is kept: embedded:DIR, or fdb:///PATH/fdb.cluster[?prefix=NAME] for FoundationDB
    /// [default: embedded, in the data directory]
    #[arg(long, env = "CKE_STORE", value_name = "STORE")]
    pub store: Option<StoreUrl>,

    /// Address of Clever Cloud's REST API [default: 127.0.0.1:8080]
    #[arg(long, env = "CKE_LISTEN_HTTP", value_name = "ADDRESS:PORT")]
    pub listen_http: Option<SocketAddr>,

    /// Address of the clusters' Kubernetes APIs [default: 127.0.0.1:6443]
    #[arg(long, env = "CKE_LISTEN_KUBERNETES", value_name = "ADDRESS:PORT")]
    pub listen_kubernetes: Option<SocketAddr>,

    /// Address of Materia etcd [default: 127.0.0.1:2379]
    #[arg(long, env = "CKE_LISTEN_ETCD", value_name = "ADDRESS:PORT")]
    pub listen_etcd: Option<SocketAddr>,

    /// Host name or address that clients reach this machine by; it is in URLs and certificates
    /// [default: 127.0.0.1]
    #[arg(long, env = "CKE_PUBLIC_HOST", value_name = "HOST")]
    pub public_host: Option<String>,

    /// Simulated seconds per real second, or `manual`: only POST /_sim/clock/advance moves the
    /// clock [default: 20]
    #[arg(long, env = "CKE_TIME_SCALE", value_name = "FACTOR|manual")]
    #[serde(deserialize_with = "time_scale")]
    pub time_scale: Option<TimeScale>,

    /// Seed of everything random in the simulation [default: 0]
    #[arg(long, env = "CKE_SEED", value_name = "N")]
    pub seed: Option<u64>,

    /// Update clusters whose Kubernetes version is no longer supported [default: false]
    #[arg(long, env = "CKE_AUTO_UPGRADE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub auto_upgrade: Option<bool>,

    /// What to log, as a `tracing` filter, on standard error [default: warn]
    #[arg(long, env = "CKE_LOG", value_name = "FILTER")]
    pub log: Option<String>,

    /// More users, organisations and OAuth consumers; only in the file.
    #[arg(skip)]
    pub users: Vec<UserConfig>,
    #[arg(skip)]
    pub organisations: Vec<OrganisationConfig>,
    #[arg(skip)]
    pub consumers: Vec<ConsumerConfig>,
}

/// Every option of `cke serve`, decided.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    pub store: StoreUrl,
    pub listen_http: SocketAddr,
    pub listen_kubernetes: SocketAddr,
    pub listen_etcd: SocketAddr,
    pub public_host: String,
    pub time_scale: TimeScale,
    pub seed: u64,
    pub auto_upgrade: bool,
    pub log: String,
    pub accounts: AccountsConfig,
}

impl ServeOptions {
    pub fn from_file(path: &Path) -> Result<ServeOptions, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// These options, completed by `file`'s, completed by the defaults.
    pub fn resolve(self, file: ServeOptions) -> ServeConfig {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let data_dir = self
            .data_dir
            .or(file.data_dir)
            .unwrap_or_else(|| PathBuf::from("cke-data"));
        ServeConfig {
            store: self
                .store
                .or(file.store)
                .unwrap_or_else(|| StoreUrl::in_directory(&data_dir)),
            listen_http: self.listen_http.or(file.listen_http).unwrap_or(local(8080)),
            listen_kubernetes: self
                .listen_kubernetes
                .or(file.listen_kubernetes)
                .unwrap_or(local(6443)),
            listen_etcd: self.listen_etcd.or(file.listen_etcd).unwrap_or(local(2379)),
            public_host: self
                .public_host
                .or(file.public_host)
                .unwrap_or_else(|| String::from("127.0.0.1")),
            time_scale: self
                .time_scale
                .or(file.time_scale)
                .unwrap_or(TimeScale::Factor(20.0)),
            seed: self.seed.or(file.seed).unwrap_or(0),
            auto_upgrade: self.auto_upgrade.or(file.auto_upgrade).unwrap_or(false),
            log: self
                .log
                .or(file.log)
                .unwrap_or_else(|| String::from("warn")),
            accounts: AccountsConfig {
                users: file.users,
                organisations: file.organisations,
                consumers: file.consumers,
            },
        }
    }
}

/// In TOML the factor may be a number or a string.
fn time_scale<'de, D>(deserializer: D) -> Result<Option<TimeScale>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Integer(i64),
        Float(f64),
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Text(text) => text,
        Written::Integer(factor) => factor.to_string(),
        Written::Float(factor) => factor.to_string(),
    };
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// Options of `cke etcd`: the names, environment variables and meanings are etcd's.
#[derive(Args, Clone, Debug)]
pub struct EtcdOptions {
    /// YAML file with these options by their names, and instead of them: flags and variables do not count then
    #[arg(long, env = "ETCD_CONFIG_FILE", value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Name of this member
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    pub name: String,

    /// Directory for the data [default: NAME.etcd]
    #[arg(long, env = "ETCD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where the data is kept: embedded:DIR, or fdb:///PATH/fdb.cluster[?prefix=NAME] for FoundationDB
    /// [default: embedded, in the data directory]
    #[arg(long, env = "CKE_STORE", value_name = "STORE")]
    pub store: Option<StoreUrl>,

    /// URLs to listen on for clients, separated by commas
    #[arg(
        long,
        env = "ETCD_LISTEN_CLIENT_URLS",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379",
        value_parser = etcd::listen_url
    )]
    pub listen_client_urls: Vec<ListenUrl>,

    /// URLs that clients are told of, separated by commas [default: --listen-client-urls]
    #[arg(
        long,
        env = "ETCD_ADVERTISE_CLIENT_URLS",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub advertise_client_urls: Vec<String>,

    /// How long a watch may be silent before it is told of progress, such as 10m
    #[arg(
        long,
        visible_alias = "experimental-watch-progress-notify-interval",
        env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL",
        value_name = "DURATION",
        default_value = "10m",
        value_parser = humantime::parse_duration
    )]
    pub watch_progress_notify_interval: std::time::Duration,

    /// Largest request, in bytes
    #[arg(
        long,
        env = "ETCD_MAX_REQUEST_BYTES",
        value_name = "BYTES",
        default_value_t = 1_572_864
    )]
    pub max_request_bytes: usize,

    /// Most operations in one transaction
    #[arg(
        long,
        env = "ETCD_MAX_TXN_OPS",
        value_name = "N",
        default_value_t = 128
    )]
    pub max_txn_ops: usize,

    /// debug, info, warn, error, or a `tracing` filter
    #[arg(
        long,
        env = "ETCD_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "warn"
    )]
    pub log_level: String,

    #[command(flatten)]
    pub tls: TlsOptions,
    #[command(flatten)]
    pub limits: LimitOptions,
    #[command(flatten)]
    pub keyspaces: KeyspaceOptions,
    #[command(flatten)]
    pub unused: UnusedOptions,
    /// Names of the configuration file that are not options.
    #[arg(skip)]
    pub unknown: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_urls_are_socket_addresses() {
        let check = |url: &str, expect: Option<&str>| {
            let found = etcd::listen_url(url).ok();
            let found = found.map(|url| format!("{}://{}", url.scheme(), url.address));
            assert_eq!(found.as_deref(), expect, "{url}");
        };
        check("http://127.0.0.1:2379", Some("http://127.0.0.1:2379"));
        check("http://localhost:0/", Some("http://127.0.0.1:0"));
        check("http://[::1]:2379", Some("http://[::1]:2379"));
        check("https://127.0.0.1:2379", Some("https://127.0.0.1:2379"));
        check("127.0.0.1:2379", None);
        check("http://example.test:2379", None);
        check("http://127.0.0.1", None);
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let file: ServeOptions = toml::from_str(
            "time-scale = 5\nseed = 7\nlisten-http = \"127.0.0.1:1\"\n\
             [[users]]\nname = \"Ada\"\nemail = \"ada@example.test\"\n",
        )
        .expect("the file is valid");
        let flags = ServeOptions {
            seed: Some(9),
            ..ServeOptions::default()
        };
        let config = flags.resolve(file);
        assert_eq!(config.seed, 9);
        assert_eq!(config.time_scale, TimeScale::Factor(5.0));
        assert_eq!(config.listen_http.port(), 1);
        assert_eq!(config.listen_etcd.port(), 2379);
        assert_eq!(config.accounts.users.len(), 1);
    }

    #[test]
    fn a_file_with_an_unknown_option_is_refused() {
        let error = toml::from_str::<ServeOptions>("data-dri = \"x\"").map(drop);
        assert!(error.is_err());
    }
}
