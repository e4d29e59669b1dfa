//! Cluster: its one member. There can be no other, so changes of the membership are refused with the errors of an etcd
//! that cannot make them.

use etcd_proto::etcdserverpb::cluster_server::Cluster;
use etcd_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status, async_trait};

use super::Backend;
use crate::etcd::auth::Credentials;
use crate::etcd::error::Error;

impl Backend {
    fn check_member(&self, id: u64) -> Result<(), Error> {
        if id == self.server.identity.member_id {
            Ok(())
        } else {
            Err(Error::MemberNotFound)
        }
    }
}

/// URLs that a member could be reached at: a scheme, a host and a port, and nothing else.
fn check_peer_urls(urls: &[String]) -> Result<(), Error> {
    let valid = |url: &String| {
        if url.starts_with("unix://") || url.starts_with("unixs://") {
            return true;
        }
        let authority = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        authority.is_some_and(|authority| {
            let port = authority.rsplit_once(':');
            port.is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
            })
        })
    };
    if urls.is_empty() || !urls.iter().all(valid) {
        return Err(Error::BadMemberUrls);
    }
    Ok(())
}

#[async_trait]
impl Cluster for Backend {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let keyspace = self.keyspace().await?;
        Credentials::of(&request).caller(&keyspace)?.check_known()?;
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
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Backend::check_root(self, &request).await?;
        check_peer_urls(&request.into_inner().peer_ur_ls)?;
        Err(Error::NotEnoughStartedMembers.into())
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Backend::check_root(self, &request).await?;
        self.check_member(request.into_inner().id)?;
        Err(Error::NotEnoughStartedMembers.into())
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Backend::check_root(self, &request).await?;
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        self.check_member(id)?;
        check_peer_urls(&peer_ur_ls)?;
        Err(Error::NotEnoughStartedMembers.into())
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Backend::check_root(self, &request).await?;
        self.check_member(request.into_inner().id)?;
        Err(Error::NotALearner.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_have_a_host_and_a_port() {
        let check = |urls: &[&str], expect: bool| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            assert_eq!(check_peer_urls(&urls).is_ok(), expect, "{urls:?}");
        };
        check(&["http://10.0.0.1:2380"], true);
        check(&["https://a:1", "unix://b"], true);
        check(&[], false);
        check(&["http://10.0.0.1"], false);
        check(&["http://10.0.0.1:2380/path"], false);
        check(&["10.0.0.1:2380"], false);
        check(&["http://a:1", "ftp://a:1"], false);
    }
}
