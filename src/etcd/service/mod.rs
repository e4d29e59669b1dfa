//! The gRPC services: from messages to the keyspace and back.

mod answer;
mod auth;
mod cluster;
mod election;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod queue;
mod quota;
mod reflection;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;

use etcd_proto::etcdserverpb::ResponseHeader;
use etcd_proto::etcdserverpb::auth_server::AuthServer;
use etcd_proto::etcdserverpb::cluster_server::ClusterServer;
use etcd_proto::etcdserverpb::kv_server::KvServer;
use etcd_proto::etcdserverpb::lease_server::LeaseServer;
use etcd_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use etcd_proto::health::health_server::HealthServer;
use etcd_proto::v3electionpb::election_server::ElectionServer;
use etcd_proto::v3lockpb::lock_server::LockServer;
use http_body::Body as HttpBody;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service as _;

use super::auth::Credentials;
use super::client::Client;
use super::error::Error;
use super::keyspace::Keyspace;
use super::server::{Inner, Slot};
use super::store::Identity;

pub use maintenance::STORAGE_VERSION;

/// There is one member, and it has always been the leader; clients want a positive term.
pub const RAFT_TERM: u64 = 2;

/// Makes the header of answers.
#[derive(Clone, Copy, Debug)]
pub struct Headers(pub Identity);

impl Headers {
    pub fn at(self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.0.cluster_id,
            member_id: self.0.member_id,
            revision,
            raft_term: RAFT_TERM,
        }
    }
}

/// What every service needs: the server, and which of its keyspaces is meant.
#[derive(Clone)]
pub struct Backend {
    pub server: Arc<Inner>,
    pub slot: Arc<Slot>,
    /// Ends streams, which have no end of their own.
    pub draining: CancellationToken,
}

impl Backend {
    async fn keyspace(&self) -> Result<Arc<Keyspace>, Error> {
        self.server.keyspace(&self.slot).await
    }

    /// The keyspace with everything that was acknowledged before, by whichever server of the store.
    async fn current_keyspace(&self) -> Result<Arc<Keyspace>, Error> {
        let keyspace = self.keyspace().await?;
        keyspace.catch_up().await?;
        Ok(keyspace)
    }

    /// The keyspace with permissions that are up to date, if anybody is asked for theirs. Enough for a write: the
    /// sequencer sees to it that it meets the newest state.
    async fn checked_keyspace(&self) -> Result<Arc<Keyspace>, Error> {
        let keyspace = self.keyspace().await?;
        if keyspace.state.read().auth.enabled {
            keyspace.catch_up().await?;
        }
        Ok(keyspace)
    }

    /// The keyspace, for a read. A serializable one may see the past.
    async fn keyspace_to_read(&self, serializable: bool) -> Result<Arc<Keyspace>, Error> {
        if serializable {
            self.checked_keyspace().await
        } else {
            self.current_keyspace().await
        }
    }

    /// A client of the same keyspace, for services that are made of requests to it.
    fn client(&self) -> Client {
        self.server.client(&self.slot.name)
    }

    /// For what only root may ask.
    async fn check_root<T>(&self, request: &tonic::Request<T>) -> Result<(), Error> {
        let credentials = Credentials::of(request);
        let keyspace = self.current_keyspace().await?;
        credentials.caller(&keyspace)?.check_root()
    }

    fn headers(&self) -> Headers {
        Headers(self.server.identity)
    }
}

fn unimplemented(service: &str, method: &str) -> Status {
    Status::unimplemented(format!("unknown method {method} for service {service}"))
}

/// All services of one keyspace. Cheap to clone: each request has one.
#[derive(Clone)]
pub struct Api(Arc<Services>);

struct Services {
    backend: Backend,
    kv: KvServer<Backend>,
    lease: LeaseServer<Backend>,
    cluster: ClusterServer<Backend>,
    maintenance: MaintenanceServer<Backend>,
    auth: AuthServer<Backend>,
    lock: LockServer<Backend>,
    election: ElectionServer<Backend>,
    health: HealthServer<Backend>,
}

impl Api {
    pub fn new(backend: Backend) -> Api {
        let max = backend.server.config.max_message_bytes();
        Api(Arc::new(Services {
            kv: KvServer::new(backend.clone()).max_decoding_message_size(max),
            lease: LeaseServer::new(backend.clone()).max_decoding_message_size(max),
            cluster: ClusterServer::new(backend.clone()).max_decoding_message_size(max),
            maintenance: MaintenanceServer::new(backend.clone()).max_decoding_message_size(max),
            auth: AuthServer::new(backend.clone()).max_decoding_message_size(max),
            lock: LockServer::new(backend.clone()).max_decoding_message_size(max),
            election: ElectionServer::new(backend.clone()).max_decoding_message_size(max),
            health: HealthServer::new(backend.clone()),
            backend,
        }))
    }

    pub fn backend(&self) -> &Backend {
        &self.0.backend
    }

    /// Answers one gRPC request.
    pub async fn call<B>(&self, request: ::http::Request<B>) -> ::http::Response<Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let Services {
            backend,
            kv,
            lease,
            cluster,
            maintenance,
            auth,
            lock,
            election,
            health,
        } = self.0.as_ref();
        let path = request.uri().path();
        let service = path.split('/').nth(1).unwrap_or_default();
        let answered: Result<_, Infallible> = match service {
            "etcdserverpb.KV" => kv.clone().call(request).await,
            "etcdserverpb.Watch" => Ok(watch::call(backend, request).await),
            "etcdserverpb.Lease" => lease.clone().call(request).await,
            "etcdserverpb.Cluster" => cluster.clone().call(request).await,
            "etcdserverpb.Maintenance" => maintenance.clone().call(request).await,
            "etcdserverpb.Auth" => auth.clone().call(request).await,
            "v3lockpb.Lock" => lock.clone().call(request).await,
            "v3electionpb.Election" => election.clone().call(request).await,
            "grpc.health.v1.Health" => health.clone().call(request).await,
            reflection::V1 | reflection::V1_ALPHA => Ok(reflection::call(request).await),
            _ => Ok(Status::unimplemented(format!("unknown service {service}")).into_http()),
        };
        let Ok(mut response) = answered;
        reword_too_large(&mut response);
        response
    }
}

/// A message over the gRPC layer's limit is refused with grpc-go's code and words, which etcd's
/// clients know, not with tonic's.
fn reword_too_large(response: &mut ::http::Response<Body>) {
    let headers = response.headers();
    let is_out_of_range = headers
        .get(Status::GRPC_STATUS)
        .is_some_and(|code| code.as_bytes() == b"11");
    if !is_out_of_range {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else {
        return;
    };
    let Some(sizes) = status
        .message()
        .strip_prefix("Error, decoded message length too large: found ")
    else {
        return;
    };
    let mut numbers = sizes
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty());
    if let (Some(found), Some(limit)) = (numbers.next(), numbers.next()) {
        let message = format!("grpc: received message larger than max ({found} vs. {limit})");
        *response = Status::new(Code::ResourceExhausted, message).into_http();
    }
}
