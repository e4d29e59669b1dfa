//! gRPC's own health service, `grpc.health.v1`: for load balancers and probes that speak gRPC.
//!
//! As with etcd there is one health, of the whole server, whose service name is empty. It is
//! SERVING while the connection's keyspace can be read and the server is not draining.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use etcd_proto::health::health_check_response::ServingStatus;
use etcd_proto::health::health_server::Health;
use etcd_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use futures::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::service::Backend;

/// How often a watched status is looked at again.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

impl Backend {
    async fn serving(&self) -> ServingStatus {
        if self.draining.is_cancelled() || self.check_health().await.is_err() {
            ServingStatus::NotServing
        } else {
            ServingStatus::Serving
        }
    }

    /// The status that differs from `known`, once there is one; `None` when the server is gone.
    async fn next_status(&self, known: Option<ServingStatus>) -> Option<ServingStatus> {
        loop {
            let status = self.serving().await;
            if known != Some(status) {
                return Some(status);
            }
            tokio::select! {
                // Said already that it is not serving.
                () = self.draining.cancelled(), if self.draining.is_cancelled() => return None,
                () = self.draining.cancelled() => {}
                activity = self.server.clock.sleep(WATCH_INTERVAL) => drop(activity),
            }
        }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[async_trait]
impl Health for Backend {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(self.serving().await)))
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let statuses = HashMap::from([(String::new(), answer(self.serving().await))]);
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !request.get_ref().service.is_empty() {
            // The standard: the stream stays open, since the service may come.
            let draining = self.draining.clone();
            let unknown = futures::stream::once(std::future::ready(Ok(answer(
                ServingStatus::ServiceUnknown,
            ))));
            let open = futures::stream::once(async move {
                draining.cancelled().await;
                Err(Status::unavailable("etcdserver: server stopped"))
            });
            let both = futures::StreamExt::chain(unknown, open);
            return Ok(Response::new(Box::pin(both)));
        }
        let backend = self.clone();
        let statuses = futures::stream::unfold(None, move |known| {
            let backend = backend.clone();
            async move {
                let status = backend.next_status(known).await?;
                Some((Ok(answer(status)), Some(status)))
            }
        });
        Ok(Response::new(Box::pin(statuses)))
    }
}
