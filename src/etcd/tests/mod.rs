//! The server as its clients see it, over genuine gRPC within the process: with a connection, and without.

mod api;
mod auth;
mod keyspaces;
mod leases;
mod metrics;
mod model;
mod past_bugs;
mod several_servers;
mod store_faults;
mod tls;
mod watches;

use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse,
};
use fdb::{Database, EmbeddedOptions, Faults};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::connection::Connected;
use super::pings::UnderWay;
use super::{EtcdConfig, Server};
use crate::clock::{Clock, TimeScale, Timestamp};

/// A server on a directory of its own, which can be stopped and started again.
pub struct Fixture {
    directory: TempDir,
    database: Database,
    pub server: Server,
    pub clock: Clock,
    config: EtcdConfig,
    faults: Option<Faults>,
}

async fn open(
    directory: &TempDir,
    clock: &Clock,
    config: &EtcdConfig,
    faults: Option<Faults>,
) -> (Database, Server) {
    let options = EmbeddedOptions {
        fsync: false,
        faults,
        ..EmbeddedOptions::default()
    };
    let database = Database::open_embedded(directory.path(), options)
        .await
        .expect("the store opens");
    let server = Server::open(database.clone(), clock.clone(), config.clone())
        .await
        .expect("the server opens");
    (database, server)
}

impl Fixture {
    pub async fn new() -> Fixture {
        Fixture::with(EtcdConfig::default(), None).await
    }

    /// The clock stands still until it is advanced.
    pub async fn with(config: EtcdConfig, faults: Option<Faults>) -> Fixture {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = Clock::new(TimeScale::Manual, Timestamp(1_000_000));
        let (database, server) = open(&directory, &clock, &config, faults.clone()).await;
        Fixture {
            directory,
            database,
            server,
            clock,
            config,
            faults,
        }
    }

    /// Stops the server and starts it again on the same data.
    pub async fn restart(self) -> Fixture {
        let Fixture {
            directory,
            database,
            server,
            clock,
            config,
            faults,
        } = self;
        server.close().await;
        drop(server);
        database.close().await;
        drop(database);
        let (database, server) = open(&directory, &clock, &config, faults.clone()).await;
        Fixture {
            directory,
            database,
            server,
            clock,
            config,
            faults,
        }
    }

    pub fn channel(&self) -> Channel {
        pipe(&self.server)
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel()).max_decoding_message_size(usize::MAX)
    }

    pub fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel())
    }

    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(self.kv().range(request).await?.into_inner())
    }

    /// Puts the key and returns the revision.
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        let request = PutRequest {
            key: bytes(key),
            value: bytes(value),
            ..PutRequest::default()
        };
        let response = self.kv().put(request).await.expect("put").into_inner();
        response.header.expect("header").revision
    }

    pub async fn delete(&self, key: &str) -> i64 {
        let request = DeleteRangeRequest {
            key: bytes(key),
            ..DeleteRangeRequest::default()
        };
        let response = self.kv().delete_range(request).await.expect("delete");
        response.into_inner().header.expect("header").revision
    }

    pub async fn compact(&self, revision: i64) {
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        self.kv().compact(request).await.expect("compact");
    }

    /// `key=value` of every key, in order.
    pub async fn dump(&self) -> Vec<String> {
        let response = self.range(everything()).await.expect("range");
        let show = |kv: &etcd_proto::mvccpb::KeyValue| {
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            format!("{}={}", text(&kv.key), text(&kv.value))
        };
        response.kvs.iter().map(show).collect()
    }
}

/// A connection to the default keyspace over HTTP/2, as any client's but that it stays in memory. It connects on first
/// use and again when it is lost.
pub fn pipe(server: &Server) -> Channel {
    // Weak: a connection must not keep the server alive.
    let server = Arc::downgrade(server.inner());
    let connector = tower::service_fn(move |_: ::http::Uri| {
        let connected = server.upgrade().map(|server| {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let shutdown = server.shutdown.clone();
            let connected = Connected {
                api: server.api("default", &shutdown),
                peer: None,
                trusted: true,
                metrics_only: false,
                chosen: None,
                under_way: UnderWay::default(),
            };
            let connection = server.connection(connected, ours);
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
    Endpoint::from_static("http://in-process").connect_with_connector_lazy(connector)
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn everything() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    }
}
