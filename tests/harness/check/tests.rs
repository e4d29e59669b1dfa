//! The checks under test: a small history that is right, and one change each that makes it wrong.

use bytes::Bytes;
use etcd_proto::mvccpb::KeyValue;

use super::model::tests::{delete, kv, put};
use super::order::{COMPACTED, NO_LEASE};
use super::{Rule, check};
use crate::history::{
    Answer, Asked, Call, Change, Heard, History, Nanos, Outcome, Request, Said, WatchEvent,
    WatchRecord,
};
use crate::request::{Keys, KvAnswer, KvRequest, Op, OpAnswer};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn call(called: Nanos, returned: Nanos, request: Request, outcome: Outcome) -> Call {
    Call {
        client: 0,
        called,
        returned,
        request,
        outcome,
    }
}

fn kv_call(
    times: (Nanos, Nanos),
    request: KvRequest,
    revision: i64,
    answers: Vec<OpAnswer>,
) -> Call {
    let answer = Answer::Kv(KvAnswer {
        revision,
        succeeded: true,
        answers,
    });
    call(
        times.0,
        times.1,
        Request::Kv(request),
        Outcome::Answered(answer),
    )
}

fn op_put(key: &'static str, value: &'static str, lease: i64) -> Op {
    Op::Put {
        key: bytes(key),
        value: bytes(value),
        lease,
    }
}

fn put_call(times: (Nanos, Nanos), key: &'static str, value: &'static str, revision: i64) -> Call {
    let request = KvRequest::single(op_put(key, value, 0));
    kv_call(
        times,
        request,
        revision,
        vec![OpAnswer::Put { previous: None }],
    )
}

fn read_call(times: (Nanos, Nanos), at: i64, revision: i64, kvs: &[KeyValue]) -> Call {
    let range = Op::Range {
        keys: Keys::all(),
        revision: at,
        limit: 0,
    };
    let found = OpAnswer::Range {
        kvs: kvs.to_vec(),
        count: i64::try_from(kvs.len()).expect("few"),
        more: false,
    };
    kv_call(times, KvRequest::single(range), revision, vec![found])
}

fn events(at: Nanos, revision: i64, changes: &[(Change, Option<KeyValue>)]) -> Heard {
    let event = |(change, previous): &(Change, Option<KeyValue>)| WatchEvent {
        change: change.clone(),
        previous: previous.clone(),
    };
    let said = Said::Events {
        events: changes.iter().map(event).collect(),
        fragment: false,
    };
    Heard { at, revision, said }
}

fn progress(at: Nanos, revision: i64) -> Heard {
    Heard {
        at,
        revision,
        said: Said::Progress,
    }
}

/// Puts of `a` (2) and `b` (3), a deletion of `a` (4), a read, and a transaction that puts `c` and
/// `d` (5). A watch sees it all.
fn right() -> History {
    let a = kv("a", "1", 2, 2, 1);
    let b = kv("b", "2", 3, 3, 1);
    let (c, d) = (put("c", "3", 5, 5, 1), put("d", "4", 5, 5, 1));
    let deletion = KvRequest::single(Op::Delete {
        keys: Keys::one(&bytes("a")),
    });
    let deleted = OpAnswer::Delete {
        deleted: 1,
        previous: vec![a.clone()],
    };
    let both = KvRequest {
        success: vec![op_put("c", "3", 0), op_put("d", "4", 0)],
        ..KvRequest::default()
    };
    let nothing = || OpAnswer::Put { previous: None };
    let told = [
        put("a", "1", 2, 2, 1),
        put("b", "2", 3, 3, 1),
        delete("a", 4),
    ];
    let watch = WatchRecord {
        watcher: 0,
        asked: Asked {
            keys: Keys::all(),
            start_revision: 2,
            prev_kv: true,
            no_put: false,
            no_delete: false,
            fragment: false,
            progress_notify: false,
        },
        at: 1,
        heard: vec![
            Heard {
                at: 2,
                revision: 1,
                said: Said::Created,
            },
            events(15, 2, &[(told[0].clone(), None)]),
            events(35, 3, &[(told[1].clone(), None)]),
            events(55, 4, &[(told[2].clone(), Some(a))]),
            progress(75, 4),
            events(95, 5, &[(c.clone(), None), (d.clone(), None)]),
        ],
        complete_to: Some(5),
    };
    History {
        calls: vec![
            put_call((0, 10), "a", "1", 2),
            put_call((20, 30), "b", "2", 3),
            kv_call((40, 50), deletion, 4, vec![deleted]),
            read_call((60, 70), 0, 4, &[b]),
            kv_call((80, 90), both, 5, vec![nothing(), nothing()]),
        ],
        watches: vec![watch],
        scribe: told.into_iter().chain([c, d]).collect(),
        ..History::default()
    }
}

