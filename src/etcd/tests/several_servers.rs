//! Several servers on one store: to their clients they are one etcd.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_proto::etcdserverpb::auth_client::AuthClient;
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest,
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseLeasesRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RangeResponse,
    TxnRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use etcd_proto::mvccpb::Event;
use fdb::{Database, EmbeddedOptions, Faults};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{bytes, everything};
use crate::clock::{Clock, TimeScale, Timestamp};
use crate::etcd::client::{mod_revision_is, put};
use crate::etcd::{EtcdConfig, Server};

struct Servers {
    _directory: TempDir,
    database: Database,
    servers: Vec<Server>,
    clock: Clock,
}

fn config() -> EtcdConfig {
    EtcdConfig {
        shared_store: true,
        bcrypt_cost: 4,
        ..EtcdConfig::default()
    }
}

impl Servers {
    async fn new(count: usize, faults: Option<Faults>) -> Servers {
        let directory = tempfile::tempdir().expect("a directory");
        let options = EmbeddedOptions {
            fsync: false,
            faults,
            ..EmbeddedOptions::default()
        };
        let database = Database::open_embedded(directory.path(), options)
            .await
            .expect("the store opens");
        let mut found = Servers {
            _directory: directory,
            database,
            servers: Vec::new(),
            clock: Clock::new(TimeScale::Manual, Timestamp(1_000_000)),
        };
        for _ in 0..count {
            found.add().await;
        }
        found
    }

    async fn add(&mut self) {
        let server = Server::open(self.database.clone(), self.clock.clone(), config()).await;
        self.servers.push(server.expect("the server opens"));
    }

    fn channel(&self, at: usize) -> Channel {
        super::pipe(&self.servers[at])
    }

    fn kv(&self, at: usize) -> KvClient<Channel> {
        KvClient::new(self.channel(at))
    }

    fn lease(&self, at: usize) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel(at))
    }

    async fn range(&self, at: usize, request: RangeRequest) -> RangeResponse {
        self.kv(at)
            .range(request)
            .await
            .expect("range")
            .into_inner()
    }

    async fn put(&self, at: usize, key: &str, value: &str) -> i64 {
        let request = PutRequest {
            key: bytes(key),
            value: bytes(value),
            ..PutRequest::default()
        };
        let response = self.kv(at).put(request).await.expect("put").into_inner();
        response.header.expect("header").revision
    }

    /// A watch of everything from `start_revision` on, once it is created.
    async fn watch(&self, at: usize, start_revision: i64) -> Watched {
        let mut watched = self.ask_to_watch(at, start_revision).await;
        assert!(watched.next().await.created);
        watched
    }

    async fn ask_to_watch(&self, at: usize, start_revision: i64) -> Watched {
        let create = WatchCreateRequest {
            key: bytes("\0"),
            range_end: bytes("\0"),
            start_revision,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let (requests, outgoing) = mpsc::channel(1);
        requests.send(request).await.expect("room");
        let mut client = WatchClient::new(self.channel(at));
        let answers = client.watch(ReceiverStream::new(outgoing)).await;
        Watched {
            answers: answers.expect("answered").into_inner(),
            _requests: requests,
        }
    }
}

struct Watched {
    answers: Streaming<WatchResponse>,
    _requests: mpsc::Sender<WatchRequest>,
}

impl Watched {
    async fn next(&mut self) -> WatchResponse {
        self.answers.message().await.expect("answer").expect("one")
    }

    /// All events up to and including revision `upto`.
    async fn until(&mut self, upto: i64) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        while events.last().is_none_or(|last| revision(last) < upto) {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            events.extend(response.events);
        }
        events
    }
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().expect("kv").mod_revision
}

