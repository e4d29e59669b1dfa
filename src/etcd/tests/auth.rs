//! Who may do what, as clients over TCP see it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use etcd_proto::authpb::Permission;
use etcd_proto::authpb::permission::Type;
use etcd_proto::etcdserverpb::auth_client::AuthClient;
use etcd_proto::etcdserverpb::cluster_client::ClusterClient;
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_proto::etcdserverpb::request_op::Request as Operation;
use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberListRequest, PutRequest, RangeRequest,
    RequestOp, StatusRequest, TxnRequest, WatchCreateRequest, WatchRequest,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{Fixture, bytes};
use crate::etcd::EtcdConfig;
use crate::etcd::auth::{Proof, TokenKind};
use crate::etcd::batch::Command;
use crate::etcd::error::Error;
use crate::etcd::keyspace::Keyspace;

const COST: u32 = 4;

/// A server with root, and ada who may read and write `a` up to `m`.
struct Guarded {
    fixture: Fixture,
    /// A stranger's connection: the fixture's own are this process's, and may do everything.
    channel: Channel,
    shutdown: CancellationToken,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn connect(fixture: &Fixture) -> (Channel, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let (server, stop) = (fixture.server.clone(), shutdown.clone());
    tokio::spawn(async move { server.serve(listener, stop).await });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
    (endpoint.connect_lazy(), shutdown)
}

fn refusal<T>(outcome: Result<T, Status>) -> Option<(Code, String)> {
    let error = outcome.err()?;
    Some((error.code(), error.message().to_owned()))
}

fn expected(error: Error) -> Option<(Code, String)> {
    Some((error.code(), error.to_string()))
}

fn with<T>(token: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let token = token.parse().expect("a header");
        request.metadata_mut().insert("token", token);
    }
    request
}

impl Guarded {
    async fn new(auth_token: TokenKind) -> Guarded {
        let config = EtcdConfig {
            bcrypt_cost: COST,
            auth_token,
            ..EtcdConfig::default()
        };
        let fixture = Fixture::with(config, None).await;
        let mut auth = AuthClient::new(fixture.channel());
        for (name, password) in [("root", "secret"), ("ada", "lovelace")] {
            let add = AuthUserAddRequest {
                name: name.to_owned(),
                password: password.to_owned(),
                ..AuthUserAddRequest::default()
            };
            auth.user_add(add).await.expect("a user");
        }
        let own = String::from("own");
        let add = AuthRoleAddRequest { name: own.clone() };
        auth.role_add(add).await.expect("a role");
        let permission = Permission {
            perm_type: Type::Readwrite.into(),
            key: bytes("a"),
            range_end: bytes("m"),
        };
        let grant = AuthRoleGrantPermissionRequest {
            name: own.clone(),
            perm: Some(permission),
        };
        auth.role_grant_permission(grant).await.expect("granted");
        for (user, role) in [("root", "root"), ("ada", "own")] {
            let grant = AuthUserGrantRoleRequest {
                user: user.to_owned(),
                role: role.to_owned(),
            };
            auth.user_grant_role(grant).await.expect("granted");
        }
        auth.auth_enable(AuthEnableRequest {}).await.expect("on");
        let (channel, shutdown) = connect(&fixture).await;
        Guarded {
            fixture,
            channel,
            shutdown,
        }
    }

    async fn login(&self, name: &str, password: &str) -> Result<String, Status> {
        let request = AuthenticateRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        let mut auth = AuthClient::new(self.channel.clone());
        Ok(auth.authenticate(request).await?.into_inner().token)
    }

    async fn get(&self, token: Option<&str>, key: &str) -> Result<(), Status> {
        let request = RangeRequest {
            key: bytes(key),
            ..RangeRequest::default()
        };
        let mut kv = KvClient::new(self.channel.clone());
        kv.range(with(token, request)).await.map(|_| ())
    }

    /// Grants a lease and puts the keys on it, as this process.
    async fn lease(&self, keys: &[&str]) -> i64 {
        let request = LeaseGrantRequest { ttl: 600, id: 0 };
        let granted = self.fixture.lease().lease_grant(request).await;
        let lease = granted.expect("a lease").into_inner().id;
        for key in keys {
            let request = PutRequest {
                key: bytes(key),
                lease,
                ..PutRequest::default()
            };
            self.fixture.kv().put(request).await.expect("put");
        }
        lease
    }

    async fn keyspace(&self) -> Arc<Keyspace> {
        let loaded = self.fixture.server.inner().loaded();
        let found = loaded.into_iter().find(|it| &*it.name == "default");
        found.expect("the default keyspace")
    }

    async fn keep_alive(&self, token: Option<&str>, id: i64) -> Result<i64, Status> {
        let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let mut leases = LeaseClient::new(self.channel.clone());
        let answers = leases.lease_keep_alive(with(token, requests)).await?;
        let answer = answers.into_inner().message().await?;
        Ok(answer.expect("an answer").ttl)
    }
}

