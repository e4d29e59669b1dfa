//! As much of an etcd as the tests of this layer and of the platform need, in memory: revisions, transactions on mod revisions,
//! watches with replay. It speaks gRPC, as the tests are of a client of the etcd API.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::kv_server::{Kv, KvServer};
use etcd_proto::etcdserverpb::range_request::SortOrder;
use etcd_proto::etcdserverpb::request_op::Request as Op;
use etcd_proto::etcdserverpb::response_op::Response as OpResponse;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::watch_server::{self, WatchServer};
use etcd_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, ResponseOp,
    TxnRequest, TxnResponse, WatchRequest, WatchResponse,
};
use etcd_proto::mvccpb::event::EventType;
use etcd_proto::mvccpb::{Event, KeyValue};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};

use crate::etcd::client::{Client, ClientError, Keyspaces};

/// Of each pipe between a client and its server.
const BUFFER_BYTES: usize = 64 * 1024;

/// Keyspaces in memory, each with a server of its own.
#[derive(Default)]
pub(crate) struct MemoryKeyspaces {
    clients: Mutex<BTreeMap<String, Client>>,
    frost: Arc<Frost>,
}

/// Freezes all servers at a transaction, so that a test can kill what waits for the answer.
#[derive(Default)]
struct Frost {
    plan: Mutex<Option<Plan>>,
    frozen: Notify,
    cut: Notify,
}

struct Plan {
    transactions_left: u32,
    /// Whether the transaction at which it freezes is made: its client cannot know.
    makes_last: bool,
}

impl MemoryKeyspaces {
    /// Freezes at the `number`-th transaction from now (from 1). Resolves when it has.
    pub(crate) async fn freeze_at(&self, number: u32, makes_last: bool) {
        let frozen = self.frost.frozen.notified();
        tokio::pin!(frozen);
        frozen.as_mut().enable();
        *self.frost.plan.lock() = Some(Plan {
            transactions_left: number,
            makes_last,
        });
        frozen.await;
    }

    /// Ends every watch that is open.
    pub(crate) fn cut_watches(&self) {
        self.frost.cut.notify_waiters();
    }

    /// Goes on serving. What waited for an answer gets none.
    pub(crate) fn thaw(&self) {
        *self.frost.plan.lock() = None;
    }
}

enum Weather {
    Fine,
    /// Make the transaction, do not answer.
    FreezeAfter,
    FreezeBefore,
}

impl Frost {
    fn weather(&self) -> Weather {
        let mut plan = self.plan.lock();
        let Some(plan) = plan.as_mut() else {
            return Weather::Fine;
        };
        match plan.transactions_left {
            0 => Weather::FreezeBefore,
            1 => {
                plan.transactions_left = 0;
                self.frozen.notify_waiters();
                if plan.makes_last {
                    Weather::FreezeAfter
                } else {
                    Weather::FreezeBefore
                }
            }
            _ => {
                plan.transactions_left -= 1;
                Weather::Fine
            }
        }
    }
}

impl Keyspaces for MemoryKeyspaces {
    fn client(&self, keyspace: &str) -> Client {
        let mut clients = self.clients.lock();
        let client = clients.entry(keyspace.to_owned());
        client.or_insert_with(|| serve(&self.frost)).clone()
    }

    fn remove<'a>(&'a self, keyspace: &'a str) -> BoxFuture<'a, Result<(), ClientError>> {
        Box::pin(async move {
            self.clients.lock().remove(keyspace);
            Ok(())
        })
    }
}

fn serve(frost: &Arc<Frost>) -> Client {
    let keyspace = Keyspace {
        state: Arc::new(Mutex::new(State {
            revision: 1,
            ..State::default()
        })),
        revision: Arc::new(watch::Sender::new(1)),
        frost: Arc::clone(frost),
    };
    let (connect, connections) = mpsc::unbounded_channel::<DuplexStream>();
    let connections = UnboundedReceiverStream::new(connections).map(Ok::<_, std::io::Error>);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(KvServer::new(keyspace.clone()))
            .add_service(WatchServer::new(keyspace))
            .serve_with_incoming(connections),
    );
    let connector = tower::service_fn(move |_: http::Uri| {
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        let connected = connect.send(theirs).map(|()| TokioIo::new(ours));
        std::future::ready(connected.map_err(std::io::Error::other))
    });
    Client::new(Endpoint::from_static("http://memory").connect_with_connector_lazy(connector))
}

#[derive(Clone)]
struct Keyspace {
    state: Arc<Mutex<State>>,
    revision: Arc<watch::Sender<i64>>,
    frost: Arc<Frost>,
}

#[derive(Default)]
struct State {
    revision: i64,
    live: BTreeMap<Bytes, KeyValue>,
    log: Vec<Event>,
}

fn in_range(key: &[u8], from: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == from,
        [0] => key >= from,
        _ => key >= from && key < end,
    }
}

