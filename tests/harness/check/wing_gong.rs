//! The search of Wing and Gong (1993) with the memory of Lowe (2017): is there an order of the
//! operations that real time allows and that the model accepts?
//!
//! Worked example. A put of 1 takes from 0 to 10, a read from 2 to 5 finds 1, a read from 6 to 8
//! finds nothing. The first read forces the put before it, then nothing can make the second one
//! right: there is no order. Had the first read found nothing, put and reads could take either order
//! that lets both reads come first.
//!
//! An optional operation is one whose outcome nobody knows: it takes effect once, at any time from its call on, or
//! never.

use std::collections::HashSet;
use std::hash::Hash;

use crate::history::Nanos;

#[derive(Clone, Debug)]
pub struct Operation<T> {
    pub called: Nanos,
    /// `None`: optional.
    pub returned: Option<Nanos>,
    pub action: T,
}

/// A sequential object.
pub trait Model {
    type State: Clone + Eq + Hash;
    type Action;

    /// The state after the action, or `None` if it cannot have had this outcome here.
    fn step(state: &Self::State, action: &Self::Action) -> Option<Self::State>;

    /// Of optional actions that are equal in this sense, the first one called may stand for all.
    fn is_same(a: &Self::Action, b: &Self::Action) -> bool;
}

/// Why there is no linearization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No order exists. The operation, by its position, that the longest attempt could not get past.
    None { stuck: usize },
    /// The search was given up after [`MAX_STEPS`].
    GivenUp,
}

/// Far beyond what a history with an answer takes.
const MAX_STEPS: usize = 3_000_000;

/// A place in the search.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place<S> {
    state: S,
    /// All operations that must take effect and are called before this position have.
    low: usize,
    /// Those that have at or behind `low`, ascending.
    above: Vec<usize>,
    /// Optional operations that have taken effect, ascending.
    used: Vec<usize>,
}

/// Looks for a linearization from the initial state.
pub fn linearize<M: Model>(
    initial: M::State,
    operations: &[Operation<M::Action>],
) -> Result<(), Failure> {
    let mut required: Vec<usize> = Vec::new();
    let mut optional: Vec<usize> = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        if operation.returned.is_some() {
            required.push(at);
        } else {
            optional.push(at);
        }
    }
    required.sort_by_key(|at| operations[*at].called);
    optional.sort_by_key(|at| operations[*at].called);
    let start = Place {
        state: initial,
        low: 0,
        above: Vec::new(),
        used: Vec::new(),
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut stack = vec![start];
    let mut furthest = 0;
    while let Some(place) = stack.pop() {
        if place.low == required.len() {
            return Ok(());
        }
        if seen.len() > MAX_STEPS {
            return Err(Failure::GivenUp);
        }
        furthest = furthest.max(place.low);
        let pending: Vec<usize> = pending(operations, &required, &place);
        // Whatever comes next must have been called before any pending operation returned.
        let deadline = pending
            .iter()
            .filter_map(|at| operations[required[*at]].returned)
            .min()
            .unwrap_or(Nanos::MAX);
        let mut next = Vec::new();
        for at in pending {
            let operation = &operations[required[at]];
            if operation.called > deadline {
                continue;
            }
            let Some(state) = M::step(&place.state, &operation.action) else {
                continue;
            };
            let reads_only = state == place.state;
            let place = advanced(&place, state, at);
            if reads_only {
                // It fits here and changes nothing: wherever else it fits, here is as good.
                next = vec![place];
                break;
            }
            next.push(place);
        }
        if !next.first().is_some_and(|next| next.state == place.state) {
            let mut tried: Vec<usize> = Vec::new();
            let mut used = Vec::new();
            for (at, index) in optional.iter().enumerate() {
                let operation = &operations[*index];
                let free = place.used.binary_search(&at).is_err();
                let same = |other: &usize| {
                    M::is_same(&operations[optional[*other]].action, &operation.action)
                };
                if operation.called > deadline || !free || tried.iter().any(same) {
                    continue;
                }
                tried.push(at);
                if let Some(state) = M::step(&place.state, &operation.action)
                    && state != place.state
                {
                    let mut place = Place {
                        state,
                        ..place.clone()
                    };
                    let position = place.used.partition_point(|used| *used < at);
                    place.used.insert(position, at);
                    used.push(place);
                }
            }
            // The last one pushed is tried first: what is known to have happened before what may have.
            used.append(&mut next);
            next = used;
        }
        for place in next {
            if seen.insert(place.clone()) {
                stack.push(place);
            }
        }
    }
    Err(Failure::None {
        stuck: required[furthest],
    })
}

