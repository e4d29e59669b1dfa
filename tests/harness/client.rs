//! One client: sends requests, one after the other, and records what comes of them.

use std::sync::Arc;
use std::time::Duration;

use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_proto::etcdserverpb::{
    CompactionRequest, DefragmentRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::history::{Answer, Call, Outcome, Recorder, Request};
use crate::instance::Endpoint;
use crate::plant::Proxy;
use crate::request::{self, KvAnswer, KvRequest, Op};

/// Longer than any pause of the server.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The way to the server, wherever it is now.
#[derive(Clone)]
pub struct Link {
    endpoint: Endpoint,
    connected: Option<(String, Channel)>,
}

impl Link {
    pub fn new(endpoint: Endpoint) -> Link {
        Link {
            endpoint,
            connected: None,
        }
    }

    /// A connection to the server as soon as it is up.
    pub async fn channel(&mut self) -> Channel {
        let url = self
            .endpoint
            .wait_for(Option::is_some)
            .await
            .expect("the instance outlives its clients")
            .clone()
            .unwrap_or_default();
        match &self.connected {
            Some((connected, channel)) if *connected == url => channel.clone(),
            _ => {
                let endpoint = tonic::transport::Endpoint::from_shared(url.clone());
                let endpoint = endpoint
                    .expect("the server's URL is valid")
                    .timeout(TIMEOUT);
                let channel = endpoint.connect_lazy();
                self.connected = Some((url, channel.clone()));
                channel
            }
        }
    }

    /// Resolves when the server is down.
    pub async fn down(&self) {
        // An error means that the instance is gone.
        let _ = self.endpoint.clone().wait_for(Option::is_none).await;
    }
}

pub struct Client {
    pub number: usize,
    link: Link,
    recorder: Recorder,
    proxy: Arc<Proxy>,
}

impl Client {
    pub fn new(number: usize, link: Link, recorder: Recorder, proxy: Arc<Proxy>) -> Client {
        Client {
            number,
            link,
            recorder,
            proxy,
        }
    }

    /// Sends the request once, records it, and returns the answer if there is one.
    pub async fn send(&mut self, request: Request) -> Option<Answer> {
        let channel = self.link.channel().await;
        let called = self.recorder.now();
        let result = match &request {
            Request::Kv(request) => self.kv(channel, request).await.map(Answer::Kv),
            Request::Grant { id, ttl } => grant(channel, *id, *ttl).await,
            Request::Revoke { id } => revoke(channel, *id).await,
            Request::KeepAlive { id } => keep_alive(channel, *id).await,
            Request::Compact { revision } => compact(channel, *revision).await,
        };
        let returned = self.recorder.now();
        let outcome = outcome(result);
        let answer = match &outcome {
            Outcome::Answered(answer) => Some(answer.clone()),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        };
        self.recorder.call(Call {
            client: self.number,
            called,
            returned,
            request,
            outcome,
        });
        answer
    }

    async fn kv(&self, channel: Channel, request: &KvRequest) -> Result<KvAnswer, Status> {
        let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        let single = |(revision, answer)| KvAnswer {
            revision,
            succeeded: true,
            answers: vec![answer],
        };
        let answer = match request.as_single() {
            Some(Op::Range {
                keys,
                revision,
                limit,
            }) => {
                let range = request::to_range(keys, *revision, *limit, request.serializable);
                single(request::from_range(kv.range(range).await?.into_inner()))
            }
            Some(Op::Put { key, value, lease }) => {
                let put = request::to_put(key, value, *lease);
                single(request::from_put(kv.put(put).await?.into_inner()))
            }
            Some(Op::Delete { keys }) => {
                let delete = request::to_delete(keys);
                let response = kv.delete_range(delete).await?;
                single(request::from_delete(response.into_inner()))
            }
            None => request::from_txn(kv.txn(request.to_txn()).await?.into_inner()),
        };
        Ok(self.proxy.answer(request, answer))
    }

    /// Not recorded: it must not be noticed at all.
    pub async fn defragment(&mut self) {
        let channel = self.link.channel().await;
        // Where it is not implemented, and where the server dies meanwhile, there is nothing to see.
        let _ = MaintenanceClient::new(channel)
            .defragment(DefragmentRequest {})
            .await;
    }
}

async fn grant(channel: Channel, id: i64, ttl: i64) -> Result<Answer, Status> {
    let request = LeaseGrantRequest { id, ttl };
    let granted = LeaseClient::new(channel).lease_grant(request).await?;
    Ok(Answer::Granted {
        ttl: granted.into_inner().ttl,
    })
}

async fn revoke(channel: Channel, id: i64) -> Result<Answer, Status> {
    let request = LeaseRevokeRequest { id };
    let revoked = LeaseClient::new(channel).lease_revoke(request).await?;
    Ok(Answer::Revoked {
        revision: request::revision(revoked.into_inner().header),
    })
}

async fn keep_alive(channel: Channel, id: i64) -> Result<Answer, Status> {
    let once = tokio_stream::once(LeaseKeepAliveRequest { id });
    let answers = LeaseClient::new(channel).lease_keep_alive(once).await?;
    let message = tokio::time::timeout(TIMEOUT, async { answers.into_inner().message().await });
    let message = message
        .await
        .map_err(|_| Status::deadline_exceeded("no answer on the stream"))??;
    let answer = message.ok_or_else(|| Status::unavailable("the stream ended"))?;
    Ok(Answer::KeptAlive { ttl: answer.ttl })
}

async fn compact(channel: Channel, revision: i64) -> Result<Answer, Status> {
    let request = CompactionRequest {
        revision,
        physical: revision % 2 == 0,
    };
    KvClient::new(channel).compact(request).await?;
    Ok(Answer::Compacted)
}

/// Whether a failure says that nothing was done.
fn outcome(result: Result<Answer, Status>) -> Outcome {
    let status = match result {
        Ok(answer) => return Outcome::Answered(answer),
        Err(status) => status,
    };
    let text = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unimplemented
        | Code::DataLoss => Outcome::Refused(text),
        code => Outcome::Unknown(format!("{code:?} {text}")),
    }
}
