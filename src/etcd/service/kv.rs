//! KV: Range, Put, DeleteRange, Txn, Compact.

use etcd_proto::etcdserverpb::kv_server::Kv;
use etcd_proto::etcdserverpb::{
    AlarmType, CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader,
    TxnRequest, TxnResponse,
};
use std::sync::Arc;

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::Backend;
use super::answer::{self, Messages, Records};
use crate::etcd::alarm;
use crate::etcd::auth::Credentials;
use crate::etcd::batch::{Answer, Command};
use crate::etcd::error::Error;
use crate::etcd::keyspace::Keyspace;
use crate::etcd::range::{self, RangeAnswer};
use crate::etcd::txn::{self, Execution};
use crate::etcd::view::{Fault, Fetched, Overlay, Staged, State};

/// Parts of a streamed range that wait for the connection, and the bytes of values in one.
const STREAM_PARTS: usize = 2;
const STREAM_PART_BYTES: usize = 1 << 20;

/// How often a read starts again because compaction overtook it.
const READS: usize = 5;

impl Backend {
    fn check_size(&self, request: &impl Message) -> Result<(), Error> {
        if request.encoded_len() > self.server.config.max_request_bytes {
            return Err(Error::RequestTooLarge);
        }
        Ok(())
    }
}

/// Evaluates on a snapshot until all that the answer needs is at hand.
async fn read<T: Records>(
    keyspace: &Keyspace,
    evaluate: impl Fn(&State, &Fetched) -> Result<T, Fault>,
    on_snapshot: bool,
) -> Result<(T, Fetched), Error> {
    let mut fetched = Fetched::new();
    for attempt in 0..READS {
        if attempt > 1 {
            // Another server may have compacted what this one does not know of yet.
            keyspace.catch_up().await?;
        }
        let evaluated = {
            let state = keyspace.state.read();
            if state.alarms.is_active(AlarmType::Corrupt) {
                return Err(Error::Corrupt);
            }
            if on_snapshot {
                let snapshot = state.clone();
                drop(state);
                evaluate(&snapshot, &fetched)
            } else {
                evaluate(&state, &fetched)
            }
        };
        match evaluated {
            Ok(answer) => {
                let values = answer::fetch(keyspace, &answer).await?;
                if answer::is_complete(&answer, &values) {
                    return Ok((answer, values));
                }
            }
            Err(Fault::Refused(error)) => return Err(error),
            Err(Fault::Needs(needed)) => keyspace.fetch(&needed, &mut fetched).await?,
        }
    }
    Err(Error::Compacted)
}

/// Evaluates on a snapshot until it is known which records the answer has.
async fn plan(
    keyspace: &Keyspace,
    evaluate: impl Fn(&State, &Fetched) -> Result<RangeAnswer, Fault>,
) -> Result<RangeAnswer, Error> {
    let mut fetched = Fetched::new();
    for attempt in 0..READS {
        if attempt > 1 {
            keyspace.catch_up().await?;
        }
        let snapshot = keyspace.state.read().clone();
        match evaluate(&snapshot, &fetched) {
            Ok(answer) => return Ok(answer),
            Err(Fault::Refused(error)) => return Err(error),
            Err(Fault::Needs(needed)) => keyspace.fetch(&needed, &mut fetched).await?,
        }
    }
    Err(Error::Compacted)
}

fn evaluate_read_only(
    state: &State,
    request: &TxnRequest,
    fetched: &Fetched,
) -> Result<txn::TxnAnswer, Fault> {
    let no_lease = |_| false;
    let view = Staged {
        state,
        overlay: &mut Overlay::default(),
        revision: state.revision,
        compacted: state.compacted,
    };
    Execution::new(view, &no_lease, fetched).txn(request)
}

/// Sends a range in parts; what stands once in it, in the last. Nobody may be receiving any more: then it ends.
async fn send_parts(
    keyspace: Arc<Keyspace>,
    answer: RangeAnswer,
    header: ResponseHeader,
    parts: mpsc::Sender<Result<RangeStreamResponse, Status>>,
) {
    let _held = keyspace.hold_compaction().await;
    let RangeAnswer { records, .. } = &answer;
    let mut rest = records.as_slice();
    loop {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|record| {
            let fits = bytes < STREAM_PART_BYTES;
            bytes += record.stored_len();
            fits
        });
        let (now, later) = rest.split_at(fitting.count());
        let last = later.is_empty();
        let part = RangeAnswer {
            records: now.to_vec(),
            more: answer.more && last,
            count: if last { answer.count } else { 0 },
            ..answer
        };
        let message = match answer::fetch(&keyspace, &part).await {
            Ok(fetched) if answer::is_complete(&part, &fetched) => {
                let mut response = Messages { fetched: &fetched }.range(&part);
                response.header = last.then_some(header);
                Ok(RangeStreamResponse {
                    range_response: Some(response),
                })
            }
            Ok(_) => Err(Error::Compacted.into()),
            Err(error) => Err(error.into()),
        };
        let failed = message.is_err();
        if parts.send(message).await.is_err() || failed || last {
            return;
        }
        rest = later;
    }
}

