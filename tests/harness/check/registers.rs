//! Each key by itself, as a register, without trust in revisions or in watches.
//!
//! Linearizability is local: a history has a linearization if each key's part has one. A
//! transaction takes part in each of its keys, which asks for less than there is to ask; the rest
//! is [`super::order`]'s. What a value is called tells who wrote it: clients never write one twice.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use etcd_proto::mvccpb::KeyValue;

use super::wing_gong::{self, Failure, Model, Operation};
use super::{Rule, Violation};
use crate::history::{Answer, Call, History, Nanos, Outcome, Request};
use crate::request::{KvAnswer, KvRequest, Op, OpAnswer};

/// A key's value, or that there is none.
type Value = Option<Bytes>;

/// What an operation sees of a key, and then makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub sees: Option<Value>,
    pub writes: Option<Value>,
}

pub struct Register;

impl Model for Register {
    type State = Value;
    type Action = Access;

    fn step(state: &Value, action: &Access) -> Option<Value> {
        if action.sees.as_ref().is_some_and(|seen| seen != state) {
            return None;
        }
        Some(action.writes.clone().unwrap_or_else(|| state.clone()))
    }

    fn is_same(a: &Access, b: &Access) -> bool {
        a == b
    }
}

#[derive(Default)]
struct Registers {
    keys: BTreeMap<Bytes, Vec<(Operation<Access>, usize)>>,
}

impl Registers {
    fn add(&mut self, key: &Bytes, call: &Call, at: usize, access: Access) {
        let answered = matches!(call.outcome, Outcome::Answered(_));
        let operation = Operation {
            called: call.called,
            returned: answered.then_some(call.returned),
            action: access,
        };
        self.keys
            .entry(key.clone())
            .or_default()
            .push((operation, at));
    }

    /// That the key may vanish from then on.
    fn may_vanish(&mut self, key: &Bytes, called: Nanos, at: usize) {
        let operation = Operation {
            called,
            returned: None,
            action: Access {
                sees: None,
                writes: Some(None),
            },
        };
        self.keys
            .entry(key.clone())
            .or_default()
            .push((operation, at));
    }
}

pub fn check(history: &History, violations: &mut Vec<Violation>) {
    let (keys, seen) = everything_seen(&history.calls);
    let mut registers = Registers::default();
    for (at, call) in history.calls.iter().enumerate() {
        let Request::Kv(request) = &call.request else {
            continue;
        };
        match &call.outcome {
            Outcome::Answered(Answer::Kv(answer)) if !request.serializable => {
                add_answered(&mut registers, &keys, call, at, request, answer);
            }
            Outcome::Unknown(_) => add_unknown(&mut registers, &keys, &seen, call, at, request),
            _ => continue,
        }
        // A key on a lease goes with it.
        for op in request.success.iter().chain(&request.failure) {
            if let Op::Put { key, lease, .. } = op
                && *lease != 0
            {
                registers.may_vanish(key, call.called, at);
            }
        }
    }
    for (key, operations) in registers.keys {
        let (operations, calls): (Vec<_>, Vec<_>) = operations.into_iter().unzip();
        let detail = match wing_gong::linearize::<Register>(None, &operations) {
            Ok(()) => continue,
            Err(Failure::None { stuck }) => format!(
                "{} has no linearization beyond {}",
                key.escape_ascii(),
                history.calls[calls[stuck]]
            ),
            Err(Failure::GivenUp) => format!("the search for {} was given up", key.escape_ascii()),
        };
        violations.push(Violation::new(Rule::Register, detail));
    }
}

/// All keys ever written, and all values that any answer shows.
fn everything_seen(calls: &[Call]) -> (Vec<Bytes>, HashSet<Bytes>) {
    let mut keys = Vec::new();
    let mut seen = HashSet::new();
    for call in calls {
        if let Request::Kv(request) = &call.request {
            for op in request.success.iter().chain(&request.failure) {
                if let Op::Put { key, .. } = op {
                    keys.push(key.clone());
                }
            }
        }
        let Some((_, answer)) = call.as_kv() else {
            continue;
        };
        for answer in &answer.answers {
            let kvs = match answer {
                OpAnswer::Range { kvs, .. } => kvs.as_slice(),
                OpAnswer::Put { previous } => previous.as_slice(),
                OpAnswer::Delete { previous, .. } => previous.as_slice(),
            };
            seen.extend(kvs.iter().map(|kv| kv.value.clone()));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    (keys, seen)
}

fn value_of(kvs: &[KeyValue], key: &Bytes) -> Value {
    let found = kvs.iter().find(|kv| kv.key == key);
    found.map(|kv| kv.value.clone())
}

fn add_answered(
    registers: &mut Registers,
    keys: &[Bytes],
    call: &Call,
    at: usize,
    request: &KvRequest,
    answer: &KvAnswer,
) {
    let mut accesses: BTreeMap<&Bytes, Access> = BTreeMap::new();
    let mut access = |key, sees: Option<Value>, writes: Option<Value>| {
        let nothing = Access {
            sees: None,
            writes: None,
        };
        let access = accesses.entry(key).or_insert(nothing);
        // What it sees after its own write says nothing of what was there.
        if access.writes.is_none() && access.sees.is_none() {
            access.sees = sees;
        }
        if writes.is_some() {
            access.writes = writes;
        }
    };
    for (op, answer) in request.branch(answer.succeeded).iter().zip(&answer.answers) {
        match (op, answer) {
            (
                Op::Range {
                    revision: 0,
                    keys: range,
                    ..
                },
                OpAnswer::Range {
                    kvs, more: false, ..
                },
            ) => {
                for key in keys.iter().filter(|key| range.contains(key)) {
                    access(key, Some(value_of(kvs, key)), None);
                }
            }
            (Op::Put { key, value, .. }, OpAnswer::Put { previous }) => {
                let sees = value_of(previous.as_slice(), key);
                access(key, Some(sees), Some(Some(value.clone())));
            }
            (Op::Delete { keys: range }, OpAnswer::Delete { previous, .. }) => {
                for key in keys.iter().filter(|key| range.contains(key)) {
                    let sees = value_of(previous, key);
                    let writes = sees.is_some().then_some(None);
                    access(key, Some(sees), writes);
                }
            }
            _ => {}
        }
    }
    for (key, access) in accesses {
        registers.add(key, call, at, access);
    }
}

/// A write whose value nobody has seen makes no difference to this key's history: without it every
/// linearization is still one.
fn add_unknown(
    registers: &mut Registers,
    keys: &[Bytes],
    seen: &HashSet<Bytes>,
    call: &Call,
    at: usize,
    request: &KvRequest,
) {
    for op in request.success.iter().chain(&request.failure) {
        match op {
            Op::Put { key, value, .. } if seen.contains(value) => {
                let writes = Some(Some(value.clone()));
                registers.add(key, call, at, Access { sees: None, writes });
            }
            Op::Delete { keys: range } => {
                for key in keys.iter().filter(|key| range.contains(key)) {
                    let writes = Some(None);
                    registers.add(key, call, at, Access { sees: None, writes });
                }
            }
            _ => {}
        }
    }
}
