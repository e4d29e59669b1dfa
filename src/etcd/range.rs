//! Range: reading keys, with every option that a request has.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::RangeRequest;
use etcd_proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::error::Error;
use super::key_range::KeyRange;
use super::record::SharedRecord;
use super::view::{Fault, Fetched, View};

/// What a Range found.
#[derive(Clone, Debug)]
pub struct RangeAnswer {
    /// The newest revision at the time of the read, whatever revision was read at.
    pub revision: i64,
    pub records: Vec<SharedRecord>,
    pub keys_only: bool,
    /// The limit cut the answer.
    pub more: bool,
    /// Keys in the range, whatever limit and filters say.
    pub count: usize,
}

pub fn validate(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let known_order = SortOrder::try_from(request.sort_order).is_ok();
    if !known_order || SortTarget::try_from(request.sort_target).is_err() {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes(request: &RangeRequest, record: &SharedRecord) -> bool {
    let within = |revision: i64, min: i64, max: i64| {
        (min == 0 || revision >= min) && (max == 0 || revision <= max)
    };
    within(
        record.revision.main,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        record.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

/// Evaluates a validated request. Values that the answer needs are left to the caller to fetch;
/// those that decide the order must be in memory or in `fetched`.
pub fn evaluate(
    view: &impl View,
    request: &RangeRequest,
    fetched: &Fetched,
) -> Result<RangeAnswer, Fault> {
    let at = view.resolve(request.revision)?;
    let range = KeyRange::new(&request.key, &request.range_end);
    let mut answer = RangeAnswer {
        revision: view.revision(),
        records: Vec::new(),
        keys_only: request.keys_only,
        more: false,
        count: 0,
    };
    if request.count_only {
        answer.count = view.count(&range, at);
        return Ok(answer);
    }
    let order = sort_order(request);
    let filtered = has_filters(request);
    let limit = usize::try_from(request.limit)
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    // Sorted or filtered, the limit holds for what is left.
    let scan_limit = if order.is_some() || filtered {
        usize::MAX
    } else {
        limit
    };
    view.scan(&range, at, &mut |record| {
        if answer.records.len() == scan_limit {
            answer.more = true;
            return ControlFlow::Break(());
        }
        answer.count += 1;
        if !filtered || passes(request, record) {
            answer.records.push(Arc::clone(record));
        }
        ControlFlow::Continue(())
    });
    if answer.more {
        answer.count = view.count(&range, at);
    }
    if let Some((target, descending)) = order {
        sort(&mut answer.records, target, descending, fetched)?;
    }
    if answer.records.len() > limit {
        answer.records.truncate(limit);
        answer.more = true;
    }
    Ok(answer)
}

/// `None` for the order of the keys, which is how they come.
fn sort_order(request: &RangeRequest) -> Option<(SortTarget, bool)> {
    let target = request.sort_target();
    match request.sort_order() {
        SortOrder::Descend => Some((target, true)),
        _ if target == SortTarget::Key => None,
        SortOrder::None | SortOrder::Ascend => Some((target, false)),
    }
}

fn sort(
    records: &mut Vec<SharedRecord>,
    target: SortTarget,
    descending: bool,
    fetched: &Fetched,
) -> Result<(), Fault> {
    let directed = |order: Ordering| if descending { order.reverse() } else { order };
    let by = |of: fn(&SharedRecord) -> i64| {
        move |a: &SharedRecord, b: &SharedRecord| directed(of(a).cmp(&of(b)))
    };
    match target {
        SortTarget::Key => records.sort_by(|a, b| directed(a.key.cmp(&b.key))),
        SortTarget::Version => records.sort_by(by(|record| record.version)),
        SortTarget::Create => records.sort_by(by(|record| record.create_revision)),
        SortTarget::Mod => records.sort_by(by(|record| record.revision.main)),
        SortTarget::Value => {
            let values = values(records, fetched)?;
            let mut pairs: Vec<_> = values.into_iter().zip(records.drain(..)).collect();
            pairs.sort_by(|(a, _), (b, _)| directed(a.cmp(b)));
            records.extend(pairs.into_iter().map(|(_, record)| record));
        }
    }
    Ok(())
}

/// The records' values, or which of them must be fetched first.
pub fn values(records: &[SharedRecord], fetched: &Fetched) -> Result<Vec<Bytes>, Fault> {
    let mut missing = Vec::new();
    let values = records
        .iter()
        .map(|record| {
            let value = record
                .value()
                .or_else(|| fetched.get(&record.revision)?.value());
            value.unwrap_or_else(|| {
                missing.push(record.revision);
                Bytes::new()
            })
        })
        .collect();
    if missing.is_empty() {
        Ok(values)
    } else {
        Err(Fault::Needs(missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::record::{Record, Revision};
    use crate::etcd::view::State;

    /// Keys b, a, c put in this order at 2, 3, 4 with values z, y, x; then b again at 5.
    fn state() -> State {
        let mut state = State::default();
        for (key, value) in [("b", "z"), ("a", "y"), ("c", "x"), ("b", "w")] {
            state.revision += 1;
            let key = Bytes::from_static(key.as_bytes());
            let previous = state.get(&key, state.revision);
            let revision = Revision {
                main: state.revision,
                sub: 0,
            };
            let value = Bytes::from_static(value.as_bytes());
            let record = Record::put(&key, value, 0, revision, previous.as_deref());
            state.index.insert(Arc::new(record));
        }
        state.compacted = 3;
        state
    }

    fn all() -> RangeRequest {
        RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            ..RangeRequest::default()
        }
    }

    fn check(request: RangeRequest, keys: &str, more: bool, count: usize) {
        let answer = evaluate(&state(), &request, &Fetched::new()).expect("valid");
        let seen: String = answer
            .records
            .iter()
            .map(|record| std::str::from_utf8(&record.key).expect("text"))
            .collect();
        assert_eq!(
            (seen.as_str(), answer.more, answer.count, answer.revision),
            (keys, more, count, 5),
            "{request:?}"
        );
    }

    #[test]
    fn every_option() {
        use SortOrder::{Ascend, Descend};
        let sorted = |target: SortTarget, order: SortOrder, limit| RangeRequest {
            sort_target: target.into(),
            sort_order: order.into(),
            limit,
            ..all()
        };
        check(all(), "abc", false, 3);
        check(RangeRequest { limit: 2, ..all() }, "ab", true, 3);
        check(RangeRequest { limit: 3, ..all() }, "abc", false, 3);
        check(RangeRequest { limit: -1, ..all() }, "abc", false, 3);
        check(
            RangeRequest {
                revision: 3,
                ..all()
            },
            "ab",
            false,
            2,
        );
        check(
            RangeRequest {
                count_only: true,
                limit: 1,
                ..all()
            },
            "",
            false,
            3,
        );
        check(
            RangeRequest {
                min_mod_revision: 4,
                ..all()
            },
            "bc",
            false,
            3,
        );
        check(
            RangeRequest {
                max_mod_revision: 4,
                ..all()
            },
            "ac",
            false,
            3,
        );
        check(
            RangeRequest {
                min_create_revision: 3,
                ..all()
            },
            "ac",
            false,
            3,
        );
        check(
            RangeRequest {
                max_create_revision: 3,
                limit: 1,
                ..all()
            },
            "a",
            true,
            3,
        );
        check(sorted(SortTarget::Key, Descend, 2), "cb", true, 3);
        check(sorted(SortTarget::Key, Ascend, 0), "abc", false, 3);
        check(sorted(SortTarget::Version, Descend, 1), "b", true, 3);
        check(sorted(SortTarget::Version, Ascend, 0), "acb", false, 3);
        check(sorted(SortTarget::Create, Ascend, 0), "bac", false, 3);
        check(sorted(SortTarget::Mod, Descend, 0), "bca", false, 3);
        check(sorted(SortTarget::Mod, SortOrder::None, 0), "acb", false, 3);
        check(sorted(SortTarget::Value, Ascend, 0), "bca", false, 3);
        check(sorted(SortTarget::Value, Descend, 0), "acb", false, 3);
    }

    #[test]
    fn revisions_outside_the_history() {
        let refused = |revision| {
            let request = RangeRequest { revision, ..all() };
            match evaluate(&state(), &request, &Fetched::new()) {
                Err(Fault::Refused(error)) => Some(error),
                _ => None,
            }
        };
        assert_eq!(refused(2), Some(Error::Compacted));
        assert_eq!(refused(3), None);
        assert_eq!(refused(5), None);
        assert_eq!(refused(6), Some(Error::FutureRevision));
        assert_eq!(refused(-1), None);
    }

    #[test]
    fn sorting_by_values_asks_for_those_that_are_not_in_memory() {
        let mut state = state();
        let revision = Revision { main: 4, sub: 0 };
        let full = state.get(b"c", 5).expect("put");
        state.index.drop_value(b"c", revision);
        let request = RangeRequest {
            sort_target: SortTarget::Value.into(),
            ..all()
        };
        let needs = evaluate(&state, &request, &Fetched::new()).expect_err("must ask");
        assert_eq!(needs, Fault::Needs(vec![revision]));
        let fetched = Fetched::from([(revision, full)]);
        assert!(evaluate(&state, &request, &fetched).is_ok());
    }
}
