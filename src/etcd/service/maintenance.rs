//! Maintenance: the server itself, its size, its hashes, its snapshots.

use etcd_proto::etcdserverpb::alarm_request::AlarmAction;
use etcd_proto::etcdserverpb::downgrade_request::DowngradeAction;
use etcd_proto::etcdserverpb::maintenance_server::Maintenance;
use etcd_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse,
    StatusRequest, StatusResponse,
};
use futures::{Stream, StreamExt as _};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{Backend, RAFT_TERM, unimplemented};
use crate::etcd::VERSION;
use crate::etcd::auth::Credentials;
use crate::etcd::batch::{Answer, Command};
use crate::etcd::error::Error;
use crate::etcd::{hash, snapshot};

const SERVICE: &str = "etcdserverpb.Maintenance";
/// Of the data's format, as etcd 3.6 announces it.
pub const STORAGE_VERSION: &str = "3.6.0";
/// The cluster's version, and the only one that it can be downgraded to: major and minor.
const CLUSTER_VERSION: (u64, u64) = (3, 6);
const DOWNGRADE_TARGET: (u64, u64) = (3, 5);
/// Answers of a snapshot that wait for the connection, 32 KiB each.
const SNAPSHOT_ANSWERS: usize = 8;

impl Backend {
    fn member(&self, alarm: AlarmType) -> AlarmMember {
        AlarmMember {
            member_id: self.server.identity.member_id,
            alarm: alarm.into(),
        }
    }
}

/// `3.5` or `3.5.0` as major and minor.
fn parse_version(text: &str) -> Result<(u64, u64), Error> {
    let parts: Option<Vec<u64>> = text.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some([major, minor] | [major, minor, _]) => Ok((*major, *minor)),
        _ => Err(Error::DowngradeFormat),
    }
}

#[async_trait]
impl Maintenance for Backend {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let keyspace = self.keyspace().await?;
        let caller = Credentials::of(&request).caller(&keyspace)?;
        caller.check_known()?;
        let (revision, in_use, alarms) = {
            let state = keyspace.state.read();
            (state.revision, state.log_bytes, state.alarms)
        };
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        // There is no raft log: the revision stands for how far it would be.
        let index = revision.unsigned_abs();
        let downgrade = self.server.downgrade.lock().clone();
        let errors = alarms.active().map(|alarm| {
            let id = self.server.identity.member_id;
            format!("memberID:{id} alarm:{} ", alarm.as_str_name())
        });
        Ok(Response::new(StatusResponse {
            header: Some(self.headers().at(revision)),
            version: VERSION.to_owned(),
            db_size: bytes(self.server.size_bytes()),
            leader: self.server.identity.member_id,
            raft_index: index,
            raft_term: RAFT_TERM,
            raft_applied_index: index,
            errors: errors.collect(),
            db_size_in_use: bytes(in_use),
            is_learner: false,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: bytes(self.server.config.quota_bytes().unwrap_or_default()),
            downgrade_info: Some(DowngradeInfo {
                enabled: downgrade.is_some(),
                target_version: downgrade.unwrap_or_default(),
            }),
        }))
    }

    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let keyspace = self.current_keyspace().await?;
        let caller = Credentials::of(&request).caller(&keyspace)?;
        let request = request.into_inner();
        match request.action() {
            AlarmAction::Get => caller.check_known()?,
            _ => caller.check_root()?,
        }
        let kind = request.alarm();
        let active = match request.action() {
            AlarmAction::Get => None,
            AlarmAction::Activate => Some(true),
            AlarmAction::Deactivate => Some(false),
        };
        let ours = request.member_id == self.server.identity.member_id;
        let alarms = match active {
            None => {
                let alarms = keyspace.state.read().alarms;
                let asked = alarms
                    .active()
                    .filter(|alarm| kind == AlarmType::None || *alarm == kind);
                asked.map(|alarm| self.member(alarm)).collect()
            }
            // Nobody else has alarms, and nobody has that one.
            Some(_) if !ours || kind == AlarmType::None => Vec::new(),
            Some(active) => {
                let command = Command::Alarm { kind, active };
                let Answer::Alarm { was_active } = keyspace.submit(command).await? else {
                    return Err(Error::Corrupt.into());
                };
                let concerned = active || was_active;
                concerned.then(|| self.member(kind)).into_iter().collect()
            }
        };
        Ok(Response::new(AlarmResponse {
            header: Some(self.headers().at(keyspace.revision())),
            alarms,
        }))
    }

    /// Gives back what compaction has freed, of all keyspaces: they share the store.
    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.check_root(&request).await?;
        self.server.defragment().await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    /// The members of an etcd may differ in it, so it says nothing but whether this one has changed.
    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.check_root(&request).await?;
        let keyspace = self.keyspace().await?;
        let found = hash::up_to(&keyspace, 0).await?;
        let mut leases = keyspace.leases.lock().granted();
        leases.sort_unstable();
        let hash = leases.iter().fold(found.hash, |hash, (id, ttl)| {
            let hash = crc32c::crc32c_append(hash, &id.to_be_bytes());
            crc32c::crc32c_append(hash, &ttl.to_be_bytes())
        });
        Ok(Response::new(HashResponse {
            header: Some(self.headers().at(found.revision)),
            hash,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        self.check_root(&request).await?;
        let keyspace = self.keyspace().await?;
        let found = hash::up_to(&keyspace, request.into_inner().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.headers().at(found.revision)),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.check_root(&request).await?;
        let keyspace = self.keyspace().await?;
        let (answers, outgoing) = mpsc::channel(SNAPSHOT_ANSWERS);
        let member = self.server.identity.member_id;
        tokio::spawn(snapshot::send(keyspace, member, answers));
        let outgoing = ReceiverStream::new(outgoing).map(|answer| answer.map_err(Status::from));
        Ok(Response::new(Box::pin(outgoing)))
    }

    /// The one member leads, and goes on leading.
    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.check_root(&request).await?;
        if request.into_inner().target_id != self.server.identity.member_id {
            return Err(Error::BadLeaderTransferee.into());
        }
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        self.check_root(&request).await?;
        let request = request.into_inner();
        let Ok(action) = DowngradeAction::try_from(request.action) else {
            return Err(unimplemented(SERVICE, "Downgrade"));
        };
        if action == DowngradeAction::Cancel {
            self.server.set_downgrade(None).await?;
        } else {
            let target = parse_version(&request.version)?;
            if target != DOWNGRADE_TARGET {
                return Err(Error::DowngradeTarget.into());
            }
            if self.server.downgrade.lock().is_some() {
                return Err(Error::DowngradeInProgress.into());
            }
            if action == DowngradeAction::Enable {
                let target = format!("{}.{}.0", target.0, target.1);
                self.server.set_downgrade(Some(target)).await?;
            }
        }
        let keyspace = self.keyspace().await?;
        Ok(Response::new(DowngradeResponse {
            header: Some(self.headers().at(keyspace.revision())),
            version: format!("{}.{}", CLUSTER_VERSION.0, CLUSTER_VERSION.1),
        }))
    }
}
