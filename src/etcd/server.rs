//! The server: its keyspaces, and the connections to them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use parking_lot::{Mutex, RwLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::client::{Client, ClientError, Keyspaces};
use super::coalesce::Coalescing;
use super::config::EtcdConfig;
use super::error::Error;
use super::http;
use super::keyspace::Keyspace;
use super::service::{Api, Backend};
use super::store::{self, Identity, Store, StoreError};
use crate::clock::Clock;

/// Bytes between the two ends of an in-process connection.
const IN_PROCESS_BUFFER_BYTES: usize = 1 << 20;
/// HTTP/2 flow control: what a client may send before it is read, per stream and per connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Concurrent requests and watch streams of one connection. etcd sets no limit.
const MAX_CONCURRENT_STREAMS: u32 = 1 << 20;
/// Streams that a client may have cancelled before the server got to them. A client that cancels
/// many watches at once means no harm.
const MAX_RESET_STREAMS: usize = 100_000;
/// Bytes that one stream's answers may have waiting for the network.
const SEND_BUFFER_BYTES: usize = 1 << 20;
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
    clock: Clock,
    pub config: EtcdConfig,
    pub identity: Identity,
    slots: Mutex<HashMap<Arc<str>, Arc<Slot>>>,
    /// Ends every keyspace and stream.
    pub shutdown: CancellationToken,
}

/// The place of a keyspace, loaded or not.
pub struct Slot {
    name: Arc<str>,
    open: RwLock<Option<Open>>,
    /// Held while the keyspace is loaded or removed.
    changing: tokio::sync::Mutex<()>,
    /// The connection that in-process clients share.
    channel: OnceLock<Channel>,
}

struct Open {
    keyspace: Arc<Keyspace>,
    sequencer: JoinHandle<()>,
}

impl Inner {
    fn slot(&self, name: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(name) {
            return Arc::clone(slot);
        }
        let name: Arc<str> = Arc::from(name);
        let slot = Arc::new(Slot {
            name: Arc::clone(&name),
            open: RwLock::new(None),
            changing: tokio::sync::Mutex::new(()),
            channel: OnceLock::new(),
        });
        slots.insert(name, Arc::clone(&slot));
        slot
    }

    /// The keyspace, loaded if need be.
    pub async fn keyspace(&self, slot: &Slot) -> Result<Arc<Keyspace>, Error> {
        let loaded = |slot: &Slot| {
            let open = slot.open.read();
            open.as_ref().map(|open| Arc::clone(&open.keyspace))
        };
        if let Some(keyspace) = loaded(slot) {
            return Ok(keyspace);
        }
        let _changing = slot.changing.lock().await;
        if let Some(keyspace) = loaded(slot) {
            return Ok(keyspace);
        }
        if self.shutdown.is_cancelled() {
            return Err(Error::Stopped);
        }
        let opened = self.open_keyspace(slot).await;
        let (keyspace, sequencer) = opened.map_err(|error| {
            tracing::error!(keyspace = %slot.name, %error, "the keyspace cannot be loaded");
            Error::from(error)
        })?;
        *slot.open.write() = Some(Open {
            keyspace: Arc::clone(&keyspace),
            sequencer,
        });
        Ok(keyspace)
    }

    async fn open_keyspace(
        &self,
        slot: &Slot,
    ) -> Result<(Arc<Keyspace>, JoinHandle<()>), StoreError> {
        let space = store::open_keyspace(&self.database, &slot.name).await?;
        Keyspace::open(
            Arc::clone(&slot.name),
            Store::new(self.database.clone(), space),
            self.clock.clone(),
            self.config.value_cache_bytes,
            self.shutdown.child_token(),
        )
        .await
    }

    async fn remove_keyspace(&self, name: &str) -> Result<(), StoreError> {
        let slot = self.slot(name);
        let _changing = slot.changing.lock().await;
        let open = slot.open.write().take();
        if let Some(open) = open {
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
        let shutdown = CancellationToken::new();
        let inner = Arc::new(Inner {
            database,
            clock,
            identity,
            slots: Mutex::default(),
            shutdown: shutdown.clone(),
            config,
        });
        let slot = inner.slot(&inner.config.default_keyspace);
        let opened = inner.keyspace(&slot).await;
        opened.map_err(|error| OpenError::Store(Box::new(error)))?;
        Ok(Server {
            inner,
            _stop: Arc::new(StopOnDrop(shutdown)),
        })
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
        let address = listener.local_addr().map_err(ServeError::Listener)?;
        tracing::info!(%address, "etcd is listening");
        let api = Api::new(Backend {
            server: Arc::clone(&self.inner),
            slot: self.inner.slot(&self.inner.config.default_keyspace),
            draining: shutdown.clone(),
        });
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // One connection's failure, or too many open files: others go on.
                    tracing::warn!(%error, "a connection could not be accepted");
                    drop(self.inner.clock.sleep(ACCEPT_PAUSE).await);
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            let connection = serve_connection(api.clone(), stream);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended");
                }
            });
        }
        drop(listener);
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

    pub(super) fn channel(&self, keyspace: &str) -> Channel {
        let slot = self.inner.slot(keyspace);
        let connect = || {
            // Weak: the connection must not keep the server alive.
            let server = Arc::downgrade(&self.inner);
            let name = Arc::clone(&slot.name);
            let connector = tower::service_fn(move |_: ::http::Uri| {
                let connected = server.upgrade().map(|server| {
                    let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BUFFER_BYTES);
                    let slot = server.slot(&name);
                    let shutdown = server.shutdown.clone();
                    let api = Api::new(Backend {
                        server,
                        slot,
                        draining: shutdown.clone(),
                    });
                    let connection = serve_connection(api, ours);
                    tokio::spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            _ = connection => {}
                        }
                    });
                    TokioIo::new(theirs)
                });
                let gone = || std::io::Error::other("the etcd server was stopped");
                std::future::ready(connected.ok_or_else(gone))
            });
            Endpoint::from_static("http://in-process")
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .connect_with_connector_lazy(connector)
        };
        slot.channel.get_or_init(connect).clone()
    }
}

impl Keyspaces for Server {
    /// A client of the keyspace, by genuine gRPC over a connection within the process. It connects
    /// on first use and again when the connection is lost. Call it inside a tokio runtime.
    fn client(&self, keyspace: &str) -> Client {
        Client::new(self.channel(keyspace))
    }

    fn remove<'a>(&'a self, keyspace: &'a str) -> BoxFuture<'a, Result<(), ClientError>> {
        async move {
            let removed = self.remove_keyspace(keyspace).await;
            removed.map_err(|error| tonic::Status::from(error).into())
        }
        .boxed()
    }
}

/// The services, to one connection.
#[derive(Clone)]
struct Connected(Api);

impl hyper::service::Service<::http::Request<Incoming>> for Connected {
    type Response = ::http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: ::http::Request<Incoming>) -> Self::Future {
        let api = self.0.clone();
        async move {
            let content_type = request.headers().get(::http::header::CONTENT_TYPE);
            let grpc =
                content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
            Ok(if grpc {
                api.call(request).await
            } else {
                http::call(api.backend(), &request).await
            })
        }
        .boxed()
    }
}

/// One connection, HTTP/2 or HTTP/1.1 as the client begins.
///
/// Pings of clients are answered however often they come: the stack has no notion of too many.
fn serve_connection<I>(
    api: Api,
    stream: I,
) -> auto::Connection<'static, TokioIo<Coalescing<I>>, Connected, TokioExecutor>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    builder
        .serve_connection(TokioIo::new(Coalescing::new(stream)), Connected(api))
        .into_owned()
}
