//! A keyspace as the database file that etcd itself would have: what `etcdctl snapshot save` stores.

mod bolt;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use etcd_proto::etcdserverpb::{AlarmMember, SnapshotResponse};
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use self::bolt::{BucketPlan, Layout, Sizes};
use super::error::Error;
use super::history::{self, History};
use super::keyspace::Keyspace;
use super::record::Revision;
use super::service::{RAFT_TERM, STORAGE_VERSION};

/// Bytes of an answer, as etcd cuts them.
const BLOB_BYTES: usize = 32 << 10;

/// A lease in etcd's database.
#[derive(Clone, PartialEq, Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    /// Seconds.
    #[prost(int64, tag = "2")]
    ttl: i64,
}

/// A bucket whose few elements are in memory.
struct Small {
    plan: BucketPlan,
    elements: Vec<(Bytes, Bytes)>,
}

impl Small {
    fn new(layout: &mut Layout, name: &'static str, elements: Vec<(Bytes, Bytes)>) -> Small {
        let sizes: Vec<Sizes> = elements
            .iter()
            .map(|(key, value)| Sizes {
                key: key.len(),
                value: value.len(),
            })
            .collect();
        Small {
            plan: layout.bucket(name, &sizes),
            elements,
        }
    }

    fn pages(&self) -> Bytes {
        let mut pages = BytesMut::new();
        for (at, (from, count)) in self.plan.leaves().enumerate() {
            pages.extend_from_slice(&self.plan.leaf(at, &self.elements[from..from + count]));
        }
        let branches = self.plan.branches(|at| self.elements[at].0.clone());
        pages.extend_from_slice(&branches);
        pages.freeze()
    }
}

/// Sends the snapshot in order, then its SHA-256, as etcd does. Ends early when nobody receives any more.
pub async fn send(
    keyspace: Arc<Keyspace>,
    member: u64,
    answers: mpsc::Sender<Result<SnapshotResponse, Error>>,
) {
    let _held = keyspace.hold_compaction().await;
    let mut out = Output {
        answers: answers.clone(),
        pending: BytesMut::with_capacity(2 * BLOB_BYTES),
        remaining: 0,
        hash: Sha256::new(),
    };
    if let Err(Some(error)) = write(&keyspace, member, &mut out).await {
        let _ = answers.send(Err(error)).await;
    }
}

struct Output {
    answers: mpsc::Sender<Result<SnapshotResponse, Error>>,
    pending: BytesMut,
    remaining: u64,
    hash: Sha256,
}

/// Why a snapshot is cut short; none if its receiver has gone.
type Cut = Option<Error>;

impl Output {
    async fn push(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        self.pending.extend_from_slice(bytes);
        while self.pending.len() >= BLOB_BYTES {
            let blob = self.pending.split_to(BLOB_BYTES).freeze();
            self.send(blob).await?;
        }
        Ok(())
    }

    async fn send(&mut self, blob: Bytes) -> Result<(), Cut> {
        self.hash.update(&blob);
        self.remaining = self.remaining.saturating_sub(blob.len() as u64);
        let answer = SnapshotResponse {
            remaining_bytes: self.remaining,
            blob,
            version: STORAGE_VERSION.to_owned(),
            ..SnapshotResponse::default()
        };
        self.answers.send(Ok(answer)).await.map_err(|_| None)
    }

    async fn finish(mut self: Box<Self>) -> Result<(), Cut> {
        if !self.pending.is_empty() {
            let rest = self.pending.split().freeze();
            self.send(rest).await?;
        }
        let digest = Bytes::copy_from_slice(&self.hash.clone().finalize());
        let answer = SnapshotResponse {
            blob: digest,
            version: STORAGE_VERSION.to_owned(),
            ..SnapshotResponse::default()
        };
        self.answers.send(Ok(answer)).await.map_err(|_| None)
    }
}