/// One counter that all clients of all servers share, by compare and swap. Every value is written once, every watcher
/// of every server sees every write once, and all servers end with the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_on_all_servers_make_one_history() {
    const SERVERS: usize = 3;
    const CLIENTS: usize = 9;
    const ROUNDS: usize = 25;
    let faults = Faults {
        seed: 11,
        not_committed: 0.05,
        commit_unknown_result: 0.1,
        transaction_too_old: 0.03,
        future_version: 0.03,
        max_delay: Duration::from_micros(300),
    };
    let servers = Servers::new(SERVERS, Some(faults)).await;
    let mut watches = Vec::new();
    for at in 0..SERVERS {
        watches.push(servers.watch(at, 2).await);
    }
    let clients = (0..CLIENTS).map(|client| {
        let mut kv = servers.kv(client % SERVERS);
        let mut other = servers.kv((client + 1) % SERVERS);
        tokio::spawn(async move {
            let mut swaps = 0_i64;
            for round in 0..ROUNDS {
                let read = RangeRequest {
                    key: bytes("counter"),
                    ..RangeRequest::default()
                };
                let found = kv.range(read.clone()).await.expect("range").into_inner();
                let (count, seen) = found.kvs.first().map_or((0, 0), |kv| {
                    let text = String::from_utf8_lossy(&kv.value).into_owned();
                    (text.parse::<i64>().expect("number"), kv.mod_revision)
                });
                let request = TxnRequest {
                    compare: vec![mod_revision_is("counter", seen)],
                    success: vec![put("counter", (count + 1).to_string())],
                    failure: Vec::new(),
                };
                let swapped = kv.txn(request).await.expect("txn").into_inner();
                swaps += i64::from(swapped.succeeded);
                // What this server acknowledged, every other one shows.
                let acknowledged = swapped.header.expect("header").revision;
                let shown = other.range(read).await.expect("range").into_inner();
                assert!(shown.header.expect("header").revision >= acknowledged);
                let own = PutRequest {
                    key: bytes(&format!("client{client}")),
                    value: bytes(&round.to_string()),
                    ..PutRequest::default()
                };
                kv.put(own).await.expect("put");
            }
            swaps
        })
    });
    let mut swaps = 0;
    for client in clients.collect::<Vec<_>>() {
        swaps += client.await.expect("no panic");
    }
    let puts = i64::try_from(CLIENTS * ROUNDS).expect("small");
    let last = 1 + swaps + puts;
    let first = servers.range(0, everything()).await;
    assert_eq!(first.header.expect("header").revision, last);
    assert_eq!(
        first.kvs[first.kvs.len() - 1].value,
        bytes(&swaps.to_string())
    );
    for at in 1..SERVERS {
        assert_eq!(servers.range(at, everything()).await.kvs, first.kvs);
    }
    for mut watch in watches {
        let events = watch.until(last).await;
        let seen: Vec<i64> = events.iter().map(revision).collect();
        assert_eq!(seen, (2..=last).collect::<Vec<_>>());
        for event in &events {
            let kv = event.kv.as_ref().expect("kv");
            assert_eq!(event.prev_kv.is_some(), kv.version > 1, "{event:?}");
        }
    }
}

#[tokio::test]
async fn a_lease_is_kept_alive_through_any_server_and_runs_out_once() {
    let servers = Servers::new(2, None).await;
    let grant = LeaseGrantRequest { ttl: 10, id: 7 };
    servers.lease(0).lease_grant(grant).await.expect("granted");
    let hung = PutRequest {
        key: bytes("a"),
        lease: 7,
        ..PutRequest::default()
    };
    servers.kv(1).put(hung).await.expect("put");
    let keep_alive = async |at: usize, id: i64| {
        let once = tokio_stream::once(LeaseKeepAliveRequest { id });
        let answers = servers.lease(at).lease_keep_alive(once).await;
        let mut answers = answers.expect("answered").into_inner();
        answers.message().await.expect("answer").expect("one").ttl
    };
    let left = async |at: usize| {
        let request = LeaseTimeToLiveRequest { id: 7, keys: true };
        let found = servers.lease(at).lease_time_to_live(request).await;
        let found = found.expect("answered").into_inner();
        (found.ttl, found.keys.len())
    };
    servers.clock.advance(Duration::from_secs(9)).await;
    assert_eq!(keep_alive(1, 7).await, 10);
    // The first server's own count would have ended here.
    servers.clock.advance(Duration::from_secs(5)).await;
    assert_eq!(left(1).await, (5, 1));
    assert_eq!(servers.range(0, everything()).await.kvs.len(), 1);
    assert_eq!(keep_alive(0, 7).await, 10);
    assert_eq!(keep_alive(0, 8).await, 0, "there is none");
    let mut watches = [servers.watch(0, 3).await, servers.watch(1, 3).await];
    // Nobody keeps it alive any more: gone when the last server's count has ended, and not twice.
    servers.clock.advance(Duration::from_secs(20)).await;
    for watch in &mut watches {
        let events = watch.until(3).await;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].kv.as_ref().expect("kv").key, bytes("a"));
    }
    assert_eq!(servers.put(1, "b", "").await, 4);
    for at in 0..2 {
        assert_eq!(left(at).await, (-1, 0));
        assert_eq!(keep_alive(at, 7).await, 0);
        let leases = servers.lease(at).lease_leases(LeaseLeasesRequest {}).await;
        assert_eq!(leases.expect("answered").into_inner().leases, []);
    }
}

