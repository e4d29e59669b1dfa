//! What the clients ask of the key-value store, in a shape that a checker can evaluate.
//!
//! Range, Put and DeleteRange are transactions of one operation: so one evaluation
//! ([`crate::check::model`]) covers them all.

use bytes::Bytes;
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::request_op::Request as ProtoRequest;
use etcd_proto::etcdserverpb::response_op::Response as ProtoResponse;
use etcd_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use etcd_proto::mvccpb::KeyValue;

/// A key, or the range of keys from `start` up to `end`, as etcd writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    pub start: Bytes,
    pub end: Bytes,
}

impl Keys {
    pub fn one(key: &Bytes) -> Keys {
        Keys {
            start: key.clone(),
            end: Bytes::new(),
        }
    }

    pub fn all() -> Keys {
        Keys {
            start: Bytes::from_static(b"\0"),
            end: Bytes::from_static(b"\0"),
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end.as_ref() {
            b"" => key == self.start,
            b"\0" => key >= self.start.as_ref(),
            end => key >= self.start.as_ref() && key < end,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `revision` 0 is now; `limit` 0 is none.
    Range {
        keys: Keys,
        revision: i64,
        limit: i64,
    },
    /// The previous value is always asked for.
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
    },
    /// The previous values are always asked for.
    Delete { keys: Keys },
}

/// One transaction. `compares` are keys with the mod revisions that they must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvRequest {
    pub compares: Vec<(Bytes, i64)>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
    /// Of a single Range: it may be stale.
    pub serializable: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum OpAnswer {
    Range {
        kvs: Vec<KeyValue>,
        count: i64,
        more: bool,
    },
    Put {
        previous: Option<KeyValue>,
    },
    Delete {
        deleted: i64,
        previous: Vec<KeyValue>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct KvAnswer {
    /// The header's.
    pub revision: i64,
    pub succeeded: bool,
    pub answers: Vec<OpAnswer>,
}

impl KvRequest {
    pub fn single(op: Op) -> KvRequest {
        KvRequest {
            success: vec![op],
            ..KvRequest::default()
        }
    }

    /// The operation, if this is sent as Range, Put or DeleteRange and not as Txn.
    pub fn as_single(&self) -> Option<&Op> {
        match (
            self.compares.as_slice(),
            self.success.as_slice(),
            self.failure.as_slice(),
        ) {
            ([], [op], []) => Some(op),
            _ => None,
        }
    }

    pub fn branch(&self, succeeded: bool) -> &[Op] {
        if succeeded {
            &self.success
        } else {
            &self.failure
        }
    }

    pub fn to_txn(&self) -> TxnRequest {
        let ops = |ops: &[Op]| ops.iter().map(to_request_op).collect();
        TxnRequest {
            compare: self
                .compares
                .iter()
                .map(|(key, revision)| Compare {
                    key: key.clone(),
                    range_end: Bytes::new(),
                    result: CompareResult::Equal.into(),
                    target: CompareTarget::Mod.into(),
                    target_union: Some(TargetUnion::ModRevision(*revision)),
                })
                .collect(),
            success: ops(&self.success),
            failure: ops(&self.failure),
        }
    }
}

pub fn to_range(keys: &Keys, revision: i64, limit: i64, serializable: bool) -> RangeRequest {
    RangeRequest {
        key: keys.start.clone(),
        range_end: keys.end.clone(),
        revision,
        limit,
        serializable,
        ..RangeRequest::default()
    }
}

pub fn to_put(key: &Bytes, value: &Bytes, lease: i64) -> PutRequest {
    PutRequest {
        key: key.clone(),
        value: value.clone(),
        lease,
        prev_kv: true,
        ..PutRequest::default()
    }
}

pub fn to_delete(keys: &Keys) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: keys.start.clone(),
        range_end: keys.end.clone(),
        prev_kv: true,
    }
}

fn to_request_op(op: &Op) -> RequestOp {
    let request = match op {
        Op::Range {
            keys,
            revision,
            limit,
        } => ProtoRequest::RequestRange(to_range(keys, *revision, *limit, false)),
        Op::Put { key, value, lease } => ProtoRequest::RequestPut(to_put(key, value, *lease)),
        Op::Delete { keys } => ProtoRequest::RequestDeleteRange(to_delete(keys)),
    };
    RequestOp {
        request: Some(request),
    }
}

pub fn from_range(response: RangeResponse) -> (i64, OpAnswer) {
    let answer = OpAnswer::Range {
        kvs: response.kvs,
        count: response.count,
        more: response.more,
    };
    (revision(response.header), answer)
}

pub fn from_put(response: PutResponse) -> (i64, OpAnswer) {
    let answer = OpAnswer::Put {
        previous: response.prev_kv,
    };
    (revision(response.header), answer)
}

pub fn from_delete(response: DeleteRangeResponse) -> (i64, OpAnswer) {
    let answer = OpAnswer::Delete {
        deleted: response.deleted,
        previous: response.prev_kvs,
    };
    (revision(response.header), answer)
}

pub fn from_txn(response: TxnResponse) -> KvAnswer {
    let answers = response.responses.into_iter();
    let answers = answers.filter_map(|response| match response.response? {
        ProtoResponse::ResponseRange(range) => Some(from_range(range).1),
        ProtoResponse::ResponsePut(put) => Some(from_put(put).1),
        ProtoResponse::ResponseDeleteRange(delete) => Some(from_delete(delete).1),
        ProtoResponse::ResponseTxn(_) => None,
    });
    KvAnswer {
        revision: revision(response.header),
        succeeded: response.succeeded,
        answers: answers.collect(),
    }
}

/// 0, which no answer may have, if there is none.
pub fn revision(header: Option<etcd_proto::etcdserverpb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}
