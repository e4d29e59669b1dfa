//! Put, DeleteRange and Txn: what a request may ask, and what it does to the state.
//!
//! A transaction's compares, nested ones too, all look at the state before it. Then every operation
//! of the chosen branches is checked, and only then are they executed, in order: each sees what
//! those before it did. So a transaction that is refused has changed nothing.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use super::error::Error;
use super::event::Event;
use super::key_range::KeyRange;
use super::range::{self, RangeAnswer};
use super::record::{Record, Revision, SharedRecord};
use super::view::{Fault, Fetched, Staged, View as _};

#[derive(Clone, Debug)]
pub struct PutAnswer {
    pub revision: i64,
    /// Only if it was asked for.
    pub previous: Option<SharedRecord>,
}

#[derive(Clone, Debug)]
pub struct DeleteAnswer {
    pub revision: i64,
    pub deleted: usize,
    /// Only if they were asked for.
    pub previous: Vec<SharedRecord>,
}

#[derive(Clone, Debug)]
pub struct TxnAnswer {
    pub revision: i64,
    pub succeeded: bool,
    pub answers: Vec<OpAnswer>,
}

#[derive(Clone, Debug)]
pub enum OpAnswer {
    Range(RangeAnswer),
    Put(PutAnswer),
    Delete(DeleteAnswer),
    Txn(TxnAnswer),
}

pub fn validate_put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

pub fn validate_delete(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    Ok(())
}

/// `max_ops` bounds each list of the transaction; what the widest list uses up is not left for
/// nested transactions. So the nesting is bounded too.
pub fn validate(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    validate_operations(request, max_ops)?;
    // After the sizes: overlap costs more than linear time.
    written(&request.success)?;
    written(&request.failure)?;
    Ok(())
}

fn validate_operations(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    let lists = [
        request.compare.len(),
        request.success.len(),
        request.failure.len(),
    ];
    let widest = lists.into_iter().max().unwrap_or(0);
    let left = max_ops
        .checked_sub(widest)
        .ok_or(Error::TooManyOperations)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => range::validate(request)?,
            Some(Request::RequestPut(request)) => validate_put(request)?,
            Some(Request::RequestDeleteRange(request)) => validate_delete(request)?,
            Some(Request::RequestTxn(request)) => validate_operations(request, left)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// What a list of operations may write.
#[derive(Default)]
struct Written {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Written {
    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

/// No key may be put twice, nor put and deleted, unless in branches that exclude one another.
fn written(operations: &[RequestOp]) -> Result<Written, Error> {
    let mut all = Written::default();
    for operation in operations {
        if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
            all.deletes
                .push(KeyRange::new(&delete.key, &delete.range_end));
        }
    }
    for operation in operations {
        let Some(Request::RequestTxn(nested)) = &operation.request else {
            continue;
        };
        let success = written(&nested.success)?;
        let failure = written(&nested.failure)?;
        for (branch, other) in [(&success, None), (&failure, Some(&success))] {
            for key in &branch.puts {
                let excluded = other.is_some_and(|other| other.puts.contains(key));
                if (all.puts.contains(key) && !excluded) || all.deletes(key) {
                    return Err(Error::DuplicateKey);
                }
            }
            all.puts.extend(branch.puts.iter().cloned());
        }
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for operation in operations {
        if let Some(Request::RequestPut(put)) = &operation.request {
            if all.puts.contains(&put.key) || all.deletes(&put.key) {
                return Err(Error::DuplicateKey);
            }
            all.puts.insert(put.key.clone());
        }
    }
    Ok(all)
}

/// Whether the transaction can change nothing, whatever its compares say.
pub fn is_read_only(request: &TxnRequest) -> bool {
    let mut operations = request.success.iter().chain(&request.failure);
    operations.all(|operation| matches!(operation.request, Some(Request::RequestRange(_))))
}

/// Whether a read-only transaction is content with the past: all that it asks is.
pub fn is_serializable(request: &TxnRequest) -> bool {
    let mut operations = request.success.iter().chain(&request.failure);
    operations.all(|operation| {
        matches!(&operation.request, Some(Request::RequestRange(range)) if range.serializable)
    })
}

/// The leases that the transaction may hang keys on.
pub fn leases(request: &TxnRequest, found: &mut BTreeSet<i64>) {
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestPut(put)) => {
                found.insert(put.lease);
            }
            Some(Request::RequestTxn(nested)) => leases(nested, found),
            _ => {}
        }
    }
}

