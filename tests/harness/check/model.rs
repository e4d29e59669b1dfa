//! What etcd answers to a request at a revision, and what the request changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use etcd_proto::mvccpb::KeyValue;

use super::log::Log;
use crate::history::Change;
use crate::request::{Keys, KvAnswer, KvRequest, Op, OpAnswer};

/// The request's answer on top of revision `at`, its own revision included, and its changes.
pub fn evaluate(log: &Log, at: i64, request: &KvRequest) -> (KvAnswer, Vec<Change>) {
    let mut execution = Execution {
        log,
        at,
        staged: BTreeMap::new(),
        changes: Vec::new(),
    };
    let succeeded = request.compares.iter().all(|(key, revision)| {
        let found = log.get(key, at).map_or(0, |kv| kv.mod_revision);
        found == *revision
    });
    let ops = request.branch(succeeded).iter();
    let answers = ops.map(|op| execution.run(op)).collect();
    let answer = KvAnswer {
        revision: at + i64::from(!execution.changes.is_empty()),
        succeeded,
        answers,
    };
    (answer, execution.changes)
}

struct Execution<'a> {
    log: &'a Log,
    at: i64,
    staged: BTreeMap<Bytes, Option<KeyValue>>,
    changes: Vec<Change>,
}

impl Execution<'_> {
    fn scan(&self, keys: &Keys) -> Vec<KeyValue> {
        let mut found: BTreeMap<Bytes, KeyValue> = self
            .log
            .scan(keys, self.at)
            .into_iter()
            .map(|kv| (kv.key.clone(), kv.clone()))
            .collect();
        for (key, staged) in self.staged.iter().filter(|(key, _)| keys.contains(key)) {
            match staged {
                Some(kv) => found.insert(key.clone(), kv.clone()),
                None => found.remove(key),
            };
        }
        found.into_values().collect()
    }

    fn change(&mut self, key: Bytes, kv: Option<KeyValue>) {
        self.staged.insert(key.clone(), kv.clone());
        self.changes.push(Change {
            key,
            revision: self.at + 1,
            kv,
        });
    }

    fn run(&mut self, op: &Op) -> OpAnswer {
        match op {
            Op::Range {
                keys,
                revision,
                limit,
            } => {
                let mut kvs = if *revision > 0 {
                    let kvs = self.log.scan(keys, *revision);
                    kvs.into_iter().cloned().collect()
                } else {
                    self.scan(keys)
                };
                let count = kvs.len();
                let limit = usize::try_from(*limit).unwrap_or(0);
                let more = limit > 0 && count > limit;
                if more {
                    kvs.truncate(limit);
                }
                OpAnswer::Range {
                    kvs,
                    count: i64::try_from(count).unwrap_or(i64::MAX),
                    more,
                }
            }
            Op::Put { key, value, lease } => {
                let previous = self.scan(&Keys::one(key)).pop();
                let next = self.at + 1;
                let kv = KeyValue {
                    key: key.clone(),
                    create_revision: previous.as_ref().map_or(next, |kv| kv.create_revision),
                    mod_revision: next,
                    version: previous.as_ref().map_or(1, |kv| kv.version + 1),
                    value: value.clone(),
                    lease: *lease,
                };
                self.change(key.clone(), Some(kv));
                OpAnswer::Put { previous }
            }
            Op::Delete { keys } => {
                let previous = self.scan(keys);
                for kv in &previous {
                    self.change(kv.key.clone(), None);
                }
                OpAnswer::Delete {
                    deleted: i64::try_from(previous.len()).unwrap_or(i64::MAX),
                    previous,
                }
            }
        }
    }
}

/// The deletions that the end of the lease is, on top of revision `at`.
pub fn end_of_lease(log: &Log, at: i64, lease: i64) -> Vec<Change> {
    let all = log.scan(&Keys::all(), at).into_iter();
    all.filter(|kv| kv.lease == lease)
        .map(|kv| Change {
            key: kv.key.clone(),
            revision: at + 1,
            kv: None,
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn kv(key: &str, value: &str, modified: i64, created: i64, version: i64) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mod_revision: modified,
            create_revision: created,
            version,
            lease: 0,
        }
    }

    pub fn put(key: &str, value: &str, revision: i64, created: i64, version: i64) -> Change {
        let kv = kv(key, value, revision, created, version);
        Change {
            key: kv.key.clone(),
            revision,
            kv: Some(kv),
        }
    }

    pub fn delete(key: &str, revision: i64) -> Change {
        Change {
            key: Bytes::copy_from_slice(key.as_bytes()),
            revision,
            kv: None,
        }
    }

    #[test]
    fn a_transaction_sees_its_own_changes() {
        let told = [put("a", "1", 2, 2, 1), put("b", "1", 3, 3, 1)];
        let log = Log::build(&told, &mut Vec::new());
        let read = || Op::Range {
            keys: Keys::all(),
            revision: 0,
            limit: 0,
        };
        let request = KvRequest {
            compares: vec![(Bytes::from_static(b"a"), 2)],
            success: vec![
                read(),
                Op::Put {
                    key: Bytes::from_static(b"a"),
                    value: Bytes::from_static(b"2"),
                    lease: 0,
                },
                Op::Delete {
                    keys: Keys::one(&Bytes::from_static(b"b")),
                },
                read(),
            ],
            ..KvRequest::default()
        };
        let (answer, changes) = evaluate(&log, 3, &request);
        assert_eq!(changes, [put("a", "2", 4, 2, 2), delete("b", 4)]);
        assert_eq!((answer.revision, answer.succeeded), (4, true));
        let (a, b) = (kv("a", "1", 2, 2, 1), kv("b", "1", 3, 3, 1));
        let range = |kvs: Vec<KeyValue>| OpAnswer::Range {
            count: i64::try_from(kvs.len()).expect("few"),
            kvs,
            more: false,
        };
        let expected = [
            range(vec![a.clone(), b.clone()]),
            OpAnswer::Put { previous: Some(a) },
            OpAnswer::Delete {
                deleted: 1,
                previous: vec![b],
            },
            range(vec![kv("a", "2", 4, 2, 2)]),
        ];
        assert_eq!(answer.answers, expected);
        // At revision 2 the compare holds as well; at 1 it does not.
        assert_eq!(evaluate(&log, 2, &request).0.revision, 3);
        let (answer, changes) = evaluate(&log, 1, &request);
        assert_eq!(
            (answer.revision, answer.succeeded, changes.len()),
            (1, false, 0)
        );
    }
}
