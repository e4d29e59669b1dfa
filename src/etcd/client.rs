//! A client of the etcd v3 API, for the layers above: any etcd will do.
//!
//! It is a thin layer over the generated gRPC clients. The crate `etcd-client` is not used because
//! its build needs `protoc`; the tests use it as one of the real clients.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::request_op::Request as OpRequest;
use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use etcd_proto::mvccpb::KeyValue;
use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tower::Service;

use super::in_process::InProcess;

/// Text of the error for a revision that is gone; clients of etcd match on it.
pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach etcd at {endpoint}: {source}")]
    Connect {
        endpoint: String,
        source: tonic::transport::Error,
    },
    #[error("etcd: {}", .0.message())]
    Status(#[from] Box<Status>),
    #[error("etcd closed the watch: {0}")]
    WatchCanceled(String),
    /// The watch asked for what is compacted: list again, and watch from there.
    #[error("etcd has compacted up to revision {0}")]
    WatchCompacted(i64),
    #[error("etcd ended the stream")]
    StreamEnded,
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        ClientError::Status(Box::new(status))
    }
}

impl ClientError {
    /// Whether the same request may succeed if sent again. A write may have been applied.
    pub fn is_transient(&self) -> bool {
        match self {
            ClientError::Connect { .. } | ClientError::StreamEnded => true,
            ClientError::Status(status) => matches!(
                status.code(),
                Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown
            ),
            ClientError::WatchCanceled(_) | ClientError::WatchCompacted(_) => false,
        }
    }

    /// The revision read at is compacted.
    pub fn is_compacted(&self) -> bool {
        match self {
            ClientError::WatchCompacted(_) => true,
            ClientError::Status(status) => status.message() == COMPACTED,
            _ => false,
        }
    }
}

/// Hands out clients, each of one keyspace.
pub trait Keyspaces: Send + Sync {
    fn client(&self, keyspace: &str) -> Client;

    /// Removes a keyspace with all that it holds. Removing one that does not exist is success.
    fn remove<'a>(
        &'a self,
        keyspace: &'a str,
    ) -> futures::future::BoxFuture<'a, Result<(), ClientError>>;
}

/// What takes requests to an etcd: a connection, or the server itself where it is in the same process.
#[derive(Clone)]
pub enum Transport {
    Connection(Channel),
    InProcess(InProcess),
}

impl From<Channel> for Transport {
    fn from(channel: Channel) -> Transport {
        Transport::Connection(channel)
    }
}

impl From<InProcess> for Transport {
    fn from(server: InProcess) -> Transport {
        Transport::InProcess(server)
    }
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        match self {
            Transport::Connection(channel) => channel.poll_ready(context).map_err(to_status),
            Transport::InProcess(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self {
            Transport::Connection(channel) => channel.call(request).map_err(to_status).boxed(),
            Transport::InProcess(server) => server.answer(request),
        }
    }
}

fn to_status(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}

/// One keyspace of an etcd. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
}

/// What a read saw, and at which revision of the keyspace.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub revision: i64,
}

impl Client {
    pub fn new(transport: impl Into<Transport>) -> Client {
        Client {
            transport: transport.into(),
        }
    }

    /// Connects to the default keyspace of the etcd at `endpoint`, such as `http://127.0.0.1:2379`.
    pub async fn connect(endpoint: &str) -> Result<Client, ClientError> {
        let connect = |source| ClientError::Connect {
            endpoint: endpoint.to_owned(),
            source,
        };
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .map_err(connect)?
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(connect)?;
        Ok(Client::new(channel))
    }