/// One request being evaluated at the revision after `view`'s.
pub struct Execution<'a> {
    pub view: Staged<'a>,
    pub lease_exists: &'a dyn Fn(i64) -> bool,
    pub fetched: &'a Fetched,
    pub changes: Vec<Event>,
    /// The revision that the changes get.
    next: i64,
}

impl<'a> Execution<'a> {
    pub fn new(
        view: Staged<'a>,
        lease_exists: &'a dyn Fn(i64) -> bool,
        fetched: &'a Fetched,
    ) -> Self {
        let next = view.revision + 1;
        Execution {
            view,
            lease_exists,
            fetched,
            changes: Vec::new(),
            next,
        }
    }

    /// Takes the changes back.
    pub fn roll_back(&mut self) {
        for change in self.changes.drain(..).rev() {
            self.view.overlay.pop(&change.record.key);
        }
        self.view.revision = self.next - 1;
    }

    fn change(&mut self, record: Record, previous: Option<SharedRecord>) {
        let record = Arc::new(record);
        self.view.overlay.push(Arc::clone(&record));
        self.view.revision = self.next;
        self.changes.push(Event::new(record, previous));
    }

    fn next_revision(&self) -> Revision {
        Revision {
            main: self.next,
            sub: u32::try_from(self.changes.len()).unwrap_or(u32::MAX),
        }
    }

