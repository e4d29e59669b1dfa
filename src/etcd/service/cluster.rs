//! Cluster: its one member.

use etcd_proto::etcdserverpb::cluster_server::Cluster;
use etcd_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status, async_trait};

use super::{Backend, unimplemented};

const SERVICE: &str = "etcdserverpb.Cluster";

#[async_trait]
impl Cluster for Backend {
    async fn member_list(
        &self,
        _request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let config = &self.server.config;
        // Membership has no revision, so etcd's header bears none.
        Ok(Response::new(MemberListResponse {
            header: Some(self.headers().at(0)),
            members: vec![Member {
                id: self.server.identity.member_id,
                name: config.name.clone(),
                peer_ur_ls: Vec::new(),
                client_ur_ls: config.advertise_client_urls.clone(),
                is_learner: false,
            }],
        }))
    }

    async fn member_add(
        &self,
        _request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Err(unimplemented(SERVICE, "MemberAdd"))
    }

    async fn member_remove(
        &self,
        _request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unimplemented(SERVICE, "MemberRemove"))
    }

    async fn member_update(
        &self,
        _request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unimplemented(SERVICE, "MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unimplemented(SERVICE, "MemberPromote"))
    }
}