    fn kv(&self) -> KvClient<Transport> {
        // A page of a list has no bound of its own.
        KvClient::new(self.transport.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ClientError> {
        Ok(self.kv().range(request).await?.into_inner())
    }

    /// The key now, and the keyspace's revision.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<At<Option<KeyValue>>, ClientError> {
        let mut response = self
            .range(RangeRequest {
                key: key.into(),
                limit: 1,
                ..RangeRequest::default()
            })
            .await?;
        Ok(At {
            revision: header_revision(response.header),
            value: response.kvs.pop(),
        })
    }

    /// Every key under `prefix` at one revision, in order.
    pub async fn list(&self, prefix: impl Into<Bytes>) -> Result<At<Vec<KeyValue>>, ClientError> {
        let (key, range_end) = prefix_range(prefix.into());
        let response = self
            .range(RangeRequest {
                key,
                range_end,
                ..RangeRequest::default()
            })
            .await?;
        Ok(At {
            revision: header_revision(response.header),
            value: response.kvs,
        })
    }

    /// Sets the key, whatever it holds. Returns the revision.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<i64, ClientError> {
        let response = self
            .kv()
            .put(PutRequest {
                key: key.into(),
                value: value.into(),
                ..PutRequest::default()
            })
            .await?;
        Ok(header_revision(response.into_inner().header))
    }

    /// Deletes every key under `prefix`. Returns how many there were.
    pub async fn delete_prefix(&self, prefix: impl Into<Bytes>) -> Result<i64, ClientError> {
        let (key, range_end) = prefix_range(prefix.into());
        let response = self
            .kv()
            .delete_range(DeleteRangeRequest {
                key,
                range_end,
                prev_kv: false,
            })
            .await?;
        Ok(response.into_inner().deleted)
    }

    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, ClientError> {
        Ok(self.kv().txn(request).await?.into_inner())
    }

    /// Forgets what was superseded at or before `revision`.
    pub async fn compact(&self, revision: i64) -> Result<(), ClientError> {
        self.kv()
            .compact(CompactionRequest {
                revision,
                physical: false,
            })
            .await?;
        Ok(())
    }

    /// Grants a lease of `ttl` seconds and returns its id.
    pub async fn lease_grant(&self, ttl: i64) -> Result<i64, ClientError> {
        let response = LeaseClient::new(self.transport.clone())
            .lease_grant(LeaseGrantRequest { ttl, id: 0 })
            .await?;
        Ok(response.into_inner().id)
    }

    pub async fn lease_revoke(&self, id: i64) -> Result<(), ClientError> {
        LeaseClient::new(self.transport.clone())
            .lease_revoke(LeaseRevokeRequest { id })
            .await?;
        Ok(())
    }

    /// Renews the lease once. Returns the seconds that it now has, 0 if it is gone.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<i64, ClientError> {
        let once = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut answers = LeaseClient::new(self.transport.clone())
            .lease_keep_alive(once)
            .await?
            .into_inner();
        let answer = answers.message().await?.ok_or(ClientError::StreamEnded)?;
        Ok(answer.ttl)
    }

    /// Opens one watch on a stream of its own. Resolves once the server has created it.
    pub async fn watch(&self, create: WatchCreateRequest) -> Result<Watch, ClientError> {
        let (requests, outgoing) = mpsc::channel(4);
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests
            .send(request)
            .await
            .map_err(|_| ClientError::StreamEnded)?;
        let mut answers = WatchClient::new(self.transport.clone())
            .max_decoding_message_size(usize::MAX)
            .watch(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let created = answers.next().await.ok_or(ClientError::StreamEnded)??;
        if let ControlFlow::Break(error) = canceled(&created) {
            return Err(error);
        }
        Ok(Watch { requests, answers })
    }

    /// Watches every key under `prefix` from `start_revision` on.
    pub async fn watch_prefix(
        &self,
        prefix: impl Into<Bytes>,
        start_revision: i64,
    ) -> Result<Watch, ClientError> {
        let (key, range_end) = prefix_range(prefix.into());
        self.watch(WatchCreateRequest {
            key,
            range_end,
            start_revision,
            ..WatchCreateRequest::default()
        })
        .await
    }
}

fn canceled(response: &WatchResponse) -> ControlFlow<ClientError> {
    if !response.canceled {
        return ControlFlow::Continue(());
    }
    ControlFlow::Break(if response.compact_revision > 0 {
        ClientError::WatchCompacted(response.compact_revision)
    } else {
        ClientError::WatchCanceled(response.cancel_reason.clone())
    })
}

