//! KV: Range, Put, DeleteRange, Txn, Compact.

use etcd_proto::etcdserverpb::kv_server::Kv;
use etcd_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use prost::Message;
use tonic::{Request, Response, Status, async_trait};

use super::Backend;
use super::answer::{self, Messages, Records};
use crate::etcd::batch::{Answer, Command};
use crate::etcd::error::Error;
use crate::etcd::keyspace::Keyspace;
use crate::etcd::range;
use crate::etcd::txn::{self, Execution};
use crate::etcd::view::{Fault, Fetched, Overlay, Staged, State};

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
    for _ in 0..READS {
        let evaluated = if on_snapshot {
            let snapshot = keyspace.state.read().clone();
            evaluate(&snapshot, &fetched)
        } else {
            evaluate(&keyspace.state.read(), &fetched)
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

#[async_trait]
impl Kv for Backend {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        range::validate(&request)?;
        let keyspace = self.keyspace().await?;
        // One key is read faster than a snapshot is taken.
        let one_key = request.range_end.is_empty();
        let evaluate = |state: &State, fetched: &Fetched| range::evaluate(state, &request, fetched);
        let (answer, fetched) = read(&keyspace, evaluate, !one_key).await?;
        keyspace.metrics.server.count_range();
        let mut response = Messages { fetched: &fetched }.range(&answer);
        response.header = Some(self.headers().at(answer.revision));
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        txn::validate_put(&request)?;
        self.check_size(&request)?;
        let keyspace = self.keyspace().await?;
        let Answer::Put(answer) = keyspace.submit(Command::Put(request)).await? else {
            return Err(Error::Corrupt.into());
        };
        let fetched = answer::fetch(&keyspace, &answer).await?;
        let mut response = Messages { fetched: &fetched }.put(&answer);
        response.header = Some(self.headers().at(answer.revision));
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        txn::validate_delete(&request)?;
        self.check_size(&request)?;
        let keyspace = self.keyspace().await?;
        let Answer::Delete(answer) = keyspace.submit(Command::Delete(request)).await? else {
            return Err(Error::Corrupt.into());
        };
        let fetched = answer::fetch(&keyspace, &answer).await?;
        let mut response = Messages { fetched: &fetched }.delete(&answer);
        response.header = Some(self.headers().at(answer.revision));
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        txn::validate(&request, self.server.config.max_txn_ops)?;
        let keyspace = self.keyspace().await?;
        let (answer, fetched) = if txn::is_read_only(&request) {
            let evaluate =
                |state: &State, fetched: &Fetched| evaluate_read_only(state, &request, fetched);
            let read = read(&keyspace, evaluate, true).await?;
            keyspace.metrics.server.count_read(&read.0);
            read
        } else {
            self.check_size(&request)?;
            let Answer::Txn(answer) = keyspace.submit(Command::Txn(request)).await? else {
                return Err(Error::Corrupt.into());
            };
            let fetched = answer::fetch(&keyspace, &answer).await?;
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
        let CompactionRequest { revision, physical } = request.into_inner();
        let keyspace = self.keyspace().await?;
        let Answer::Done { revision: now } = keyspace.submit(Command::Compact(revision)).await?
        else {
            return Err(Error::Corrupt.into());
        };
        if physical {
            let freed = keyspace.compact_physically(revision).await;
            freed.map_err(Error::from)?;
        }
        Ok(Response::new(CompactionResponse {
            header: Some(self.headers().at(now)),
        }))
    }
}
