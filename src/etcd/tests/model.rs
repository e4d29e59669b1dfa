//! The server against a model of etcd that keeps every revision whole.
//!
//! One client, so every answer is determined: each is compared in full, its texts and revision included.

mod leases;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::response_op::Response;
use etcd_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use etcd_proto::mvccpb::KeyValue;
use fdb::Faults;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tonic::{Code, Status};

use super::{Fixture, bytes, everything};
use crate::etcd::EtcdConfig;

type Keys = BTreeMap<Bytes, KeyValue>;

/// Every revision's keys in full. Index 0 and 1 are the empty keyspace.
#[derive(Clone)]
struct Model {
    revisions: Vec<Keys>,
    compacted: i64,
    leases: leases::Leases,
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

fn within(key: &Bytes, start: &Bytes, end: &Bytes) -> bool {
    match end.as_ref() {
        b"" => key == start,
        b"\0" => key >= start,
        _ => key >= start && key < end,
    }
}

fn refusal(code: Code, text: &str) -> Status {
    Status::new(code, format!("etcdserver: {text}"))
}

impl Model {
    fn new() -> Model {
        Model {
            revisions: vec![Keys::new(); 2],
            compacted: -1,
            leases: leases::Leases::default(),
        }
    }

    fn revision(&self) -> i64 {
        i64::try_from(self.revisions.len()).expect("small") - 1
    }

    fn now(&self) -> &Keys {
        &self.revisions[self.revisions.len() - 1]
    }

    fn check_revision(&self, revision: i64) -> Result<(), Status> {
        if revision > self.revision() {
            return Err(refusal(
                Code::OutOfRange,
                "mvcc: required revision is a future revision",
            ));
        }
        if revision > 0 && revision < self.compacted {
            return Err(refusal(
                Code::OutOfRange,
                "mvcc: required revision has been compacted",
            ));
        }
        Ok(())
    }