    fn latest(&self, key: &[u8]) -> Option<SharedRecord> {
        self.view.get(key, self.view.revision)
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), Error> {
        if request.lease != 0 && !(self.lease_exists)(request.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (request.ignore_value || request.ignore_lease) && self.latest(&request.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    pub fn put(&mut self, request: &PutRequest) -> Result<PutAnswer, Fault> {
        self.check_put(request)?;
        self.execute_put(request)
    }

    fn execute_put(&mut self, request: &PutRequest) -> Result<PutAnswer, Fault> {
        let previous = self.latest(&request.key);
        let mut value = request.value.clone();
        let mut lease = request.lease;
        if request.ignore_value || request.ignore_lease {
            let previous = previous.as_ref().ok_or(Error::KeyNotFound)?;
            if request.ignore_value {
                let values = range::values(std::slice::from_ref(previous), self.fetched)?;
                value = values.into_iter().next().unwrap_or_default();
            }
            if request.ignore_lease {
                lease = previous.lease;
            }
        }
        let revision = self.next_revision();
        let record = Record::put(&request.key, value, lease, revision, previous.as_deref());
        self.change(record, previous.clone());
        Ok(PutAnswer {
            revision: self.next,
            previous: previous.filter(|_| request.prev_kv),
        })
    }

    pub fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteAnswer {
        let range = KeyRange::new(&request.key, &request.range_end);
        let mut doomed = Vec::new();
        self.view.scan(&range, self.view.revision, &mut |record| {
            doomed.push(Arc::clone(record));
            ControlFlow::Continue(())
        });
        self.delete_records(&doomed);
        DeleteAnswer {
            revision: self.view.revision,
            deleted: doomed.len(),
            previous: if request.prev_kv { doomed } else { Vec::new() },
        }
    }

    pub fn delete_records(&mut self, doomed: &[SharedRecord]) {
        for record in doomed {
            let tombstone = Record::tombstone(record, self.next_revision());
            self.change(tombstone, Some(Arc::clone(record)));
        }
    }

    pub fn txn(&mut self, request: &TxnRequest) -> Result<TxnAnswer, Fault> {
        let mut path = Vec::new();
        self.choose(request, &mut path)?;
        self.check(request, &mut path.iter().copied())?;
        let mut answer = self.execute(request, &mut path.into_iter())?;
        answer.revision = self.view.revision;
        Ok(answer)
    }

    /// Which branch each transaction takes, nested ones in the order they are met.
    fn choose(&self, request: &TxnRequest, path: &mut Vec<bool>) -> Result<(), Fault> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !self.compare(compare)? {
                succeeded = false;
                break;
            }
        }
        path.push(succeeded);
        for operation in branch(request, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &operation.request {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    fn check(
        &self,
        request: &TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<(), Error> {
        for operation in branch(request, path.next().unwrap_or(false)) {
            match &operation.request {
                Some(Request::RequestRange(request)) => self.check_range(request)?,
                Some(Request::RequestPut(request)) => self.check_put(request)?,
                Some(Request::RequestTxn(request)) => self.check(request, path)?,
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    fn check_range(&self, request: &RangeRequest) -> Result<(), Error> {
        match request.revision {
            0 => Ok(()),
            revision if revision > self.view.revision => Err(Error::FutureRevision),
            revision if revision < self.view.compacted => Err(Error::Compacted),
            _ => Ok(()),
        }
    }

    fn execute(
        &mut self,
        request: &TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnAnswer, Fault> {
        let succeeded = path.next().unwrap_or(false);
        let mut answers = Vec::new();
        for operation in branch(request, succeeded) {
            answers.push(match &operation.request {
                Some(Request::RequestRange(request)) => {
                    OpAnswer::Range(range::evaluate(&self.view, request, self.fetched)?)
                }
                Some(Request::RequestPut(request)) => OpAnswer::Put(self.execute_put(request)?),
                Some(Request::RequestDeleteRange(request)) => {
                    OpAnswer::Delete(self.delete(request))
                }
                Some(Request::RequestTxn(request)) => OpAnswer::Txn(self.execute(request, path)?),
                None => continue,
            });
        }
        Ok(TxnAnswer {
            // Only the outermost transaction tells its revision.
            revision: 0,
            succeeded,
            answers,
        })
    }

    fn compare(&self, compare: &Compare) -> Result<bool, Fault> {
        let range = KeyRange::new(&compare.key, &compare.range_end);
        let mut records = Vec::new();
        self.view.scan(&range, self.view.revision, &mut |record| {
            records.push(Arc::clone(record));
            ControlFlow::Continue(())
        });
        let by_value = compare.target() == CompareTarget::Value;
        if records.is_empty() {
            // An absent key has no value, not even an empty one; its numbers are all 0.
            return Ok(!by_value && holds(compare, expected_number(compare), 0));
        }
        if by_value {
            let expected = match &compare.target_union {
                Some(TargetUnion::Value(value)) => value.clone(),
                _ => Bytes::new(),
            };
            let values = range::values(&records, self.fetched)?;
            return Ok(values.iter().all(|value| holds(compare, &expected, value)));
        }
        let expected = expected_number(compare);
        let number = |record: &SharedRecord| match compare.target() {
            CompareTarget::Version => record.version,
            CompareTarget::Create => record.create_revision,
            CompareTarget::Mod => record.revision.main,
            CompareTarget::Lease => record.lease,
            CompareTarget::Value => 0,
        };
        Ok(records
            .iter()
            .all(|record| holds(compare, expected, number(record))))
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

/// The number that the target is compared with; one of another target counts as 0.
fn expected_number(compare: &Compare) -> i64 {
    match (compare.target(), &compare.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(number)))
        | (CompareTarget::Create, Some(TargetUnion::CreateRevision(number)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(number)))
        | (CompareTarget::Lease, Some(TargetUnion::Lease(number))) => *number,
        _ => 0,
    }
}

fn holds<T: Ord>(compare: &Compare, expected: T, found: T) -> bool {
    match compare.result() {
        CompareResult::Equal => found == expected,
        CompareResult::NotEqual => found != expected,
        CompareResult::Greater => found > expected,
        CompareResult::Less => found < expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> RequestOp {
        operation(Request::RequestPut(PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..PutRequest::default()
        }))
    }

    fn delete(key: &str, end: &str) -> RequestOp {
        operation(Request::RequestDeleteRange(DeleteRangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
            prev_kv: false,
        }))
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        operation(Request::RequestTxn(TxnRequest {
            compare: Vec::new(),
            success,
            failure,
        }))
    }

    fn operation(request: Request) -> RequestOp {
        RequestOp {
            request: Some(request),
        }
    }

    #[test]
    fn a_key_is_written_once() {
        let check = |success: Vec<RequestOp>, expected: Result<(), Error>| {
            let request = TxnRequest {
                success: success.clone(),
                ..TxnRequest::default()
            };
            assert_eq!(validate(&request, 128), expected, "{success:?}");
        };
        let duplicate = Err(Error::DuplicateKey);
        check(vec![put("a"), put("b")], Ok(()));
        check(vec![put("a"), put("a")], duplicate);
        check(vec![put("a"), delete("a", "")], duplicate);
        check(vec![delete("a", ""), put("a")], duplicate);
        check(vec![delete("a", "c"), put("b")], duplicate);
        check(vec![delete("a", "\0"), put("z")], duplicate);
        check(vec![delete("a", "c"), put("c")], Ok(()));
        check(vec![delete("a", "c"), delete("b", "d")], Ok(()));
        check(vec![put("a"), nested(vec![put("a")], vec![])], duplicate);
        check(vec![put("a"), nested(vec![], vec![put("a")])], duplicate);
        check(vec![nested(vec![put("a")], vec![put("a")])], Ok(()));
        check(vec![nested(vec![put("a")], vec![delete("a", "")])], Ok(()));
        check(
            vec![
                nested(vec![put("a")], vec![]),
                nested(vec![put("a")], vec![]),
            ],
            duplicate,
        );
        check(
            vec![delete("a", ""), nested(vec![put("a")], vec![])],
            duplicate,
        );
        check(
            vec![put("a"), nested(vec![delete("a", "b")], vec![])],
            duplicate,
        );
    }

    #[test]
    fn operations_are_bounded() {
        let check = |lists: [usize; 3], expected: Result<(), Error>| {
            let puts = |n: usize| (0..n).map(|i| put(&i.to_string())).collect();
            let compare = Compare {
                key: Bytes::from_static(b"k"),
                ..Compare::default()
            };
            let request = TxnRequest {
                compare: vec![compare; lists[0]],
                success: puts(lists[1]),
                failure: puts(lists[2]),
            };
            assert_eq!(validate(&request, 128), expected, "{lists:?}");
        };
        let too_many = Err(Error::TooManyOperations);
        check([128, 128, 128], Ok(()));
        check([129, 0, 0], too_many);
        check([0, 129, 0], too_many);
        check([0, 0, 129], too_many);
        let deep = (0..200).fold(put("a"), |inner, _| nested(vec![inner], vec![]));
        let request = TxnRequest {
            success: vec![deep],
            ..TxnRequest::default()
        };
        assert_eq!(validate(&request, 128), too_many);
    }

    #[test]
    fn operations_are_checked_deep_down() {
        let check = |op: RequestOp, expected: Error| {
            for success in [vec![op.clone()], vec![nested(vec![], vec![op])]] {
                let request = TxnRequest {
                    success,
                    ..TxnRequest::default()
                };
                assert_eq!(validate(&request, 128), Err(expected));
            }
        };
        check(put(""), Error::EmptyKey);
        check(delete("", "z"), Error::EmptyKey);
        check(RequestOp { request: None }, Error::KeyNotFound);
        let both = PutRequest {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            ignore_value: true,
            ..PutRequest::default()
        };
        check(operation(Request::RequestPut(both)), Error::ValueProvided);
    }
}