#[tokio::test]
async fn users_are_known_to_every_server_at_once() {
    let servers = Servers::new(2, None).await;
    let mut auth = [0, 1].map(|at| AuthClient::new(servers.channel(at)));
    let user = AuthUserAddRequest {
        name: String::from("root"),
        password: String::from("secret"),
        ..AuthUserAddRequest::default()
    };
    auth[0].user_add(user).await.expect("added");
    let role = AuthRoleAddRequest {
        name: String::from("root"),
    };
    auth[1].role_add(role).await.expect("added");
    let grant = AuthUserGrantRoleRequest {
        user: String::from("root"),
        role: String::from("root"),
    };
    auth[0].user_grant_role(grant).await.expect("granted");
    auth[1]
        .auth_enable(AuthEnableRequest {})
        .await
        .expect("enabled");
    // In-process clients are trusted; what the other server knows is what counts.
    let inner = servers.servers[0].inner();
    let keyspace = inner.loaded().pop().expect("loaded");
    keyspace.catch_up().await.expect("caught up");
    let state = keyspace.state.read();
    assert!(state.auth.enabled);
    assert_eq!(state.auth.revision, 4);
}

/// The other server has compacted what this one has not seen yet: it reads everything anew, and tells its watchers.
#[tokio::test]
async fn a_server_that_is_behind_a_compaction_starts_anew() {
    let servers = Servers::new(2, None).await;
    servers.put(0, "gone", "1").await;
    servers.put(0, "stays", "1").await;
    assert_eq!(servers.range(1, everything()).await.kvs.len(), 2);
    let mut watch = servers.watch(1, 0).await;
    let keyspace = servers.servers[1].inner().loaded().pop().expect("loaded");
    let follow = keyspace.follow.clone().expect("shared");
    let held = follow.held.lock().await;
    let delete = DeleteRangeRequest {
        key: bytes("gone"),
        ..DeleteRangeRequest::default()
    };
    servers.kv(0).delete_range(delete).await.expect("deleted");
    let revision = servers.put(0, "stays", "2").await;
    let compact = CompactionRequest {
        revision,
        physical: true,
    };
    servers.kv(0).compact(compact).await.expect("compacted");
    // It still shows the past to who is content with that.
    let stale = RangeRequest {
        serializable: true,
        ..everything()
    };
    assert_eq!(servers.range(1, stale).await.kvs.len(), 2);
    drop(held);
    let found = servers.range(1, everything()).await;
    assert_eq!(found.kvs.len(), 1);
    assert_eq!(found.kvs[0].value, bytes("2"));
    let told = watch.next().await;
    assert!(told.canceled);
    assert_eq!(told.compact_revision, revision);
    assert_eq!(servers.put(1, "more", "").await, revision + 1);
    assert_eq!(servers.range(0, everything()).await.kvs.len(), 2);
}

/// The other server has removed from the store what a watcher of this one asks for: its watcher is not told half of it.
#[tokio::test]
async fn a_watch_of_what_another_server_has_compacted_is_cancelled() {
    let mut servers = Servers::new(1, None).await;
    let first = servers.put(0, "gone", "1").await;
    servers.put(0, "stays", "1").await;
    // For it, all that is history: it is in the log alone.
    servers.add().await;
    assert_eq!(servers.range(1, everything()).await.kvs.len(), 2);
    let keyspace = servers.servers[1].inner().loaded().pop().expect("loaded");
    let follow = keyspace.follow.clone().expect("shared");
    let held = follow.held.lock().await;
    let revision = servers.put(0, "gone", "2").await;
    let compact = CompactionRequest {
        revision,
        physical: true,
    };
    servers.kv(0).compact(compact).await.expect("compacted");
    let mut watch = servers.ask_to_watch(1, first).await;
    let early = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(early.is_err(), "told before it could know: {early:?}");
    drop(held);
    assert!(watch.next().await.created);
    let told = watch.next().await;
    assert!(told.canceled, "{told:?}");
    assert_eq!(told.compact_revision, revision);
}

