//! Puts the layers together and runs them: `cke serve` and `cke etcd`.
//!
//! Start-up binds every listener before it opens the store, so that a port in use is said at once;
//! and says `ready` only when every listener answers. A signal to terminate stops the listeners,
//! lets requests end for [`DRAIN`], and closes the store. Nothing depends on that: a kill -9 loses
//! nothing that was acknowledged.

mod acting;
mod door;
mod snapshot;
mod world;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::clever::account::Seed;
use crate::clever::{self, History, WorldChange, WorldIs, Worlds};
use crate::clock::Clock;
use crate::config::etcd::ListenUrl;
use crate::config::store::StoreUrl;
use crate::config::{EtcdOptions, ServeConfig};
use crate::etcd::auth::TokenKind;
use crate::etcd::tls::Tls;
use crate::etcd::{EtcdConfig, Listener, Metrics, Server, limits};

use door::Door;
use world::{Ground, World};

/// How long requests under way may take to end after a signal to terminate.
const DRAIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot use {path} as data directory: {source}")]
    DataDirectory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Store(#[from] fdb::OpenError),
    #[cfg(not(feature = "foundationdb"))]
    #[error(
        "this build has no FoundationDB: `cargo build --release --features foundationdb`, with libfdb_c of FoundationDB 7.3, makes one that has"
    )]
    NoFoundationDb,
    #[error("the log filter `{filter}` is not valid: {source}")]
    LogFilter {
        filter: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("cannot start {layer}: {source}")]
    Start {
        layer: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{what} stopped: {source}")]
    Stopped {
        what: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "--initial-cluster names several members: an etcd of this kind is one member, and keeps its data safe by itself"
    )]
    SeveralMembers,
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
}

fn start<E>(layer: &'static str) -> impl FnOnce(E) -> ServeError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| ServeError::Start {
        layer,
        source: source.into(),
    }
}

/// The outcome of a listener's task, by its name.
type Outcome = (
    &'static str,
    Result<(), Box<dyn std::error::Error + Send + Sync>>,
);

/// Runs the whole platform until a signal to terminate.
pub fn platform(config: ServeConfig) -> Result<(), ServeError> {
    let started = Instant::now();
    log_to_stderr(&config.log)?;
    block_on(async move {
        let http = listen("the REST API", config.listen_http).await?;
        let kubernetes_listener = listen("Kubernetes", config.listen_kubernetes).await?;
        let etcd_listener = listen("etcd", config.listen_etcd).await?;
        let addresses = Addresses {
            host: config.public_host.clone(),
            http: port(&http),
            kubernetes: port(&kubernetes_listener),
            etcd: port(&etcd_listener),
        };

        let metrics: Arc<Metrics> = Arc::default();
        let database = open_store(&config.store, &metrics).await?;
        if snapshot::recover(&database)
            .await
            .map_err(start("the store"))?
        {
            tracing::error!(
                "a snapshot was being loaded when the process ended: the world is a new one, load it again"
            );
        }
        let shutdown = CancellationToken::new();
        let (worlds, changes) = Worlds::new(Arc::new(database.clone()));
        let ground = Ground {
            addresses,
            database,
            metrics,
            kubernetes: kubernetes_listener
                .into_std()
                .map_err(start("Kubernetes"))?,
            etcd: etcd_listener.into_std().map_err(start("etcd"))?,
            history: History::new(),
            worlds,
            shutdown: shutdown.clone(),
            config,
        };
        let world = World::begin(&ground, ground.config.time_scale, &Value::Null).await?;
        let door = Door::closed();
        door.open(world.router.clone());
        let rest = tokio::spawn(clever::serve(http, door.service(), shutdown.clone()));
        announce(&ground.addresses, &world.identity, started.elapsed());
        let (mut world, outcome) = serve_worlds(&ground, &door, world, changes).await;
        if let Some(world) = &mut world {
            world.stop_acting().await;
        }
        shutdown.cancel();
        if let Ok(Ok(Err(error))) = tokio::time::timeout(DRAIN, rest).await {
            tracing::warn!(%error, "the REST API had stopped");
        }
        // From the top down: each layer ends while those below it still answer.
        if let Some(world) = world {
            world.end().await;
        }
        ground.database.close().await;
        outcome
    })
}