impl State {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.revision,
            ..ResponseHeader::default()
        })
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let found = self.live.values();
        let mut kvs: Vec<KeyValue> = found
            .filter(|kv| in_range(&kv.key, &request.key, &request.range_end))
            .cloned()
            .collect();
        if request.sort_order() == SortOrder::Descend {
            kvs.reverse();
        }
        let count = kvs.len();
        if request.limit > 0 {
            kvs.truncate(usize::try_from(request.limit).expect("a limit"));
        }
        RangeResponse {
            header: self.header(),
            more: kvs.len() < count,
            count: i64::try_from(count).expect("a count"),
            kvs,
        }
    }

    fn put(&mut self, request: PutRequest, revision: i64) {
        let before = self.live.get(&request.key);
        let kv = KeyValue {
            create_revision: before.map_or(revision, |kv| kv.create_revision),
            version: before.map_or(1, |kv| kv.version + 1),
            mod_revision: revision,
            key: request.key.clone(),
            value: request.value,
            lease: 0,
        };
        self.live.insert(request.key, kv.clone());
        self.log.push(Event {
            r#type: EventType::Put.into(),
            kv: Some(kv),
            prev_kv: None,
        });
    }

    fn delete(&mut self, request: &DeleteRangeRequest, revision: i64) -> i64 {
        let doomed = self.live.keys();
        let doomed: Vec<Bytes> = doomed
            .filter(|key| in_range(key, &request.key, &request.range_end))
            .cloned()
            .collect();
        for key in &doomed {
            self.live.remove(key);
            self.log.push(Event {
                r#type: EventType::Delete.into(),
                kv: Some(KeyValue {
                    key: key.clone(),
                    mod_revision: revision,
                    ..KeyValue::default()
                }),
                prev_kv: None,
            });
        }
        i64::try_from(doomed.len()).expect("a count")
    }

    fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, Status> {
        let mut succeeded = true;
        for compare in &request.compare {
            let Some(TargetUnion::ModRevision(expected)) = compare.target_union else {
                return Err(Status::unimplemented("only mod revisions are compared"));
            };
            if compare.result() != CompareResult::Equal || compare.target() != CompareTarget::Mod {
                return Err(Status::unimplemented("only equality is compared"));
            }
            let actual = self.live.get(&compare.key).map_or(0, |kv| kv.mod_revision);
            succeeded &= actual == expected;
        }
        let operations = if succeeded {
            request.success
        } else {
            request.failure
        };
        if operations.len() > 128 {
            return Err(Status::invalid_argument(
                "etcdserver: too many operations in txn request",
            ));
        }
        let (next, before) = (self.revision + 1, self.log.len());
        let mut responses = Vec::new();
        for operation in operations {
            let response = match operation.request {
                Some(Op::RequestPut(put)) => {
                    self.put(put, next);
                    OpResponse::ResponsePut(PutResponse::default())
                }
                Some(Op::RequestDeleteRange(delete)) => {
                    let deleted = self.delete(&delete, next);
                    OpResponse::ResponseDeleteRange(DeleteRangeResponse {
                        deleted,
                        ..DeleteRangeResponse::default()
                    })
                }
                Some(Op::RequestRange(range)) => OpResponse::ResponseRange(self.range(&range)),
                _ => return Err(Status::unimplemented("nested transactions")),
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        if self.log.len() > before {
            self.revision = next;
        }
        Ok(TxnResponse {
            header: self.header(),
            succeeded,
            responses,
        })
    }

    /// Events in the range from `from` on, and the revision up to which that is all.
    fn events(&self, key: &[u8], end: &[u8], from: i64) -> (Vec<Event>, i64) {
        let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let first = self.log.partition_point(|event| revision(event) < from);
        let is_wanted = |event: &&Event| {
            event
                .kv
                .as_ref()
                .is_some_and(|kv| in_range(&kv.key, key, end))
        };
        let events = self.log[first..].iter().filter(is_wanted);
        (events.cloned().collect(), self.revision)
    }
}

impl Keyspace {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let outcome = change(&mut state);
        self.revision.send_replace(state.revision);
        outcome
    }

    async fn watch(
        self,
        mut requests: Streaming<WatchRequest>,
        answers: mpsc::Sender<Result<WatchResponse, Status>>,
    ) -> Option<()> {
        let first = requests.message().await.ok()??;
        let Some(RequestUnion::CreateRequest(create)) = first.request_union else {
            return None;
        };
        let header = self.state.lock().header();
        let created = WatchResponse {
            header,
            created: true,
            ..WatchResponse::default()
        };
        answers.send(Ok(created)).await.ok()?;
        let mut from = match create.start_revision {
            0 => self.state.lock().revision + 1,
            from => from,
        };
        let mut revision = self.revision.subscribe();
        loop {
            let (events, seen) = {
                revision.borrow_and_update();
                self.state
                    .lock()
                    .events(&create.key, &create.range_end, from)
            };
            from = from.max(seen + 1);
            if !events.is_empty() {
                let header = self.state.lock().header();
                let response = WatchResponse {
                    header,
                    events,
                    ..WatchResponse::default()
                };
                answers.send(Ok(response)).await.ok()?;
            }
            tokio::select! {
                changed = revision.changed() => changed.ok()?,
                () = self.frost.cut.notified() => return None,
                request = requests.message() => { request.ok()??; }
            }
        }
    }
}

#[tonic::async_trait]
impl Kv for Keyspace {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        Ok(Response::new(self.state.lock().range(request.get_ref())))
    }

    type RangeStreamStream = tokio_stream::Empty<Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        _request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("streamed ranges"))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(self.change(|state| {
            state.revision += 1;
            state.put(request.into_inner(), state.revision);
            PutResponse {
                header: state.header(),
                prev_kv: None,
            }
        })))
    }

    async fn delete_range(
        &self,
        _request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("only within a transaction"))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let weather = self.frost.weather();
        if let Weather::FreezeBefore = weather {
            return std::future::pending().await;
        }
        let outcome = self.change(|state| state.txn(request.into_inner()));
        if let Weather::FreezeAfter = weather {
            return std::future::pending().await;
        }
        outcome.map(Response::new)
    }

    async fn compact(
        &self,
        _request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented("compaction"))
    }
}

#[tonic::async_trait]
impl watch_server::Watch for Keyspace {
    type WatchStream =
        Pin<Box<dyn futures::Stream<Item = Result<WatchResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        tokio::spawn(self.clone().watch(request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