/// The rules that the changed history breaks, each once.
#[track_caller]
fn breaks(expect: &[Rule], change: impl FnOnce(&mut History)) {
    let mut history = right();
    change(&mut history);
    let violations = check(&history);
    let mut rules: Vec<Rule> = violations.iter().map(|violation| violation.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    assert_eq!(rules, expect, "{violations:#?}");
}

fn heard(history: &mut History) -> &mut Vec<Heard> {
    &mut history.watches[0].heard
}

#[test]
fn what_is_right_is_right() {
    breaks(&[], |_| {});
}

#[test]
fn stale_and_wrong_reads() {
    let both = [kv("a", "1", 2, 2, 1), kv("b", "2", 3, 3, 1)];
    let stale = read_call((60, 70), 0, 3, &both);
    breaks(&[Rule::RealTime, Rule::Register], |history| {
        history.calls[3] = stale.clone();
    });
    // The same is right as long as the deletion is under way, and when it is asked for.
    breaks(&[], |history| {
        history.calls[3] = Call {
            called: 45,
            ..stale.clone()
        };
        history.watches.clear();
    });
    breaks(&[], |history| {
        let mut stale = stale.clone();
        if let Request::Kv(request) = &mut stale.request {
            request.serializable = true;
        }
        history.calls[3] = stale;
    });
    breaks(&[], |history| {
        history.calls[3] = read_call((60, 70), 3, 4, &both);
    });
    // Never a mixture, serializable or not.
    let mixture = read_call((60, 70), 0, 4, &both);
    breaks(&[Rule::Answer, Rule::Register], |history| {
        history.calls[3] = mixture.clone();
    });
    breaks(&[Rule::Answer], |history| {
        let mut mixture = mixture.clone();
        if let Request::Kv(request) = &mut mixture.request {
            request.serializable = true;
        }
        history.calls[3] = mixture;
    });
    // What was compacted is refused, and nothing else is.
    let compact = |at: Nanos| {
        let answer = Outcome::Answered(Answer::Compacted);
        call(at, at + 1, Request::Compact { revision: 4 }, answer)
    };
    breaks(&[Rule::Answer], |history| {
        history.calls[3] = read_call((60, 70), 3, 4, &both);
        history.calls.push(compact(57));
    });
    let refused = |why: &str| Outcome::Refused(why.to_owned());
    for (compacted, rules) in [(true, &[][..]), (false, &[Rule::Refusal])] {
        breaks(rules, |history| {
            history.calls[3] = read_call((60, 70), 3, 4, &both);
            history.calls[3].outcome = refused(COMPACTED);
            if compacted {
                history.calls.push(compact(65));
            }
        });
    }
    breaks(&[Rule::Refusal], |history| {
        history.calls[3].outcome = refused("etcdserver: corrupt cluster");
    });
}

#[test]
fn writes_lost_doubled_and_without_a_cause() {
    // Nothing of the answered transaction is left.
    breaks(&[Rule::Answer], |history| {
        history.scribe.truncate(3);
        history.watches[0].heard.pop();
    });
    breaks(&[Rule::Cause, Rule::Register], |history| {
        let twice = history.calls[1].clone();
        history.calls.push(twice);
    });
    breaks(&[Rule::Cause], |history| {
        history.calls.pop();
    });
    let unknown = || Outcome::Unknown(String::from("the connection broke"));
    breaks(&[], |history| history.calls[4].outcome = unknown());
    breaks(&[Rule::Cause], |history| {
        history.calls[4].outcome = unknown();
        // Sent only after its events had been heard of.
        history.calls[4].called = 96;
    });
    breaks(&[Rule::Cause], |history| {
        // One call cannot have been carried out twice.
        history.calls[4].outcome = unknown();
        history
            .scribe
            .extend([put("c", "3", 6, 5, 2), put("d", "4", 6, 5, 2)]);
    });
    breaks(&[Rule::Log, Rule::Cause], |history| {
        history.scribe.remove(1);
        history.calls.remove(1);
        history.calls[2] = read_call((60, 70), 0, 4, &[]);
        heard(history).remove(2);
    });
}

#[test]
fn watch_events() {
    let rule = &[Rule::WatchEvents];
    breaks(rule, |history| {
        let twice = heard(history)[2].clone();
        heard(history).insert(3, twice);
    });
    breaks(rule, |history| drop(heard(history).remove(2)));
    breaks(rule, |history| heard(history).swap(1, 2));
    breaks(rule, |history| drop(heard(history).pop()));
    breaks(rule, |history| history.watches[0].asked.no_delete = true);
    breaks(rule, |history| {
        history.watches[0].asked.keys = Keys::one(&bytes("b"));
    });
    breaks(rule, |history| history.watches[0].asked.start_revision = 3);
    breaks(&[], |history| {
        history.watches[0].complete_to = None;
        heard(history).pop();
    });
    breaks(&[Rule::WatchAtomic], |history| {
        let Some(Said::Events { events, .. }) = heard(history).last_mut().map(|h| &mut h.said)
        else {
            panic!("events are last");
        };
        let second = events.pop().expect("two");
        let rest = [(second.change, second.previous)];
        heard(history).push(self::events(96, 5, &rest));
    });
    breaks(&[Rule::WatchPrevious], |history| {
        history.watches[0].asked.prev_kv = false;
    });
    breaks(&[Rule::WatchPrevious], |history| {
        heard(history)[3] = events(55, 4, &[(delete("a", 4), None)]);
    });
}

#[test]
fn progress_notifications() {
    let rule = &[Rule::WatchProgress];
    breaks(rule, |history| {
        let early = progress(54, 4);
        heard(history).insert(3, early);
    });
    breaks(&[], |history| {
        let late = progress(54, 3);
        heard(history).insert(3, late);
    });
    breaks(rule, |history| {
        // A watch of the future is told nothing.
        history.watches[0].asked.start_revision = 9;
        heard(history).truncate(1);
        heard(history).push(progress(54, 3));
    });
}

#[test]
fn compaction_and_watches() {
    let canceled = |at, compact_revision| Heard {
        at,
        revision: 4,
        said: Said::Canceled {
            compact_revision,
            reason: String::new(),
        },
    };
    let compact = |called: Nanos, returned: Nanos| {
        let answer = Outcome::Answered(Answer::Compacted);
        call(called, returned, Request::Compact { revision: 4 }, answer)
    };
    let rule = &[Rule::WatchCompaction];
    breaks(rule, |history| {
        heard(history).truncate(2);
        heard(history).push(canceled(52, 4));
    });
    breaks(&[], |history| {
        heard(history).truncate(2);
        heard(history).push(canceled(52, 4));
        history.calls.push(compact(51, 53));
    });
    breaks(rule, |history| {
        // It had been told of all that was compacted.
        heard(history).truncate(4);
        heard(history).push(canceled(57, 4));
        history.calls.push(compact(51, 53));
    });
    breaks(rule, |history| {
        // It should have been refused.
        history.watches[0].at = 58;
        for heard in heard(history) {
            heard.at += 58;
        }
        history.calls.push(compact(51, 53));
    });
}

const SECOND: Nanos = 1_000_000_000;

/// A lease of 2 s on `e` (6), which goes with it (7), heard of at `gone`.
fn with_lease(history: &mut History, gone: Nanos) {
    let granted = Outcome::Answered(Answer::Granted { ttl: 2 });
    history
        .calls
        .push(call(100, 110, Request::Grant { id: 8, ttl: 2 }, granted));
    let mut e = put("e", "5", 6, 6, 1);
    if let Some(kv) = &mut e.kv {
        kv.lease = 8;
    }
    let request = KvRequest::single(op_put("e", "5", 8));
    let nothing = OpAnswer::Put { previous: None };
    history
        .calls
        .push(kv_call((120, 130), request, 6, vec![nothing]));
    history.scribe.extend([e.clone(), delete("e", 7)]);
    heard(history).push(events(140, 6, &[(e.clone(), None)]));
    heard(history).push(events(gone, 7, &[(delete("e", 7), e.kv)]));
}

#[test]
fn leases() {
    let rule = &[Rule::Lease];
    breaks(&[], |history| with_lease(history, 2 * SECOND + 100));
    breaks(rule, |history| {
        with_lease(history, 2 * SECOND - SECOND / 10);
    });
    let keep_alive = |called: Nanos, ttl| {
        let answer = Outcome::Answered(Answer::KeptAlive { ttl });
        call(called, called + 10, Request::KeepAlive { id: 8 }, answer)
    };
    breaks(rule, |history| {
        history.calls.push(keep_alive(SECOND, 2));
        with_lease(history, 2 * SECOND + 100);
    });
    breaks(&[], |history| {
        history.calls.push(keep_alive(SECOND, 2));
        with_lease(history, 3 * SECOND + 100);
    });
    breaks(rule, |history| {
        history.calls.push(keep_alive(SECOND, 0));
        with_lease(history, 2 * SECOND + 100);
    });
    let revoke = |called: Nanos, revision| {
        let answer = Outcome::Answered(Answer::Revoked { revision });
        call(called, called + 10, Request::Revoke { id: 8 }, answer)
    };
    breaks(&[], |history| {
        with_lease(history, SECOND);
        history.calls.push(revoke(SECOND - 20, 7));
    });
    breaks(rule, |history| {
        with_lease(history, SECOND);
        history.calls.push(revoke(SECOND - 20, 7));
        history.calls.push(keep_alive(SECOND, 2));
    });
    let refused = || Outcome::Refused(NO_LEASE.to_owned());
    for (called, rules) in [(SECOND, &[Rule::Lease][..]), (3 * SECOND, &[])] {
        breaks(rules, |history| {
            with_lease(history, 2 * SECOND + 100);
            let request = Request::Kv(KvRequest::single(op_put("f", "6", 8)));
            history
                .calls
                .push(call(called, called + 10, request, refused()));
        });
    }
}
