//! What locks and elections are made of: keys under a name, of which the one that was created first has its turn.
//!
//! Whoever comes puts a key of its own, `<name>/<lease>`, and waits until every key created before is deleted: by the
//! holder, or with the holder's lease. It waits for the newest of these only; so a release wakes one of those who wait.

use bytes::Bytes;
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_proto::etcdserverpb::request_op::Request as Operation;
use etcd_proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use etcd_proto::mvccpb::event::EventType;
use tonic::{Request, Status};

use super::Backend;
use crate::etcd::auth::Credentials;
use crate::etcd::client::{self, At, Client, ClientError};
use etcd_proto::mvccpb::KeyValue;

/// TTL of a lease that a caller does not bring along, in seconds; etcd's.
const SESSION_TTL: i64 = 60;

/// One place in a queue.
pub struct Place {
    client: Client,
    prefix: Bytes,
    pub key: Bytes,
    /// Revision that the key was created at.
    pub created: i64,
    pub lease: i64,
    /// What the key held, if it was there already.
    pub found: Option<KeyValue>,
    /// Whoever gives up waiting leaves the queue.
    leave: bool,
}

/// As etcd does, which loses the code of what its own client says.
pub fn to_status(error: ClientError) -> Status {
    match error {
        ClientError::Status(status) => Status::unknown(status.message()),
        error => Status::unknown(error.to_string()),
    }
}

/// The prefix of a queue's keys.
pub fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The key of a queue that was created first, or last before a revision.
fn by_creation(prefix: &Bytes, order: SortOrder, before: i64) -> RangeRequest {
    let (key, range_end) = client::prefix_range(prefix.clone());
    RangeRequest {
        key,
        range_end,
        limit: 1,
        sort_order: order.into(),
        sort_target: SortTarget::Create.into(),
        max_create_revision: before,
        ..RangeRequest::default()
    }
}

/// The key whose turn it is.
pub async fn first(client: &Client, prefix: &Bytes) -> Result<At<Option<KeyValue>>, ClientError> {
    let request = by_creation(prefix, SortOrder::Ascend, 0);
    let response = client.range(request).await?;
    Ok(At {
        revision: client::header_revision(response.header),
        value: response.kvs.into_iter().next(),
    })
}

pub fn created_at(key: Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

pub fn put_with_lease(key: Bytes, value: Bytes, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(Operation::RequestPut(PutRequest {
            key,
            value,
            lease,
            ..PutRequest::default()
        })),
    }
}

impl Place {
    /// Joins the queue of this name, with a lease of its own if none is given.
    pub async fn take(
        client: Client,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<Place, ClientError> {
        let lease = match lease {
            0 => client.lease_grant(SESSION_TTL).await?,
            lease => lease,
        };
        let prefix = prefix_of(name);
        let key = Bytes::from([&prefix, format!("{lease:x}").as_bytes()].concat());
        let response = client
            .txn(TxnRequest {
                compare: vec![created_at(key.clone(), 0)],
                success: vec![put_with_lease(key.clone(), value, lease)],
                failure: vec![client::get(key.clone())],
            })
            .await?;
        let found = response.responses.into_iter().find_map(|response| {
            use etcd_proto::etcdserverpb::response_op::Response;
            match response.response {
                Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
                _ => None,
            }
        });
        let created = match &found {
            Some(kv) => kv.create_revision,
            None => client::header_revision(response.header),
        };
        Ok(Place {
            client,
            prefix,
            key,
            created,
            lease,
            found,
            leave: true,
        })
    }

    /// Resolves when it is this place's turn.
    pub async fn wait(&self) -> Result<(), ClientError> {
        loop {
            // Nothing is older than revision 1, and 0 would mean any.
            let before = (self.created - 1).max(1);
            let request = by_creation(&self.prefix, SortOrder::Descend, before);
            let response = self.client.range(request).await?;
            let revision = client::header_revision(response.header);
            match response.kvs.into_iter().next() {
                None => return Ok(()),
                Some(kv) => wait_deleted(&self.client, kv.key, revision).await?,
            }
        }
    }

    /// The place is the caller's: it stays.
    pub fn keep(mut self) -> Bytes {
        self.leave = false;
        self.key.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.leave {
            return;
        }
        let (client, key, created) = (self.client.clone(), self.key.clone(), self.created);
        tokio::spawn(async move {
            let leave = TxnRequest {
                compare: vec![created_at(key.clone(), created)],
                success: vec![client::delete(key)],
                failure: Vec::new(),
            };
            if let Err(error) = client.txn(leave).await {
                // It goes with its lease.
                tracing::debug!(%error, "a place in a queue could not be given up");
            }
        });
    }
}

/// The requests that a queue is made of are the server's own, so who may have them made is checked first. etcd says what
/// its own client says, without the code.
impl Backend {
    /// May join the queue: read it all, and write keys in it that hang on the lease.
    pub async fn check_queue<T>(
        &self,
        request: &Request<T>,
        name: &[u8],
        lease: i64,
    ) -> Result<(), Status> {
        let keyspace = self.checked_keyspace().await?;
        let (key, end) = client::prefix_range(prefix_of(name));
        let caller = Credentials::of(request).caller(&keyspace);
        let checked = caller.and_then(|caller| {
            caller.check_read(&key, &end)?;
            caller.check_write(&key, &end)?;
            caller.check_lease(lease, &keyspace.leases)
        });
        checked.map_err(|error| Status::unknown(error.to_string()))
    }

    /// May look at the queue.
    pub async fn check_look<T>(&self, request: &Request<T>, name: &[u8]) -> Result<(), Status> {
        let keyspace = self.checked_keyspace().await?;
        let (key, end) = client::prefix_range(prefix_of(name));
        let caller = Credentials::of(request).caller(&keyspace);
        let checked = caller.and_then(|caller| caller.check_read(&key, &end));
        checked.map_err(|error| Status::unknown(error.to_string()))
    }

    /// May write this key of a queue.
    pub async fn check_own(&self, credentials: &Credentials, key: &[u8]) -> Result<(), Status> {
        let keyspace = self.checked_keyspace().await?;
        let caller = credentials.caller(&keyspace);
        let checked = caller.and_then(|caller| caller.check_write(key, &[]));
        checked.map_err(|error| Status::unknown(error.to_string()))
    }
}

async fn wait_deleted(client: &Client, key: Bytes, revision: i64) -> Result<(), ClientError> {
    let mut watch = client
        .watch(WatchCreateRequest {
            key,
            start_revision: revision,
            ..WatchCreateRequest::default()
        })
        .await?;
    loop {
        let response = watch.next().await?;
        let mut events = response.events.iter();
        if events.any(|event| event.r#type == i32::from(EventType::Delete)) {
            return Ok(());
        }
    }
}