#[async_trait]
impl Kv for Backend {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let credentials = Credentials::of(&request);
        let request = request.into_inner();
        range::validate(&request)?;
        let keyspace = self.keyspace_to_read(request.serializable).await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_range(&request)?;
        let proof = caller.proof();
        // One key is read faster than a snapshot is taken.
        let one_key = request.range_end.is_empty();
        let evaluate = |state: &State, fetched: &Fetched| {
            proof.check(&state.auth)?;
            range::evaluate(state, &request, fetched)
        };
        let (answer, fetched) = read(&keyspace, evaluate, !one_key).await?;
        keyspace.metrics.server.count_range();
        let mut response = Messages { fetched: &fetched }.range(&answer);
        response.header = Some(self.headers().at(answer.revision));
        Ok(Response::new(response))
    }

    type RangeStreamStream = ReceiverStream<Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let credentials = Credentials::of(&request);
        let request = request.into_inner();
        range::validate(&request)?;
        let keyspace = self.keyspace_to_read(request.serializable).await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_range(&request)?;
        let proof = caller.proof();
        let evaluate = |state: &State, fetched: &Fetched| {
            proof.check(&state.auth)?;
            range::evaluate(state, &request, fetched)
        };
        let answer = plan(&keyspace, evaluate).await?;
        let (parts, outgoing) = mpsc::channel(STREAM_PARTS);
        let header = self.headers().at(answer.revision);
        tokio::spawn(send_parts(keyspace, answer, header, parts));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let credentials = Credentials::of(&request);
        let request = request.into_inner();
        txn::validate_put(&request)?;
        self.check_size(&request)?;
        let keyspace = self.checked_keyspace().await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_put(&request, &keyspace.leases)?;
        self.check_quota(&keyspace, alarm::put_cost(&request))
            .await?;
        let Answer::Put(answer) = keyspace
            .submit_as(Command::Put(request), caller.proof())
            .await?
        else {
            return Err(Error::Corrupt.into());
        };
        let fetched = answer::fetch_all(&keyspace, &answer).await?;
        let mut response = Messages { fetched: &fetched }.put(&answer);
        response.header = Some(self.headers().at(answer.revision));
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let credentials = Credentials::of(&request);
        let request = request.into_inner();
        txn::validate_delete(&request)?;
        self.check_size(&request)?;
        let keyspace = self.checked_keyspace().await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_delete(&request)?;
        let Answer::Delete(answer) = keyspace
            .submit_as(Command::Delete(request), caller.proof())
            .await?
        else {
            return Err(Error::Corrupt.into());
        };
        let fetched = answer::fetch_all(&keyspace, &answer).await?;
        let mut response = Messages { fetched: &fetched }.delete(&answer);
        response.header = Some(self.headers().at(answer.revision));
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let credentials = Credentials::of(&request);
        let request = request.into_inner();
        txn::validate(&request, self.server.config.max_txn_ops)?;
        let keyspace = if txn::is_read_only(&request) {
            self.keyspace_to_read(txn::is_serializable(&request))
                .await?
        } else {
            self.checked_keyspace().await?
        };
        let caller = credentials.caller(&keyspace)?;
        caller.check_txn(&request, &keyspace.leases)?;
        let (answer, fetched) = if txn::is_read_only(&request) {
            let proof = caller.proof();
            let evaluate = |state: &State, fetched: &Fetched| {
                proof.check(&state.auth)?;
                evaluate_read_only(state, &request, fetched)
            };
            let read = read(&keyspace, evaluate, true).await?;
            keyspace.metrics.server.count_read(&read.0);
            read
        } else {
            self.check_size(&request)?;
            self.check_quota(&keyspace, alarm::txn_cost(&request))
                .await?;
            let Answer::Txn(answer) = keyspace
                .submit_as(Command::Txn(request), caller.proof())
                .await?
            else {
                return Err(Error::Corrupt.into());
            };
            let fetched = answer::fetch_all(&keyspace, &answer).await?;
            (answer, fetched)
        };
        let mut response = Messages { fetched: &fetched }.txn(&answer);
        response.header = Some(self.headers().at(answer.revision));
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let credentials = Credentials::of(&request);
        let CompactionRequest { revision, physical } = request.into_inner();
        let keyspace = self.checked_keyspace().await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_root()?;
        let compact = Command::Compact(revision);
        let Answer::Done { revision: now } = keyspace.submit_as(compact, caller.proof()).await?
        else {
            return Err(Error::Corrupt.into());
        };
        if physical {
            let freed = keyspace.compact_physically(revision, true).await;
            freed.map_err(Error::from)?;
        }
        Ok(Response::new(CompactionResponse {
            header: Some(self.headers().at(now)),
        }))
    }
}