/// What a watcher asks for is still in memory, but another server has compacted it.
#[tokio::test]
async fn a_watch_from_memory_knows_what_another_server_has_compacted() {
    let servers = Servers::new(2, None).await;
    let mut early = servers.watch(1, 2).await;
    let first = servers.put(0, "gone", "1").await;
    servers.put(0, "stays", "1").await;
    early.until(first + 1).await;
    let keyspace = servers.servers[1].inner().loaded().pop().expect("loaded");
    let follow = keyspace.follow.clone().expect("shared");
    let held = follow.held.lock().await;
    let revision = servers.put(0, "gone", "2").await;
    let compact = CompactionRequest {
        revision,
        physical: true,
    };
    servers.kv(0).compact(compact).await.expect("compacted");
    let mut watch = servers.ask_to_watch(1, first).await;
    let told = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(told.is_err(), "told before it could know: {told:?}");
    drop(held);
    assert!(watch.next().await.created);
    let told = watch.next().await;
    assert!(told.canceled, "{told:?}");
    assert_eq!(told.compact_revision, revision);
}

/// "From now on" is after everything that was acknowledged, by whichever server.
#[tokio::test]
async fn a_watch_from_now_on_is_not_told_of_the_past() {
    let servers = Servers::new(2, None).await;
    servers.range(1, everything()).await;
    let keyspace = servers.servers[1].inner().loaded().pop().expect("loaded");
    let follow = keyspace.follow.clone().expect("shared");
    let held = follow.held.lock().await;
    let past = servers.put(0, "key", "1").await;
    let mut watch = servers.ask_to_watch(1, 0).await;
    let early = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(early.is_err(), "told before it could know: {early:?}");
    drop(held);
    assert!(watch.next().await.created);
    servers.put(0, "key", "2").await;
    let events = watch.until(past + 1).await;
    let seen: Vec<i64> = events.iter().map(revision).collect();
    assert_eq!(seen, [past + 1]);
}

/// Servers that write all the time share the store, and one that writes now and then is not kept waiting by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_server_starves() {
    const BUSY: usize = 3;
    const CLIENTS: usize = 4;
    let servers = Servers::new(BUSY + 1, None).await;
    let counts: Vec<_> = (0..BUSY).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for at in 0..BUSY * CLIENTS {
        let (mut kv, count) = (servers.kv(at % BUSY), Arc::clone(&counts[at % BUSY]));
        let stop = Arc::clone(&stop);
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let put = PutRequest {
                    key: bytes(&format!("client{at}")),
                    ..PutRequest::default()
                };
                kv.put(put).await.expect("put");
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut waits = Vec::new();
    for _ in 0..20 {
        let asked = std::time::Instant::now();
        servers.put(BUSY, "now and then", "").await;
        waits.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no panic");
    }
    let counts: Vec<usize> = counts.iter().map(|it| it.load(Ordering::Relaxed)).collect();
    let (least, most) = (counts.iter().min(), counts.iter().max());
    assert!(
        least >= Some(&20) && least.map(|it| it * 4) >= most.copied(),
        "{counts:?}"
    );
    waits.sort();
    assert!(waits[10] < Duration::from_millis(500), "{waits:?}");
}

/// A server that is gone has left its place in line.
#[tokio::test]
async fn a_server_that_is_gone_holds_the_others_up_once() {
    let servers = Servers::new(2, None).await;
    servers.put(0, "a", "1").await;
    let keyspace = servers.servers[0].inner().loaded().pop().expect("loaded");
    let gone = keyspace.store.of_another_server();
    gone.announce().await.expect("announced");
    assert_eq!(gone.intents().await.expect("read").len(), 1);
    for at in [0, 1, 0, 1] {
        let put = servers.put(at, "b", "1");
        tokio::time::timeout(Duration::from_secs(10), put)
            .await
            .expect("not held up for ever");
    }
    assert_eq!(gone.intents().await.expect("read"), Vec::new());
}

/// A server that is added finds everything; one that goes leaves nothing that holds others up.
#[tokio::test]
async fn servers_come_and_go() {
    let mut servers = Servers::new(1, None).await;
    servers.put(0, "a", "1").await;
    servers.add().await;
    servers.put(1, "b", "1").await;
    assert_eq!(servers.range(0, everything()).await.kvs.len(), 2);
    let first = servers.servers.remove(0);
    first.close().await;
    drop(first);
    assert_eq!(servers.put(0, "c", "1").await, 4);
    assert_eq!(servers.range(0, everything()).await.kvs.len(), 3);
}
