//! Answers of the keyspace as messages, with the values that are not in memory fetched.

use std::ops::ControlFlow;

use etcd_proto::etcdserverpb::response_op::Response;
use etcd_proto::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, ResponseOp, TxnResponse,
};
use etcd_proto::mvccpb::KeyValue;

use crate::etcd::error::Error;
use crate::etcd::keyspace::Keyspace;
use crate::etcd::range::RangeAnswer;
use crate::etcd::record::{Revision, SharedRecord};
use crate::etcd::txn::{DeleteAnswer, OpAnswer, PutAnswer, TxnAnswer};
use crate::etcd::view::Fetched;

/// An answer that is made of records.
pub trait Records {
    /// Visits the records whose values the message carries.
    fn visit(&self, visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>) -> ControlFlow<()>;
}

impl Records for RangeAnswer {
    fn visit(&self, visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>) -> ControlFlow<()> {
        if self.keys_only {
            return ControlFlow::Continue(());
        }
        self.records.iter().try_for_each(visit)
    }
}

impl Records for PutAnswer {
    fn visit(&self, visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>) -> ControlFlow<()> {
        self.previous.iter().try_for_each(visit)
    }
}

impl Records for DeleteAnswer {
    fn visit(&self, visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>) -> ControlFlow<()> {
        self.previous.iter().try_for_each(visit)
    }
}

impl Records for TxnAnswer {
    fn visit(&self, visit: &mut dyn FnMut(&SharedRecord) -> ControlFlow<()>) -> ControlFlow<()> {
        self.answers.iter().try_for_each(|answer| match answer {
            OpAnswer::Range(answer) => answer.visit(visit),
            OpAnswer::Put(answer) => answer.visit(visit),
            OpAnswer::Delete(answer) => answer.visit(visit),
            OpAnswer::Txn(answer) => answer.visit(visit),
        })
    }
}

/// Fetches the values of the answer that are not in memory. Records that compaction has removed
/// since the answer was made are not among the result.
pub async fn fetch(keyspace: &Keyspace, answer: &impl Records) -> Result<Fetched, Error> {
    let mut missing: Vec<Revision> = Vec::new();
    let _ = answer.visit(&mut |record| {
        if !record.is_cached() {
            missing.push(record.revision);
        }
        ControlFlow::Continue(())
    });
    let mut fetched = Fetched::new();
    if !missing.is_empty() {
        keyspace.fetch(&missing, &mut fetched).await?;
    }
    Ok(fetched)
}

/// Fetches what the answer of a write lacks.
///
/// # Errors
/// [`Error::Timeout`] if compaction was faster: the write is done, but what it answers is not to be had any more.
pub async fn fetch_all(keyspace: &Keyspace, answer: &impl Records) -> Result<Fetched, Error> {
    let fetched = fetch(keyspace, answer).await?;
    match is_complete(answer, &fetched) {
        true => Ok(fetched),
        false => Err(Error::Timeout),
    }
}

/// Whether `fetched` has all that the answer lacks.
pub fn is_complete(answer: &impl Records, fetched: &Fetched) -> bool {
    answer
        .visit(&mut |record| {
            if record.is_cached() || fetched.contains_key(&record.revision) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
        .is_continue()
}

/// Makes messages; those inside a transaction have nothing but a revision in their header.
pub struct Messages<'a> {
    pub fetched: &'a Fetched,
}

fn bare_header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

impl Messages<'_> {
    fn key_value(&self, record: &SharedRecord) -> Option<KeyValue> {
        record
            .to_key_value()
            .or_else(|| self.fetched.get(&record.revision)?.to_key_value())
    }

    pub fn range(&self, answer: &RangeAnswer) -> RangeResponse {
        let records = answer.records.iter();
        RangeResponse {
            header: bare_header(answer.revision),
            kvs: if answer.keys_only {
                records.map(|record| record.to_key_only()).collect()
            } else {
                records
                    .filter_map(|record| self.key_value(record))
                    .collect()
            },
            more: answer.more,
            count: i64::try_from(answer.count).unwrap_or(i64::MAX),
        }
    }

    pub fn put(&self, answer: &PutAnswer) -> PutResponse {
        let previous = answer.previous.as_ref();
        PutResponse {
            header: bare_header(answer.revision),
            prev_kv: previous.and_then(|record| self.key_value(record)),
        }
    }

    pub fn delete(&self, answer: &DeleteAnswer) -> DeleteRangeResponse {
        let previous = answer.previous.iter();
        DeleteRangeResponse {
            header: bare_header(answer.revision),
            deleted: i64::try_from(answer.deleted).unwrap_or(i64::MAX),
            prev_kvs: previous
                .filter_map(|record| self.key_value(record))
                .collect(),
        }
    }

    pub fn txn(&self, answer: &TxnAnswer) -> TxnResponse {
        let responses = answer.answers.iter().map(|answer| ResponseOp {
            response: Some(match answer {
                OpAnswer::Range(answer) => Response::ResponseRange(self.range(answer)),
                OpAnswer::Put(answer) => Response::ResponsePut(self.put(answer)),
                OpAnswer::Delete(answer) => Response::ResponseDeleteRange(self.delete(answer)),
                OpAnswer::Txn(answer) => Response::ResponseTxn(self.txn(answer)),
            }),
        });
        TxnResponse {
            header: bare_header(answer.revision),
            succeeded: answer.succeeded,
            responses: responses.collect(),
        }
    }
}
