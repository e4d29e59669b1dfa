//! Election: whoever stands first in the queue of its name leads.

use std::pin::Pin;

use bytes::Bytes;
use etcd_proto::etcdserverpb::{TxnRequest, WatchCreateRequest};
use etcd_proto::mvccpb::KeyValue;
use etcd_proto::mvccpb::event::EventType;
use etcd_proto::v3electionpb::election_server::Election;
use etcd_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::queue::{self, Place, to_status};
use super::{Backend, Headers};
use crate::etcd::auth::Credentials;
use crate::etcd::client::{self, Client, ClientError};

const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
const MISSING_LEADER: &str = "\"leader\" field must be provided";
/// Leaders that wait to be told to one observer.
const OBSERVED: usize = 16;

/// Writes a new value under the leader's key, if that is still the leader's. The revision of it.
async fn proclaim(
    client: &Client,
    key: Bytes,
    created: i64,
    lease: i64,
    value: Bytes,
) -> Result<i64, Status> {
    let request = TxnRequest {
        compare: vec![queue::created_at(key.clone(), created)],
        success: vec![queue::put_with_lease(key, value, lease)],
        failure: Vec::new(),
    };
    let response = client.txn(request).await.map_err(to_status)?;
    if !response.succeeded {
        return Err(Status::unknown(NOT_LEADER));
    }
    Ok(client::header_revision(response.header))
}

#[async_trait]
impl Election for Backend {
    /// Answers once the caller leads. Whoever gives up before leaves no trace.
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let (name, lease) = (&request.get_ref().name, request.get_ref().lease);
        self.check_queue(&request, name, lease).await?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        let client = self.client();
        let place = Place::take(client.clone(), &name, lease, value.clone());
        let place = place.await.map_err(to_status)?;
        let mut revision = place.created;
        if place.found.as_ref().is_some_and(|kv| kv.value != value) {
            let key = place.key.clone();
            revision = proclaim(&client, key, place.created, place.lease, value).await?;
        }
        place.wait().await.map_err(to_status)?;
        let (rev, lease) = (place.created, place.lease);
        let leader = LeaderKey {
            name,
            key: place.keep(),
            rev,
            lease,
        };
        Ok(Response::new(CampaignResponse {
            header: Some(self.headers().at(revision)),
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let credentials = Credentials::of(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        let LeaderKey {
            key, rev, lease, ..
        } = leader;
        self.check_own(&credentials, &key).await?;
        let revision = proclaim(&self.client(), key, rev, lease, value).await?;
        Ok(Response::new(ProclaimResponse {
            header: Some(self.headers().at(revision)),
        }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        self.check_look(&request, &request.get_ref().name).await?;
        let prefix = queue::prefix_of(&request.into_inner().name);
        let found = queue::first(&self.client(), &prefix).await;
        let found = found.map_err(to_status)?;
        let kv = found.value.ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse {
            header: Some(self.headers().at(found.revision)),
            kv: Some(kv),
        }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        self.check_look(&request, &request.get_ref().name).await?;
        let prefix = queue::prefix_of(&request.into_inner().name);
        let (answers, observed) = mpsc::channel(OBSERVED);
        let (client, headers, draining) = (self.client(), self.headers(), self.draining.clone());
        tokio::spawn(async move {
            let outcome = tokio::select! {
                () = answers.closed() => Ok(()),
                () = draining.cancelled() => Ok(()),
                outcome = observe(&client, &prefix, headers, &answers) => outcome,
            };
            if let Err(error) = outcome {
                let _ = answers.send(Err(to_status(error))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(observed))))
    }

    /// Who does not lead any more has nothing to resign.
    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let credentials = Credentials::of(&request);
        let leader = request.into_inner().leader;
        let leader = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        self.check_own(&credentials, &leader.key).await?;
        let request = TxnRequest {
            compare: vec![queue::created_at(leader.key.clone(), leader.rev)],
            success: vec![client::delete(leader.key)],
            failure: Vec::new(),
        };
        let response = self.client().txn(request).await.map_err(to_status)?;
        Ok(Response::new(ResignResponse {
            header: response.header,
        }))
    }
}

/// Tells of each leader and each of its values, from the present one on. Nobody may be observing any more.
async fn observe(
    client: &Client,
    prefix: &Bytes,
    headers: Headers,
    answers: &mpsc::Sender<Result<LeaderResponse, Status>>,
) -> Result<(), ClientError> {
    let tell = async |revision: i64, kv: KeyValue| {
        let answer = LeaderResponse {
            header: Some(headers.at(revision)),
            kv: Some(kv),
        };
        answers.send(Ok(answer)).await.is_ok()
    };
    loop {
        let found = queue::first(client, prefix).await?;
        let (revision, kv) = match found.value {
            Some(kv) => (found.revision, kv),
            None => {
                let mut watch = client.watch_prefix(prefix.clone(), found.revision).await?;
                loop {
                    let mut events = watch.next().await?.events.into_iter();
                    let put = events.find(|event| event.r#type == i32::from(EventType::Put));
                    if let Some(kv) = put.and_then(|event| event.kv) {
                        break (kv.mod_revision, kv);
                    }
                }
            }
        };
        let key = kv.key.clone();
        if !tell(revision, kv).await {
            return Ok(());
        }
        let mut watch = client
            .watch(WatchCreateRequest {
                key,
                start_revision: revision + 1,
                ..WatchCreateRequest::default()
            })
            .await?;
        'leads: loop {
            let response = watch.next().await?;
            let revision = client::header_revision(response.header);
            for event in response.events {
                if event.r#type == i32::from(EventType::Delete) {
                    break 'leads;
                }
                if let Some(kv) = event.kv
                    && !tell(revision, kv).await
                {
                    return Ok(());
                }
            }
        }
    }
}