async fn write(keyspace: &Keyspace, member: u64, out: &mut Output) -> Result<(), Cut> {
    let (history, alarms, auth) = {
        let state = keyspace.state.read().clone();
        (History::of(&state), state.alarms, Arc::clone(&state.auth))
    };
    let leases = keyspace.leases.lock().granted();
    let mut layout = Layout::default();
    // In the order of their names.
    let alarm = alarms.active().map(|kind| {
        let member = AlarmMember {
            member_id: member,
            alarm: kind.into(),
        };
        (Bytes::from(member.encode_to_vec()), Bytes::new())
    });
    let mut before = vec![Small::new(&mut layout, "alarm", alarm.collect())];
    let flags = vec![
        (
            Bytes::from_static(b"authEnabled"),
            Bytes::copy_from_slice(&[u8::from(auth.enabled)]),
        ),
        (
            Bytes::from_static(b"authRevision"),
            Bytes::copy_from_slice(&auth.revision.to_be_bytes()),
        ),
    ];
    before.push(Small::new(&mut layout, "auth", flags));
    let roles = auth.roles().map(|(name, role)| named(name, role)).collect();
    before.push(Small::new(&mut layout, "authRoles", roles));
    let users = auth.users().map(|(name, user)| named(name, user)).collect();
    before.push(Small::new(&mut layout, "authUsers", users));
    before.push(Small::new(&mut layout, "cluster", Vec::new()));
    let sizes: Vec<Sizes> = history
        .records
        .iter()
        .map(|record| Sizes {
            key: history::stored_key_len(record),
            value: history::stored_value_len(record),
        })
        .collect();
    let keys = layout.bucket("key", &sizes);
    drop(sizes);
    let mut granted: Vec<(Bytes, Bytes)> = leases
        .into_iter()
        .map(|(id, ttl)| {
            let key = Bytes::copy_from_slice(&id.to_be_bytes());
            (key, Bytes::from(StoredLease { id, ttl }.encode_to_vec()))
        })
        .collect();
    granted.sort();
    let mut after = vec![Small::new(&mut layout, "lease", granted)];
    for name in ["members", "members_removed"] {
        after.push(Small::new(&mut layout, name, Vec::new()));
    }
    after.push(Small::new(&mut layout, "meta", meta(&history)));

    let transaction = history.revision.unsigned_abs();
    let (first, last, file_bytes) = layout.finish(transaction);
    out.remaining = file_bytes;
    out.push(&first).await?;
    for bucket in &before {
        out.push(&bucket.pages()).await?;
    }
    for (at, (from, count)) in keys.leaves().enumerate() {
        let records = &history.records[from..from + count];
        let fetched = history::fetch(keyspace, records).await.map_err(Some)?;
        let elements: Result<Vec<(Bytes, Bytes)>, Error> = records
            .iter()
            .map(|record| {
                let value =
                    history::stored_value(history::with_value(keyspace, record, &fetched)?)?;
                Ok((history::stored_key(record), value))
            })
            .collect();
        out.push(&keys.leaf(at, &elements.map_err(Some)?)).await?;
    }
    let branches = keys.branches(|at| history::stored_key(&history.records[at]));
    out.push(&branches).await?;
    for bucket in &after {
        out.push(&bucket.pages()).await?;
    }
    out.push(&last).await?;
    let done = std::mem::replace(
        out,
        Output {
            answers: out.answers.clone(),
            pending: BytesMut::new(),
            remaining: 0,
            hash: Sha256::new(),
        },
    );
    Box::new(done).finish().await
}

fn named(name: &str, message: &impl Message) -> (Bytes, Bytes) {
    let name = Bytes::copy_from_slice(name.as_bytes());
    (name, Bytes::from(message.encode_to_vec()))
}

/// In the order of their keys.
fn meta(history: &History) -> Vec<(Bytes, Bytes)> {
    let index = history.revision.unsigned_abs().to_be_bytes();
    let mut meta = vec![(
        Bytes::from_static(b"consistent_index"),
        Bytes::copy_from_slice(&index),
    )];
    if history.compacted > 0 {
        let compacted = history::revision_bytes(Revision {
            main: history.compacted,
            sub: 0,
        })
        .freeze();
        meta.push((Bytes::from_static(b"finishedCompactRev"), compacted.clone()));
        meta.push((Bytes::from_static(b"scheduledCompactRev"), compacted));
    }
    meta.push((
        Bytes::from_static(b"storageVersion"),
        Bytes::from_static(STORAGE_VERSION.as_bytes()),
    ));
    let term = Bytes::copy_from_slice(&RAFT_TERM.to_be_bytes());
    meta.push((Bytes::from_static(b"term"), term));
    meta
}
