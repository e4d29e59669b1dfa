//! Clients that grant leases, and that keep one alive.

use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::Failure;
use crate::load::Worker;

/// Time to live of the comparison's leases, in seconds: they outlive a run.
const TTL: i64 = 60;

/// Grants a lease of `ttl` seconds, and returns its id.
pub async fn grant(channel: &Channel, ttl: i64) -> Result<i64, Failure> {
    let request = LeaseGrantRequest { ttl, id: 0 };
    let mut leases = LeaseClient::new(channel.clone());
    let granted = leases.lease_grant(request).await?.into_inner();
    if granted.ttl != ttl || granted.id == 0 {
        let (id, given) = (granted.id, granted.ttl);
        return Err(format!("asked for a lease of {ttl} s, got {id} of {given} s").into());
    }
    Ok(granted.id)
}

/// Grants one lease after the other.
pub struct Granter(pub Channel);

impl Worker for Granter {
    async fn work(&mut self) -> Result<(), Failure> {
        grant(&self.0, TTL).await.map(drop)
    }
}

/// A lease, and the stream that keeps it alive.
pub struct KeepAlive {
    id: i64,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    /// Grants a lease, and keeps it alive once: a server may open the stream with its first answer.
    pub async fn open(channel: Channel) -> Result<KeepAlive, Failure> {
        let id = grant(&channel, TTL).await?;
        let (requests, outgoing) = mpsc::channel(1);
        requests.send(LeaseKeepAliveRequest { id }).await?;
        let answers = LeaseClient::new(channel)
            .lease_keep_alive(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let mut stream = KeepAlive {
            id,
            requests,
            answers,
        };
        stream.answer().await?;
        Ok(stream)
    }

    async fn answer(&mut self) -> Result<(), Failure> {
        let answer = self.answers.message().await?.ok_or("the stream ended")?;
        if answer.id != self.id || answer.ttl != TTL {
            let (id, ttl) = (self.id, answer.ttl);
            return Err(format!("kept lease {id} alive, and was told {ttl} s").into());
        }
        Ok(())
    }
}

impl Worker for KeepAlive {
    async fn work(&mut self) -> Result<(), Failure> {
        let request = LeaseKeepAliveRequest { id: self.id };
        self.requests.send(request).await?;
        self.answer().await
    }
}