/// Serves one world after the other until a signal to terminate, or until something fails. Returns the
/// world that there is then, if any.
async fn serve_worlds(
    ground: &Ground,
    door: &Door,
    mut world: World,
    mut changes: tokio::sync::mpsc::Receiver<WorldChange>,
) -> (Option<World>, Result<(), ServeError>) {
    let terminated = terminated();
    tokio::pin!(terminated);
    loop {
        let change = tokio::select! {
            () = &mut terminated => return (Some(world), Ok(())),
            ended = world.listeners.join_next() => {
                return (Some(world), stopped(ended));
            }
            // The other end is in the ground.
            Some(change) = changes.recv() => change,
        };
        let scale = world.clock.scale();
        // What acts asks this server too.
        world.stop_acting().await;
        door.close();
        world.end().await;
        let (done, next) = (change.done, change.to);
        let made = world::make(ground, next).await;
        // What could not be made is an empty world, or the one that was there.
        let api_faults = made.as_ref().map_or(Value::Null, Clone::clone);
        world = match World::begin(ground, scale, &api_faults).await {
            Ok(world) => world,
            Err(error) => return (None, Err(error)),
        };
        door.open(world.router.clone());
        let is = WorldIs {
            seed: world.seed,
            now: world.clock.now(),
            scale: scale.to_string(),
        };
        // Who asked may have left.
        let _ = done.send(made.map(|_| is).map_err(|error| error.to_string()));
    }
}

/// What the end of a listener means.
fn stopped(ended: Option<Result<Outcome, tokio::task::JoinError>>) -> Result<(), ServeError> {
    match ended {
        Some(Ok((what, Err(source)))) => Err(ServeError::Stopped { what, source }),
        Some(Err(panic)) => Err(ServeError::Stopped {
            what: "a listener",
            source: panic.into(),
        }),
        Some(Ok((_, Ok(())))) | None => Ok(()),
    }
}

/// Runs Materia etcd alone until a signal to terminate.
pub fn etcd(options: EtcdOptions) -> Result<(), ServeError> {
    log_to_stderr(&options.log_level)?;
    if options.unused.members() > 1 {
        return Err(ServeError::SeveralMembers);
    }
    for flag in &options.unknown {
        tracing::warn!(
            "{flag} has no effect: the configuration file of `cke etcd` does not have it"
        );
    }
    for flag in options.unused.given() {
        tracing::warn!("--{flag} has no effect: this etcd has one member, and its own store");
    }
    let max_connections = match options.limits.max_connections {
        None => limits::connections().map_err(start("etcd"))?,
        Some(wanted) => usize::try_from(wanted).unwrap_or(usize::MAX),
    };
    block_on(async move {
        let directory = options
            .data_dir
            .unwrap_or_else(|| PathBuf::from(format!("{}.etcd", options.name)));
        let urls = [
            options.listen_client_urls.as_slice(),
            options.limits.listen_metrics_urls.as_slice(),
        ]
        .concat();
        let keepalive_interval = options.limits.keepalive_interval();
        let ping_interval = options.limits.ping_interval();
        let auth_token: TokenKind = options.limits.auth_token.parse().map_err(start("etcd"))?;
        let auth_token_ttl = Duration::from_secs(options.limits.auth_token_ttl.into());
        let auto_compaction = options.limits.auto_compaction().map_err(start("etcd"))?;
        let tls = options.tls.resolve(&urls, &directory);
        let tls = tls.map_err(start("TLS"))?.map(Tls::new);
        let tls = tls.transpose().map_err(start("TLS"))?.map(Arc::new);
        let bind = async |what, url: ListenUrl, metrics_only| {
            let tcp = listen(what, url.address).await?;
            let tls = tls.as_ref().filter(|_| url.https).cloned();
            Ok::<_, ServeError>(Listener {
                tcp,
                tls,
                metrics_only,
            })
        };
        let mut bound = Vec::new();
        let mut listening_urls = Vec::new();
        for url in options.listen_client_urls {
            let listener = bind("clients", url, false).await?;
            if let Ok(address) = listener.tcp.local_addr() {
                listening_urls.push(format!("{}://{address}", url.scheme()));
            }
            bound.push(listener);
        }
        let mut metrics_urls = Vec::new();
        for url in options.limits.listen_metrics_urls {
            let listener = bind("metrics", url, true).await?;
            if let Ok(address) = listener.tcp.local_addr() {
                metrics_urls.push(format!("{}://{address}", url.scheme()));
            }
            bound.push(listener);
        }
        let metrics: Arc<Metrics> = Arc::default();
        let store = options
            .store
            .unwrap_or_else(|| StoreUrl::in_directory(&directory));
        let database = open_store(&store, &metrics).await?;
        let advertise_client_urls = if options.advertise_client_urls.is_empty() {
            listening_urls
        } else {
            options.advertise_client_urls
        };
        let idle = options.keyspaces.keyspace_idle_timeout;
        let server = Server::open(
            database.clone(),
            Clock::real(),
            EtcdConfig {
                name: options.name,
                advertise_client_urls: advertise_client_urls.clone(),
                watch_progress_notify_interval: options.watch_progress_notify_interval,
                max_request_bytes: options.max_request_bytes,
                max_txn_ops: options.max_txn_ops,
                keyspace_by_cn: options.keyspaces.keyspace_by_cn,
                keyspace_by_user: options.keyspaces.keyspace_by_user,
                keyspace_idle_timeout: (!idle.is_zero()).then_some(idle),
                max_keyspaces: options.keyspaces.max_keyspaces,
                max_keyspace_pending: options.keyspaces.max_keyspace_pending,
                total_value_cache_bytes: options.keyspaces.value_cache_bytes,
                max_connections,
                max_concurrent_streams: options.limits.max_concurrent_streams,
                quota_backend_bytes: options.limits.quota_backend_bytes,
                bcrypt_cost: options.limits.bcrypt_cost,
                auth_token,
                auth_token_ttl,
                auto_compaction,
                keepalive_interval,
                ping_interval,
                keepalive_timeout: options.limits.grpc_keepalive_timeout,
                shared_store: database.is_shared(),
                metrics,
                ..EtcdConfig::default()
            },
        )
        .await
        .map_err(start("etcd"))?;
        let shutdown = CancellationToken::new();
        let mut listeners: JoinSet<Outcome> = JoinSet::new();
        for listener in bound {
            let (server, shutdown) = (server.clone(), shutdown.clone());
            listeners.spawn(async move {
                let served = server.serve_on(listener, shutdown).await;
                ("etcd", served.map_err(Into::into))
            });
        }
        for url in metrics_urls {
            say(&format!("metrics: {url}\n"));
        }
        say(&format!("ready: {}\n", advertise_client_urls.join(", ")));
        let outcome = until_terminated(&mut listeners, &shutdown).await;
        server.close().await;
        database.close().await;
        outcome
    })
}

