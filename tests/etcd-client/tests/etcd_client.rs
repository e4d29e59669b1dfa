//! `cke etcd` with the crate `etcd-client`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, LockOptions, ProclaimOptions,
    PutOptions, ResignOptions, SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};

/// A `cke etcd`. Killed when dropped.
struct Server {
    child: Child,
    endpoint: String,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut child = Command::new(cke())
            .args(["etcd", "--listen-client-urls", "http://127.0.0.1:0"])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cke starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut server = Server {
            child,
            endpoint: String::new(),
            _directory: directory,
        };
        let ready = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with("ready"))
            .expect("it gets ready");
        let url = ready.find("http://").map(|at| ready[at..].trim());
        server.endpoint = url.expect("it says its address").to_owned();
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary that `cargo test --workspace` has built beside this test, or `TEST_CKE`.
fn cke() -> PathBuf {
    if let Some(binary) = std::env::var_os("TEST_CKE") {
        return binary.into();
    }
    let test = std::env::current_exe().expect("this test's path");
    // target/debug/deps/etcd_client-… → target/debug/cke
    let directory = test.parent().and_then(|deps| deps.parent());
    let binary = directory.expect("a target directory").join("cke");
    assert!(
        binary.exists(),
        "{} is not built: run `cargo test --workspace`",
        binary.display()
    );
    binary
}

async fn with_client<F>(test: impl FnOnce(Client) -> F)
where
    F: Future<Output = Result<(), etcd_client::Error>>,
{
    let server = Server::start();
    let client = Client::connect([&server.endpoint], None)
        .await
        .expect("it connects");
    tokio::time::timeout(Duration::from_secs(60), test(client))
        .await
        .expect("it ends")
        .expect("it succeeds");
}