/// An open watch. Dropping it closes the stream.
pub struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watch {
    /// The next answer: events, or none for a progress notification, which says that everything up
    /// to the header's revision was delivered. After an error the watch is over.
    pub async fn next(&mut self) -> Result<WatchResponse, ClientError> {
        let response = self
            .answers
            .next()
            .await
            .ok_or(ClientError::StreamEnded)??;
        match canceled(&response) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(response),
        }
    }

    /// Asks for a progress notification; it comes as an answer without events.
    pub async fn request_progress(&self) -> Result<(), ClientError> {
        self.progress_requester().request().await
    }

    /// Asks for progress from beside the task that reads the answers.
    pub fn progress_requester(&self) -> ProgressRequester {
        ProgressRequester {
            requests: self.requests.clone(),
        }
    }
}

#[derive(Clone)]
pub struct ProgressRequester {
    requests: mpsc::Sender<WatchRequest>,
}

impl ProgressRequester {
    pub async fn request(&self) -> Result<(), ClientError> {
        let request = WatchRequest {
            request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
        };
        self.requests
            .send(request)
            .await
            .map_err(|_| ClientError::StreamEnded)
    }
}

/// The first key after every key that starts with `prefix`; a zero byte ("no end") if there is none.
///
/// ```
/// assert_eq!(cke::etcd::client::prefix_end(b"/a/"), "/a0");
/// assert_eq!(cke::etcd::client::prefix_end(b"a\xff"), "b");
/// assert_eq!(cke::etcd::client::prefix_end(b"\xff"), "\0");
/// ```
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff);
    match kept {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        }
        None => Bytes::from_static(b"\0"),
    }
}

/// Key and range end of a request for every key under `prefix`; the empty prefix is every key.
pub fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    let end = prefix_end(&prefix);
    if prefix.is_empty() {
        return (Bytes::from_static(b"\0"), end);
    }
    (prefix, end)
}

/// The revision that an answer's header carries.
pub fn header_revision(header: Option<etcd_proto::etcdserverpb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// Holds if the key's last change was at `revision`; 0 stands for a key that does not exist.
pub fn mod_revision_is(key: impl Into<Bytes>, revision: i64) -> Compare {
    Compare {
        key: key.into(),
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    }
}

/// An operation of a transaction: set the key.
pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> RequestOp {
    RequestOp {
        request: Some(OpRequest::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            ..PutRequest::default()
        })),
    }
}

/// An operation of a transaction: set the key, until the lease ends.
pub fn put_with_lease(key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(OpRequest::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
            ..PutRequest::default()
        })),
    }
}

/// An operation of a transaction: read the key.
pub fn get(key: impl Into<Bytes>) -> RequestOp {
    RequestOp {
        request: Some(OpRequest::RequestRange(RangeRequest {
            key: key.into(),
            limit: 1,
            ..RangeRequest::default()
        })),
    }
}

/// An operation of a transaction: delete the key.
pub fn delete(key: impl Into<Bytes>) -> RequestOp {
    RequestOp {
        request: Some(OpRequest::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            ..DeleteRangeRequest::default()
        })),
    }
}

/// Hands out the one keyspace of a single etcd, whatever is asked for.
pub struct SingleKeyspace(pub Client);

impl Keyspaces for SingleKeyspace {
    fn client(&self, _keyspace: &str) -> Client {
        self.0.clone()
    }

    fn remove<'a>(
        &'a self,
        _keyspace: &'a str,
    ) -> futures::future::BoxFuture<'a, Result<(), ClientError>> {
        Box::pin(async {
            self.0
                .delete_prefix(Bytes::from_static(b""))
                .await
                .map(drop)
        })
    }
}

/// Shared handle to wherever the keyspaces are.
pub type SharedKeyspaces = Arc<dyn Keyspaces>;