#[tokio::test]
async fn nobody_is_let_in() {
    let guarded = Guarded::new(TokenKind::Simple).await;
    let lease = guarded.lease(&[]).await;
    let channel = || guarded.channel.clone();
    let (mut kv, mut leases) = (KvClient::new(channel()), LeaseClient::new(channel()));
    let compact = CompactionRequest {
        revision: 1,
        physical: false,
    };
    let grant = LeaseGrantRequest { ttl: 9, id: 0 };
    let time_to_live = LeaseTimeToLiveRequest {
        id: lease,
        keys: false,
    };
    let refusals = [
        refusal(guarded.get(None, "b").await),
        refusal(
            kv.put(PutRequest {
                key: bytes("b"),
                ..PutRequest::default()
            })
            .await,
        ),
        refusal(kv.txn(TxnRequest::default()).await),
        refusal(kv.compact(compact).await),
        refusal(leases.lease_grant(grant).await),
        refusal(leases.lease_revoke(LeaseRevokeRequest { id: lease }).await),
        refusal(leases.lease_time_to_live(time_to_live).await),
        refusal(leases.lease_leases(LeaseLeasesRequest {}).await),
        refusal(guarded.keep_alive(None, lease).await),
        refusal(
            ClusterClient::new(channel())
                .member_list(MemberListRequest::default())
                .await,
        ),
        refusal(
            MaintenanceClient::new(channel())
                .status(StatusRequest {})
                .await,
        ),
    ];
    for (at, refusal) in refusals.into_iter().enumerate() {
        assert_eq!(refusal, expected(Error::UserEmpty), "request {at}");
    }
}

#[tokio::test]
async fn compaction_is_for_root() {
    let guarded = Guarded::new(TokenKind::Simple).await;
    let revision = guarded.fixture.put("b", "1").await;
    let mut kv = KvClient::new(guarded.channel.clone());
    let compact = CompactionRequest {
        revision,
        physical: true,
    };
    let ada = guarded.login("ada", "lovelace").await.expect("a token");
    let refused = kv.compact(with(Some(&ada), compact)).await;
    assert_eq!(refusal(refused), expected(Error::PermissionDenied));
    let root = guarded.login("root", "secret").await.expect("a token");
    kv.compact(with(Some(&root), compact))
        .await
        .expect("compacted");
}

#[tokio::test]
async fn a_lease_is_kept_alive_by_who_may_write_its_keys() {
    let guarded = Guarded::new(TokenKind::Simple).await;
    let ada = guarded.login("ada", "lovelace").await.expect("a token");
    let own = guarded.lease(&["b"]).await;
    let foreign = guarded.lease(&["b", "z"]).await;
    assert_eq!(guarded.keep_alive(Some(&ada), own).await.ok(), Some(600));
    let refused = guarded.keep_alive(Some(&ada), foreign).await;
    assert_eq!(refusal(refused), expected(Error::PermissionDenied));
}

/// Between a check and its evaluation others write too.
#[tokio::test]
async fn keys_that_join_a_lease_after_the_check_are_guarded() {
    let guarded = Guarded::new(TokenKind::Simple).await;
    let lease = guarded.lease(&["b"]).await;
    let keyspace = guarded.keyspace().await;
    let revision = keyspace.state.read().auth.revision;
    let proof = |revision| Proof::User {
        user: Arc::from("ada"),
        revision,
    };
    // The check was passed; now a key of somebody else's joins.
    let put = |key: &str, lease| PutRequest {
        key: bytes(key),
        lease,
        ..PutRequest::default()
    };
    guarded
        .fixture
        .kv()
        .put(put("z", lease))
        .await
        .expect("put");
    let submit = async |command, revision| {
        let outcome = keyspace.submit_as(command, proof(revision)).await;
        outcome.map(|_| ())
    };
    let denied = Err(Error::PermissionDenied);
    assert_eq!(submit(Command::Revoke(lease), revision).await, denied);
    assert_eq!(
        submit(Command::Put(put("c", lease)), revision).await,
        denied
    );
    // In a branch that is not even taken.
    let operation = RequestOp {
        request: Some(Operation::RequestPut(put("c", lease))),
    };
    let txn = TxnRequest {
        failure: vec![operation],
        ..TxnRequest::default()
    };
    assert_eq!(submit(Command::Txn(txn), revision).await, denied);
    // Who may not is told so even if their rights have changed.
    let old = Err(Error::AuthOldRevision);
    assert_eq!(submit(Command::Revoke(lease), revision - 1).await, old);
    assert_eq!(submit(Command::Compact(1), revision).await, denied);
    assert_eq!(guarded.fixture.dump().await, ["b=", "z="]);
    guarded.fixture.delete("z").await;
    assert_eq!(submit(Command::Revoke(lease), revision).await, Ok(()));
    assert_eq!(guarded.fixture.dump().await, [""; 0]);
}