#[tokio::test]
async fn keys_and_ranges() {
    with_client(async |mut client| {
        for (key, value) in [("a", "1"), ("b", "2"), ("b", "3"), ("c", "4")] {
            client.put(key, value, None).await?;
        }
        let got = client.get("b", None).await?;
        assert_eq!(got.count(), 1);
        let kv = &got.kvs()[0];
        assert_eq!((kv.key(), kv.value()), (&b"b"[..], &b"3"[..]));
        assert_eq!(
            (kv.create_revision(), kv.mod_revision(), kv.version()),
            (3, 4, 2)
        );

        let options = GetOptions::new()
            .with_all_keys()
            .with_limit(2)
            .with_sort(SortTarget::Key, SortOrder::Descend);
        let got = client.get("", Some(options)).await?;
        let keys: Vec<&[u8]> = got.kvs().iter().map(|kv| kv.key()).collect();
        assert_eq!(keys, [b"c", b"b"]);
        assert!(got.more());
        assert_eq!(got.count(), 3);

        let old = client
            .get("b", Some(GetOptions::new().with_revision(3)))
            .await?;
        assert_eq!(old.kvs()[0].value(), b"2");

        let put = client
            .put("a", "5", Some(PutOptions::new().with_prev_key()))
            .await?;
        assert_eq!(put.prev_key().map(|kv| kv.value()), Some(&b"1"[..]));
        let options = DeleteOptions::new().with_range("c").with_prev_key();
        let deleted = client.delete("a", Some(options)).await?;
        assert_eq!(deleted.deleted(), 2);
        assert_eq!(deleted.prev_kvs()[1].value(), b"3");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn transactions() {
    with_client(async |mut client| {
        client.put("a", "1", None).await?;
        let swap = |expect: &str, value: &str| {
            Txn::new()
                .when([Compare::value("a", CompareOp::Equal, expect)])
                .and_then([TxnOp::put("a", value, None), TxnOp::get("a", None)])
                .or_else([TxnOp::get("a", None)])
        };
        let done = client.txn(swap("1", "2")).await?;
        assert!(done.succeeded());
        assert_eq!(done.op_responses().len(), 2);
        let lost = client.txn(swap("1", "3")).await?;
        assert!(!lost.succeeded());
        let nested = Txn::new().and_then([TxnOp::txn(swap("2", "4"))]);
        assert!(client.txn(nested).await?.succeeded());
        assert_eq!(client.get("a", None).await?.kvs()[0].value(), b"4");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn watches_see_each_event_once_and_in_order() {
    with_client(async |mut client| {
        client.put("w/0", "before", None).await?;
        let options = WatchOptions::new()
            .with_prefix()
            .with_prev_key()
            .with_start_revision(2);
        let mut stream = client.watch("w/", Some(options)).await?;
        for count in 1..50 {
            client.put(format!("w/{count}"), "x", None).await?;
        }
        client.delete("w/0", None).await?;
        let mut seen = Vec::new();
        while seen.len() < 51 {
            let answer = stream.message().await?.expect("the watch is open");
            assert!(!answer.canceled());
            for event in answer.events() {
                let kv = event.kv().expect("a key");
                seen.push((
                    event.event_type(),
                    kv.key_str()?.to_owned(),
                    kv.mod_revision(),
                ));
            }
        }
        for (index, (kind, key, revision)) in seen.iter().enumerate() {
            let expect = match index {
                50 => (EventType::Delete, String::from("w/0")),
                _ => (EventType::Put, format!("w/{index}")),
            };
            assert_eq!((*kind, key.clone()), expect);
            assert_eq!(*revision, index as i64 + 2);
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_watch_of_what_is_compacted_is_cancelled() {
    with_client(async |mut client| {
        for value in ["1", "2", "3"] {
            client.put("a", value, None).await?;
        }
        client.compact(4, None).await?;
        let options = WatchOptions::new().with_start_revision(2);
        let mut stream = client.watch("a", Some(options)).await?;
        loop {
            let answer = stream.message().await?.expect("the watch is open");
            if answer.canceled() {
                assert_eq!(answer.compact_revision(), 4);
                return Ok(());
            }
            assert!(answer.events().is_empty(), "{answer:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn leases() {
    with_client(async |mut client| {
        let lease = client.lease_grant(60, None).await?;
        let options = PutOptions::new().with_lease(lease.id());
        client.put("held", "1", Some(options)).await?;
        let (mut keeper, mut answers) = client.lease_keep_alive(lease.id()).await?;
        keeper.keep_alive().await?;
        let kept = answers.message().await?.expect("an answer");
        assert_eq!((kept.id(), kept.ttl()), (lease.id(), 60));
        let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
        let left = client.lease_time_to_live(lease.id(), Some(options)).await?;
        assert_eq!(left.granted_ttl(), 60);
        assert_eq!(left.keys(), [b"held"]);
        client.lease_revoke(lease.id()).await?;
        assert_eq!(client.get("held", None).await?.count(), 0);
        Ok(())
    })
    .await;
}

/// Fifty clients, each in turn: while one holds the lock nobody else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_held_by_one_of_fifty() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    with_client(async |client| {
        let held = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicUsize::new(0));
        let mut contenders = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (mut client, held, turns) = (client.clone(), held.clone(), turns.clone());
            contenders.spawn(async move {
                let lease = client.lease_grant(60, None).await.expect("a lease").id();
                let options = LockOptions::new().with_lease(lease);
                let lock = client.lock("name", Some(options)).await.expect("the lock");
                assert!(!held.swap(true, Ordering::SeqCst), "two hold the lock");
                tokio::task::yield_now().await;
                held.store(false, Ordering::SeqCst);
                turns.fetch_add(1, Ordering::SeqCst);
                client.unlock(lock.key()).await.expect("unlocked");
            });
        }
        contenders.join_all().await;
        assert_eq!(turns.load(Ordering::SeqCst), 50);
        Ok(())
    })
    .await;
}

/// Who gives up waiting does not stand in others' way, and a lock goes with its lease.
#[tokio::test]
async fn a_lock_that_nobody_waits_for_any_more_is_free() {
    with_client(async |mut client| {
        let lease = client.lease_grant(60, None).await.expect("a lease").id();
        let options = LockOptions::new().with_lease(lease);
        client.lock("name", Some(options)).await.expect("the lock");
        let mut impatient = client.clone();
        let waiting = tokio::spawn(async move { impatient.lock("name", None).await });
        let all = GetOptions::new().with_prefix().with_count_only();
        while client
            .get("name/", Some(all.clone()))
            .await
            .expect("count")
            .count()
            < 2
        {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        while client
            .get("name/", Some(all.clone()))
            .await
            .expect("count")
            .count()
            > 1
        {
            tokio::task::yield_now().await;
        }
        client.lease_revoke(lease).await.expect("revoked");
        client.lock("name", None).await.expect("the lock");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_are_elected_one_after_the_other() {
    with_client(async |mut client| {
        let error = client.leader("post").await.expect_err("nobody leads");
        assert!(error.to_string().contains("election: no leader"), "{error}");
        let mut observed = client.observe("post").await.expect("a stream");
        let mut candidates = tokio::task::JoinSet::new();
        for number in 0..50 {
            let mut client = client.clone();
            candidates.spawn(async move {
                let lease = client.lease_grant(60, None).await.expect("a lease").id();
                let value = number.to_string();
                let elected = client.campaign("post", value.clone(), lease).await;
                let elected = elected.expect("elected");
                let leader = elected.leader().expect("a leader key").clone();
                let now = client.leader("post").await.expect("a leader");
                let kv = now.kv().expect("a key");
                assert_eq!(kv.value(), value.as_bytes());
                let options = ProclaimOptions::new().with_leader(leader.clone());
                let said = client.proclaim(format!("{value}!"), Some(options)).await;
                said.expect("proclaimed");
                let options = ResignOptions::new().with_leader(leader.clone());
                client.resign(Some(options)).await.expect("resigned");
                let options = ProclaimOptions::new().with_leader(leader);
                let error = client.proclaim("late", Some(options)).await;
                let error = error.expect_err("it leads no more").to_string();
                assert!(error.contains("election: not leader"), "{error}");
            });
        }
        candidates.join_all().await;
        let first = observed.message().await.expect("an answer").expect("one");
        assert!(first.kv().is_some());
        Ok(())
    })
    .await;
}