    /// `keys` is what a read of now sees, at `revision`.
    fn range_in(&self, keys: &Keys, revision: i64, request: &RangeRequest) -> RangeResponse {
        let keys = match usize::try_from(request.revision) {
            Ok(at) if at > 0 && at < self.revisions.len() => &self.revisions[at],
            _ => keys,
        };
        let mut kvs: Vec<KeyValue> = keys
            .values()
            .filter(|kv| within(&kv.key, &request.key, &request.range_end))
            .cloned()
            .collect();
        let count = i64::try_from(kvs.len()).expect("small");
        let bound = |max: i64| if max == 0 { i64::MAX } else { max };
        kvs.retain(|kv| {
            kv.mod_revision >= request.min_mod_revision
                && kv.mod_revision <= bound(request.max_mod_revision)
                && kv.create_revision >= request.min_create_revision
                && kv.create_revision <= bound(request.max_create_revision)
        });
        let number: fn(&KeyValue) -> i64 = match request.sort_target() {
            SortTarget::Version => |kv| kv.version,
            SortTarget::Create => |kv| kv.create_revision,
            SortTarget::Mod => |kv| kv.mod_revision,
            SortTarget::Key | SortTarget::Value => |_| 0,
        };
        let descending = request.sort_order() == SortOrder::Descend;
        let by_key = request.sort_target() == SortTarget::Key;
        let by_value = request.sort_target() == SortTarget::Value;
        kvs.sort_by(|a, b| {
            let order = if by_key {
                a.key.cmp(&b.key)
            } else if by_value {
                a.value.cmp(&b.value)
            } else {
                number(a).cmp(&number(b))
            };
            if descending { order.reverse() } else { order }
        });
        let mut response = RangeResponse {
            header: header(revision),
            count,
            ..RangeResponse::default()
        };
        if request.count_only {
            return response;
        }
        let limit = usize::try_from(request.limit).unwrap_or(0);
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            response.more = true;
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        response.kvs = kvs;
        response
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Status> {
        self.check_revision(request.revision)?;
        Ok(self.range_in(self.now(), self.revision(), request))
    }

    fn compact(&mut self, revision: i64) -> Result<(), Status> {
        if revision <= self.compacted {
            return Err(refusal(
                Code::OutOfRange,
                "mvcc: required revision has been compacted",
            ));
        }
        self.check_revision(revision)?;
        self.compacted = revision;
        Ok(())
    }

    fn put_in(keys: &mut Keys, next: i64, request: &PutRequest) -> PutResponse {
        let old = keys.get(&request.key).cloned();
        let kept = old.clone().unwrap_or_default();
        keys.insert(
            request.key.clone(),
            KeyValue {
                key: request.key.clone(),
                create_revision: old.as_ref().map_or(next, |old| old.create_revision),
                mod_revision: next,
                version: kept.version + 1,
                value: if request.ignore_value {
                    kept.value
                } else {
                    request.value.clone()
                },
                lease: if request.ignore_lease {
                    kept.lease
                } else {
                    request.lease
                },
            },
        );
        PutResponse {
            header: header(next),
            prev_kv: old.filter(|_| request.prev_kv),
        }
    }

    fn delete_in(keys: &mut Keys, request: &DeleteRangeRequest) -> Vec<KeyValue> {
        let doomed: Vec<KeyValue> = keys
            .values()
            .filter(|kv| within(&kv.key, &request.key, &request.range_end))
            .cloned()
            .collect();
        for kv in &doomed {
            keys.remove(&kv.key);
        }
        doomed
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), Status> {
        if request.lease != 0 && !self.leases.contains(request.lease) {
            return Err(leases::not_found());
        }
        let kept = request.ignore_value || request.ignore_lease;
        if kept && !self.now().contains_key(&request.key) {
            return Err(refusal(Code::InvalidArgument, "key not found"));
        }
        Ok(())
    }

    fn compare(&self, compare: &Compare) -> bool {
        let found: Vec<KeyValue> = self
            .now()
            .values()
            .filter(|kv| within(&kv.key, &compare.key, &compare.range_end))
            .cloned()
            .collect();
        let found = match (found.is_empty(), compare.target()) {
            (true, CompareTarget::Value) => return false,
            (true, _) => vec![KeyValue::default()],
            (false, _) => found,
        };
        found.iter().all(|kv| {
            let order = match compare.target_union.clone() {
                Some(TargetUnion::Version(n)) => kv.version.cmp(&n),
                Some(TargetUnion::CreateRevision(n)) => kv.create_revision.cmp(&n),
                Some(TargetUnion::ModRevision(n)) => kv.mod_revision.cmp(&n),
                Some(TargetUnion::Lease(n)) => kv.lease.cmp(&n),
                Some(TargetUnion::Value(value)) => kv.value.cmp(&value),
                None => std::cmp::Ordering::Equal,
            };
            match compare.result() {
                CompareResult::Equal => order.is_eq(),
                CompareResult::NotEqual => order.is_ne(),
                CompareResult::Greater => order.is_gt(),
                CompareResult::Less => order.is_lt(),
            }
        })
    }

    /// The chosen operations, with those of nested transactions in brackets.
    fn check_txn(&self, request: &TxnRequest) -> Result<(), Status> {
        let succeeded = request.compare.iter().all(|compare| self.compare(compare));
        let chosen = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        for op in chosen {
            match op.request.as_ref().expect("set") {
                Request::RequestRange(range) => self.check_revision(range.revision)?,
                Request::RequestPut(put) => self.check_put(put)?,
                Request::RequestTxn(nested) => self.check_txn(nested)?,
                Request::RequestDeleteRange(_) => {}
            }
        }
        Ok(())
    }

    fn txn_in(&self, keys: &mut Keys, changed: &mut bool, request: &TxnRequest) -> TxnResponse {
        let next = self.revision() + 1;
        let now = |changed: bool| self.revision() + i64::from(changed);
        let succeeded = request.compare.iter().all(|compare| self.compare(compare));
        let chosen = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        let mut responses = Vec::new();
        for op in chosen {
            let response = match op.request.as_ref().expect("set") {
                Request::RequestRange(range) => {
                    Response::ResponseRange(self.range_in(keys, now(*changed), range))
                }
                Request::RequestPut(put) => {
                    *changed = true;
                    Response::ResponsePut(Self::put_in(keys, next, put))
                }
                Request::RequestDeleteRange(delete) => {
                    let doomed = Self::delete_in(keys, delete);
                    *changed |= !doomed.is_empty();
                    Response::ResponseDeleteRange(deleted(now(*changed), delete, doomed))
                }
                Request::RequestTxn(nested) => {
                    Response::ResponseTxn(self.txn_in(keys, changed, nested))
                }
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        TxnResponse {
            header: header(0),
            succeeded,
            responses,
        }
    }

    fn commit(&mut self, keys: Keys) {
        self.revisions.push(keys);
    }
}

fn deleted(
    revision: i64,
    request: &DeleteRangeRequest,
    doomed: Vec<KeyValue>,
) -> DeleteRangeResponse {
    DeleteRangeResponse {
        header: header(revision),
        deleted: i64::try_from(doomed.len()).expect("small"),
        prev_kvs: if request.prev_kv { doomed } else { Vec::new() },
    }
}

/// Draws requests.
struct Source(ChaCha8Rng);

impl Source {
    fn key(&mut self) -> Bytes {
        bytes(&format!("k{}", self.0.random_range(0..12)))
    }

    fn value(&mut self) -> Bytes {
        // Now and then one that does not fit one record of the store.
        if self.0.random_ratio(1, 200) {
            return Bytes::from(vec![b'x'; self.0.random_range(90_000..300_000)]);
        }
        bytes(&format!("v{}", self.0.random_range(0..5)))
    }

    fn range_end(&mut self) -> Bytes {
        match self.0.random_range(0..6) {
            0 => Bytes::from_static(b"\0"),
            1 | 2 => self.key(),
            _ => Bytes::new(),
        }
    }

    fn revision(&mut self, model: &Model) -> i64 {
        if self.0.random_ratio(1, 2) {
            return 0;
        }
        self.0.random_range(0..=model.revision() + 1)
    }

    fn range(&mut self, model: &Model) -> RangeRequest {
        let bound = |source: &mut Source| {
            let some = source.0.random_ratio(1, 8);
            if some { source.revision(model) } else { 0 }
        };
        RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: self.0.random_range(-1..5),
            revision: self.revision(model),
            sort_order: self.0.random_range(0..3),
            sort_target: self.0.random_range(0..5),
            serializable: self.0.random(),
            keys_only: self.0.random_ratio(1, 6),
            count_only: self.0.random_ratio(1, 6),
            min_mod_revision: bound(self),
            max_mod_revision: bound(self),
            min_create_revision: bound(self),
            max_create_revision: bound(self),
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.0.random_ratio(1, 10);
        let ignore_lease = self.0.random_ratio(1, 10);
        let leased = !ignore_lease && self.0.random_ratio(1, 4);
        PutRequest {
            key: self.key(),
            value: if ignore_value {
                Bytes::new()
            } else {
                self.value()
            },
            prev_kv: self.0.random(),
            lease: if leased { self.lease_id() } else { 0 },
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            prev_kv: self.0.random(),
        }
    }

    fn compare(&mut self, model: &Model) -> Compare {
        let number = self.0.random_range(0..=model.revision());
        let small = self.0.random_range(0..4);
        let (target, union) = match self.0.random_range(0..5) {
            0 => (CompareTarget::Version, TargetUnion::Version(small)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(number)),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(number)),
            3 => (CompareTarget::Value, TargetUnion::Value(self.value())),
            _ if self.0.random() => (CompareTarget::Lease, TargetUnion::Lease(self.lease_id())),
            _ => (CompareTarget::Lease, TargetUnion::Lease(0)),
        };
        Compare {
            key: self.key(),
            range_end: self.range_end(),
            result: self.0.random_range(0..4),
            target: target.into(),
            target_union: Some(union),
        }
    }

    /// `free` are the keys that may still be written.
    fn operations(
        &mut self,
        model: &Model,
        depth: u32,
        free: &mut BTreeSet<Bytes>,
    ) -> Vec<RequestOp> {
        let mut operations = Vec::new();
        for _ in 0..self.0.random_range(0..4) {
            let request = match self.0.random_range(0..8) {
                0..3 => {
                    let put = self.put();
                    if !free.remove(&put.key) {
                        continue;
                    }
                    Request::RequestPut(put)
                }
                3 => {
                    let delete = self.delete();
                    let touched = |key: &Bytes| within(key, &delete.key, &delete.range_end);
                    let all = (0..12).map(|n| bytes(&format!("k{n}")));
                    if all.filter(touched).any(|key| !free.contains(&key)) {
                        continue;
                    }
                    free.retain(|key| !within(key, &delete.key, &delete.range_end));
                    Request::RequestDeleteRange(delete)
                }
                4 if depth > 0 => Request::RequestTxn(self.txn(model, depth - 1, free)),
                _ => Request::RequestRange(self.range(model)),
            };
            operations.push(RequestOp {
                request: Some(request),
            });
        }
        operations
    }

    fn txn(&mut self, model: &Model, depth: u32, free: &mut BTreeSet<Bytes>) -> TxnRequest {
        TxnRequest {
            compare: (0..self.0.random_range(0..3))
                .map(|_| self.compare(model))
                .collect(),
            success: self.operations(model, depth, free),
            failure: self.operations(model, depth, free),
        }
    }
}

/// Code and text, which is what clients go by.
fn told<T>(answer: Result<T, Status>) -> Result<T, (Code, String)> {
    answer.map_err(|status| (status.code(), status.message().to_owned()))
}

fn bare<T>(mut response: T, header: impl FnOnce(&mut T) -> &mut Option<ResponseHeader>) -> T {
    if let Some(header) = header(&mut response) {
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term >= 2);
        *header = ResponseHeader {
            revision: header.revision,
            ..ResponseHeader::default()
        };
    }
    response
}

async fn step(fixture: &Fixture, model: &mut Model, source: &mut Source) {
    match source.0.random_range(0..24) {
        20..24 => leases::step(fixture, model, source).await,
        0..6 => {
            let request = source.put();
            let expected = model.check_put(&request).map(|()| {
                let mut keys = model.now().clone();
                let response = Model::put_in(&mut keys, model.revision() + 1, &request);
                model.commit(keys);
                response
            });
            let answer = fixture.kv().put(request.clone()).await;
            let answer = answer.map(|r| bare(r.into_inner(), |r| &mut r.header));
            assert_eq!(told(answer), told(expected), "{request:?}");
        }
        6..8 => {
            let request = source.delete();
            let mut keys = model.now().clone();
            let doomed = Model::delete_in(&mut keys, &request);
            if !doomed.is_empty() {
                model.commit(keys);
            }
            let expected = deleted(model.revision(), &request, doomed);
            let answer = fixture.kv().delete_range(request.clone()).await;
            let answer = answer.map(|r| bare(r.into_inner(), |r| &mut r.header));
            assert_eq!(told(answer), Ok(expected), "{request:?}");
        }
        8..13 => {
            let mut free = (0..12).map(|n| bytes(&format!("k{n}"))).collect();
            let request = source.txn(model, 2, &mut free);
            let expected = model.check_txn(&request).map(|()| {
                let mut keys = model.now().clone();
                let mut changed = false;
                let mut response = model.txn_in(&mut keys, &mut changed, &request);
                if changed {
                    model.commit(keys);
                }
                response.header = header(model.revision());
                response
            });
            let answer = fixture.kv().txn(request.clone()).await;
            let answer = answer.map(|r| bare(r.into_inner(), |r| &mut r.header));
            assert_eq!(told(answer), told(expected), "{request:?}");
        }
        13 => {
            if source.0.random_ratio(3, 4) {
                return;
            }
            let revision = source.revision(model);
            let request = CompactionRequest {
                revision,
                physical: source.0.random(),
            };
            let answer = fixture.kv().compact(request).await.map(drop);
            assert_eq!(told(answer), told(model.compact(revision)), "{request:?}");
        }
        _ => {
            let request = source.range(model);
            let answer = fixture.range(request.clone()).await;
            let answer = answer.map(|r| bare(r, |r| &mut r.header));
            assert_eq!(told(answer), told(model.range(&request)), "{request:?}");
        }
    }
}

/// Every revision that is not compacted, in full.
async fn check_all(fixture: &Fixture, model: &Model) {
    for revision in 0..=model.revision() + 1 {
        let request = RangeRequest {
            revision,
            ..everything()
        };
        let answer = fixture.range(request.clone()).await;
        let answer = answer.map(|r| bare(r, |r| &mut r.header));
        assert_eq!(told(answer), told(model.range(&request)), "at {revision}");
    }
}

async fn run(seed: u64, steps: usize, config: EtcdConfig, faults: Option<Faults>) {
    let mut fixture = Fixture::with(config, faults).await;
    let mut model = Model::new();
    let mut source = Source(ChaCha8Rng::seed_from_u64(seed));
    for _ in 0..3 {
        let mut followers = watch::follow(&fixture, &model, &mut source).await;
        for _ in 0..steps {
            step(&fixture, &mut model, &mut source).await;
        }
        for follower in &mut followers {
            follower.check(&model).await;
        }
        check_all(&fixture, &model).await;
        drop(followers);
        fixture = fixture.restart().await;
        check_all(&fixture, &model).await;
        watch::replay(&fixture, &model, &mut source).await;
        leases::after_restart(&fixture, &mut model).await;
    }
}

#[tokio::test]
async fn answers_as_the_model_does() {
    for seed in 0..4 {
        run(seed, 150, EtcdConfig::default(), None).await;
    }
}

#[tokio::test]
async fn answers_as_the_model_does_with_hardly_any_memory_for_values() {
    let config = EtcdConfig {
        value_cache_bytes: 100,
        ..EtcdConfig::default()
    };
    for seed in 10..14 {
        run(seed, 150, config.clone(), None).await;
    }
}

#[tokio::test]
async fn answers_as_the_model_does_when_the_store_misbehaves() {
    for seed in 20..23 {
        let faults = Faults {
            seed,
            not_committed: 0.1,
            commit_unknown_result: 0.1,
            transaction_too_old: 0.03,
            future_version: 0.03,
            ..Faults::default()
        };
        run(seed, 60, EtcdConfig::default(), Some(faults)).await;
    }
}
