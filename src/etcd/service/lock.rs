//! Lock: a mutex that is held by whoever stands first in the queue of its name.

use bytes::Bytes;
use etcd_proto::etcdserverpb::DeleteRangeRequest;
use etcd_proto::etcdserverpb::kv_server::Kv as _;
use etcd_proto::v3lockpb::lock_server::Lock;
use etcd_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status, async_trait};

use super::Backend;
use super::queue::{Place, to_status};

const EXPIRED: &str = "mutex: session is expired";

#[async_trait]
impl Lock for Backend {
    /// Answers once the caller holds the lock. Whoever gives up before leaves no trace.
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let (name, lease) = (&request.get_ref().name, request.get_ref().lease);
        self.check_queue(&request, name, lease).await?;
        let LockRequest { name, lease } = request.into_inner();
        let client = self.client();
        let place = Place::take(client.clone(), &name, lease, Bytes::new());
        let place = place.await.map_err(to_status)?;
        place.wait().await.map_err(to_status)?;
        let found = client.get(place.key.clone()).await.map_err(to_status)?;
        if found.value.is_none() {
            return Err(Status::unknown(EXPIRED));
        }
        Ok(Response::new(LockResponse {
            header: Some(self.headers().at(found.revision)),
            key: place.keep(),
        }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        // With the credentials of whoever asks.
        let delete = request.map(|UnlockRequest { key }| DeleteRangeRequest {
            key,
            ..DeleteRangeRequest::default()
        });
        let deleted = self.delete_range(delete).await?;
        Ok(Response::new(UnlockResponse {
            header: deleted.into_inner().header,
        }))
    }
}
