//! The server: its keyspaces, and the connections to them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::server::graceful::GracefulShutdown;
use parking_lot::{Mutex, RwLock};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::auth::Tokens;
use super::auth::password::Passwords;
use super::auth::peer::PeerName;
use super::client::{Client, ClientError, Keyspaces};
use super::config::EtcdConfig;
use super::connection::Connected;
use super::error::Error;
use super::in_process::InProcess;
use super::keyspace::{Keyspace, Limits};
use super::keyspace_choice::Chosen;
use super::pings::UnderWay;
use super::service::{Api, Backend};
use super::store::{self, Identity, Store, StoreError};
use super::tls::Tls;
use crate::clock::Clock;

/// Connections at once of a listener for scrapers and probes.
const METRICS_CONNECTIONS: usize = 64;
/// How long a client may take to shake hands.
const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Pause when the machine has no file descriptor left for a connection.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot read etcd's data: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        OpenError::Store(Box::new(error))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot read the listener's address: {0}")]
    Listener(#[source] std::io::Error),
}

/// Where clients come in.
pub struct Listener {
    pub tcp: TcpListener,
    /// Without it, plain text.
    pub tls: Option<Arc<Tls>>,
    /// Answers `/metrics`, `/health` and their like, and no gRPC.
    pub metrics_only: bool,
}

impl Listener {
    pub fn plain(tcp: TcpListener) -> Listener {
        Listener {
            tcp,
            tls: None,
            metrics_only: false,
        }
    }
}

/// An etcd server. Clones share it; it stops when the last one is dropped.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
    _stop: Arc<StopOnDrop>,
}