#[tokio::test]
async fn a_watch_is_refused_in_the_words_that_clients_compare() {
    let guarded = Guarded::new(TokenKind::Simple).await;
    let ada = guarded.login("ada", "lovelace").await.expect("a token");
    let check = async |token: Option<&str>, end: &str, start_revision: i64, expect: &str| {
        let create = WatchCreateRequest {
            key: bytes("b"),
            range_end: bytes(end),
            start_revision,
            ..WatchCreateRequest::default()
        };
        let requests = tokio_stream::iter([WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        }]);
        let mut watches = WatchClient::new(guarded.channel.clone());
        let answers = watches
            .watch(with(token, requests))
            .await
            .expect("a stream");
        let answer = answers.into_inner().message().await.expect("no error");
        let answer = answer.expect("an answer");
        assert!(answer.created, "{answer:?}");
        assert_eq!(answer.canceled, !expect.is_empty(), "{answer:?}");
        assert_eq!(answer.cancel_reason, expect);
    };
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    check(Some(&ada), "", 0, "").await;
    check(Some(&ada), "m", 0, "").await;
    check(Some(&ada), "n", 0, denied).await;
    check(Some(&ada), "\0", 0, denied).await;
    let invalid = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    check(Some("nonsense"), "", 0, invalid).await;
    let empty = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
    check(None, "", 0, empty).await;
    check(None, "", -1, &Error::Compacted.to_string()).await;
}

fn jwt(more: &str) -> TokenKind {
    let key = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/jwt/ec.pem");
    let options = format!("jwt,sign-method=ES256,priv-key={key}{more}");
    options.parse().expect("options")
}

#[tokio::test]
async fn a_signed_token_is_good_until_rights_change() {
    let guarded = Guarded::new(jwt(",ttl=60s")).await;
    let ada = guarded.login("ada", "lovelace").await.expect("a token");
    let root = guarded.login("root", "secret").await.expect("a token");
    assert_eq!(refusal(guarded.get(Some(&ada), "b").await), None);
    let denied = expected(Error::PermissionDenied);
    assert_eq!(refusal(guarded.get(Some(&ada), "z").await), denied);
    let mut auth = AuthClient::new(guarded.channel.clone());
    for name in ["more", "roles"] {
        // As in etcd, who root is does not depend on a revision.
        let add = AuthRoleAddRequest {
            name: name.to_owned(),
        };
        auth.role_add(with(Some(&root), add)).await.expect("a role");
    }
    let old = expected(Error::AuthOldRevision);
    assert_eq!(refusal(guarded.get(Some(&ada), "b").await), old);
    assert_eq!(refusal(guarded.get(Some(&root), "b").await), old);
    let ada = guarded.login("ada", "lovelace").await.expect("a token");
    assert_eq!(refusal(guarded.get(Some(&ada), "b").await), None);
    guarded.fixture.clock.advance(Duration::from_secs(61)).await;
    let invalid = expected(Error::InvalidAuthToken);
    assert_eq!(refusal(guarded.get(Some(&ada), "b").await), invalid);
}

#[tokio::test]
async fn without_tokens_nobody_logs_in() {
    let guarded = Guarded::new(TokenKind::None).await;
    let failed = expected(Error::AuthFailed);
    assert_eq!(refusal(guarded.login("ada", "lovelace").await), failed);
    let invalid = expected(Error::InvalidAuthToken);
    assert_eq!(refusal(guarded.get(Some("x"), "b").await), invalid);
}

#[tokio::test]
async fn a_password_may_come_hashed() {
    let guarded = Guarded::new(TokenKind::Simple).await;
    let before = guarded.login("ada", "lovelace").await.expect("a token");
    let hash = bcrypt::hash("byron", COST).expect("a hash");
    let mut auth = AuthClient::new(guarded.fixture.channel());
    let change = |hashed_password| AuthUserChangePasswordRequest {
        name: String::from("ada"),
        hashed_password,
        ..AuthUserChangePasswordRequest::default()
    };
    let refused = auth.user_change_password(change(String::from("?"))).await;
    assert_eq!(refusal(refused), expected(Error::NoPasswordUser));
    let hash = base64::engine::general_purpose::STANDARD.encode(hash);
    auth.user_change_password(change(hash))
        .await
        .expect("changed");
    let failed = expected(Error::AuthFailed);
    assert_eq!(refusal(guarded.login("ada", "lovelace").await), failed);
    let after = guarded.login("ada", "byron").await.expect("a token");
    assert_eq!(refusal(guarded.get(Some(&after), "b").await), None);
    // Whoever logged in with the old password is out.
    let invalid = expected(Error::InvalidAuthToken);
    assert_eq!(refusal(guarded.get(Some(&before), "b").await), invalid);
}
