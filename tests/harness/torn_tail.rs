//! A crash in the middle of the last write, at every byte of it, and a disk that changes what it holds: as etcd's
//! clients see it. (`fdb/tests/crash.rs` does the same to the store alone, holes and tables included.)

use std::path::{Path, PathBuf};

use bytes::Bytes;
use cke::clock::Clock;
use cke::etcd::client::{self, Client, Keyspaces as _, header_revision};
use cke::etcd::{EtcdConfig, Server};
use etcd_proto::etcdserverpb::{RangeRequest, TxnRequest, WatchCreateRequest};
use etcd_proto::mvccpb::KeyValue;
use fdb::{Database, EmbeddedOptions, OpenError};

use crate::instance::copy;

struct Opened {
    database: Database,
    server: Server,
}

async fn open(directory: &Path) -> Result<Opened, OpenError> {
    let database = Database::open_embedded(directory, EmbeddedOptions::default()).await?;
    let server = Server::open(database.clone(), Clock::real(), EtcdConfig::default());
    Ok(Opened {
        server: server.await.expect("a sound store has sound data"),
        database,
    })
}

impl Opened {
    fn client(&self) -> Client {
        self.server.client("default")
    }

    async fn put(&self, key: &'static str, value: &'static str) -> i64 {
        self.client().put(key, value).await.expect("put")
    }

    async fn close(self) {
        self.server.close().await;
        drop(self.server);
        self.database.close().await;
    }
}

/// The revision and every key.
type State = (i64, Vec<KeyValue>);

async fn state(opened: &Opened) -> State {
    let everything = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    };
    let response = opened.client().range(everything).await.expect("range");
    (header_revision(response.header), response.kvs)
}

fn journal(directory: &Path) -> PathBuf {
    let entries = std::fs::read_dir(directory.join("store")).expect("a store");
    let mut journals: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect();
    assert_eq!(journals.len(), 1, "all of it is in one journal");
    journals.remove(0)
}

fn used(directory: &Path) -> usize {
    let bytes = std::fs::read(journal(directory)).expect("readable");
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

struct LastWrite {
    directory: tempfile::TempDir,
    begin: usize,
    end: usize,
    before: State,
    after: State,
}

/// The last write is a transaction that puts two keys and deletes one.
async fn last_write() -> LastWrite {
    let original = tempfile::tempdir().expect("a directory");
    let opened = open(original.path()).await.expect("a new store");
    opened.put("a", "1").await;
    opened.put("b", "1").await;
    let before = state(&opened).await;
    let begin = used(original.path());
    let transaction = TxnRequest {
        success: vec![
            client::put("a", "two"),
            client::put("c", "three, with a few more bytes"),
            client::delete("b"),
        ],
        ..TxnRequest::default()
    };
    opened.client().txn(transaction).await.expect("txn");
    let after = state(&opened).await;
    let end = used(original.path());
    // Copied while it is open: nothing is written by closing that a crash would not have.
    let directory = tempfile::tempdir().expect("a directory");
    copy(original.path(), directory.path());
    opened.close().await;
    LastWrite {
        directory,
        begin,
        end,
        before,
        after,
    }
}

/// A copy with the journal changed.
fn damaged(write: &LastWrite, damage: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    copy(write.directory.path(), directory.path());
    let path = journal(directory.path());
    let mut bytes = std::fs::read(&path).expect("readable");
    damage(&mut bytes);
    std::fs::write(path, bytes).expect("writable");
    directory
}

/// 14370: what was acknowledged survives; what was being written is there as a whole or not at all, and its
/// revision is given out again.
#[tokio::test]
async fn a_write_cut_at_any_byte_is_absent_as_a_whole() {
    let write = last_write().await;
    assert!(write.end - write.begin > 200);
    for cut in write.begin..=write.end {
        let zeros = if cut % 2 == 0 { 0 } else { 5_000 }; // what the file had been extended by
        let directory = damaged(&write, |journal| {
            journal.truncate(cut);
            journal.resize(cut + zeros, 0);
        });
        let opened = open(directory.path()).await.expect("it opens");
        let expect = if cut == write.end {
            &write.after
        } else {
            &write.before
        };
        assert_eq!(&state(&opened).await, expect, "cut at {cut}");
        let revision = opened.put("d", "after the crash").await;
        assert_eq!(revision, expect.0 + 1, "cut at {cut}");
        // A watch replays what is left, and nothing of what is not.
        let all = WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: 2,
            ..WatchCreateRequest::default()
        };
        let mut watch = opened.client().watch(all).await.expect("a watch");
        let mut told = Vec::new();
        while told.last() != Some(&revision) {
            let response = watch.next().await.expect("the rest");
            let kvs = response.events.into_iter().filter_map(|event| event.kv);
            told.extend(kvs.map(|kv| kv.mod_revision));
        }
        let expect: &[i64] = if cut == write.end {
            &[2, 3, 4, 4, 4, 5]
        } else {
            &[2, 3, 4]
        };
        assert_eq!(told, expect, "cut at {cut}");
        drop(watch);
        opened.close().await;
    }
}

/// 20271: a byte that changes in what was written before is reported, and nothing is served.
#[tokio::test]
async fn a_changed_byte_is_reported_and_never_served() {
    let write = last_write().await;
    for at in (0..write.begin).step_by(5) {
        let directory = damaged(&write, |journal| journal[at] ^= 0x10);
        let opened = open(directory.path()).await;
        let reported = matches!(opened, Err(OpenError::Damaged { .. }));
        assert!(reported, "byte {at} of {}", write.begin);
    }
}