struct StopOnDrop(CancellationToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

pub struct Inner {
    database: fdb::Database,
    pub clock: Clock,
    pub config: EtcdConfig,
    pub identity: Identity,
    pub(super) slots: Mutex<HashMap<Arc<str>, Arc<Slot>>>,
    /// How many keyspaces are in memory.
    pub(super) loaded_count: AtomicUsize,
    /// A permit for each connection over TCP.
    connections: Arc<Semaphore>,
    pub passwords: Passwords,
    /// The version that a downgrade was asked for.
    pub downgrade: Mutex<Option<String>>,
    /// Ends every keyspace and stream.
    pub shutdown: CancellationToken,
}

/// The place of a keyspace, loaded or not.
pub struct Slot {
    pub(super) name: Arc<str>,
    pub(super) open: RwLock<Option<Open>>,
    /// Held while the keyspace is loaded, unloaded or removed.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// The keyspace was asked for since the last look.
    pub(super) touched: AtomicBool,
    /// When a look found it touched, in milliseconds.
    pub(super) used_at: AtomicI64,
}

pub(super) struct Open {
    pub(super) keyspace: Arc<Keyspace>,
    pub(super) sequencer: JoinHandle<()>,
}

impl Slot {
    /// The keyspace, if it is in memory.
    fn loaded(&self) -> Option<Arc<Keyspace>> {
        let open = self.open.read();
        let found = open.as_ref().map(|open| Arc::clone(&open.keyspace));
        // Written rarely, so that the cores share the line.
        if found.is_some() && !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
        found
    }
}

impl Inner {
    /// Gives space that is free within the store's files back to the disk.
    pub async fn defragment(&self) -> Result<(), Error> {
        let outcome = self.database.defragment().await;
        Ok(outcome.map_err(StoreError::from)?)
    }

    pub async fn set_downgrade(&self, version: Option<String>) -> Result<(), Error> {
        store::set_downgrade(&self.database, version.as_deref()).await?;
        *self.downgrade.lock() = version;
        Ok(())
    }

    pub fn slot(&self, name: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(name) {
            return Arc::clone(slot);
        }
        let name: Arc<str> = Arc::from(name);
        let slot = Arc::new(Slot {
            name: Arc::clone(&name),
            open: RwLock::new(None),
            changing: tokio::sync::Mutex::new(()),
            touched: AtomicBool::new(false),
            used_at: AtomicI64::new(self.clock.now().0),
        });
        slots.insert(name, Arc::clone(&slot));
        slot
    }

    /// The keyspaces that are in memory.
    pub fn loaded(&self) -> Vec<Arc<Keyspace>> {
        let slots: Vec<_> = self.slots.lock().values().cloned().collect();
        let open = |slot: Arc<Slot>| {
            let open = slot.open.read();
            // Not by `loaded`: to look at it is not to use it.
            open.as_ref().map(|open| Arc::clone(&open.keyspace))
        };
        slots.into_iter().filter_map(open).collect()
    }

    /// Bytes of the store on disk.
    pub fn size_bytes(&self) -> u64 {
        self.database.size_bytes()
    }

    /// The keyspace, loaded if need be.
    pub async fn keyspace(&self, slot: &Slot) -> Result<Arc<Keyspace>, Error> {
        if let Some(keyspace) = slot.loaded() {
            return Ok(keyspace);
        }
        let _changing = slot.changing.lock().await;
        if let Some(keyspace) = slot.loaded() {
            return Ok(keyspace);
        }
        if self.shutdown.is_cancelled() {
            return Err(Error::Stopped);
        }
        if self.loaded_count.load(Ordering::Relaxed) >= self.config.max_keyspaces {
            tracing::warn!(keyspace = %slot.name, "too many keyspaces are in use");
            return Err(Error::TooManyRequests);
        }
        let opened = self.open_keyspace(slot).await;
        let (keyspace, sequencer) = opened.map_err(|error| {
            tracing::error!(keyspace = %slot.name, %error, "the keyspace cannot be loaded");
            Error::from(error)
        })?;
        slot.touched.store(true, Ordering::Relaxed);
        self.loaded_count.fetch_add(1, Ordering::Relaxed);
        *slot.open.write() = Some(Open {
            keyspace: Arc::clone(&keyspace),
            sequencer,
        });
        Ok(keyspace)
    }

    fn limits(&self, name: &Arc<str>) -> Limits {
        let config = &self.config;
        let other = (**name != *config.default_keyspace).then(|| Arc::clone(name));
        let keyspaces = self.loaded_count.load(Ordering::Relaxed) + 1;
        Limits {
            cache_bytes: self.config.value_cache_share(keyspaces),
            pending: self.config.max_keyspace_pending,
            auto_compaction: self.config.auto_compaction,
            tokens: Tokens::new(&config.auth_token, config.auth_token_ttl, other),
        }
    }

    async fn open_keyspace(
        &self,
        slot: &Slot,
    ) -> Result<(Arc<Keyspace>, JoinHandle<()>), StoreError> {
        let space = store::open_keyspace(&self.database, &slot.name).await?;
        Keyspace::open(
            Arc::clone(&slot.name),
            Store::new(self.database.clone(), space, self.config.shared_store),
            self.clock.clone(),
            self.limits(&slot.name),
            Arc::clone(&self.config.metrics),
            self.shutdown.child_token(),
        )
        .await
    }

    async fn remove_keyspace(&self, name: &str) -> Result<(), StoreError> {
        let slot = self.slot(name);
        let _changing = slot.changing.lock().await;
        let open = slot.open.write().take();
        if let Some(open) = open {
            self.loaded_count.fetch_sub(1, Ordering::Relaxed);
            open.keyspace.closed.cancel();
            // A batch under way would write into what is removed next.
            if let Err(error) = open.sequencer.await {
                tracing::error!(keyspace = name, %error, "the sequencer had died");
            }
        }
        store::remove_keyspace(&self.database, name).await
    }
}

impl Backend {
    /// Whether the keyspace can be read.
    pub async fn check_health(&self) -> Result<(), Error> {
        let keyspace = self.server.keyspace(&self.slot).await?;
        keyspace.store.head().await?;
        Ok(())
    }
}

impl Server {
    /// Opens the keyspaces in `database`. The default one is loaded at once, others on first use.
    ///
    /// `clock` runs in real time: leases are promises to clients in theirs.
    ///
    /// # Errors
    /// The store cannot be read, or what it holds is damaged.
    pub async fn open(
        database: fdb::Database,
        clock: Clock,
        config: EtcdConfig,
    ) -> Result<Server, OpenError> {
        let new = Identity {
            cluster_id: rand::random(),
            member_id: rand::random(),
        };
        let identity = store::identity(&database, new).await?;
        let downgrade = store::downgrade(&database).await?;
        let shutdown = CancellationToken::new();
        let inner = Arc::new(Inner {
            database,
            clock,
            identity,
            slots: Mutex::default(),
            loaded_count: AtomicUsize::new(0),
            connections: Arc::new(Semaphore::new(
                config.max_connections.min(Semaphore::MAX_PERMITS),
            )),
            passwords: Passwords::new(config.bcrypt_cost),
            downgrade: Mutex::new(downgrade),
            shutdown: shutdown.clone(),
            config,
        });
        let slot = inner.slot(&inner.config.default_keyspace);
        let opened = inner.keyspace(&slot).await;
        opened.map_err(|error| OpenError::Store(Box::new(error)))?;
        inner.spawn_unloading();
        Ok(Server {
            inner,
            _stop: Arc::new(StopOnDrop(shutdown)),
        })
    }

    /// What `/metrics` says.
    ///
    /// # Errors
    /// See [`super::Metrics::render`].
    pub fn metrics_text(&self) -> Result<String, prometheus::Error> {
        self.inner.config.metrics.render(&self.inner)
    }

    /// Serves the default keyspace to whoever connects, until `shutdown`; then lets the requests
    /// under way end, and ends the watches.
    ///
    /// # Errors
    /// The listener is of no use.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        self.serve_on(Listener::plain(listener), shutdown).await
    }

    /// As [`Server::serve`], on a listener of any kind. A client's certificate may choose another
    /// keyspace than the default one.
    ///
    /// # Errors
    /// The listener is of no use.
    pub async fn serve_on(
        &self,
        Listener {
            tcp,
            tls,
            metrics_only,
        }: Listener,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let address = tcp.local_addr().map_err(ServeError::Listener)?;
        tracing::info!(%address, tls = tls.is_some(), "etcd is listening");
        let connected = Connected {
            api: self
                .inner
                .api(&self.inner.config.default_keyspace, &shutdown),
            peer: None,
            trusted: false,
            metrics_only,
            chosen: (!self.inner.config.keyspace_by_user.is_off()).then(Chosen::default),
            under_way: UnderWay::default(),
        };
        let graceful = GracefulShutdown::new();
        // Clients that are too many do not keep probes out.
        let connections = if metrics_only {
            Arc::new(Semaphore::new(METRICS_CONNECTIONS))
        } else {
            Arc::clone(&self.inner.connections)
        };
        loop {
            let permits = Arc::clone(&connections);
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = async {
                    // Never closed.
                    let permit = permits.acquire_owned().await.ok();
                    (tcp.accept().await, permit)
                } => accepted,
            };
            let (stream, permit) = match accepted {
                (Ok((stream, _)), permit) => (stream, permit),
                (Err(error), _) => {
                    // One connection's failure, or too many open files: others go on.
                    tracing::warn!(%error, "a connection could not be accepted");
                    drop(self.inner.clock.sleep(ACCEPT_PAUSE).await);
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            let connected = connected.clone();
            let (tls, watcher) = (tls.clone(), graceful.watcher());
            let (inner, shutdown) = (Arc::clone(&self.inner), shutdown.clone());
            tokio::spawn(async move {
                let gauge = Counted::new(&inner.config.metrics.connections);
                let ended = match tls {
                    None => watcher.watch(inner.connection(connected, stream)).await,
                    Some(tls) => match inner.handshake(&tls, stream, connected, &shutdown).await {
                        Some((stream, connected)) => {
                            watcher.watch(inner.connection(connected, stream)).await
                        }
                        None => Ok(()),
                    },
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                drop((gauge, permit));
            });
        }
        drop(tcp);
        graceful.shutdown().await;
        Ok(())
    }

    /// Ends every keyspace, once the batches under way are durable. Requests that come later are
    /// refused.
    pub async fn close(&self) {
        self.inner.shutdown.cancel();
        let slots: Vec<_> = self.inner.slots.lock().values().cloned().collect();
        for slot in slots {
            let _changing = slot.changing.lock().await;
            let open = slot.open.write().take();
            if let Some(open) = open
                && let Err(error) = open.sequencer.await
            {
                tracing::error!(keyspace = %slot.name, %error, "the sequencer had died");
            }
        }
    }

    /// Removes a keyspace with all that it holds. Its watches are cancelled. Removing one that
    /// does not exist is success.
    ///
    /// # Errors
    /// The store's, as etcd words it.
    pub async fn remove_keyspace(&self, name: &str) -> Result<(), Error> {
        Ok(self.inner.remove_keyspace(name).await?)
    }

    #[cfg(test)]
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Inner {
    /// A client of the keyspace within this process.
    pub fn client(self: &Arc<Inner>, keyspace: &str) -> Client {
        Client::new(InProcess::new(self, keyspace))
    }

    /// The services of a keyspace.
    pub fn api(self: &Arc<Inner>, keyspace: &str, draining: &CancellationToken) -> Api {
        Api::new(Backend {
            server: Arc::clone(self),
            slot: self.slot(keyspace),
            draining: draining.clone(),
        })
    }

    /// Shakes hands with a client. What it proves to be may choose its keyspace.
    async fn handshake(
        self: &Arc<Inner>,
        tls: &Tls,
        stream: TcpStream,
        connected: Connected,
        shutdown: &CancellationToken,
    ) -> Option<(TlsStream<TcpStream>, Connected)> {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return None,
            accepted = tls.accept(stream) => accepted,
            activity = self.clock.sleep(HANDSHAKE_TIMEOUT) => {
                drop(activity);
                Err(std::io::ErrorKind::TimedOut.into())
            }
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.config.metrics.connections_refused.inc();
                tracing::info!(%error, "a TLS handshake failed");
                return None;
            }
        };
        let keyspace = peer
            .as_ref()
            .and_then(|PeerName(name)| self.config.keyspace_by_cn.keyspace(name));
        let connected = match keyspace {
            None => Connected { peer, ..connected },
            Some(keyspace) => Connected {
                api: self.api(keyspace, shutdown),
                peer,
                // Nobody leaves the keyspace of their certificate.
                chosen: None,
                ..connected
            },
        };
        Some((stream, connected))
    }
}

/// Counts itself in a gauge while it lives.
struct Counted(prometheus::IntGauge);

impl Counted {
    fn new(gauge: &prometheus::IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Keyspaces for Server {
    /// A client of the keyspace, by genuine gRPC within the process.
    fn client(&self, keyspace: &str) -> Client {
        self.inner.client(keyspace)
    }

    fn remove<'a>(&'a self, keyspace: &'a str) -> BoxFuture<'a, Result<(), ClientError>> {
        async move {
            let removed = self.remove_keyspace(keyspace).await;
            removed.map_err(|error| tonic::Status::from(error).into())
        }
        .boxed()
    }
}
