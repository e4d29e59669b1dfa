//! Lease: grant, revoke, keep alive, time to live, list.

use std::pin::Pin;
use std::sync::Arc;

use etcd_proto::etcdserverpb::lease_server::Lease;
use etcd_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::Backend;
use crate::etcd::alarm;
use crate::etcd::auth::Credentials;
use crate::etcd::batch::{Answer, Command};
use crate::etcd::error::Error;
use crate::etcd::follow::Follow;
use crate::etcd::keyspace::Keyspace;
use crate::etcd::lease::Renewal;

/// The lease's TTL in seconds, all of which it has from now on; 0 if there is no such lease any more.
async fn keep_alive_here(keyspace: &Keyspace, id: i64) -> Result<i64, Error> {
    let renewal = keyspace.leases.lock().keep_alive(id, keyspace.clock.now());
    match renewal {
        Renewal::Renewed(ttl) => Ok(ttl),
        Renewal::Checkpointed(ttl) => {
            let left = None;
            keyspace.submit(Command::Checkpoint { id, left }).await?;
            Ok(ttl)
        }
        Renewal::Missing => Ok(0),
        Renewal::Expired => {
            // Its keys must be gone when the client hears of it.
            keyspace.submit(Command::Expire(id)).await?;
            Ok(0)
        }
    }
}

/// The same where other servers count the lease's time, too: the store decides.
async fn keep_alive_everywhere(
    keyspace: &Keyspace,
    follow: &Follow,
    id: i64,
) -> Result<i64, Error> {
    let Some(stamp) = follow.keep_alive(id).await? else {
        return Ok(0);
    };
    let known = |keyspace: &Keyspace| {
        let mut leases = keyspace.leases.lock();
        leases.observe(id, Some(stamp), keyspace.clock.now());
        leases.ttl(id)
    };
    if let Some(ttl) = known(keyspace) {
        return Ok(ttl);
    }
    // Granted by another server a moment ago.
    keyspace.catch_up().await?;
    Ok(known(keyspace).unwrap_or(0))
}

impl Backend {
    async fn keep_alive(
        &self,
        credentials: &Credentials,
        LeaseKeepAliveRequest { id }: LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, Error> {
        let keyspace = self.checked_keyspace().await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_lease(id, &keyspace.leases)?;
        // Before the renewal: a revision after it could be one at which the lease is gone again.
        let header = self.headers().at(keyspace.revision());
        let ttl = match &keyspace.follow {
            None => keep_alive_here(&keyspace, id).await?,
            Some(follow) => keep_alive_everywhere(&keyspace, follow, id).await?,
        };
        if ttl > 0 {
            keyspace.metrics.server.leases_renewed.inc();
        }
        Ok(LeaseKeepAliveResponse {
            header: Some(header),
            id,
            ttl,
        })
    }
}

#[async_trait]
impl Lease for Backend {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let credentials = Credentials::of(&request);
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        let keyspace = self.checked_keyspace().await?;
        credentials.caller(&keyspace)?.check_known()?;
        self.check_quota(&keyspace, alarm::LEASE_COST).await?;
        let answer = keyspace.submit(Command::Grant { id, ttl }).await?;
        let Answer::Granted { revision, id, ttl } = answer else {
            return Err(Error::Corrupt.into());
        };
        Ok(Response::new(LeaseGrantResponse {
            header: Some(self.headers().at(revision)),
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let credentials = Credentials::of(&request);
        let id = request.into_inner().id;
        let keyspace = self.checked_keyspace().await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_lease(id, &keyspace.leases)?;
        let revoke = Command::Revoke(id);
        let answer = keyspace.submit_as(revoke, caller.proof()).await?;
        let Answer::Done { revision } = answer else {
            return Err(Error::Corrupt.into());
        };
        Ok(Response::new(LeaseRevokeResponse {
            header: Some(self.headers().at(revision)),
        }))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (backend, credentials) = (self.clone(), Arc::new(Credentials::of(&request)));
        let stopped = self.draining.clone().cancelled_owned();
        let answers = request.into_inner().then(move |request| {
            let (backend, credentials) = (backend.clone(), Arc::clone(&credentials));
            async move { Ok(backend.keep_alive(&credentials, request?).await?) }
        });
        Ok(Response::new(Box::pin(answers.take_until(stopped))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let credentials = Credentials::of(&request);
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let keyspace = self.current_keyspace().await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_known()?;
        let header = Some(self.headers().at(keyspace.revision()));
        if keyspace.follow.is_some() {
            let stamps = keyspace.store.stamps(&[id]).await.map_err(Error::from)?;
            let mut leases = keyspace.leases.lock();
            for stamp in stamps {
                leases.observe(id, stamp, keyspace.clock.now());
            }
        }
        let found = {
            let leases = keyspace.leases.lock();
            leases.time_to_live(id, keyspace.clock.now(), keys)
        };
        // The very keys that are told of.
        if let Some(found) = &found
            && keys
        {
            caller.check_keys(&found.keys)?;
            caller.proof().check(&keyspace.state.read().auth)?;
        }
        let mut response = LeaseTimeToLiveResponse {
            header,
            id,
            ttl: -1,
            ..LeaseTimeToLiveResponse::default()
        };
        if let Some(found) = found {
            response.ttl = i64::try_from(found.remaining.as_secs()).unwrap_or(i64::MAX);
            response.granted_ttl = found.granted;
            response.keys = found.keys;
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let keyspace = self.current_keyspace().await?;
        let caller = Credentials::of(&request).caller(&keyspace)?;
        caller.check_known()?;
        let header = Some(self.headers().at(keyspace.revision()));
        let ids = {
            let leases = keyspace.leases.lock();
            let ids = leases.ids();
            if caller.check_root().is_err() {
                let mut each = ids.iter();
                each.try_for_each(|id| caller.check_keys(&leases.keys(*id)))?;
            }
            ids
        };
        caller.proof().check(&keyspace.state.read().auth)?;
        let leases = ids.into_iter().map(|id| LeaseStatus { id });
        Ok(Response::new(LeaseLeasesResponse {
            header,
            leases: leases.collect(),
        }))
    }
}