/// Positions in `required` that have not taken effect and may be next: up to the first one that was called after
/// an earlier one had returned.
fn pending<T>(
    operations: &[Operation<T>],
    required: &[usize],
    place: &Place<impl Sized>,
) -> Vec<usize> {
    let mut pending = Vec::new();
    let mut deadline = Nanos::MAX;
    for (at, index) in required.iter().enumerate().skip(place.low) {
        let operation = &operations[*index];
        if operation.called > deadline {
            break;
        }
        if place.above.binary_search(&at).is_err() {
            deadline = deadline.min(operation.returned.unwrap_or(Nanos::MAX));
            pending.push(at);
        }
    }
    pending
}

fn advanced<S: Clone>(place: &Place<S>, state: S, at: usize) -> Place<S> {
    let mut above = place.above.clone();
    let position = above.partition_point(|other| *other < at);
    above.insert(position, at);
    let mut low = place.low;
    let done = above.iter().take_while(|at| {
        let next = **at == low;
        low += usize::from(next);
        next
    });
    let done = done.count();
    above.drain(..done);
    Place {
        state,
        low,
        above,
        used: place.used.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that is written, or read.
    struct Register;

    #[derive(Clone, Copy, Debug)]
    enum Action {
        Write(u8),
        Read(u8),
    }
    use Action::{Read, Write};

    impl Model for Register {
        type State = u8;
        type Action = Action;

        fn step(state: &u8, action: &Action) -> Option<u8> {
            match action {
                Write(value) => Some(*value),
                Read(value) => (value == state).then_some(*state),
            }
        }

        fn is_same(_: &Action, _: &Action) -> bool {
            false
        }
    }

    #[track_caller]
    fn check(operations: &[(Nanos, Option<Nanos>, Action)], expect: Result<(), Failure>) {
        let operations: Vec<_> = operations
            .iter()
            .map(|(called, returned, action)| Operation {
                called: *called,
                returned: *returned,
                action: *action,
            })
            .collect();
        assert_eq!(
            linearize::<Register>(0, &operations),
            expect,
            "{operations:?}"
        );
    }

    fn stuck(at: usize) -> Result<(), Failure> {
        Err(Failure::None { stuck: at })
    }

    #[test]
    fn the_worked_example() {
        check(
            &[
                (0, Some(10), Write(1)),
                (2, Some(5), Read(1)),
                (6, Some(8), Read(0)),
            ],
            stuck(2),
        );
        check(
            &[
                (0, Some(10), Write(1)),
                (2, Some(5), Read(0)),
                (6, Some(8), Read(0)),
            ],
            Ok(()),
        );
        check(
            &[
                (0, Some(10), Write(1)),
                (2, Some(5), Read(0)),
                (6, Some(8), Read(1)),
            ],
            Ok(()),
        );
        check(&[], Ok(()));
    }

    #[test]
    fn real_time_binds() {
        check(&[(0, Some(1), Write(1)), (2, Some(3), Read(0))], stuck(1));
        check(&[(0, Some(1), Write(1)), (1, Some(3), Read(0))], Ok(()));
        check(
            &[
                (0, Some(9), Write(1)),
                (0, Some(9), Write(2)),
                (10, Some(11), Read(1)),
                (12, Some(13), Read(2)),
            ],
            stuck(3),
        );
        check(
            &[
                (0, Some(9), Write(1)),
                (0, Some(12), Write(2)),
                (10, Some(11), Read(1)),
                (13, Some(14), Read(2)),
            ],
            Ok(()),
        );
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never_but_once() {
        let unknown = (0, None, Write(1));
        check(
            &[unknown, (5, Some(6), Read(0)), (7, Some(8), Read(1))],
            Ok(()),
        );
        check(
            &[unknown, (5, Some(6), Read(0)), (7, Some(8), Read(0))],
            Ok(()),
        );
        check(
            &[unknown, (5, Some(6), Read(1)), (7, Some(8), Read(0))],
            stuck(2),
        );
        let (two, one) = ((6, Some(7), Write(2)), (8, Some(9), Read(1)));
        check(&[unknown, (3, Some(4), Read(1)), two, one], stuck(3));
        check(&[unknown, (3, Some(4), Read(0)), two, one], Ok(()));
        // Not before its call.
        check(&[(5, None, Write(1)), (2, Some(3), Read(1))], stuck(1));
    }
}