fn block_on(future: impl Future<Output = Result<(), ServeError>>) -> Result<(), ServeError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?
        .block_on(future)
}

fn log_to_stderr(filter: &str) -> Result<(), ServeError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| ServeError::LogFilter {
        filter: filter.to_owned(),
        source,
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen {
            what,
            address,
            source,
        })
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().map_or(0, |address| address.port())
}

async fn open_store(store: &StoreUrl, metrics: &Arc<Metrics>) -> Result<fdb::Database, ServeError> {
    match store {
        StoreUrl::Embedded(directory) => {
            std::fs::create_dir_all(directory).map_err(|source| ServeError::DataDirectory {
                path: directory.clone(),
                source,
            })?;
            let options = fdb::EmbeddedOptions {
                write_hook: Some(metrics.measure_fsync()),
                ..fdb::EmbeddedOptions::default()
            };
            Ok(fdb::Database::open_embedded(directory, options).await?)
        }
        #[cfg(feature = "foundationdb")]
        StoreUrl::FoundationDb {
            cluster_file,
            prefix,
        } => {
            let options = fdb::FoundationDbOptions::new(cluster_file, prefix);
            Ok(fdb::Database::open_foundationdb(options)?)
        }
        #[cfg(not(feature = "foundationdb"))]
        StoreUrl::FoundationDb { .. } => Err(ServeError::NoFoundationDb),
    }
}

/// Waits for a signal, or for a listener to fail; then drains.
async fn until_terminated(
    listeners: &mut JoinSet<Outcome>,
    shutdown: &CancellationToken,
) -> Result<(), ServeError> {
    let failed = tokio::select! {
        () = terminated() => None,
        ended = listeners.join_next() => ended,
    };
    shutdown.cancel();
    let drained = async { while listeners.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("requests were still under way after {DRAIN:?}");
    }
    stopped(failed)
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be caught: it ends the process at once");
            std::future::pending().await
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

pub(crate) struct Addresses {
    host: String,
    http: u16,
    kubernetes: u16,
    etcd: u16,
}

impl Addresses {
    fn http_url(&self) -> String {
        format!("http://{}:{}", self.host, self.http)
    }

    fn etcd_url(&self) -> String {
        format!("http://{}:{}", self.host, self.etcd)
    }
}

/// Prints what a shell needs to point unmodified clients here.
fn announce(addresses: &Addresses, seed: &Seed, took: Duration) {
    let http = addresses.http_url();
    say(&format!(
        "export API_HOST={http}\n\
         export AUTH_BRIDGE_HOST={http}\n\
         export CONSOLE_URL={http}\n\
         export CLEVER_TOKEN={}\n\
         export CLEVER_SECRET={}\n\
         export CKE_ORG={}\n\
         export CKE_KUBERNETES=https://{}:{}\n\
         export CKE_ETCD={}\n\
         ready in {} ms\n",
        seed.token,
        seed.secret,
        seed.organisation,
        addresses.host,
        addresses.kubernetes,
        addresses.etcd_url(),
        took.as_millis(),
    ));
}

/// Standard output may be a closed pipe: that is no reason to stop serving.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
