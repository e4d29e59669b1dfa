//! Maintenance: the server itself.

use etcd_proto::etcdserverpb::alarm_request::AlarmAction;
use etcd_proto::etcdserverpb::maintenance_server::Maintenance;
use etcd_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use tokio_stream::Empty;
use tonic::{Request, Response, Status, async_trait};

use super::{Backend, RAFT_TERM, unimplemented};
use crate::etcd::VERSION;

const SERVICE: &str = "etcdserverpb.Maintenance";
/// Of the data's format, as etcd 3.6 announces it.
pub const STORAGE_VERSION: &str = "3.6.0";

#[async_trait]
impl Maintenance for Backend {
    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let keyspace = self.keyspace().await?;
        let revision = keyspace.revision();
        let size = i64::try_from(keyspace.store.size_bytes()).unwrap_or(i64::MAX);
        // There is no raft log: the revision stands for how far it would be.
        let index = revision.unsigned_abs();
        Ok(Response::new(StatusResponse {
            header: Some(self.headers().at(revision)),
            version: VERSION.to_owned(),
            db_size: size,
            leader: self.server.identity.member_id,
            raft_index: index,
            raft_term: RAFT_TERM,
            raft_applied_index: index,
            db_size_in_use: size,
            storage_version: STORAGE_VERSION.to_owned(),
            ..StatusResponse::default()
        }))
    }

    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        // Nothing raises an alarm yet, so there is none to list.
        if request.into_inner().action() != AlarmAction::Get {
            return Err(unimplemented(SERVICE, "Alarm"));
        }
        let keyspace = self.keyspace().await?;
        Ok(Response::new(AlarmResponse {
            header: Some(self.headers().at(keyspace.revision())),
            alarms: Vec::new(),
        }))
    }

    async fn defragment(
        &self,
        _request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Err(unimplemented(SERVICE, "Defragment"))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(unimplemented(SERVICE, "Hash"))
    }

    async fn hash_kv(
        &self,
        _request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        Err(unimplemented(SERVICE, "HashKV"))
    }

    type SnapshotStream = Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unimplemented(SERVICE, "Snapshot"))
    }

    async fn move_leader(
        &self,
        _request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        Err(unimplemented(SERVICE, "MoveLeader"))
    }

    async fn downgrade(
        &self,
        _request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Err(unimplemented(SERVICE, "Downgrade"))
    }
}
